"""A model on columns of several parties as a published directory, and back.

Guarantee: `load_columns` returns a model only when every required party has signed the manifest, every file has the
size and SHA-256 that it lists, and the numbers fit the signed job: as many weights as its columns have features, all
of a size that training can give, so that every score is a number.

    manifest.json         `veil.recsys.manifest.OutcomeManifest`, kind "columns"
    job.json              the job text that the parties signed before training; it holds the schema
    weights.safetensors   float64[features, 1 + hidden units]: "weights", parties' features in rank order
    client.safetensors    float64[features]: "offset" and "scale"; in a file of their own, so that whoever has rows
                          scored encrypted need not have the weights (`veil.trainers.columns.linear`)
    columns.json          model, and the intercept: public log odds of the noised base rate
    signatures.json       one signature for each party

    z_j = clip((x_j - offset_j) scale_j)      to each party's share of the norm, as in training
    p = sigmoid(intercept + z w_0 + h)        h = 0, or sum_k s_k a(z w_k), or sum_k s_k a(z_left w_k) a(z_right w_k)

with the sigmoid itself and the job's waves a (`veil.trainers.columns.perceptron`, `towers`), s_k = +1, -1 by turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save as dump_safetensors

from veil.errors import ArtifactError, ConfigError, InputError
from veil.identity.names import Identity
from veil.jobs.columns import HiddenTerms
from veil.jobs.spec import JobSpec, canonical
from veil.recsys.manifest import OutcomeManifest
from veil.recsys.signed import check_job, job_facts, manifest_bytes, verify_directory
from veil.tabular.grid import encode_rows
from veil.tabular.reading import PartyTable
from veil.tabular.schema import TabularSchema
from veil.tabular.statistics import Standardisation
from veil.trainers.columns.linear import CLIENT_FILE, FACTS_FILE, WEIGHTS_FILE, ColumnsFacts, read_arrays, read_facts
from veil.trainers.columns.terms import ColumnsTerms, series_of

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class ColumnsModel:
    """weights: float64[features, 1 + units], parties' features in rank order; offset, scale: float64[features].

    intercept: on top of every score. hidden: the hidden layer, None for logistic regression.
    """

    schema: TabularSchema
    weights: Float64
    offset: Float64
    scale: Float64
    intercept: float
    hidden: HiddenTerms | None = None

    @property
    def model(self) -> Literal["logistic", "perceptron", "towers"]:
        """What kind it is."""
        if self.hidden is None:
            return "logistic"
        return "towers" if self.hidden.left else "perceptron"

    def __repr__(self) -> str:
        return f"ColumnsModel(features={len(self.weights)}, parties={len(self.schema.parties)})"

    def part(self, table: PartyTable) -> Float64:
        """One party's rows times its weights, float64[rows, 1 + units]: the seam for scoring across organisations.

        Scores are made of sums of parties' parts (`score`); a part alone never leaves its party as it is.
        """
        place = self.schema.place(table.party.party)
        standardisation = Standardisation(self.offset[place], self.scale[place], None, 1.0)
        weights = self.weights[place] / 2.0**self.schema.bits
        # A block at a time: all features of all rows may be more than memory holds.
        parts = [encode_rows(self.schema, block, standardisation) @ weights for block in table.blocks()]
        return np.concatenate([np.zeros((0, weights.shape[1])), *parts])

    def predict(self, tables: Sequence[PartyTable]) -> Float64:
        """Probabilities of the positive outcome, float64[rows], for rows of which one holds all parties' columns.

        tables: one for each party, in rank order, rows aligned by identifier. Raises `InputError` when they are not.
        """
        named = [table.party.party for table in tables]
        if named != [one.party for one in self.schema.parties]:
            raise InputError(f"got columns of {', '.join(named)}, expected those of every party in order")
        if any(table.identifiers != tables[0].identifiers for table in tables):
            raise InputError("got tables whose identifiers differ, expected the same users in the same order")
        return np.asarray(0.5 * (1 + np.tanh(self.score([self.part(table) for table in tables]) / 2)))

    def score(self, parts: Sequence[Float64]) -> Float64:
        """float64[rows] from all parties' parts, in rank order."""
        total = np.sum(parts, axis=0)
        score = self.intercept + total[:, 0]
        if self.hidden is None:
            return np.asarray(score)
        activation, signs = (
            series_of(self.hidden.activation),
            np.where(np.arange(self.hidden.units) % 2 == 0, 1.0, -1.0),
        )
        if not self.hidden.left:
            return np.asarray(score + activation(total[:, 1:]) @ signs)
        left, right = (
            activation(np.sum([parts[rank] for rank in ranks], axis=0)[:, 1:])
            for ranks in (self.hidden.left, self.hidden.right)
        )
        return np.asarray(score + (left * right) @ signs)


@dataclass(frozen=True, eq=False, repr=False)
class ColumnsPublication:
    """`veil.trainers.seam.Publication` of such a model."""

    model: ColumnsModel

    def files(self, spec: JobSpec) -> dict[str, bytes]:
        """See `Publication.files`."""
        arrays = {name: np.ascontiguousarray(getattr(self.model, name)) for name in ("weights", "offset", "scale")}
        weights = {"weights": arrays.pop("weights")}
        facts = ColumnsFacts(model=self.model.model, intercept=self.model.intercept)
        return {
            "job.json": spec.text().encode("ascii"),
            WEIGHTS_FILE: dump_safetensors(weights),
            CLIENT_FILE: dump_safetensors(arrays),
            FACTS_FILE: canonical(facts.model_dump(mode="json", by_alias=True)).encode("ascii"),
        }

    def manifest(self, spec: JobSpec, files: Mapping[str, bytes], *, created_s: int) -> bytes:
        """See `Publication.manifest`."""
        return manifest_bytes(OutcomeManifest(**job_facts(spec, files, created_s=created_s), kind="columns"))


def load_columns(
    directory: Path,
    authority_pem: bytes,
    *,
    require_signers: Sequence[Identity] | None = None,
    expect_digest: bytes | None = None,
) -> ColumnsModel:
    """The model in a published directory, verified first (`veil.recsys.signed.verify_directory`).

    expect_digest: SHA-256 of the manifest, where one model is meant and no other. Raises `ArtifactError` when anything
    does not fit.
    """
    manifest, found = verify_directory(directory, authority_pem, require_signers=require_signers)
    if expect_digest is not None and found != expect_digest:
        raise ArtifactError(f"got a model of manifest {found.hex()[:16]}…, expected {expect_digest.hex()[:16]}…")
    if not isinstance(manifest, OutcomeManifest) or manifest.kind != "columns":
        raise ArtifactError("got another kind of publication, expected a model on columns of several parties")
    spec = check_job(directory, manifest)
    try:
        terms = ColumnsTerms.of(spec)
    except ConfigError as error:
        raise ArtifactError(f"job.json: {error.message}") from None
    facts, width = read_facts(directory, manifest), terms.layout.columns
    standard = {"offset": (width,), "scale": (width,)}
    arrays = read_arrays(directory, manifest, WEIGHTS_FILE, {"weights": (width, terms.outputs)})
    arrays |= read_arrays(directory, manifest, CLIENT_FILE, standard)
    model = ColumnsModel(
        terms.schema, arrays["weights"], arrays["offset"], arrays["scale"], facts.intercept, terms.trainer.hidden
    )
    if facts.model != model.model:
        raise ArtifactError(f"got columns.json of model {facts.model}, expected {model.model} as in the job text")
    return model
