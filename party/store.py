"""The prepared rows: read, checked, pseudonymised and de-duplicated once, then kept as plain arrays for the workers.

Guarantee: user ids exist only inside `prepare`; what is written holds neither ids nor pseudonyms, only which row has
which items of the catalogue. The file is replaced whole or not at all, mode 0600.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from party.config import Data
from veil.errors import StateError
from veil.files import read_bounded, write_atomic
from veil.recsys.catalogue import Catalogue
from veil.recsys.interactions import Interactions
from veil.recsys.pseudonyms import PseudonymKey
from veil.recsys.reading import ReadReport, read_interactions
from veil.trainers.rows import PartyRows

_LOG = logging.getLogger("veil.party.store")
_MAX_FILE_BYTES = 16 * 2**30
_FORMAT = "veil.rows/1"


@dataclass(frozen=True)
class Prepared:
    """Where the prepared rows lie, and what happened to the source's rows."""

    path: Path
    report: ReadReport


def prepare(data: Data, catalogue: Catalogue, state: Path) -> Prepared:
    """Reads the source and writes `state/rows/rows.safetensors`. Raises `DataError` with the lines at fault."""
    key = PseudonymKey.load_or_create(data.pseudonym_key)
    interactions, report = read_interactions(data.source, data.read, catalogue.ids, key)
    path = state / "rows" / "rows.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink()  # a crash while writing must not leave a second copy of the rows for ever
    metadata = {"format": _FORMAT, "catalogue": catalogue.digest, "items": str(interactions.items)}
    arrays: dict[str, npt.NDArray[Any]] = {"indptr": interactions.indptr, "indices": interactions.indices}
    if interactions.time is not None:
        arrays["time"] = interactions.time
    write_atomic(path, save_arrays(arrays, metadata), mode=0o600)
    _LOG.info("prepared the rows of %s: %s", data.source.name, report)
    return Prepared(path, report)


def load_rows(path: Path, catalogue_digest: str) -> PartyRows:
    """The prepared rows for this catalogue. Raises `StateError` when they were prepared for another."""
    blob = read_bounded(path, _MAX_FILE_BYTES)
    try:
        header_bytes = int.from_bytes(blob[:8], "little")
        metadata = json.loads(blob[8 : 8 + header_bytes])["__metadata__"]
        arrays = load_arrays(blob)
        items = int(metadata["items"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"got {path}, which is not a file of prepared rows: {type(error).__name__}") from None
    if metadata.get("format") != _FORMAT or metadata.get("catalogue") != catalogue_digest:
        raise StateError(
            f"got rows prepared for catalogue {str(metadata.get('catalogue'))[:23]}…, "
            f"expected {catalogue_digest[:23]}…",
            hint="restart the party so that it prepares its rows again",
        )
    indptr = arrays["indptr"]
    interactions = Interactions(
        users=len(indptr) - 1, items=items, indptr=indptr, indices=arrays["indices"], time=arrays.get("time")
    )
    return PartyRows(interactions)
