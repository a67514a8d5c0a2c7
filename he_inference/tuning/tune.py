"""Which layout and parameter set suit a number of items and a link: predicted from primitives, then checked by trial.

Guarantee: sizes are exact, being functions of the layout. Errors are standard deviations by the formulas below, which
assume random unit vectors; what is promised is the parameter set's own `score_error`. Times come from a few primitives
that are measured on this machine when the tuner runs (`he_inference.tuning.calibration`).

Variance of one score's error. N degree, S = N/2, Q data modulus, P special modulus, b baby steps, g packing, 2^q, 2^i
the scales, first and second the bits of a result, L = 220 levels (`encoding.slots.Bfv`). A coefficient of deviation x
puts sqrt(S) x into each part of a slot.

    session    query     (b - 1) x^2 S / 4^q, where x^2 = N/12 (3.2 Q/P)^2 + N/18 is one key switch (`ring.switch`):
                         the k-th baby step has k of them, (b - 1) / 2 on average, and two items share a slot (half of
                         it when there are no more than S items)
               items     S / 6 / 4^i: rounding and dither
               result    S r, where r = (4^-first / 12 + 4^-second N/18) Q^2 / 4^(q+i)
    keyless    query     (3.2^2 + 1/12) N/g / 4^q: a result has N/g unit vectors in it
               items     1/12 / 4^i
               result    r
    exact      rounding  2 / 12 / L^2 of both vectors; nothing else, the product is exact

Sources: the terms are those of eprint 2016/421 and 2019/688; a test compares each formula with measured errors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from he_inference.encoding.slots import Bfv
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
from he_inference.layouts.seam import MAX_DIMENSIONS, MAX_ITEMS, Layout
from he_inference.parameters import EXACT, FAST, KEYLESS, KEYLESS_SMALL, PQ
from he_inference.tuning import trial
from he_inference.tuning.calibration import Costs
from veil.errors import ConfigError

# Sets for a client that sends its vector.
SETS = (FAST, PQ, EXACT, KEYLESS, KEYLESS_SMALL)
_PACKINGS = (1, 2, 4, 8, 16, 32, 64)
# Of SEAL's errors, a clipped normal distribution.
_FRESH = 3.2
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

    error_deviation: standard deviation of one score's error. largest_error: expected among all scores of a query.
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
    server_ms: float
    client_ms: float
    total_ms: float
    dominated_by: str | None = None

    @property
    def name(self) -> str:
        """Parameter set, layout when it is not the usual one of the set, and packing."""
        layout, packing = self.layout, packing_of(self.layout)
        kind = "" if layout.kind == usual_kind(layout.parameters) else f" {layout.kind}"
        return f"{layout.parameters.name}{kind}" + (f" g={packing}" if packing else "")

    @property
    def _costs(self) -> tuple[float, ...]:
        return (
            self.query_bytes, self.key_bytes, self.response_bytes, self.index_bytes,
            self.server_ms, self.total_ms, self.layout.parameters.score_error,
        )  # fmt: skip

    def dominates(self, other: Plan) -> bool:
        """Whether nothing speaks for the other one. An approximate scheme never dominates an exact one."""
        if other.layout.parameters.scheme == "bfv" != self.layout.parameters.scheme:
            return False
        pairs = list(zip(self._costs, other._costs, strict=True))
        return all(mine <= theirs for mine, theirs in pairs) and any(mine < theirs for mine, theirs in pairs)


def layouts(items: int, dimensions: int, *, post_quantum: bool, largest_error: float = 1.0) -> list[Layout]:
    """All layouts of named sets that fit. Raises `ConfigError` when there is none.

    post_quantum: only sets within Apple's table for 128 bits against a quantum attacker. largest_error: only sets whose
    stated bound, for unit vectors, is no larger.
    """
    if not 1 <= items <= MAX_ITEMS:
        raise ConfigError(f"got {items} items, expected 1 to {MAX_ITEMS}", hint="split the catalogue, or ask of a part")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ConfigError(f"got {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}", hint="reduce them first")
    allowed = [one for one in SETS if one.post_quantum or not post_quantum]
    found: list[Layout] = []
    for parameters in allowed:
        if parameters.score_error > largest_error:
            continue
        kind = usual_kind(parameters)
        for packing in _PACKINGS if kind == "keyless" else (0,):
            try:
                layout = layout_of(kind, parameters, items, dimensions, packing)
            except ConfigError:
                continue  # too many query ciphertexts, say
            if query_bytes(layout) <= MAX_QUERY_BYTES:
                found.append(layout)
    if not found:
        best = min(one.score_error for one in allowed)
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
    terms, primes = layout.groups * layout.rotations, len(layout.parameters.data_primes)
    index = 4 * layout.blocks * terms * primes * layout.parameters.degree
    server = costs.reading(layout.query_ciphertexts) + costs.accumulation(index)
    if layout.query_ciphertexts == 1:
        server += (layout.rotations - 1) * costs.baby
    whole, rest = divmod(layout.blocks, BLOCKS_AT_A_TIME)
    for rows, times in ((BLOCKS_AT_A_TIME, whole), (rest, 1)):
        server += times * ((layout.groups - 1) * costs.giant(rows) + costs.packing(rows))
    client = costs.encryption(layout.query_ciphertexts) + costs.decryption(layout.blocks)
    total = client + server + 8000 * (up / link.up + down / link.down)
    if one_shot:
        total += 8000 * keys / link.up + (costs.keys if keys else 0.0)
    deviation = error_deviation(layout)
    return Plan(
        layout, one_shot, up, keys, down, index, deviation, expected_largest(deviation, layout.items),
        server, client, total,
    )  # fmt: skip


def error_deviation(layout: Layout) -> float:
    """Standard deviation of |score - plaintext score| for random unit vectors; see the module."""
    parameters = layout.parameters
    if parameters.scheme == "bfv":
        return math.sqrt(2 / 12) / Bfv.LEVELS
    n, first, second = parameters.degree, *parameters.response_bits
    data, special = (math.prod(primes) for primes in (parameters.data_primes, parameters.special_primes))
    query, item = 4.0**parameters.query_scale_bits, 4.0**parameters.item_scale_bits
    result = (4.0**-first / 12 + 4.0**-second * n / 18) * data**2 / (query * item)
    if layout.kind == "keyless":
        return math.sqrt((_FRESH**2 + 1 / 12) * layout.block_items / query + 1 / 12 / item + result)
    switched = n / 12 * (_FRESH * data / special) ** 2 + n / 18
    slots = n / 2
    shared = 2 if layout.items > slots else 1
    return math.sqrt(slots * (shared * (layout.rotations - 1) / 2 * switched / query + 1 / 6 / item + result))


def expected_largest(deviation: float, count: int) -> float:
    """About the largest size among `count` independent normal errors: sqrt(2 ln(2 count)) deviations."""
    return deviation * math.sqrt(2 * math.log(2 * max(1, count)))


@dataclass(frozen=True)
class Check:
    """A plan beside what a real trial of it gave. plan: for `items` of the trial, which may be fewer than were asked.

    largest_error, error_deviation: of all scores of all queries. Times are medians.
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
    server_ms: float
    client_ms: float
    total_ms: float

    @property
    def sound(self) -> bool:
        """Whether sizes are as predicted and no score was wrong by more than the stated bound."""
        sizes = (self.query_bytes, self.key_bytes, self.response_bytes, self.index_bytes)
        plan = self.plan
        expected = (plan.query_bytes, plan.key_bytes, plan.response_bytes, plan.index_bytes)
        return sizes == expected and self.largest_error <= plan.layout.parameters.score_error


def check(
    plan: Plan, costs: Costs, link: Link, *, queries: int = 20, seed: int = 0, trial_bytes: int = TRIAL_BYTES
) -> Check:
    """Builds an index of random unit vectors, of at most `trial_bytes`, and asks it; medians over the queries."""
    layout = plan.layout
    if plan.index_bytes > trial_bytes:
        blocks = max(1, trial_bytes * layout.blocks // plan.index_bytes)
        layout = layout_of(
            layout.kind, layout.parameters, blocks * layout.block_items, layout.dimensions, packing_of(layout)
        )
        plan = predict(layout, costs, link, plan.one_shot)
    rng = np.random.default_rng(seed)
    compute = trial.StagedCompute(layout)
    rows = trial.unit_rows(rng, layout.items, layout.dimensions)
    index = trial.encoded(compute, rows)
    client = trial.Client(compute)
    vectors = trial.unit_rows(rng, queries, layout.dimensions)
    trial.ask(client, compute, index, vectors[0])  # compiled and warm
    answers, largest, squares = [], 0.0, 0.0
    for vector in vectors:
        answers.append(trial.ask(client, compute, index, vector))
        errors = answers[-1].scores - rows @ vector
        largest, squares = max(largest, float(np.abs(errors).max())), squares + float(np.mean(errors**2))
    server, clients = (float(np.median([getattr(a, name) for a in answers])) for name in ("server_ms", "client_ms"))
    total = server + clients + 8000 * (answers[0].query_bytes / link.up + answers[0].response_bytes / link.down)
    if plan.one_shot:
        total += 1000 * client.key_s + 8000 * len(client.key_data) / link.up
    return Check(
        plan, layout.items, queries,
        answers[0].query_bytes, len(client.key_data), answers[0].response_bytes, index.nbytes,
        largest, math.sqrt(squares / queries), server, clients, total,
    )  # fmt: skip
