"""The sampler's exact path, its thresholds, its byte sources and its bounds; the law itself is in tests/statistical."""

from __future__ import annotations

import subprocess
import sys
from bisect import bisect_right
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from veil.errors import InputError, StateError
from veil.privacy.noise import ByteSource, keyed_source, rounded_gaussian, system_source
from veil.privacy.normal_tails import tail_bounds

ONE = 2**64
PINNED_VALUES = [155, 550, 825, 833, 92, 1089, -842, -1952]
PINNED_SUM = -337_603


class Scripted:
    """A byte source that plays out given bytes, in the order in which one candidate asks for them; then it fails."""

    def __init__(self, *parts: tuple[int, int]) -> None:
        self._bytes = b"".join(value.to_bytes(size, "little") for value, size in parts)

    def __call__(self, size: int) -> bytes:
        if size > len(self._bytes):
            raise EOFError("the script is at its end")
        head, self._bytes = self._bytes[:size], self._bytes[size:]
        return head

    @property
    def left(self) -> int:
        return len(self._bytes)


def digit(value: int) -> tuple[int, int]:
    return value, 8


def coin(c: int, *, negative: bool = False) -> tuple[int, int]:
    return c | negative << 15, 2


SURE = coin(2**15 - 1)  # above 2k for every k that occurs: algorithm B ends at once


def one(sigma: int, *parts: tuple[int, int]) -> int:
    """One value from a script, which must be used up."""
    script = Scripted(*parts)
    value = int(rounded_gaussian(1, sigma, script)[0])
    assert script.left == 0
    return value


def cell_of(u: int, bits: int = 64) -> int:
    """k for u in [u, u + 1) / 2^bits; the caller knows that it is decided."""
    lower, _ = tail_bounds(bits)
    return len(lower) - bisect_right(lower, u)


def u_for(k: int) -> int:
    """A first digit that decides on cell k."""
    ascending = [0, *tail_bounds(64)[0], ONE]
    upper = len(ascending) - 1 - k
    return (ascending[upper - 1] + ascending[upper]) // 2


def test_thresholds_bound_the_exact_tail_probabilities() -> None:
    """Against decimal arithmetic with 90 digits, a separate implementation of exp."""
    with localcontext() as context:
        context.prec = 90
        weights = [(-Decimal(k * k) / 2**15).exp() for k in range(2600)]
        total = sum(weights)
        tails: list[Decimal] = []
        running = Decimal(0)
        for weight in reversed(weights):
            running += weight
            tails.append(running / total)
        tails.reverse()
        for bits in (8, 64, 128, 192):
            lower, upper = tail_bounds(bits)
            for j, (low, high) in enumerate(zip(reversed(lower), reversed(upper), strict=True), start=1):
                assert low <= tails[j] * 2**bits <= high
                assert high - low <= 1
            # What the table leaves out is below one unit.
            assert tails[len(lower) + 1] * 2**bits < 1


def test_first_digits_give_exactly_the_rounded_value() -> None:
    """The numpy path against rational arithmetic, with coins that always accept and continuations of zeros."""
    count, plan = 20_000, np.random.default_rng(7)  # the test's inputs, not noise
    for sigma in (1, 2, 3, 127, 128, 2**31 + 1, 2**32 - 1, 2**32, 2**45 + 3, 2**52 - 1):
        u = plan.integers(2**50, ONE, size=count, dtype=np.uint64)
        x = plan.integers(0, ONE, size=count, dtype=np.uint64)
        signs = plan.integers(0, 2, size=count, dtype=np.uint16)
        coins = (signs << 15 | 0x7FFF).astype("<u2")
        parts = [u.astype("<u8").tobytes(), x.astype("<u8").tobytes(), coins.tobytes()]

        def source(size: int, parts: list[bytes] = parts) -> bytes:
            return parts.pop(0) if parts else bytes(size)

        values = rounded_gaussian(count, sigma, source)
        for i in range(count):
            position = cell_of(int(u[i])) + Fraction(int(x[i]), ONE)
            expected = int(sigma * position / 128 + Fraction(1, 2))
            assert values[i] == (-expected if signs[i] else expected)


def test_a_tie_with_a_threshold_is_decided_by_further_digits() -> None:
    sigma = 128  # the value is k + round(x): with x just above 0, k itself
    for j in (1, 5, 300, 1000):
        first = tail_bounds(64)[0][-j]
        second = tail_bounds(128)[0][-j] & (ONE - 1)
        third = tail_bounds(192)[0][-j] & (ONE - 1)
        tail = (digit(2),)  # z of algorithm B, above x: no success
        below = one(sigma, digit(first), digit(1), SURE, digit(second - 1), *tail)
        above = one(sigma, digit(first), digit(1), SURE, digit(second + 1), *tail)
        assert (below, above) == (j, j - 1)
        # Equal in two digits: the third decides.
        below = one(sigma, digit(first), digit(1), SURE, digit(second), digit(third - 1), *tail)
        above = one(sigma, digit(first), digit(1), SURE, digit(second), digit(third + 1), *tail)
        assert (below, above) == (j, j - 1)


def test_a_first_digit_of_zero_reaches_beyond_the_table() -> None:
    sigma = 2**40
    for second in (12_345, 2**20 + 1, 2**63 + 1):
        value = one(sigma, digit(0), digit(2**63), SURE, digit(second), digit(ONE - 1))
        # u = second / 2^128, and k/s is near the half-normal quantile of u.
        assert value / sigma == pytest.approx(stats.norm.isf(second / 2**129), abs=0.02)


def test_a_generator_of_zeros_is_refused() -> None:
    """It would tie for ever."""
    with pytest.raises(StateError, match="generator is broken"):
        rounded_gaussian(10, 2**40, bytes)


def test_a_rounding_tie_is_decided_by_further_digits() -> None:
    for sigma, k in ((1, 64), (3, 21), (2**51 + 1, 77), (2**52 - 1, 200)):
        # The last half-integer n + 1/2 that sigma (k + x)/128 passes, and the digit of x in whose interval it lies.
        n = int(Fraction(sigma * (k + 1), 128) - Fraction(1, 2))
        crossing = (n + Fraction(1, 2)) * 128 / sigma - k
        head = int(crossing * ONE)
        assert 0 <= head < ONE
        rest = crossing * ONE - head
        u, z = digit(u_for(k)), digit(ONE - 1)
        if rest == 0:
            # The half-integer lies on the interval's start: every continuation is above, and one digit is enough.
            assert one(sigma, u, digit(head), SURE) == n + 1
            continue
        edge = int(rest * ONE)
        assert one(sigma, u, digit(head), SURE, z, digit(edge - 1)) == n
        assert one(sigma, u, digit(head), SURE, z, digit(edge + 1)) == n + 1
        # A tie in two digits as well.
        last = (rest * ONE - edge) * ONE
        if last:
            assert one(sigma, u, digit(head), SURE, z, digit(edge), digit(int(last) - 1)) == n
            assert one(sigma, u, digit(head), SURE, z, digit(edge), digit(int(last) + 1)) == n + 1


def test_algorithm_b_counts_its_run_and_breaks_ties() -> None:
    sigma, k = 128, 10
    u, x = digit(u_for(k)), digit(ONE // 4)
    hit, edge, miss = coin(2 * k - 1), coin(2 * k), coin(2 * k + 1)
    small, smaller, large = digit(ONE // 8), digit(ONE // 16), digit(ONE // 2)
    again = (digit(u_for(3)), digit(1), SURE)  # the next candidate, after a rejection
    # n = 0 (z too large), n = 1 (then z too large), n = 2 (then the coin fails).
    assert one(sigma, u, x, hit, large) == k
    assert one(sigma, u, x, hit, small, coin(0), large, *again) == 3
    assert one(sigma, u, x, hit, small, coin(0), smaller, miss, digit(1)) == k
    # The coin at its edge succeeds when a new uniform is below x: n = 1, rejected; otherwise n = 0.
    assert one(sigma, u, x, edge, small, small, coin(0), large, *again) == 3
    assert one(sigma, u, x, edge, small, large) == k
    # z ties with x: first x is extended, then z. Below: n = 1, rejected. Above: n = 0.
    assert one(sigma, u, x, hit, x, digit(9), digit(8), coin(0), large, *again) == 3
    assert one(sigma, u, x, hit, x, digit(9), digit(10)) == k
    # The extended digits of x stay: the edge coin's uniform ties with both of them before the third decides.
    assert one(sigma, u, x, edge, x, digit(9), digit(8), x, digit(9), digit(5), digit(6)) == k


def test_keyed_source_repeats_and_separates() -> None:
    draws = [
        rounded_gaussian(1000, 2**20, keyed_source(key, label))
        for key, label in ((b"k" * 32, b"a"), (b"k" * 32, b"a"), (b"k" * 32, b"b"), (b"l" * 32, b"a"))
    ]
    assert np.array_equal(draws[0], draws[1])
    assert not any(np.array_equal(draws[0], other) for other in draws[2:])
    with pytest.raises(InputError, match="at least 16"):
        keyed_source(b"short", b"a")


def test_keyed_noise_is_pinned() -> None:
    """A change here changes what a keyed run repeats; two versions would then disagree."""
    values = rounded_gaussian(100_000, 1000, keyed_source(bytes(range(32)), b"pinned"))
    assert values[:8].tolist() == PINNED_VALUES
    assert int(values.sum()) == PINNED_SUM


@pytest.mark.parametrize("source", [keyed_source(b"k" * 32, b"a"), system_source()])
def test_a_stream_does_not_depend_on_how_it_is_asked(source: ByteSource) -> None:
    assert len({source(16) for _ in range(1000)}) == 1000
    assert source(0) == b""
    with pytest.raises(InputError):
        source(-1)


def test_sizes_asked_for_do_not_change_the_stream() -> None:
    whole = keyed_source(b"k" * 32, b"a")(100_000)
    pieces = keyed_source(b"k" * 32, b"a")
    sizes = [1, 7, 4095, 4096, 4097, 0, 2, 50_000]
    joined = b"".join(pieces(size) for size in sizes)
    assert joined == whole[: sum(sizes)]


def test_system_sources_differ_and_print_nothing() -> None:
    first, second = system_source(), system_source()
    assert first(32) != second(32)
    assert repr(first) == "<AES-256-CTR keystream>"


def test_a_forked_child_draws_other_bytes() -> None:
    program = """
import os
from veil.privacy.noise import system_source
source = system_source()
source(8)
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, source(32))
    os._exit(0)
os.wait()
print(os.read(reader, 32) == source(32))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


def test_bounds_of_arguments() -> None:
    source = system_source()
    for size, sigma in ((-1, 1), (1, 0), (1, -5), (1, 2**52)):
        with pytest.raises(InputError):
            rounded_gaussian(size, sigma, source)
    empty = rounded_gaussian(0, 1, source)
    assert empty.shape == (0,) and empty.dtype == np.int64
    for size in (1, 2, 32_767, 32_768, 32_769, 100_001):
        assert rounded_gaussian(size, 5, source).shape == (size,)
