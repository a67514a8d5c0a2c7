"""Index files of the offers of a scoring server: found, or built in a process of their own, which ends afterwards.

    python -m he_inference.service.indexing    JSON on standard input; item vectors float32[items, d] in its "rows"

Guarantee: what `index_files` returns is of that model, of those layouts and without those hidden items. A file that is
of another model, is damaged or absent is replaced by a new one, all or nothing; whoever has the old one open keeps it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from he_inference.layouts.catalogue import layout_of, packing_of
from he_inference.layouts.seam import Layout
from he_inference.service.config import OfferSpec
from he_inference.service.process import IndexFile
from he_inference.service.published import PublishedModel
from he_inference.service.setting import environment
from veil.errors import ArtifactError, StateError, VeilError

_LONGEST_S = 6 * 3600.0
# An index made for longer items serves a new model as long as the bound of score errors grows by this factor at most.
_MOST_HEADROOM = 1.25
_HIDDEN_DOMAIN = b"veil/hidden-items/v1\x00"
_log = logging.getLogger("veil.he_inference.service.indexing")


@dataclass(frozen=True)
class Wanted:
    """An index: its files, of which offer, and the numbers of items whose rows are zero in it, int64[hidden]."""

    paths: tuple[Path, ...]
    spec: OfferSpec
    hidden: NDArray[np.int64] | None = field(default=None, repr=False)

    @property
    def hidden_digest(self) -> bytes | None:
        """Names the hidden items, 32 bytes; it stands in such an index in place of the digest of the items' ids."""
        if self.hidden is None:
            return None
        return hashlib.sha256(_HIDDEN_DOMAIN + self.hidden.astype("<i8").tobytes()).digest()


def paths_of(index: Path, spec: OfferSpec) -> tuple[Path, ...]:
    """The files of an audience's index, whose name is configured."""
    return (index,) if len(spec.file_names) == 1 else (index.with_name(f"{index.name}.fold-in"), index)


def index_files(
    wanted: Sequence[Wanted], model: PublishedModel, scratch: Path, *, threads: int = 0, anew: bool = False
) -> list[IndexFile]:
    """The index files of that model, in order. scratch: a folder for what the builder reads. anew: even those that seem
    to be good are built.

    Raises `StateError` when one cannot be built, `ArtifactError` when one cannot be read, `ConfigError` for a layout
    that cannot hold this catalogue.
    """
    found: list[IndexFile | None] = [None if anew else _opened(one, model) for one in wanted]
    missing = [one for one, file in zip(wanted, found, strict=True) if file is None]
    try:
        if missing:
            _build(missing, model, scratch, threads, anew)
        return [file or IndexFile.open(*one.paths) for one, file in zip(wanted, found, strict=True)]
    except BaseException:
        for file in found:
            if file is not None:
                file.close()
        raise


def _opened(wanted: Wanted, model: PublishedModel) -> IndexFile | None:
    try:
        file = IndexFile.open(*wanted.paths)
    except ArtifactError:
        return None
    hides = wanted.hidden_digest in (None, file.item_ids_digest)
    if file.model_digest == model.manifest_digest and hides and _fits(file, wanted.spec, model.factors.shape[1]):
        if file.layout.items != len(model.factors):
            _log.warning(
                "index %s has %d items, the model %d", wanted.paths[-1].name, file.layout.items, len(model.factors)
            )
        return file
    file.close()
    return None


def _fits(file: IndexFile, spec: OfferSpec, dimensions: int) -> bool:
    """Whether it is of that offer. The number of items is its own: `veil index` may have added some."""
    layout = file.layout
    return (
        layout.kind == spec.kind
        and layout.parameters == spec.parameters
        and layout.dimensions == dimensions
        and spec.packing in (0, packing_of(layout))
    )


def _build(wanted: Sequence[Wanted], model: PublishedModel, scratch: Path, threads: int, anew: bool) -> None:
    items, dimensions = model.factors.shape
    _log.info("builds %d indexes for %d items of %d dimensions", len(wanted), items, dimensions)
    for path in (path for one in wanted for path in one.paths):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    arrays = [model.factors]
    if any(one.spec.kind == "history" for one in wanted):
        arrays += [model.recommender.fold_in, model.recommender.norm_terms]
    with tempfile.TemporaryFile(dir=scratch) as rows:
        for array in arrays:
            rows.write(np.ascontiguousarray(array, dtype=np.float32).data)
        rows.flush()
        request = {
            "rows": rows.fileno(),
            "items": items,
            "dimensions": dimensions,
            "taste_centre": 0.0 if model.model is None else model.model.taste_centre,
            "model_digest": model.manifest_digest.hex(),
            "ids": model.ids,
            "indexes": [
                {
                    "paths": [str(path) for path in one.paths],
                    "kind": one.spec.kind,
                    "parameters": one.spec.parameters.name,
                    "packing": packing_of(one.spec.layout(items, dimensions)),
                    "hidden": None if one.hidden is None else one.hidden.tolist(),
                    "hidden_digest": (one.hidden_digest or b"").hex(),
                    "anew": anew or one.hidden is not None,
                }
                for one in wanted
            ],
        }
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "he_inference.service.indexing"],
                input=json.dumps(request).encode(),
                pass_fds=(rows.fileno(),),
                env=environment(threads, scratch),
                stdout=subprocess.DEVNULL,
                timeout=_LONGEST_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StateError(f"got no index: {error}") from None
    if done.returncode:
        raise StateError(
            f"got no index: its builder ended with status {done.returncode}", hint="its own message stands above"
        )


class _Builder:
    """In the builder's process: the model, and how indexes are made of it."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._shape = (request["items"], request["dimensions"])
        self._file = request["rows"]
        self._taste_centre = float(request["taste_centre"])
        self._model_digest = bytes.fromhex(request["model_digest"])
        self._ids_digest = _indexes().item_ids_digest(request["ids"])

    def make(self, one: dict[str, Any]) -> None:
        """One index. Raises `VeilError`."""
        from he_inference.service.audience import visible_rows

        hidden = one["hidden"]
        digest = self._ids_digest if hidden is None else bytes.fromhex(one["hidden_digest"])
        arrays = [self._array(0)]
        if one["kind"] == "history":
            arrays += [self._array(1), self._array(2)]
        shown = arrays if hidden is None else [visible_rows(array, hidden) for array in arrays]
        if one["kind"] == "history":
            self._history(one, shown, digest)
        else:
            self._items(one, shown[0], digest)

    def _array(self, number: int) -> NDArray[np.floating]:
        """Item factors, fold-in rows or norm terms, as they lie in the file."""
        items, dimensions = self._shape
        shape = (items, 2) if number == 2 else (items, dimensions)
        offset = number * items * dimensions * 4
        with os.fdopen(os.dup(self._file), "rb") as file:
            return np.memmap(file, np.float32, "r", offset=offset, shape=shape)

    def _history(self, one: dict[str, Any], arrays: Sequence[NDArray[np.floating]], digest: bytes) -> None:
        from he_inference.layouts.tower import split

        factors, fold_in, norm_terms = arrays
        tower = split(fold_in, norm_terms, factors, self._taste_centre)
        parts: list[tuple[Layout, Any]] = [(tower.layout.fold_in, tower.fold_in), (tower.layout.output, tower.rows)]
        for path, (layout, rows) in zip(one["paths"], parts, strict=True):
            self._build(Path(path), layout, rows, tower.item_norm, digest)

    def _items(self, one: dict[str, Any], factors: NDArray[np.floating], digest: bytes) -> None:
        """From the index that is there, when that has the same shape and a fitting norm; otherwise anew."""
        path = Path(one["paths"][0])
        items, dimensions = self._shape
        layout = layout_of(one["kind"], one["parameters"], items, dimensions, one["packing"])
        norm = _indexes().norm_of(factors)
        old = None if one["anew"] else _header_of(path)
        if old is None or not _alike(old.layout, layout) or not old.item_norm / _MOST_HEADROOM <= norm <= old.item_norm:
            self._build(path, layout, _indexes().ScaledRows(factors, norm), norm, digest)
            return
        encoded, blocks = _indexes().sync(
            path,
            _indexes().ScaledRows(factors, old.item_norm),
            removed=(),
            model_digest=self._model_digest,
            item_ids_digest=digest,
        )
        _log.info("index %s: encoded %d blocks of %d", path.name, encoded, blocks)

    def _build(self, path: Path, layout: Layout, rows: Any, norm: float, digest: bytes) -> None:
        _indexes().build(path, layout, rows, item_norm=norm, model_digest=self._model_digest, item_ids_digest=digest)
        _log.info("index %s: encoded %d blocks", path.name, layout.blocks)


def _indexes() -> Any:
    """The module that builds; imported here alone, since it brings the compiler along."""
    from he_inference.index import build

    return build


def _alike(one: Layout, other: Layout) -> bool:
    """Whether they differ in the number of items at most."""
    first, second = ((layout.kind, layout.parameters, layout.dimensions, packing_of(layout)) for layout in (one, other))
    return first == second


def _header_of(path: Path) -> IndexFile | None:
    try:
        file = IndexFile.open(path)
    except ArtifactError:
        return None
    file.close()
    return file


def main() -> int:
    """Entry point of the builder."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    request = json.loads(sys.stdin.buffer.read())
    try:
        builder = _Builder(request)
        for one in request["indexes"]:
            builder.make(one)
    except VeilError as error:
        _log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
