"""Which layout and parameter set suit a number of items and a link: predicted from primitives, then checked by trial.

Guarantee: sizes are exact, being functions of the layout. Errors are the standard deviations that
`he_inference.encoding.deviation` expects for random unit vectors, of a history those of its outputs, before they are
put together and multiplied by what the model says; what is promised is `stated_error`. Times come from a few primitives
that are measured on this machine when the tuner runs (`he_inference.tuning.calibration`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from he_inference.encoding.deviation import expected, stated_error
from he_inference.engine.seam import BLOCKS_AT_A_TIME
from he_inference.layouts.catalogue import (
    MAX_QUERY_BYTES,
    key_bytes,
    layout_of,
    packing_of,
    query_bytes,
    result_bytes,
    usual_kind,
)
from he_inference.layouts.history import HistoryLayout
from he_inference.layouts.keyless import PACKINGS
from he_inference.layouts.seam import MAX_DIMENSIONS, MAX_ITEMS, Layout
from he_inference.parameters import EXACT, FAST, HISTORY, KEYLESS, KEYLESS_SMALL, PQ
from he_inference.tuning import trial
from he_inference.tuning.calibration import Costs
from he_inference.tuning.subjects import subject_of
from veil.errors import ConfigError

# Sets for a client that sends its vector.
SETS = (FAST, PQ, EXACT, KEYLESS, KEYLESS_SMALL)
# A trial of more than this is made with fewer items, so that it takes seconds.
TRIAL_BYTES = 128 << 20
_UNITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


@dataclass(frozen=True)
class Link:
    """Bits a second from client to server and back."""

    up: float
    down: float


def bits_per_second(text: str) -> float:
    """The rate that "5Mbit", "800 kbit/s" or "1.5Gbit" means. Raises `ConfigError`."""
    match = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([kmg]?bit)(?:/s|ps)?\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise ConfigError(
            f"got rate {text[:32]!r}, expected a number and a unit, as in 5Mbit",
            hint="units are bit, kbit, Mbit and Gbit, a second; 1 MB a second is 8Mbit",
        )
    return float(match[1]) * _UNITS[match[2].lower()]


@dataclass(frozen=True)
class Plan:
    """A candidate with all that is known about it before it runs.

    error_deviation: standard deviation of one score's error. largest_error: expected among all scores of a query. Of a
    history both are of outputs, for user vectors of norm 1. stated_error: the bound that is promised for them.
    total_ms: from a vector to scores over the link; of a one-shot client, with the making and sending of its keys.
    dominated_by: another plan that is no worse in bytes, keys, index, time and stated error, and better in one.
    """

    layout: Layout = field(repr=False)
    one_shot: bool
    query_bytes: int
    key_bytes: int
    response_bytes: int
    index_bytes: int
    error_deviation: float
    largest_error: float
    stated_error: float
    server_ms: float
    client_ms: float
    total_ms: float
    dominated_by: str | None = None

    @property
    def name(self) -> str:
        """Parameter set, layout when it is not the usual one of the set, and packing."""
        layout, packing = self.layout, packing_of(self.layout)
        kind = "" if layout.kind == usual_kind(layout.parameters) else f" {layout.kind}"
        return f"{layout.parameters.name}{kind}" + (f" g={packing}" if layout.kind == "keyless" else "")

    @property
    def from_history(self) -> bool:
        """Whether clients send a history, and need no part of the model."""
        return isinstance(self.layout, HistoryLayout)

    @property
    def numbers(self) -> int:
        """How many numbers have an error in one query."""
        return _numbers(self.layout)

    @property
    def _costs(self) -> tuple[float, ...]:
        return (
            self.query_bytes, self.key_bytes, self.response_bytes, self.index_bytes,
            self.server_ms, self.total_ms, self.stated_error,
        )  # fmt: skip

    def dominates(self, other: Plan) -> bool:
        """Whether nothing speaks for the other one. An approximate scheme never dominates an exact one, and what takes
        a vector never what takes a history."""
        if other.layout.parameters.scheme == "bfv" != self.layout.parameters.scheme:
            return False
        if self.from_history != other.from_history:
            return False
        pairs = list(zip(self._costs, other._costs, strict=True))
        return all(mine <= theirs for mine, theirs in pairs) and any(mine < theirs for mine, theirs in pairs)


def layouts(
    items: int, dimensions: int, *, post_quantum: bool, largest_error: float = 1.0, history: bool = False
) -> list[Layout]:
    """All layouts of named sets that fit. Raises `ConfigError` when there is none, or none for a history that is asked
    for.

    post_quantum: only sets within Apple's table for 128 bits against a quantum attacker. largest_error: only sets whose
    stated bound, for unit vectors, is no larger. history: that of a model with user terms for histories, too.
    """
    if not 1 <= items <= MAX_ITEMS:
        raise ConfigError(f"got {items} items, expected 1 to {MAX_ITEMS}", hint="split the catalogue, or ask of a part")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ConfigError(f"got {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}", hint="reduce them first")
    allowed = [one for one in SETS if one.post_quantum or not post_quantum]
    found: list[Layout] = []
    for parameters in allowed:
        kind = usual_kind(parameters)
        for packing in PACKINGS if kind == "keyless" else (0,):
            try:
                layout = layout_of(kind, parameters, items, dimensions, packing)
            except ConfigError:
                continue  # too many query ciphertexts, say
            if query_bytes(layout) <= MAX_QUERY_BYTES and stated_error(layout) <= largest_error:
                found.append(layout)
    wanted: Sequence[Layout] = found
    if history:
        folding = layout_of("history", HISTORY, items, dimensions, HistoryLayout.packing)
        wanted = [folding] if stated_error(folding) <= largest_error else []
        found.extend(wanted)
    if not wanted:
        best = HISTORY.score_error if history else min(one.score_error for one in allowed)
        raise ConfigError(
            f"got a largest error of {largest_error:g}, expected at least {best:g}, the smallest bound of a named set",
            hint="raise --error, or scale the vectors",
        )
    return found


def plans(found: Sequence[Layout], costs: Mapping[str, Costs], link: Link, *, one_shot: bool) -> list[Plan]:
    """Predictions, the fastest first. costs: by name of the parameter set."""
    made = sorted((predict(layout, costs[layout.parameters.name], link, one_shot) for layout in found), key=_total)
    result = []
    for plan in made:
        better = next((other.name for other in made if other is not plan and other.dominates(plan)), None)
        result.append(replace(plan, dominated_by=better))
    return result


def _total(plan: Plan) -> float:
    return plan.total_ms


def predict(layout: Layout, costs: Costs, link: Link, one_shot: bool) -> Plan:
    """One candidate."""
    up, keys, down = query_bytes(layout), key_bytes(layout), layout.blocks * result_bytes(layout)
    index = index_bytes(layout)
    server = costs.reading(layout.query_ciphertexts)
    if isinstance(layout, HistoryLayout):
        scored = index_bytes(layout.output)
        server += costs.folding_ms(layout, index - scored) + costs.accumulation(scored)
    else:
        server += costs.accumulation(index)
    if layout.query_ciphertexts == 1 or isinstance(layout, HistoryLayout):
        server += (layout.rotations - 1) * costs.baby
    whole, rest = divmod(layout.blocks, BLOCKS_AT_A_TIME)
    for rows, times in ((BLOCKS_AT_A_TIME, whole), (rest, 1)):
        server += times * ((layout.groups - 1) * costs.giant(rows) + costs.packing(rows))
    client = costs.encryption(layout.query_ciphertexts) + costs.decryption(layout.blocks)
    total = client + server + 8000 * (up / link.up + down / link.down)
    if one_shot:
        total += 8000 * keys / link.up + (costs.keys if keys else 0.0)
    deviation = expected(layout)
    return Plan(
        layout, one_shot, up, keys, down, index, deviation, expected_largest(deviation, _numbers(layout)),
        stated_error(layout), server, client, total,
    )  # fmt: skip


def index_bytes(layout: Layout) -> int:
    """Bytes of the blocks of its index, exactly; of a history those of both parts."""
    if isinstance(layout, HistoryLayout):
        return index_bytes(layout.fold_in) + index_bytes(layout.output)
    terms, primes = layout.groups * layout.rotations, len(layout.parameters.data_primes)
    return 4 * layout.blocks * terms * primes * layout.parameters.degree


def _numbers(layout: Layout) -> int:
    return layout.answers if isinstance(layout, HistoryLayout) else layout.items


def expected_largest(deviation: float, count: int) -> float:
    """About the largest size among `count` independent normal errors: sqrt(2 ln(2 count)) deviations."""
    return deviation * math.sqrt(2 * math.log(2 * max(1, count)))


@dataclass(frozen=True)
class Check:
    """A plan beside what a real trial of it gave. plan: for `items` of the trial, which may be fewer than were asked.

    largest_error, error_deviation: of all scores of all queries, of a history of all its outputs. error_of_stated: the
    largest share that the error of a score had of the bound that was stated with it. Times are medians.
    """

    plan: Plan
    items: int
    queries: int
    query_bytes: int
    key_bytes: int
    response_bytes: int
    index_bytes: int
    largest_error: float
    error_deviation: float
    error_of_stated: float
    server_ms: float
    client_ms: float
    total_ms: float

    @property
    def sound(self) -> bool:
        """Whether sizes are as predicted and no score was wrong by more than the stated bound."""
        sizes = (self.query_bytes, self.key_bytes, self.response_bytes, self.index_bytes)
        plan = self.plan
        expected = (plan.query_bytes, plan.key_bytes, plan.response_bytes, plan.index_bytes)
        return sizes == expected and self.largest_error <= plan.stated_error and self.error_of_stated <= 1.0


def check(
    plan: Plan, costs: Costs, link: Link, *, queries: int = 20, seed: int = 0, trial_bytes: int = TRIAL_BYTES
) -> Check:
    """Builds an index of random items, of about `trial_bytes` at most, and asks it; medians over the queries."""
    layout = plan.layout
    if plan.index_bytes > trial_bytes:
        blocks = max(1, trial_bytes * layout.blocks // plan.index_bytes)
        items = blocks * layout.block_items // (layout.packing if isinstance(layout, HistoryLayout) else 1)
        layout = layout_of(layout.kind, layout.parameters, items, layout.dimensions, packing_of(layout))
        plan = predict(layout, costs, link, plan.one_shot)
    subject = subject_of(layout, seed)
    parts = [trial.blocks_of(part, rows) for part, rows in subject.parts]
    scene = trial.Scene.of(subject, parts)
    questions = subject.questions(np.random.default_rng([seed, 1]), queries)
    trial.ask(scene, questions[0])  # compiled and warm
    answers, largest, squares, share = [], 0.0, 0.0, 0.0
    for question in questions:
        answer = trial.ask(scene, question)
        errors = subject.unit_errors(question, answer.decrypted)
        largest, squares = max(largest, float(np.abs(errors).max())), squares + float(np.mean(errors**2))
        wrong = float(np.abs(answer.decrypted.scores - subject.truth(question)).max())
        share = max(share, wrong / answer.decrypted.bound)
        answers.append(answer)
    server, clients = (float(np.median([getattr(a, name) for a in answers])) for name in ("server_ms", "client_ms"))
    total = server + clients + 8000 * (answers[0].query_bytes / link.up + answers[0].response_bytes / link.down)
    client = scene.client
    if plan.one_shot:
        total += 1000 * client.key_s + 8000 * len(client.key_data) / link.up
    return Check(
        plan, layout.items, queries,
        answers[0].query_bytes, len(client.key_data), answers[0].response_bytes, sum(part.nbytes for part in parts),
        largest, math.sqrt(squares / queries), share, server, clients, total,
    )  # fmt: skip
