"""A sample of `veil bench columns`: read once, ranked in plaintext, and trained on without noise by the real engine.

Guarantee: plaintext, the run without noise and the jobs read the same rows through `veil.tabular`, in the same splits;
nothing is chosen on test rows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cli.columns_tables import Draw, standard_error
from cli.mpc_processes import run_parties
from veil.errors import ConfigError, ProtocolMismatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from baseline.tabular.ctr import DatasetName
    from veil.tabular.reading import PartyTable
    from veil.trainers.columns.terms import ColumnsTerms

DELTA: Final = 1e-5
_EVALUATED: Final = ("dev", "test")
_INVERSE_RIDGES: Final = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_LIMIT_S: Final = 170.0


class Sample:
    """Rows of train, dev and test, split over parties; one slot for each training row, so that none is left out."""

    def __init__(self, data: DatasetName, folder: Path, parties: int) -> None:
        """Raises `VeilError` when the files are absent or malformed."""
        from baseline.tabular.ctr import CtrOptions, ctr_schema, load_frames
        from baseline.tabular.material import encode, read_tables, statistics_of

        self.frames = load_frames(data, folder)
        self.rows = len(self.frames["train"])
        self.schema = ctr_schema(data, parties, CtrOptions(slots=self.rows))
        self.names = tuple(party.party for party in self.schema.parties)
        self.tables = read_tables(data, folder, self.schema)
        # Exact statistics: neither plaintext nor the run without noise pays for any.
        self._standardisations = statistics_of(self.tables, None, None, fill=1.0, least_users=0.0)
        self.encoded = encode(self.tables, self._standardisations)

    def facts(self) -> dict[str, Any]:
        """Sizes: rows by split, features of all parties, share of positive labels in train."""
        counts = {split: len(labels) for split, labels in self.encoded.labels.items()}
        return {"rows": counts, "features": self.schema.width, "base_rate": self.encoded.rate}

    def standard_errors(self, draw: Draw) -> dict[str, float]:
        """Of the AUC of dev and test."""
        found = {}
        for split, value in (("dev", draw.dev), ("test", draw.test)):
            positive = int((self.encoded.labels[split] == 1).sum())
            found[split] = standard_error(value, positive, len(self.encoded.labels[split]) - positive)
        return found

    def ranked(self, scores: dict[str, NDArray[Any]], **other: Any) -> Draw:
        """AUC of scores of dev and test."""
        from baseline.tabular.scores import auc

        dev, test = (auc(self.encoded.labels[split], scores[split]) for split in _EVALUATED)
        return Draw(dev=dev, test=test, **other)

    def held(self, split: str) -> list[PartyTable]:
        """Every party's rows of a split, in rank order."""
        return self.tables.tables[split]

    def own_logistic(self) -> Draw:
        """`baseline.tabular.plain`: on the joint rows as encoded and clipped; ridge by dev."""
        from baseline.tabular.plain import best_logistic

        return self.ranked(best_logistic(self.encoded)[1])

    def scikit_logistic(self) -> Draw:
        """scikit-learn's, with a free intercept, on features that no norm clips; C by dev. Raises `ConfigError`."""
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError:
            raise ConfigError("got no scikit-learn, expected it", hint="pip install 'veil[demo]'") from None
        import numpy as np

        from veil.tabular.encoding import encode_features

        rows = {
            split: np.concatenate([encode_features(table) for table in found], axis=1)
            for split, found in self.tables.tables.items()
        }
        found = []
        for inverse in _INVERSE_RIDGES:
            model = LogisticRegression(C=inverse, max_iter=2000).fit(rows["train"], self.encoded.labels["train"])
            found.append(self.ranked({split: model.decision_function(rows[split]) for split in _EVALUATED}))
        return max(found, key=lambda draw: draw.dev)

    def same_descent(self) -> Draw:
        """The descent of the run without noise, in one place (`baseline.tabular.descent`)."""
        from baseline.tabular.descent import descend
        from veil.tabular.plan import default_descent

        weights = descend(
            self.schema,
            self.encoded.rows["train"],
            self.tables.labels["train"],
            rate=self.encoded.rate,
            users=float(self.rows),
            options=default_descent(None, DELTA, self.rows),
            noise=None,
        )
        return self.ranked({split: self.encoded.features(split) @ weights for split in _EVALUATED})

    def joint_without_noise(self) -> Draw:
        """The engine over processes and mutual TLS, correlated randomness from a dealer."""
        import numpy as np

        from cli.columns_engine import TRAINER_FILE
        from veil.trainers.columns.material import own_columns

        terms = self._terms()
        offset = terms.offset(self.encoded.rate)
        with tempfile.TemporaryDirectory(prefix="veil-bench-data-") as name:
            folder, order = Path(name), np.arange(self.rows, dtype=np.int64)
            (folder / TRAINER_FILE).write_text(terms.trainer.model_dump_json())
            for rank, table in enumerate(self.held("train")):
                own = own_columns(terms, table, self._standardisations[rank], order)
                if own.features is not None:
                    np.save(folder / f"features-{rank}.npy", own.features.numpy())
                if own.labels is not None:
                    np.save(folder / "labels.npy", own.labels.numpy().ravel())
            found = run_parties(
                "cli.columns_engine:train", len(self.names), "dealer", folder, {"offset": offset}, _LIMIT_S
            )
        weights = [np.asarray(party["weights"]) for party in found]
        if any(not np.array_equal(weights[0], other) for other in weights):
            raise ProtocolMismatch("got different weights at different parties, expected the same")
        return self.ranked(
            {split: self.encoded.features(split) @ weights[0] for split in _EVALUATED},
            seconds=max(float(party["seconds"]) for party in found),
            bytes_per_party=tuple(round(party["bytes_sent"]) for party in found),
        )

    def _terms(self) -> ColumnsTerms:
        """Those of a job, with the steps and the rate recommended for no noise; its releases are not used."""
        from veil.jobs.columns import AlignmentTerms
        from veil.jobs.spec import Noise
        from veil.tabular.plan import default_descent
        from veil.trainers.columns.plan import plan_columns
        from veil.trainers.columns.terms import ColumnsTerms

        options = default_descent(None, DELTA, self.rows)
        alignment = AlignmentTerms(mode="reveal", sizes=(self.rows,) * len(self.names), result=self.rows)
        trainer, _ = plan_columns(
            self.schema,
            alignment,
            # Large: what noise needs of the ring's room must not take fractional bits from a run that has none.
            epsilon=100.0,
            delta=DELTA,
            noise=Noise(source="dealer"),
            overrides={"steps": options.steps, "learning_rate": options.learning_rate, "momentum": options.momentum},
        )
        return ColumnsTerms.of_trainer(trainer, self.names)
