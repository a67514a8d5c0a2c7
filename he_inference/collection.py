"""Published models on columns as one catalogue: each model's linear part is an item, a client's encoded row the vector.

Guarantee: a `Collection` that parses is within bounds, and its digest covers the bytes of every file that a client
gets of every model, signatures included; whoever knows the digest (an offer has it) gets those files or refuses.

Features lie in pieces of at most `MAX_DIMENSIONS`: a row of more is asked in several queries, and an item is one piece
of one model, so that a model's score is the sum of its pieces' scores, each from the query of that piece:

    pieces K = ceil(features / MAX_DIMENSIONS)      dimensions d = ceil(features / K), the last piece padded with zeros
    item m K + k = weights of model m for features k d to (k + 1) d        score m = intercept m + sum over k

The files of all models travel as one stream, `PART`, in the order of the collection and of `PART_FILES`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from he_inference.layouts.seam import MAX_DIMENSIONS
from veil.errors import ArtifactError
from veil.jobs.spec import Name, canonical
from veil.recsys.manifest import FileEntry
from veil.recsys.signed import parsed
from veil.tabular.schema import MOST_WIDTH

COLLECTION: Final = "collection.json"
PART: Final = "collection.part"
# What the holder of rows verifies and needs (`veil.trainers.columns.linear`); weights.safetensors stays at the server.
PART_FILES: Final = ("manifest.json", "signatures.json", "job.json", "columns.json", "client.safetensors")
MOST_MODELS: Final = 256
MAX_COLLECTION_BYTES: Final = 1024 * 1024
# Of one model: manifest and signatures below 2 MiB, a job text below 1 MiB, 16 bytes for each feature.
_MOST_PART_BYTES: Final = 8 * 1024 * 1024
_DOMAIN: Final = b"veil/collection/v1\x00"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)


class Member(_Frozen):
    """One model. name: what the operator calls it. files: of `PART_FILES`, in their order."""

    name: Name
    model: Literal["logistic", "perceptron", "towers"]
    files: Annotated[tuple[FileEntry, ...], Field(strict=False, min_length=5, max_length=5)]

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.size_bytes > _MOST_PART_BYTES:
            raise ValueError(f"got files of {self.size_bytes} bytes, expected at most {_MOST_PART_BYTES}")
        return self

    @property
    def size_bytes(self) -> int:
        """Bytes of its files."""
        return sum(entry.size_bytes for entry in self.files)


class Collection(_Frozen):
    """Models of the same columns. features: of a joint row of all parties."""

    schema_: Literal["veil.collection/1"] = Field(default="veil.collection/1", alias="schema")
    features: int = Field(ge=1, le=MOST_WIDTH)
    models: Annotated[tuple[Member, ...], Field(strict=False, min_length=1, max_length=MOST_MODELS)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len({member.name for member in self.models}) != len(self.models):
            raise ValueError("got a name twice, expected each model once")
        return self

    @property
    def pieces(self) -> int:
        """K: queries for one row."""
        return -(-self.features // MAX_DIMENSIONS)

    @property
    def dimensions(self) -> int:
        """d: features of a piece."""
        return -(-self.features // self.pieces)

    @property
    def items(self) -> int:
        """Items of the index: pieces of all models."""
        return len(self.models) * self.pieces

    @property
    def part_bytes(self) -> int:
        """Length of the stream of files."""
        return sum(member.size_bytes for member in self.models)

    def ids(self) -> tuple[str, ...]:
        """Names of the items, in order."""
        names = [member.name for member in self.models]
        return tuple(name if self.pieces == 1 else f"{name}#{piece}" for name in names for piece in range(self.pieces))

    def text(self) -> bytes:
        """Canonical JSON."""
        return canonical(self.model_dump(mode="json", by_alias=True)).encode("ascii")

    @property
    def digest(self) -> bytes:
        """What names the collection, 32 bytes: in offers, indexes and answers, where a recommender has its manifest."""
        return hashlib.sha256(_DOMAIN + self.text()).digest()

    def split(self, part: bytes) -> Iterator[tuple[Member, dict[str, bytes]]]:
        """Each model's files out of the stream, each of the listed SHA-256. Raises `ArtifactError`."""
        if len(part) != self.part_bytes:
            raise ArtifactError(f"got {len(part)} bytes of model files, expected {self.part_bytes}")
        start = 0
        for member in self.models:
            files: dict[str, bytes] = {}
            for name, entry in zip(PART_FILES, member.files, strict=True):
                data = part[start : start + entry.size_bytes]
                if hashlib.sha256(data).hexdigest() != entry.sha256:
                    raise ArtifactError(f"got {name} of model {member.name} altered, expected the listed SHA-256")
                files[name], start = data, start + entry.size_bytes
            yield member, files


def parse_collection(text: bytes, digest: bytes) -> Collection:
    """The collection of that digest. Raises `ArtifactError` for any other bytes."""
    if hashlib.sha256(_DOMAIN + text).digest() != digest:
        raise ArtifactError("got another collection of models than the server's parameters name, expected the same")
    return parsed(TypeAdapter(Collection), text, COLLECTION)
