"""The client's part of models on columns: fetched from the server, believed only when the parties signed each of them.

Guarantee: every file is that of the collection which the offer names, and every model is signed by the parties that
its manifest names and by those that the client requires. Columns, standardisation and intercepts are theirs, not the
server's word. Rows are encoded in this process; no more than the collection says is ever received.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from he_inference.client.model import ModelCache, Patiently, receive_file
from he_inference.client.steps import Conversation, Work
from he_inference.collection import COLLECTION, MAX_COLLECTION_BYTES, PART, Collection, parse_collection
from he_inference.exchange import Offer
from veil.errors import ArtifactError, ConfigError, InputError
from veil.identity.names import Identity
from veil.tabular.reading import PartyTable
from veil.tabular.schema import TabularSchema
from veil.trainers.columns.linear import LinearPart, load_part

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LinearClient:
    """parts: of the collection's models, in its order."""

    collection: Collection
    parts: tuple[LinearPart, ...] = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models, as the server's operator calls them."""
        return tuple(member.name for member in self.collection.models)

    @property
    def schema(self) -> TabularSchema:
        """The columns, the same for all models; label and slots are those of the first."""
        return self.parts[0].schema

    def chosen(self, names: Sequence[str] | None = None, *, linear_part: bool = False) -> list[int]:
        """Numbers of the models of those names, of all by default.

        Raises `ConfigError` for a name that is not there, and for a model that is more than linear unless
        `linear_part`: what is scored is its linear part, which is not the model's score.
        """
        known = {name: number for number, name in enumerate(self.names)}
        unknown = [name for name in names or () if name not in known]
        if unknown:
            shown = ", ".join(self.names[:10]) + (", …" if len(known) > 10 else "")
            raise ConfigError(f"got model {unknown[0][:64]!r}, expected one of {shown}")
        numbers = [known[name] for name in dict.fromkeys(names if names is not None else self.names)]
        if not numbers:
            raise ConfigError("got no model to score with, expected one or more")
        more = [f"{self.names[number]} ({self.parts[number].model})" for number in numbers if self.parts[number].units]
        if more and not linear_part:
            raise ConfigError(
                f"got models that are more than linear: {', '.join(more[:5])}",
                hint="encrypted scoring gives their linear part alone; ask for it with --linear-part, or score between"
                " the parties with a predictions job",
            )
        return numbers

    def groups(self, numbers: Sequence[int]) -> list[list[int]]:
        """The same models by standardisation: those of a group take the same encoded row, so one query does."""
        found: dict[bytes, list[int]] = {}
        for number in numbers:
            part = self.parts[number]
            found.setdefault(part.offset.tobytes() + part.scale.tobytes(), []).append(number)
        return list(found.values())

    def encoded(self, number: int, tables: Sequence[PartyTable]) -> Floats:
        """z for one model, float64[rows, pieces, dimensions], each row of a norm of at most 1.

        tables: of some or all parties, once each, rows aligned by identifier; columns of absent parties are zeros.
        """
        check_tables(self.schema, tables)
        collection, part = self.collection, self.parts[number]
        rows = np.zeros((tables[0].rows, collection.pieces * collection.dimensions))
        for table in tables:
            place = part.schema.place(table.party.party)
            rows[:, place] = part.rows(table)
        return rows.reshape(tables[0].rows, collection.pieces, collection.dimensions)


def check_tables(schema: TabularSchema, tables: Sequence[PartyTable]) -> None:
    """Raises `InputError` unless they are columns of parties of the schema, each once, of the same users in order."""
    parties = {one.party: one for one in schema.parties}
    named = [table.party.party for table in tables]
    if not named or len(set(named)) != len(named) or not set(named) <= set(parties):
        raise InputError(
            f"got columns of {', '.join(named) or 'nobody'}, expected each of {', '.join(parties)} at most once"
        )
    for table in tables:
        mine = parties[table.party.party]
        if (table.party.columns, table.party.norm_share) != (mine.columns, mine.norm_share):
            raise InputError(f"got other columns of {mine.party} than the signed job's, expected the same")
        if table.identifiers != tables[0].identifiers:
            raise InputError("got tables whose identifiers differ, expected the same users in the same order")


def fetch_linear(models: ModelCache, offer: Offer, patiently: Patiently) -> Conversation[LinearClient]:
    """The collection that `offer` names and each model's part, verified. Raises `ArtifactError`, `PeerError`."""
    text = yield from receive_file(COLLECTION, MAX_COLLECTION_BYTES, patiently)
    collection = parse_collection(text, offer.manifest_digest)
    got, expected = (collection.items, collection.dimensions), (offer.layout.items, offer.layout.dimensions)
    if got != expected:
        raise ArtifactError(f"got models of {got} items and dimensions, expected {expected} as the server says")
    part = yield from receive_file(PART, collection.part_bytes, patiently)
    made: LinearClient = yield Work(lambda: _verified(collection, part, models.authority_pem, models.require_signers))
    return made


def _verified(
    collection: Collection, part: bytes, authority_pem: bytes, signers: Sequence[Identity] | None
) -> LinearClient:
    parts: list[LinearPart] = []
    for member, files in collection.split(part):
        with tempfile.TemporaryDirectory(prefix="veil-model-") as temporary:
            for name, data in files.items():
                (Path(temporary) / name).write_bytes(data)
            try:
                found = load_part(Path(temporary), authority_pem, require_signers=signers)
            except ArtifactError as error:
                raise ArtifactError(f"{member.name}: {error.message}", hint=error.hint) from None
        first = parts[0].schema if parts else found.schema
        fits = (found.schema.parties, found.schema.bits) == (first.parties, first.bits)
        if found.model != member.model or found.schema.width != collection.features or not fits:
            raise ArtifactError(f"got model {member.name} of another kind or other columns than the server says")
        parts.append(found)
    return LinearClient(collection, tuple(parts))
