"""The public item catalogue: what every participant holds alike, named by one digest.

Guarantee: a loaded catalogue is the one that was saved: both files are checked against the SHA-256 that
`catalogue.json` lists before they are parsed, and `digest` is the SHA-256 of `catalogue.json` itself, so one digest in
a job text pins ids, titles, categories, features and how they were made. Nothing in it may depend on any user's data.

A catalogue is a directory:

    items.jsonl            one canonical JSON object for each item, in index order
    features.safetensors   one tensor, "features", float32[items, F]
    catalogue.json         schema, sizes, feature blocks, encoder, phrasing, SHA-256 and size of the two files

The features are made once and handed out as a file: linear algebra differs in the last bits between machines, so that
building twice gives two digests.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as dump_safetensors

from veil.errors import ArtifactError, DataError, InputError
from veil.files import atomic_directory, read_bounded
from veil.jobs.spec import canonical, describe
from veil.recsys.items import MAX_ITEMS, ItemTable

__all__ = ["Block", "Catalogue", "ItemTable"]

SCHEMA: Literal["veil.catalogue/1"] = "veil.catalogue/1"
MAX_FEATURES = 65_536
MAX_HEAD_BYTES = 1024 * 1024
MAX_FILE_BYTES = 4 * 1024**3

Float32 = npt.NDArray[np.float32]


class Block(BaseModel):
    """One run of feature columns. `scaling` says in words how its columns were scaled."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
    size: int = Field(gt=0, le=MAX_FEATURES)
    scaling: Annotated[str, StringConstraints(max_length=200)]


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: int = Field(ge=0, le=MAX_FILE_BYTES)


class _Head(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)

    schema_: Literal["veil.catalogue/1"] = Field(default=SCHEMA, alias="schema")
    items: int = Field(gt=0, le=MAX_ITEMS)
    features: int = Field(ge=0, le=MAX_FEATURES)
    blocks: list[Block] = Field(max_length=64)
    encoder: Annotated[str, StringConstraints(max_length=200)]
    phrasing: Annotated[str, StringConstraints(max_length=64)]
    files: dict[Literal["items.jsonl", "features.safetensors"], _File]


class _Item(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str
    title: str
    categories: list[str]
    year: int = 0
    text: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class Catalogue:
    """Items and their public features.

    Attributes:
        table: ids, titles, categories, years and texts (`ItemTable`).
        features: float32[items, F], finite, read-only; F may be 0.
        blocks: the runs of columns that make up F, in order; () when not recorded.
        encoder: name and digest of the text encoder, or "none".
        phrasing: name of the phrasing set that the texts were made with, or "none".
    """

    table: ItemTable
    features: Float32
    blocks: tuple[Block, ...] = ()
    encoder: str = "none"
    phrasing: str = "none"

    def __post_init__(self) -> None:
        """Checks shapes; raises `DataError`."""
        features = np.ascontiguousarray(self.features, dtype=np.float32)
        if features.ndim != 2 or len(features) != len(self.table) or features.shape[1] > MAX_FEATURES:
            raise DataError(
                f"got features of shape {features.shape}, expected ({len(self.table)}, at most {MAX_FEATURES})"
            )
        if not bool(np.isfinite(features).all()):
            raise DataError("got features that are not finite, expected finite numbers")
        if self.blocks and sum(block.size for block in self.blocks) != features.shape[1]:
            raise DataError(f"got blocks that do not add up to the {features.shape[1]} feature columns")
        if features.flags.writeable:
            features = features.copy() if features is self.features else features
            features.flags.writeable = False
        object.__setattr__(self, "features", features)

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.table)

    @property
    def ids(self) -> tuple[str, ...]:
        """Item ids in index order."""
        return self.table.ids

    @property
    def titles(self) -> tuple[str, ...]:
        """Titles in index order."""
        return self.table.titles

    @property
    def categories(self) -> tuple[tuple[str, ...], ...]:
        """Categories of each item in index order."""
        return self.table.categories

    @cached_property
    def digest(self) -> str:
        """`sha256:` and the SHA-256 of the `catalogue.json` that `save` writes."""
        return _digest_of(self._files()["catalogue.json"])

    def block(self, name: str) -> Float32:
        """float32[items, size]: the columns of one block; raises `DataError` when there is none of that name."""
        start = 0
        for block in self.blocks:
            if block.name == name:
                return self.features[:, start : start + block.size]
            start += block.size
        raise DataError(
            f"got block {name!r}, expected one of {', '.join(block.name for block in self.blocks) or 'none'}"
        )

    def save(self, directory: Path) -> str:
        """Writes the directory, whole or not at all, and returns the digest. Raises `StateError` when it exists."""
        files = self._files()
        with atomic_directory(Path(directory)) as temporary:
            for name, data in files.items():
                (temporary / name).write_bytes(data)
        return _digest_of(files["catalogue.json"])

    @classmethod
    def load(cls, directory: Path, *, expect_digest: str | None = None) -> Catalogue:
        """Reads and verifies a directory.

        Raises `ArtifactError` when the digest is not `expect_digest` (a `sha256:` text) or when a file is missing,
        altered or malformed.
        """
        directory = Path(directory)
        head_bytes = _read(directory / "catalogue.json", MAX_HEAD_BYTES)
        digest = _digest_of(head_bytes)
        if expect_digest is not None and digest != expect_digest:
            raise ArtifactError(
                f"got catalogue {digest}, expected {expect_digest}",
                hint="take the catalogue that the consortium agreed on",
            )
        try:
            head = _Head.model_validate(json.loads(head_bytes))
        except ValidationError as error:
            raise ArtifactError(f"catalogue.json: {describe(error)}") from None
        except (ValueError, RecursionError):
            raise ArtifactError("got a catalogue.json that is not JSON, expected a catalogue made by Veil") from None
        if len(head.files) != 2:
            raise ArtifactError("got a catalogue.json that does not list both files")
        data = {}
        for name, listed in head.files.items():
            data[name] = _read(directory / name, listed.size_bytes)
            if len(data[name]) != listed.size_bytes or hashlib.sha256(data[name]).hexdigest() != listed.sha256:
                raise ArtifactError(f"got {name} altered, expected the file that catalogue.json lists by SHA-256")
        try:
            catalogue = cls(
                table=_parse_items(data["items.jsonl"], head.items),
                features=_parse_features(data["features.safetensors"], (head.items, head.features)),
                blocks=tuple(head.blocks),
                encoder=head.encoder,
                phrasing=head.phrasing,
            )
        except DataError as error:
            raise ArtifactError(f"catalogue: {error.message}") from None
        catalogue.__dict__["digest"] = digest
        return catalogue

    def _files(self) -> dict[str, bytes]:
        table = self.table
        lines = []
        for index, (identifier, title, names) in enumerate(zip(table.ids, table.titles, table.categories, strict=True)):
            item: dict[str, object] = {"id": identifier, "title": title, "categories": list(names)}
            if table.years and table.years[index]:
                item["year"] = table.years[index]
            if table.texts and table.texts[index]:
                item["text"] = table.texts[index]
            lines.append(canonical(item))
        files = {
            "items.jsonl": ("\n".join(lines) + "\n").encode("ascii"),
            "features.safetensors": dump_safetensors({"features": self.features}),
        }
        head = _Head(
            items=self.items,
            features=self.features.shape[1],
            blocks=list(self.blocks),
            encoder=self.encoder,
            phrasing=self.phrasing,
            files={
                "items.jsonl": _listed(files["items.jsonl"]),
                "features.safetensors": _listed(files["features.safetensors"]),
            },
        )
        return {
            **files,
            "catalogue.json": (canonical(head.model_dump(mode="json", by_alias=True)) + "\n").encode("ascii"),
        }

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        names = "+".join(f"{block.name}:{block.size}" for block in self.blocks)
        return f"Catalogue(items={self.items}, features={self.features.shape[1]} [{names}], encoder={self.encoder!r})"


def _listed(data: bytes) -> _File:
    return _File(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def _digest_of(head: bytes) -> str:
    return f"sha256:{hashlib.sha256(head).hexdigest()}"


def _read(path: Path, limit_bytes: int) -> bytes:
    try:
        return read_bounded(path, limit_bytes)
    except InputError as error:
        raise ArtifactError(
            error.message, hint="a catalogue is a directory written by `veil catalogue build`"
        ) from None


def _parse_items(data: bytes, items: int) -> ItemTable:
    lines = data.decode("ascii", "replace").split("\n")
    if lines[-1] or len(lines) != items + 1:
        raise ArtifactError(f"got {len(lines) - 1} lines in items.jsonl, expected {items}")
    parsed = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            parsed.append(_Item.model_validate_json(line))
        except ValidationError as error:
            raise ArtifactError(f"items.jsonl line {number}: {describe(error)}") from None
    years, texts = tuple(one.year for one in parsed), tuple(one.text for one in parsed)
    return ItemTable(
        ids=tuple(one.id for one in parsed),
        titles=tuple(one.title for one in parsed),
        categories=tuple(tuple(one.categories) for one in parsed),
        years=years if any(years) else (),
        texts=texts if any(texts) else (),
    )


def _parse_features(data: bytes, shape: Sequence[int]) -> Float32:
    if len(data) > math.prod(shape) * 4 + MAX_HEAD_BYTES:
        raise ArtifactError(f"got {len(data)} bytes of features, expected about {math.prod(shape) * 4}")
    try:
        tensors = parse_safetensors(data)
    except (SafetensorError, ValueError, KeyError):
        raise ArtifactError("got features.safetensors that does not parse") from None
    features = tensors.get("features")
    if (
        list(tensors) != ["features"]
        or features is None
        or features.dtype != np.float32
        or features.shape != tuple(shape)
    ):
        raise ArtifactError(f"got other tensors in features.safetensors, expected features float32{tuple(shape)}")
    return np.asarray(features, dtype=np.float32)
