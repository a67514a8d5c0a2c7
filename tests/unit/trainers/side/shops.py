"""A shop with interactions and others with columns of mostly the same users, small enough for a test."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata

import numpy as np
import numpy.typing as npt
import polars as pl

from veil import __version__
from veil.jobs import spec as jobs
from veil.jobs.columns import AlignmentTerms
from veil.jobs.spec import JobSpec, Noise, Privacy, Release
from veil.privacy import noise_of
from veil.privacy.noise import keyed_source
from veil.privacy.sources import party_release
from veil.recsys.catalogue import Catalogue
from veil.recsys.dataset import Dataset
from veil.recsys.features import build_catalogue
from veil.recsys.synthetic import generate
from veil.tabular.reading import PartyTable
from veil.tabular.schema import CategoricalColumn, ColumnsSchema, NumericColumn, PartyColumns
from veil.trainers.side.plan import plan_side

SHOP, BANK, CITY = "shop", "bank", "city"
USERS = 150
HELD = {SHOP: range(USERS), BANK: range(20, USERS + 20), CITY: range(0, USERS, 2)}
SIZES = {SHOP: 160, BANK: 160, CITY: 160}
IDENTIFIERS = {BANK: "customer", CITY: "resident"}
Int64 = npt.NDArray[np.int64]


@lru_cache(maxsize=1)
def dataset() -> Dataset:
    return generate(USERS, items=250, seed=4, negatives=20)


@lru_cache(maxsize=1)
def catalogue() -> Catalogue:
    return build_catalogue(dataset().table)


def identifiers(party: str) -> list[str]:
    return [f"person-{user}" for user in HELD[party]]


def columns(party: str) -> PartyColumns:
    own = {
        BANK: (
            CategoricalColumn(name="region", vocabulary=("north", "south")),
            NumericColumn(name="income", lower=0.0, upper=100.0),
        ),
        CITY: (CategoricalColumn(name="district", vocabulary=("a", "b", "c"), unknown="refuse"),),
    }[party]
    return PartyColumns(party=party, identifier=IDENTIFIERS[party], norm_share=1.0, columns=own)


@lru_cache(maxsize=4)
def values(party: str) -> dict[str, list[str]]:
    generator = np.random.default_rng(len(party))
    users = len(HELD[party])
    if party == CITY:
        return {"district": ["abc"[n] for n in generator.integers(0, 3, users)]}
    region = [("north", "south", "east")[n] for n in generator.integers(0, 3, users)]
    return {"region": region, "income": [f"{number:.2f}" for number in generator.uniform(0, 120, users)]}


def table(party: str) -> PartyTable:
    own = [
        pl.Series([float(v) for v in given]) if name == "income" else pl.Series(given)
        for name, given in values(party).items()
    ]
    return PartyTable(columns(party), tuple(identifiers(party)), tuple(own), None)


def csv(party: str) -> str:
    given = values(party)
    lines = [",".join((IDENTIFIERS[party], *given))]
    lines += [",".join(row) for row in zip(identifiers(party), *given.values(), strict=True)]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class World:
    """One job over those rows."""

    parties: tuple[str, ...] = (SHOP, BANK)
    mode: str = "reveal"
    noise: Noise = field(default_factory=lambda: Noise(source="dealer"))
    triples: str = "dealer"
    epsilon: float = 8.0
    result: int = 150

    @property
    def slots(self) -> int:
        return self.result if self.mode == "reveal" else 160 * len(self.parties)

    def schema(self) -> ColumnsSchema:
        own = tuple(columns(party) for party in self.parties if party != SHOP)
        return ColumnsSchema(slots=self.slots, bits=12, parties=own)

    def alignment(self) -> AlignmentTerms:
        sizes = [SIZES[party] for party in self.parties]
        return AlignmentTerms.model_validate({"mode": self.mode, "sizes": sizes, "result": self.slots})

    def spec(self, **overrides: float) -> JobSpec:
        found = catalogue()
        features = int(found.features.shape[1])
        trainer, releases = plan_side(
            self.schema(),
            self.alignment(),
            items_party=SHOP,
            parties=self.parties,
            items=found.items,
            features=features,
            epsilon=self.epsilon,
            delta=1e-5,
            noise=self.noise,
            triples=self.triples,
            overrides={"dimensions": 4, "content_dimensions": 6, **overrides},
        )
        return JobSpec(
            name="side",
            nonce="0" * 32,
            consortium="trial",
            parties=self.parties,
            dealer="main",
            catalogue=jobs.Catalogue(digest=found.digest, items=found.items, features=features),
            privacy=Privacy(epsilon=self.epsilon, delta=1e-5, noise=self.noise),
            trainer=trainer,
            releases=releases,
            versions={"veil": __version__, "dp-accounting": metadata.version("dp-accounting")},
        )

    def aligned(self) -> dict[str, Int64]:
        """Own rows by slot, as an alignment gives them: common users, or all with -1 for who is not held."""
        sets = [set(HELD[party]) for party in self.parties]
        users = sorted(set.intersection(*sets) if self.mode == "reveal" else set.union(*sets))
        found = {}
        for party in self.parties:
            place = {user: row for row, user in enumerate(HELD[party])}
            found[party] = np.array([place.get(user, -1) for user in users], np.int64)
        return found


def drawn(release: Release, who: int) -> Int64:
    return noise_of.draw(release, keyed_source(bytes([who]) * 32, release.name.encode()))


def total_noise(spec: JobSpec, release: Release) -> Int64:
    if spec.privacy.noise.source == "dealer":
        return drawn(release, 99)
    each = party_release(release, spec.privacy.noise, len(spec.parties))
    total = np.zeros(release.shape, np.int64)
    for rank in range(len(spec.parties)):
        total += drawn(each, rank)
    return total
