"""What SEAL draws, and that SEAL itself reads what this package makes of it."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import pytest
import tenseal.sealapi as seal
import zstandard

from tests.unit.mpc.he.numbers import uniform
from veil.mpc.he import keys, ntt, residues
from veil.mpc.he.ring import Ring, Words, find_primes, ring
from veil.mpc.he.scheme import Sampler, sampler
from veil.mpc.he.spaces import DEGREE, slots, whole


def test_secrets_are_ternary_and_fresh() -> None:
    first, second = (sampler(DEGREE).secret() for _ in range(2))
    counts = [int((first == value).sum()) for value in (-1, 0, 1)]
    # A third each, within seven standard deviations.
    assert sum(counts) == DEGREE
    assert all(abs(count - DEGREE / 3) < 7 * math.sqrt(DEGREE * 2 / 9) for count in counts)
    assert not np.array_equal(first, second)


def test_errors_have_the_distribution_that_security_counts_on() -> None:
    draws = [sampler(DEGREE)._encryption() for _ in range(4)]
    for number in range(3):
        for other in range(4):
            assert other == 0 or not np.array_equal(draws[0][number], draws[other][number])
    ternary = np.concatenate([draw[0] for draw in draws])
    assert set(np.unique(ternary)) == {-1, 0, 1}
    errors = np.concatenate([half for draw in draws for half in draw[1:]]).astype(np.float64)
    assert np.abs(errors).max() <= 21
    assert abs(errors.mean()) < 7 * 3.24 / math.sqrt(errors.size)
    assert abs(errors.var() - 10.5) < 7 * 10.5 * math.sqrt(2 / errors.size)
    # Independent of each other.
    e0, e1 = (np.concatenate([draw[half] for draw in draws]).astype(np.float64) for half in (1, 2))
    assert abs((e0 * e1).mean()) < 7 * 10.5 / math.sqrt(e0.size)
    assert repr(Sampler(DEGREE)) == "Sampler(degree=8192)"


def test_no_error_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Sampler(DEGREE)
    seen = set()
    for _ in range(5):
        seen |= {made.error().tobytes(), made.error().tobytes(), *(part.tobytes() for part in made.ternary())}
    assert len(seen) == 20
    # A process that was forked off does not go on with what its parent has left.
    made.ternary()
    left = [error.tobytes() for _, error in made._spare]
    assert left
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert made.error().tobytes() not in left


def test_seal_decrypts_a_request(tmp_path: Any) -> None:
    # SEAL's data level has the primes of `whole`; its key level one more.
    space = slots()[0]
    special = find_primes(DEGREE, 27, 1)
    every = ring(DEGREE, whole().primes + special)
    chosen = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
    chosen.set_poly_modulus_degree(DEGREE)
    chosen.set_coeff_modulus([seal.Modulus(prime) for prime in every.primes])
    chosen.set_plain_modulus(space.modulus)
    context = seal.SEALContext(chosen, True, seal.SEC_LEVEL_TYPE.TC128)
    assert context.parameters_set(), context.parameters_error_message()

    key = keys.SecretKey()
    secret = _ternary(key)
    places = residues.of_signed(secret, every)
    ntt.forward(places, every)
    theirs = _changed(tmp_path, seal.KeyGenerator(context).secret_key(), _in_seal_order(places, every))
    own_key = seal.SecretKey()
    own_key.load(context, theirs)

    message = uniform(5, DEGREE) % space.modulus
    message = np.where(message > space.modulus // 2, message - space.modulus, message)
    factor = np.array([int(m) * space.factor % space.modulus for m in message])
    request = key.encrypt(
        space.scaled(np.where(factor > space.modulus // 2, factor - space.modulus, factor))[None], "x"
    )
    pair = keys.open_request(request, 1, "x", peer="p", what="a request")[0]
    ntt.inverse(pair, whole())
    zero = seal.Ciphertext()
    seal.Encryptor(context, own_key).encrypt_zero_symmetric(zero)
    assert not zero.is_ntt_form()
    encrypted = seal.Ciphertext()
    encrypted.load(context, _changed(tmp_path, zero, pair))

    decryptor = seal.Decryptor(context, own_key)
    # Q / t has 131 bits, the error 5, and a half is the limit.
    assert decryptor.invariant_noise_budget(encrypted) >= 120
    plain = seal.Plaintext()
    decryptor.decrypt(encrypted, plain)
    for place in (0, 1, 2, 3, 4, 5, 777, DEGREE - 1):
        assert int(str(plain[place])) == message[place] % space.modulus


def _ternary(key: keys.SecretKey) -> Any:
    s = key._s.copy()
    ntt.inverse(s, whole())
    first = s[0].astype(np.int64)
    return np.where(first > 1, first - whole().primes[0], first)


def _in_seal_order(places: Words, made: Ring) -> Words:
    out = np.empty_like(places)
    out[:, made.transposed] = places
    return out


def _changed(folder: Any, thing: Any, numbers: Words) -> str:
    """The file of a SEAL object with other residues."""
    path = str(folder / os.urandom(4).hex())
    thing.save(path)
    saved = (folder / path).read_bytes()
    content = zstandard.ZstdDecompressor().decompressobj().decompress(saved[16:])
    assert len(content) > 8 * numbers.size
    content = content[: len(content) - 8 * numbers.size] + numbers.astype("<u8").tobytes()
    header = saved[:5] + b"\x00" + saved[6:8] + (16 + len(content)).to_bytes(8, "little")
    (folder / path).write_bytes(header + content)
    return path
