"""Users at the edges, to see whether any of them moves a sum further than the release says.

Guarantee: exact. A probe that the trainer refuses (`VeilError`) counts as bounded, since nothing was added.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from baseline.audit.mechanism import Int64, Mechanism, RunRecord
from veil.errors import VeilError
from veil.privacy.audit.finding import Finding
from veil.privacy.audit.sensitivity import equality_finding, norm_finding
from veil.recsys.interactions import Interactions
from veil.trainers.rows import PartyRows
from veil.trainers.seam import PublicState

_ORDINARY = 40
_NEIGHBOURS = 50
_AMPLIFIED = 1000
_HEADROOM = 1 << 62


def edge_users(data: Interactions, seed: int) -> list[tuple[str, Interactions]]:
    """Named single users over the items of `data`: invented extremes, and real ones from it."""
    items, generator = data.items, np.random.default_rng(seed)
    counts = data.counts()
    busy = np.argsort(-counts, kind="stable")
    histories = {
        "nothing": np.zeros(0, np.int64),
        "the most met item": busy[:1],
        "the least met item": busy[-1:],
        "two items": busy[[0, -1]],
        "the 16 most met items": busy[:16],
        "the 16 least met items": busy[-16:],
        "half of all items": np.sort(generator.choice(items, max(1, items // 2), replace=False)),
        "all items": np.arange(items),
        "the same item 1,000 times": np.repeat(busy[:1], 1000),
        "all items, each three times": np.repeat(np.arange(items), 3),
    }
    users = [
        (name, Interactions.from_pairs(np.zeros(len(met), np.int64), met, users=1, items=items))
        for name, met in histories.items()
    ]
    if data.users:
        users.append(("the longest history of the data", data.rows(np.array([int(data.lengths().argmax())]))))
        chosen = generator.choice(data.users, min(_ORDINARY, data.users), replace=False)
        users += [("a user of the data", data.rows(np.array([user]))) for user in chosen.tolist()]
    return users


def hostile_states(state: PublicState) -> list[PublicState]:
    """States that a lying lead might hand out: each array replaced by extremes, or left out, in turn."""
    out = []
    for name, array in state.items():
        real = array.dtype.kind == "f"
        values = (0.0, 1.0, -1.0, 1e-30, 1e30, np.nan, np.inf) if real else (0, 1, -1)
        out += [{**state, name: np.full_like(array, value)} for value in values]
        for value in (1e-30, 1e30, np.nan) if real else ():
            spike = array.copy()
            spike.flat[0] = value
            out.append({**state, name: spike})
        out.append({**state, name: -array})
        out.append({other: kept for other, kept in state.items() if other != name})
    return out


def amplified_states(mechanism: Mechanism, data: Interactions) -> list[PublicState]:
    """The public state before each step as it would be with a thousand times the users and hardly any noise.

    Trainers may do other things there than on few users; one user's bound is the same.
    """
    state: PublicState = {}
    states = []
    for step in mechanism.algorithm.steps:
        states.append(state)
        total = mechanism.algorithm.contribution(step, PartyRows(data), state)
        state = mechanism.algorithm.advance(step, total * _factor(total), state)
    return states


def _factor(total: Int64) -> int:
    return min(_AMPLIFIED, _HEADROOM // max(1, int(total.max(initial=0)), -int(total.min(initial=0))))


def sensitivity_findings(mechanism: Mechanism, record: RunRecord, data: Interactions, seed: int) -> list[Finding]:
    """One finding a release on norms, in the run's states, in those of many users, and in hostile ones of both.

    One more a release on neighbours.
    """
    users = edge_users(data, seed)
    few = data.rows(slice(0, _NEIGHBOURS))
    many = amplified_states(mechanism, few)
    found = []
    for number, step in enumerate(mechanism.algorithm.steps):
        release, state = mechanism.spec.release(step), record.states[number]

        def contributions(
            step: str = step, states: tuple[PublicState, ...] = (state, many[number])
        ) -> Iterator[tuple[str, Int64]]:
            for state in states:
                for name, user in users:
                    yield name, mechanism.algorithm.contribution(step, PartyRows(user), state)
            for hostile in (hostile for state in states for hostile in hostile_states(state)):
                for name, user in users[:10]:
                    try:
                        with np.errstate(all="ignore"):  # overflow is what these states are for
                            added = mechanism.algorithm.contribution(step, PartyRows(user), hostile)
                    except VeilError:
                        continue
                    yield f"{name}, state altered", added

        found.append(norm_finding(release, contributions()))
        # Neighbours: the sum with one user more differs by that user's own contribution, in every entry.
        extreme = users[7][1]
        without = mechanism.algorithm.contribution(step, PartyRows(few), state)
        with_one = mechanism.algorithm.contribution(step, PartyRows(Interactions.concatenate([few, extreme])), state)
        alone = mechanism.algorithm.contribution(step, PartyRows(extreme), state)
        found.append(
            equality_finding(step, with_one - without, alone, "entries in which one user changes others' contributions")
        )
    return found
