"""The prepared rows: read, checked, pseudonymised, de-identified and de-duplicated once, then plain arrays for workers.

Guarantee: user ids exist only inside `prepare`; what is written holds neither ids nor pseudonyms, only which row has
which items of the catalogue, which texts, and which declared categories; ids are kept where the configuration says so,
in a file of their own (`party.rows.identifiers`, `party.rows.columns`). A user has one row number in all of these:
the place of their pseudonym among those of the users who have interactions or texts. Each file is replaced whole or not
at all, mode 0600.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from party.config import PartyConfig
from party.rows.columns import SCRATCH, HeldColumns
from party.rows.columns import prepare as prepare_columns
from party.rows.identifiers import HeldIdentifiers, forget, keep
from veil.deidentify.pipeline import Pipeline
from veil.deidentify.report import Report, TextCounts
from veil.deidentify.source import read_users
from veil.errors import ConfigError, DataError, StateError
from veil.files import read_bounded, write_atomic
from veil.recsys.attributes import UserAttributes
from veil.recsys.catalogue import Catalogue
from veil.recsys.interactions import Interactions
from veil.recsys.pseudonyms import PseudonymKey
from veil.recsys.reading import ReadReport, read_interactions
from veil.recsys.reading_texts import TextsReport, read_texts
from veil.recsys.texts import LabelledTexts
from veil.recsys.user_rows import positions
from veil.trainers.rows import PartyRows

_LOG = logging.getLogger("veil.party.store")
_MAX_FILE_BYTES = 16 * 2**30
_FORMAT = "veil.rows/2"
_Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Prepared:
    """Where the prepared rows lie, and what happened to the sources' rows.

    Attributes:
        interactions, texts: None where the party holds none.
        deidentification: what was changed; also in `deidentification.json` beside the rows.
        columns: for models on columns of several parties; None where the party gives none.
        identifiers: of users with interactions; None where the party keeps none.
    """

    path: Path
    interactions: ReadReport | None
    texts: TextsReport | None
    deidentification: Report
    columns: HeldColumns | None = None
    identifiers: HeldIdentifiers | None = None

    @property
    def report(self) -> ReadReport:
        """What the party's status shows: of the interactions, or of the texts where there are no interactions."""
        if self.interactions is not None:
            return self.interactions
        if self.texts is None and self.columns is not None:
            return self.columns.report
        if self.texts is None:
            raise StateError("got prepared rows of no kind, expected interactions, texts or columns")
        texts = self.texts
        # Rows without a label of the public list are the like of rows without an item of the catalogue.
        return ReadReport(
            rows_read=texts.rows_read,
            rows_kept=texts.rows_kept,
            users=texts.users,
            rows_bad=texts.rows_bad,
            rows_unknown_item=texts.rows_unlabelled,
        )


def prepare(config: PartyConfig, catalogue: Catalogue | None) -> Prepared:
    """Reads the sources and writes what is kept to `state/rows`. Raises `DataError` with the lines at fault."""
    path = config.state / "rows" / "rows.safetensors"
    forget(path.parent)
    if config.data is None and config.texts is None:
        prepared = Prepared(path, None, None, Report(users=0))
    elif catalogue is None:
        raise ConfigError("got rows without a catalogue, expected one beside [data] or [texts]")
    else:
        prepared = _prepare_users(config, catalogue, path)
    if config.columns is None:
        return prepared
    return replace(prepared, columns=prepare_columns(config.columns, _made(config.state)))


def _made(state: Path) -> Path:
    """The folder of prepared rows, made and cleaned up."""
    folder = state / "rows"
    for directory in (state, folder):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)  # the mode is that of the last folder alone
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()  # a crash while writing must not leave a second copy of the rows for ever
    for leftover in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(leftover)
    return folder


def _prepare_users(config: PartyConfig, catalogue: Catalogue, path: Path) -> Prepared:
    """Interactions, texts and attributes, in one file of rows."""
    key = PseudonymKey.load_or_create(config.pseudonym_key)
    # Made first: a rule that does not fit is told before a long file is read.
    pipeline = None if config.users is None else Pipeline(config.users.attribute, config.users.anonymity, key)
    interactions = read_report = texts = texts_report = attributes = user_counts = None
    ids: dict[str, str] | None = None
    if config.data is not None:
        ids = {} if config.data.align else None
        interactions, read_report = read_interactions(
            config.data.source, config.data.read, catalogue.ids, key, identifiers=ids
        )
    if config.texts is not None:
        labels = config.texts.labels or labels_of(catalogue)
        texts, texts_report = read_texts(config.texts.source, config.texts.read, labels, key)
    pseudonyms = _population(interactions, texts)
    if interactions is not None:
        interactions = _among(interactions, pseudonyms)
    if texts is not None:
        user = positions(texts.pseudonyms or (), pseudonyms)[texts.user]
        texts = replace(texts, users=len(pseudonyms), user=user, pseudonyms=None)
    if pipeline is not None and config.users is not None:
        columns = [rule.source_column for rule in pipeline.rules if not rule.dropped]
        raw = read_users(config.users.source, config.users.read, columns, key)
        attributes, user_counts = pipeline.run(raw.aligned(pseudonyms))
    report = Report(
        users=len(pseudonyms),
        attributes=user_counts,
        texts=None
        if texts_report is None
        else TextCounts(texts_report.rows_kept, texts_report.texts_cut, texts_report.masked),
    )
    _made(config.state)
    write_atomic(path, _packed(PartyRows(interactions, texts, attributes), catalogue.digest), mode=0o600)
    write_atomic(path.with_name("deidentification.json"), report.json().encode(), mode=0o600)
    _log(config, read_report, texts_report, report)
    identifiers = None if ids is None else keep(path.parent, ids, pseudonyms)
    return Prepared(path, read_report, texts_report, report, identifiers=identifiers)


def labels_of(catalogue: Catalogue) -> tuple[str, ...]:
    """The public labels of texts where the configuration names none: the catalogue's categories, sorted."""
    return tuple(sorted({name for names in catalogue.categories for name in names}))


def load_rows(path: Path, catalogue_digest: str) -> PartyRows:
    """The prepared rows for this catalogue. Raises `StateError` when they were prepared for another."""
    blob = read_bounded(path, _MAX_FILE_BYTES)
    try:
        header_bytes = int.from_bytes(blob[:8], "little")
        metadata = json.loads(blob[8 : 8 + header_bytes])["__metadata__"]
        if metadata.get("format") == _FORMAT and metadata.get("catalogue") == catalogue_digest:
            return _unpacked(load_arrays(blob), metadata)
    except (SafetensorError, DataError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"got {path}, which is not a file of prepared rows: {type(error).__name__}") from None
    raise StateError(
        f"got rows prepared for catalogue {str(metadata.get('catalogue'))[:23]}…, expected {catalogue_digest[:23]}…",
        hint="restart the party so that it prepares its rows again",
    )


def _population(interactions: Interactions | None, texts: LabelledTexts | None) -> tuple[str, ...]:
    """Pseudonyms of all users with interactions or texts, sorted: a user's place is their row number."""
    known = [kind.pseudonyms or () for kind in (interactions, texts) if kind is not None]
    return tuple(sorted(set().union(*known)))


def _among(interactions: Interactions, pseudonyms: Sequence[str]) -> Interactions:
    """The same interactions with a row for each of these users, empty for those who have none. Order stays."""
    lengths = np.zeros(len(pseudonyms), np.int64)
    lengths[positions(interactions.pseudonyms or (), pseudonyms)] = interactions.lengths()
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return replace(interactions, users=len(pseudonyms), indptr=indptr, pseudonyms=None)


def _packed(rows: PartyRows, catalogue_digest: str) -> bytes:
    """One safetensors file; lists of public names stand in its metadata as JSON, texts are UTF-8 bytes and ends."""
    metadata = {"format": _FORMAT, "catalogue": catalogue_digest}
    arrays: _Arrays = {}
    if rows.interactions is not None:
        metadata["items"] = str(rows.interactions.items)
        arrays |= {"indptr": rows.interactions.indptr, "indices": rows.interactions.indices}
        if rows.interactions.time is not None:
            arrays["time"] = rows.interactions.time
    if rows.texts is not None:
        encoded = [text.encode("utf-8") for text in rows.texts.text]
        metadata |= {"text_users": str(rows.texts.users), "labels": json.dumps(rows.texts.names)}
        arrays |= {
            "text_user": rows.texts.user,
            "text_bytes": np.frombuffer(b"".join(encoded), np.uint8),
            "text_end": np.cumsum([len(one) for one in encoded], dtype=np.int64),
            "label": rows.texts.label,
        }
    if rows.attributes is not None:
        metadata |= {
            "attributes": json.dumps(rows.attributes.names),
            "categories": json.dumps(rows.attributes.categories),
        }
        arrays["codes"] = rows.attributes.codes
    return bytes(save_arrays(arrays, metadata))


def _unpacked(arrays: _Arrays, metadata: dict[str, str]) -> PartyRows:
    interactions = texts = attributes = None
    if "items" in metadata:
        indptr = arrays["indptr"]
        interactions = Interactions(
            users=len(indptr) - 1,
            items=int(metadata["items"]),
            indptr=indptr,
            indices=arrays["indices"],
            time=arrays.get("time"),
        )
    if "labels" in metadata:
        names = json.loads(metadata["labels"])
        data, end = arrays["text_bytes"].tobytes(), arrays["text_end"].tolist()
        texts = LabelledTexts(
            users=int(metadata["text_users"]),
            user=arrays["text_user"],
            text=[data[start:stop].decode("utf-8") for start, stop in zip([0, *end[:-1]], end, strict=True)],
            label=arrays["label"],
            names=None if names is None else tuple(names),
        )
    if "attributes" in metadata:
        attributes = UserAttributes(
            names=tuple(json.loads(metadata["attributes"])),
            categories=tuple(tuple(one) for one in json.loads(metadata["categories"])),
            codes=arrays["codes"],
        )
    return PartyRows(interactions, texts, attributes)


def _log(config: PartyConfig, read: ReadReport | None, texts: TextsReport | None, report: Report) -> None:
    if config.data is not None:
        _LOG.info("prepared the rows of %s: %s", config.data.source.name, read)
    if config.texts is not None:
        _LOG.info("prepared the texts of %s: %s", config.texts.source.name, texts)
    counts = report.attributes
    if config.users is not None and counts is not None:
        _LOG.info("prepared the attributes of %s: %s", config.users.source.name, counts)
