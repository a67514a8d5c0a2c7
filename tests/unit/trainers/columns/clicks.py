"""Two organisations with columns of mostly the same users, small enough for a test, and the job over them."""

from __future__ import annotations

import csv
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from veil import __version__
from veil.jobs.columns import AlignmentTerms
from veil.jobs.spec import JobSpec, Noise, Privacy
from veil.tabular.schema import (
    CategoricalColumn,
    HashedColumn,
    Label,
    NumericColumn,
    PartyColumns,
    TabularSchema,
    equal_shares,
)
from veil.trainers.columns.plan import plan_columns

BANK, SHOP = "bank", "shop"
USERS = {BANK: range(150), SHOP: range(30, 170)}
COMMON = 120
SLOTS = 130
HEADERS = {BANK: ("customer", "income", "region"), SHOP: ("member", "item", "visits", "bought")}


def schema(slots: int = SLOTS, *, label_party: str = SHOP, positive_weight: float = 1.0) -> TabularSchema:
    share = equal_shares(2, 12)
    bank = PartyColumns(
        party=BANK,
        identifier="customer",
        norm_share=share,
        columns=(
            NumericColumn(name="income", lower=0.0, upper=100.0),
            CategoricalColumn(name="region", vocabulary=("north", "south")),
        ),
    )
    shop = PartyColumns(
        party=SHOP,
        identifier="member",
        norm_share=share,
        columns=(
            HashedColumn(name="item", buckets=4),
            NumericColumn(name="visits", lower=0.0, upper=10.0, missing="fill", fill=0.0),
        ),
    )
    label = Label(name="bought", positive_weight=positive_weight)
    return TabularSchema(slots=slots, bits=12, parties=(bank, shop), label=label, label_party=label_party)


def write_tables(folder: Path, seed: int = 7) -> dict[str, Path]:
    """The organisations' files, users in different orders."""
    generator = np.random.default_rng(seed)
    users = 170
    income, visits = generator.uniform(0, 100, users), generator.uniform(0, 10, users)
    region, item = generator.integers(0, 3, users), generator.integers(0, 6, users)
    bought = (income / 50 + visits / 5 - 2 + generator.normal(0, 0.5, users) > 0).astype(int)
    rows: dict[str, list[list[Any]]] = {
        BANK: [[f"u{n}", f"{income[n]:.3f}", ("north", "south", "east")[region[n]]] for n in USERS[BANK]],
        SHOP: [[f"u{n}", f"item-{item[n]}", f"{visits[n]:.3f}", bought[n]] for n in reversed(USERS[SHOP])],
    }
    paths = {}
    for party, own in rows.items():
        paths[party] = folder / f"{party}.csv"
        with paths[party].open("w", newline="") as file:
            csv.writer(file).writerows([HEADERS[party], *own])
    return paths


def section(party: str, source: Path) -> dict[str, Any]:
    """The party's [columns]."""
    names = HEADERS[party]
    labels = [name for name in names if name == "bought"]
    use = [name for name in names[1:] if name not in labels]
    return {"source": str(source), "identifier": names[0], "use": use, "labels": labels}


def job(
    *,
    noise: Noise | None = None,
    mode: str = "reveal",
    epsilon: float = 8.0,
    overrides: dict[str, float] | None = None,
    positive_weight: float = 1.0,
    label_party: str = SHOP,
    result: int = SLOTS,
    triples: str = "dealer",
    model: str = "logistic",
) -> JobSpec:
    sizes = (150, 150)
    slots = result if mode == "reveal" else 300
    drawn = noise or Noise(source="dealer")
    columns = schema(slots, label_party=label_party, positive_weight=positive_weight)
    trainer, releases = plan_columns(
        columns,
        AlignmentTerms.model_validate({"mode": mode, "sizes": sizes, "result": slots}),
        epsilon=epsilon,
        delta=1e-5,
        noise=drawn,
        triples=triples,
        model=model,
        overrides={"steps": 6, "learning_rate": 4.0, "population": COMMON, **(overrides or {})},
    )
    return JobSpec(
        name="clicks",
        nonce="0" * 32,
        consortium="trial",
        parties=(BANK, SHOP),
        dealer="main",
        privacy=Privacy(epsilon=epsilon, delta=1e-5, noise=drawn),
        trainer=trainer,
        releases=releases,
        versions={"veil": __version__, "dp-accounting": metadata.version("dp-accounting")},
    )
