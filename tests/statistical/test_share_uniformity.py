"""Every byte that a party sends in a round is public, fresh randomness, or uniform.

Three parties run `open_noised_sum` on inputs that would show through a missing mask. For each message it is checked
that header and kind do not depend on the input, that statements are equal for all inputs, and that shares pass
chi-square and bit-count tests. False alarms: all tests of this file together fail by chance with probability below
1e-6 (Bonferroni over at most 1,000 tests, each at 1e-9). The negative control runs the same code with the masks off
and must fail these very tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy.stats

from tests.statistical.share_capture import INPUTS, SHAPE
from tests.unit.mpc.parties import CONSORTIUM, NAMES, Group, Pool, job_text
from veil.identity.trial import make_consortium
from veil.mpc.header import Operation, unpack

ALPHA_EACH = 1e-9
PARTIES = 3
Messages = list[tuple[int, bytes]]


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Messages]]]:
    """By rank, then by input: what was sent."""
    directory = tmp_path_factory.mktemp("consortium")
    make_consortium(directory, CONSORTIUM, NAMES[:PARTIES])
    pool = Pool(directory, (PARTIES,))
    try:
        task = "tests.statistical.share_capture:capture"
        yield pool.run(Group("loopback", PARTIES, job_text(PARTIES), task=task))
    finally:
        pool.close()


def shares(messages: Messages) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The ring elements of all shares sent, one row for each message."""
    rows = []
    for _, message in messages:
        header, data = unpack(message, "sender")
        if header.operation is Operation.ALL_REDUCE:
            assert header.shape == SHAPE
            rows.append(np.frombuffer(data, dtype="<u8"))
    return np.stack(rows)


def smallest_p_value(words: np.ndarray[Any, np.dtype[np.uint64]]) -> float:
    """Of chi-square over byte values at each of the 8 positions, in words and in differences of neighbours, and of
    binomial tests of each of the 64 bits: 80 tests."""
    found = []
    for column in (words, words[1:] - words[:-1]):
        octets = column.view(np.uint8).reshape(-1, 8)
        found += [scipy.stats.chisquare(np.bincount(octets[:, at], minlength=256)).pvalue for at in range(8)]
    bits = np.unpackbits(words.view(np.uint8)).reshape(-1, 64).sum(axis=0)
    found += [scipy.stats.binomtest(int(count), len(words)).pvalue for count in bits]
    return float(min(found))


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("rank", range(PARTIES))
def test_shares_are_uniform(captured: list[dict[str, Messages]], rank: int, name: str) -> None:
    rows = shares(captured[rank][name])
    assert len(rows) == PARTIES - 1
    assert (rows == rows[0]).all()  # the same share to every peer: two different ones would be two equations
    assert smallest_p_value(rows[0]) > ALPHA_EACH


@pytest.mark.parametrize("rank", range(PARTIES))
def test_all_else_is_the_same_for_every_input(captured: list[dict[str, Messages]], rank: int) -> None:
    def public(messages: Messages) -> list[tuple[int, str, bytes]]:
        found = []
        for peer, message in messages:
            header, data = unpack(message, "sender")
            # Key contributions are fresh randomness, shares are tested above; of both, only the size is public.
            masked = header.operation in (Operation.KEY, Operation.ALL_REDUCE)
            found.append((peer, str(header), b"" if masked else bytes(data)))
        return found

    runs = [public(captured[rank][name]) for name in INPUTS]
    assert runs[0] and all(run == runs[0] for run in runs)


@pytest.mark.parametrize("rank", range(PARTIES))
def test_key_contributions_are_fresh(captured: list[dict[str, Messages]], rank: int) -> None:
    keys = []
    for name in INPUTS:
        for _, message in captured[rank][name]:
            header, data = unpack(message, "sender")
            if header.operation is Operation.KEY:
                keys.append(bytes(data[:32]))
    assert len(set(keys)) == len(INPUTS) * (PARTIES - 1)


@pytest.mark.parametrize("rank", range(PARTIES))
def test_negative_control_without_masks_fails(captured: list[dict[str, Messages]], rank: int) -> None:
    assert smallest_p_value(shares(captured[rank]["masks off"])[0]) < 1e-100
