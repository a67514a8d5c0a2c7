"""Questions on the seam of `veil.trainers.seam`: each is one release, answered once.

Guarantee: that of `veil.queries.counting` for what a party contributes; `check_releases` insists that the job lists the
true sensitivity of every question, in the norm of its mechanism, before anything is signed.

The public state is the openings themselves, so every party checks what the lead states (`exact_state`,
`party.worker.trainer`): answers that all parties signed are the totals that opened at every one of them.

The rows of a party are looked at once for each question, no question depends on the answer to another, and the answers
are published as they opened: not rounded, and not cut off at 0, which would make them biased. Whoever reads them may do
both (post-processing).
"""

from __future__ import annotations

from typing import Final

from veil.errors import ConfigError, InputError, StateError
from veil.jobs.spec import JobSpec, QueryTrainer
from veil.queries.answers import Answer, AnswersPublication
from veil.queries.counting import Count, Int64
from veil.queries.intervals import NoiseOn
from veil.queries.question import UNIT, from_text
from veil.recsys.catalogue import Catalogue
from veil.trainers.rows import PartyRows
from veil.trainers.seam import PublicState, check_catalogue, check_releases


class QueryAlgorithm:
    """The questions of one job. Raises `ConfigError` when questions, releases and catalogue do not fit together."""

    exact_state: Final = True
    """`advance` has no rounding: two parties that saw the same openings have equal states."""

    def __init__(self, spec: JobSpec, catalogue: Catalogue) -> None:
        if not isinstance(spec.trainer, QueryTrainer):
            raise ConfigError(f"got a job of trainer {spec.trainer.kind!r}, expected query")
        check_catalogue(spec, catalogue)
        counts = [Count(from_text(text), catalogue, spec.nonce) for text in spec.trainer.questions]
        self.spec = spec
        self.steps: list[str] = [count.question.name for count in counts]
        if len(set(self.steps)) != len(self.steps):
            raise ConfigError("got two questions of one name, expected each name once")
        check_releases(spec, [count.question.expected(len(count.labels)) for count in counts])
        self._counts = dict(zip(self.steps, counts, strict=True))

    def __repr__(self) -> str:
        return f"QueryAlgorithm(questions={len(self.steps)})"

    def contribution(self, step: str, rows: PartyRows, state: PublicState) -> Int64:
        """The exact sum over the given users, int64[groups], in steps of 2^-16; `state` is not read."""
        return self._count(step).contribution(rows)

    def advance(self, step: str, opened: Int64, state: PublicState) -> PublicState:
        """The answers so far: the opening beside those before it."""
        count = self._count(step)
        if opened.shape != (len(count.labels),) or opened.dtype != "int64":
            raise InputError(f"got an opening {opened.dtype}{opened.shape}, expected int64({len(count.labels)},)")
        return {**state, step: opened}

    def publish(self, state: PublicState) -> AnswersPublication:
        """What is published: every answer with its noise."""
        return AnswersPublication([self._answer(step, state) for step in self.steps])

    def _answer(self, step: str, state: PublicState) -> Answer:
        opened = state.get(step)
        count, release = self._count(step), self.spec.release(step)
        if opened is None or opened.dtype != "int64" or opened.shape != release.shape:
            raise StateError(f"got no answer to {step}, expected the state after the last opening")
        noise = NoiseOn.release(self.spec, release)
        return Answer(
            question=count.question,
            groups=count.labels,
            titles=count.titles,
            # Exact below 2^53 grid steps; above, the nearest float, the same everywhere.
            values=tuple(value / UNIT for value in opened.tolist()),
            sensitivity=release.sensitivity / UNIT,
            noise_scale=noise.scale,
            noise_draws=noise.draws,
            noise_sd=noise.sd,
            interval_95=noise.interval_95,
        )

    def _count(self, step: str) -> Count:
        try:
            return self._counts[step]
        except KeyError:
            raise StateError(f"got step {step!r}, expected one of the job's questions") from None
