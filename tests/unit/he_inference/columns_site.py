"""Published models on columns of a bank and a shop, signed by both, and rows for them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np

from cli.predict import read_tables
from tests.unit.trainers.columns.clicks import BANK, SHOP, job
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.trial import make_consortium
from veil.jobs.spec import JobSpec
from veil.recsys.manifest import sign_manifest
from veil.recsys.signed import save_directory
from veil.tabular.reading import PartyTable
from veil.trainers.columns.publication import ColumnsModel, ColumnsPublication
from veil.trainers.columns.terms import ColumnsTerms

ROWS = "user,income,region,item,visits\na,90,north,tea,9\nb,5,south,salt,\nc,50,east,tea,1\n"


@cache
def planned(kind: str) -> JobSpec:
    """A plan takes seconds."""
    return job(model=kind)


@dataclass
class ColumnsSite:
    folder: Path
    members: dict[Identity, Path] = field(init=False)

    def __post_init__(self) -> None:
        self.members = make_consortium(self.folder / "certs", "trial", [BANK, SHOP])

    def credentials(self, role: Role, name: str = "main") -> Credentials:
        return Credentials.load(self.members[Identity("trial", role, name)])

    @property
    def authority(self) -> bytes:
        return self.credentials(Role.PARTY, BANK).authority_pem

    @property
    def authority_file(self) -> Path:
        return self.members[Identity("trial", Role.PARTY, BANK)] / "authority.pem"

    def publish(
        self,
        folder: Path,
        *,
        seed: int = 1,
        standard: int = 1,
        kind: str = "logistic",
        signers: tuple[str, ...] = (BANK, SHOP),
        renamed: tuple[str, str] = ("", ""),
    ) -> ColumnsModel:
        """standard: seed of the standardisation. renamed: a column or label of the schema, and what it is called."""
        spec = planned(kind)
        columns = spec.trainer.columns.replace(f'"{renamed[0]}"', f'"{renamed[1]}"')  # type: ignore[union-attr]
        spec = spec.model_copy(update={"trainer": spec.trainer.model_copy(update={"columns": columns})})
        terms = ColumnsTerms.of(spec)
        width = terms.layout.columns
        weights = np.random.default_rng(seed).normal(size=(width, terms.outputs)) * 5
        other = np.random.default_rng(standard)
        made = ColumnsModel(
            terms.schema,
            weights,
            other.uniform(0, 0.5, width),
            other.uniform(0.2, 0.6, width),
            -0.7 + seed / 10,
            terms.trainer.hidden,
        )
        publication = ColumnsPublication(made)
        files = publication.files(spec)
        manifest = publication.manifest(spec, files, created_s=int(time.time()))
        signatures = []
        for party in signers:
            own = self.credentials(Role.PARTY, party)
            signatures.append(sign_manifest(manifest, party, own.certificate_pem, own.sign))
        save_directory(folder, files, manifest, signatures)
        return made


def tables_of(model: ColumnsModel, folder: Path, rows: str = ROWS) -> list[PartyTable]:
    path = folder / "rows.csv"
    path.write_text(rows)
    return read_tables(model.schema, [str(path)], "user")


def linear_scores(model: ColumnsModel, tables: list[PartyTable]) -> np.ndarray:
    """The linear part, float64[rows], in plaintext."""
    parts = [model.part(table)[:, :1] for table in tables]
    return replace(model, weights=model.weights[:, :1], hidden=None).score(parts)
