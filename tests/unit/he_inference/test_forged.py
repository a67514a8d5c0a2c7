"""Objects forged field by field, in envelopes that pass the gate, against a real worker.

Layouts as SEAL 4.3 writes them: ciphertext.cpp (save_members), kswitchkeys.cpp, dynarray.h, randomgen.cpp. Blocks are
stored, not compressed (RFC 8878, raw blocks), so that every field is under control.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from he_inference.packing import SessionLayout
from he_inference.parameters import SESSION_4096 as SET
from he_inference.pool import WorkerPool
from he_inference.scheme import CkksEvaluator, CkksSession
from veil.errors import CiphertextError, PeerLost

N = SET.poly_modulus_degree
LAYOUT = SessionLayout(SET, 50, 8)
SCALE = 2.0**SET.query_scale_bits
TABLES = CkksEvaluator(SET)._tables
LEVEL = TABLES.context.first_parms_id()
KEY_LEVEL = TABLES.context.key_parms_id()
PRIMES = [modulus.value() for modulus in TABLES.context.key_context_data().parms().coeff_modulus()]


def envelope(content: bytes, mode: int) -> bytes:
    return struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 3, mode, 0, 16 + len(content)) + content


def stored(content: bytes) -> bytes:
    """An outer envelope around one Zstandard frame of raw blocks."""
    starts = range(0, len(content), 100_000)
    blocks = [
        ((len(content[n : n + 100_000]) << 3) | int(n == starts[-1])).to_bytes(3, "little") + content[n : n + 100_000]
        for n in starts
    ]
    return envelope(b"\x28\xb5\x2f\xfd\x00\x38" + b"".join(blocks), 2)


def residues(primes: list[int]) -> bytes:
    generator = np.random.default_rng(1)
    return b"".join(generator.integers(0, prime, N, dtype=np.uint64).tobytes() for prime in primes)


def ciphertext(
    *,
    level: Any = LEVEL,
    ntt: int = 1,
    size: int = 2,
    degree: int = N,
    primes: int = 1,
    scale: float = SCALE,
    count: int | None = None,
    data: bytes | None = None,
    seed: bytes | None = b"\x01" + bytes(range(64)),
) -> bytes:
    """A seeded ciphertext; by default one that is as good as random."""
    data = residues(PRIMES[:1]) if data is None else data
    count = len(data) // 8 if count is None else count
    members = struct.pack("<4Q", *level) + struct.pack("<BQQQdQ", ntt, size, degree, primes, scale, 1)
    array = envelope(struct.pack("<Q", count) + data, 0)
    return members + array + (b"" if seed is None else envelope(seed, 0))


def public_key(**changes: Any) -> bytes:
    fields = {"level": KEY_LEVEL, "primes": 2, "scale": 1.0, "data": residues(PRIMES), **changes}
    return envelope(ciphertext(**fields), 0)


def galois_keys(
    *,
    level: Any = KEY_LEVEL,
    slots: dict[int, list[bytes]] | None = None,
    outer: int | None = None,
    inner: int | None = None,
) -> bytes:
    """Keys by slot: element e lies in slot (e - 1) / 2."""
    if slots is None:
        slots = {(element - 1) // 2: [public_key()] for element in LAYOUT.galois_elements}
    extent = max(slots, default=0) + 1
    content = struct.pack("<4Q", *level) + struct.pack("<Q", extent if outer is None else outer)
    for slot in range(extent):
        keys = slots.get(slot, [])
        content += struct.pack("<Q", inner if inner is not None and keys else len(keys)) + b"".join(keys)
    return content


SLOTS = [(element - 1) // 2 for element in LAYOUT.galois_elements]
QUERIES = {
    "three polynomials": ciphertext(size=3),
    "no polynomials": ciphertext(size=0),
    "2^40 polynomials": ciphertext(size=1 << 40),
    "2^63 polynomials": ciphertext(size=1 << 63),
    "degree 2^30": ciphertext(degree=1 << 30),
    "degree 0": ciphertext(degree=0),
    "2^20 primes": ciphertext(primes=1 << 20),
    "products that wrap to the right size": ciphertext(size=1 << 33, primes=1 << 20, degree=1 << 11),
    "2^40 residues declared": ciphertext(count=1 << 40),
    "no residues declared": ciphertext(count=0),
    "one residue fewer": ciphertext(count=N - 1),
    "scale NaN": ciphertext(scale=float("nan")),
    "scale infinite": ciphertext(scale=float("inf")),
    "scale negative": ciphertext(scale=-SCALE),
    "scale zero": ciphertext(scale=0.0),
    "coefficients, not values": ciphertext(ntt=0),
    "residues beyond the prime": ciphertext(data=b"\xff" * 8 * N),
    "no seed": ciphertext(seed=None),
    "unknown generator": ciphertext(seed=b"\x09" + bytes(64)),
    "short seed": ciphertext(seed=b"\x01" + bytes(8)),
    "level of keys": ciphertext(level=KEY_LEVEL),
    "level of nothing": ciphertext(level=(1, 2, 3, 4)),
    "empty": b"",
    "members only": ciphertext()[:73],
}
KEYS = {
    "no key in a slot": galois_keys(slots={SLOTS[0]: [public_key()]}),
    "two keys in a slot": galois_keys(slots={SLOTS[0]: [public_key()] * 2, SLOTS[1]: []}),
    "no slots": galois_keys(slots={}),
    "2^40 slots": galois_keys(outer=1 << 40),
    "2^40 keys in a slot": galois_keys(inner=1 << 40),
    "fewer keys than declared": galois_keys(inner=2),
    "level of data": galois_keys(level=LEVEL),
    "a key at the level of data": galois_keys(
        slots={slot: [public_key(level=LEVEL, primes=1, data=residues(PRIMES[:1]))] for slot in SLOTS}
    ),
    "a key of three polynomials": galois_keys(slots={slot: [public_key(size=3)] for slot in SLOTS}),
    "residues beyond the prime": galois_keys(slots={slot: [public_key(data=b"\xff" * 16 * N)] for slot in SLOTS}),
    "keys for other elements": galois_keys(slots={slot + 1: [public_key()] for slot in SLOTS}),
    "a query": ciphertext(),
}


@pytest.fixture(scope="module")
def keys() -> bytes:
    return CkksSession(SET).evaluation_keys(LAYOUT.galois_elements)


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(LAYOUT, np.eye(50, 8), workers=1, timeout_s=20.0) as running:
        yield running


def test_the_forger_knows_the_format(pool: WorkerPool, keys: bytes) -> None:
    """Otherwise every refusal below would prove nothing."""
    assert pool.score("anna", stored(ciphertext()), lambda: keys).ciphertexts
    pool.register("eve", stored(galois_keys()))
    assert pool.score("eve", stored(ciphertext()), lambda: pytest.fail("held already")).ciphertexts


@pytest.mark.parametrize("kind", QUERIES)
def test_forged_queries_are_refused(pool: WorkerPool, keys: bytes, kind: str) -> None:
    before = pool.pids
    with pytest.raises(CiphertextError):
        pool.score("anna", stored(QUERIES[kind]), lambda: keys)
    assert pool.pids == before, "the worker lives"


@pytest.mark.parametrize("kind", KEYS)
def test_forged_keys_are_refused(pool: WorkerPool, kind: str) -> None:
    before = pool.pids
    with pytest.raises(CiphertextError):
        pool.register("eve", stored(KEYS[kind]))
    assert pool.pids == before, "the worker lives"


@pytest.mark.parametrize("what", ["query", "keys"])
def test_random_changes_of_fields_never_take_the_service_down(pool: WorkerPool, keys: bytes, what: str) -> None:
    good = ciphertext() if what == "query" else galois_keys()
    key_starts = [good.index(public_key()[:100])] if what == "keys" else []
    fields = [*range(130), *(start + n for start in key_starts for n in range(150)), *range(len(good) - 90, len(good))]
    generator = np.random.default_rng(17)
    refused = 0
    for number in range(600 if what == "query" else 200):
        forged = bytearray(good)
        for _ in range(1 + number % 3):
            forged[fields[generator.integers(0, len(fields))]] = int(generator.integers(0, 256))
        try:
            if what == "query":
                pool.score("anna", stored(bytes(forged)), lambda: keys)
            else:
                pool.register("eve", stored(bytes(forged)))
        except CiphertextError:
            refused += 1
        except PeerLost:
            pass  # it died of it: allowed, as long as the next request is answered
    assert refused > 50
    assert pool.score("anna", stored(ciphertext()), lambda: keys).ciphertexts
