"""The wrapper around SEAL: what it makes, what it refuses, and what it never shows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tenseal.sealapi as seal

from he_inference.packing import SessionLayout
from he_inference.parameters import SESSION_4096, SESSION_8192, Parameters
from he_inference.rounding import Dither
from he_inference.scheme import CkksEvaluator, CkksSession
from he_inference.scoring import encode_items, score
from veil.errors import CiphertextError, ConfigError, InputError

SLOTS = SESSION_4096.slots
ELEMENTS = (3, SESSION_4096.element(8))


@pytest.fixture(scope="module")
def session() -> CkksSession:
    return CkksSession(SESSION_4096)


@pytest.fixture(scope="module")
def evaluator() -> CkksEvaluator:
    return CkksEvaluator(SESSION_4096)


class Forger:
    """A client that makes its objects with SEAL itself, as it likes."""

    def __init__(self, primes: list[int], folder: Path, degree: int = 4096) -> None:
        chosen = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        chosen.set_poly_modulus_degree(degree)
        chosen.set_coeff_modulus(seal.CoeffModulus.Create(degree, primes))
        self.context = seal.SEALContext(chosen, True, seal.SEC_LEVEL_TYPE.NONE)
        self.generator = seal.KeyGenerator(self.context)
        self.encoder = seal.CKKSEncoder(self.context)
        self.encryptor = seal.Encryptor(self.context, self.generator.secret_key())
        self.slots = degree // 2
        self.folder = folder

    def plaintext(self, scale_bits: int) -> seal.Plaintext:
        plaintext = seal.Plaintext()
        self.encoder.encode([0.5] * self.slots, 2.0**scale_bits, plaintext)
        return plaintext

    def saved(self, thing: object) -> bytes:
        path = self.folder / "object"
        thing.save(str(path))  # type: ignore[attr-defined]
        return path.read_bytes()

    def ciphertext(self, scale_bits: int) -> seal.Ciphertext:
        ciphertext = seal.Ciphertext()
        self.encryptor.encrypt_symmetric(self.plaintext(scale_bits), ciphertext)
        return ciphertext


def test_a_query_and_a_result_survive_the_way(session: CkksSession, evaluator: CkksEvaluator) -> None:
    values = np.linspace(-1, 1, SLOTS)
    plaintext = evaluator.encode(np.full(SLOTS, 0.5 - 0.25j))
    keys = evaluator.load_keys(session.evaluation_keys(ELEMENTS), ELEMENTS)
    query = evaluator.load_query(session.encrypt(values))
    product = evaluator.multiply(evaluator.rotate(query, 8, keys), plaintext)
    evaluator.add_into(product, evaluator.multiply(query, plaintext))
    found = session.decrypt(evaluator.save(product))
    np.testing.assert_allclose(found, (np.roll(values, -8) + values) * (0.5 - 0.25j), atol=1e-4)


def test_keys_are_for_elements_not_for_steps(session: CkksSession, evaluator: CkksEvaluator) -> None:
    """In the binding, a list of steps [1, 3] silently makes keys for elements 1 and 3, that is, for step 1 only."""
    keys = evaluator.load_keys(session.evaluation_keys(ELEMENTS), ELEMENTS)
    assert keys.size() == 2
    assert keys.has_key(3) and keys.has_key(pow(3, 8, 8192))
    for elements in ((), (1,), (2, 3), (8193,)):
        with pytest.raises(ConfigError, match="Galois"):
            session.evaluation_keys(elements)


def test_queries_are_seeded_and_fresh(session: CkksSession) -> None:
    values = np.zeros(SLOTS)
    first, second = session.encrypt(values), session.encrypt(values)
    assert first != second
    assert len(first) < 8 * 4096, "one polynomial of two, the other by its seed"


def test_zero_plaintexts_become_none_and_the_unit_does_not(evaluator: CkksEvaluator) -> None:
    assert evaluator.encode(np.zeros(SLOTS, dtype=np.complex128)) is None
    assert not evaluator.unit().is_zero()


def test_other_parameters_are_refused_both_ways(evaluator: CkksEvaluator) -> None:
    other = CkksSession(SESSION_8192)
    with pytest.raises(CiphertextError):
        evaluator.load_query(other.encrypt(np.zeros(SESSION_8192.slots)))
    with pytest.raises(CiphertextError):
        evaluator.load_keys(other.evaluation_keys(ELEMENTS), ELEMENTS)


def test_the_same_sizes_under_other_primes_are_refused(evaluator: CkksEvaluator, tmp_path: Path) -> None:
    forger = Forger([51, 57], tmp_path)
    with pytest.raises(CiphertextError, match="other parameters"):
        evaluator.load_query(forger.saved(forger.encryptor.encrypt_symmetric(forger.plaintext(29))))
    with pytest.raises(CiphertextError, match="other parameters"):
        evaluator.load_keys(forger.saved(forger.generator.create_galois_keys(list(ELEMENTS))), ELEMENTS)


def test_ciphertexts_of_another_shape_are_refused(evaluator: CkksEvaluator, tmp_path: Path) -> None:
    forger = Forger(list(SESSION_4096.coeff_modulus_bits), tmp_path)
    good = forger.saved(forger.encryptor.encrypt_symmetric(forger.plaintext(SESSION_4096.query_scale_bits)))
    evaluator.load_query(good)

    with pytest.raises(CiphertextError):  # another scale
        evaluator.load_query(forger.saved(forger.encryptor.encrypt_symmetric(forger.plaintext(28))))
    with pytest.raises(CiphertextError, match="expected at most"):  # not seeded: twice as large
        evaluator.load_query(forger.saved(forger.ciphertext(SESSION_4096.query_scale_bits)))

    tables = evaluator._tables  # past the size cap, for the checks behind it
    scale = 2.0 ** (SESSION_4096.query_scale_bits + SESSION_4096.item_scale_bits)
    base = forger.ciphertext(SESSION_4096.query_scale_bits // 2)
    cube, coefficients = seal.Ciphertext(), seal.Ciphertext()
    tools = seal.Evaluator(forger.context)
    tools.multiply(base, base, cube)
    assert cube.size() == 3
    for forged, expected in ((cube, cube.scale), (forger.ciphertext(29), scale)):
        with pytest.raises(CiphertextError):
            tables.ciphertext(forger.saved(forged), "a query", expected)
    tools.transform_from_ntt(base, coefficients)
    with pytest.raises(CiphertextError):
        tables.ciphertext(forger.saved(coefficients), "a query", base.scale)


def test_keys_for_other_elements_are_refused(session: CkksSession, evaluator: CkksEvaluator) -> None:
    for elements in ((3,), (3, 9), (*ELEMENTS, 9)):
        with pytest.raises(CiphertextError):
            evaluator.load_keys(session.evaluation_keys(elements), ELEMENTS)


def test_a_query_is_no_key_and_a_key_no_query(session: CkksSession, evaluator: CkksEvaluator) -> None:
    with pytest.raises(CiphertextError):
        evaluator.load_keys(session.encrypt(np.zeros(SLOTS)), ELEMENTS)
    with pytest.raises(CiphertextError):
        evaluator.load_query(session.evaluation_keys((3,)))


def test_another_key_decrypts_to_noise(session: CkksSession) -> None:
    evaluator = CkksEvaluator(SESSION_4096)
    layout = SessionLayout(SESSION_4096, 10, 8)
    rows = np.eye(10, 8)
    keys = evaluator.load_keys(session.evaluation_keys(layout.galois_elements), layout.galois_elements)
    query = evaluator.load_query(session.encrypt(layout.pack_query(np.eye(8)[0])))
    (answer,) = score(evaluator, encode_items(evaluator, layout, rows), query, keys)
    data = evaluator.save(answer)
    assert np.abs(layout.unpack([session.decrypt(data)]) - rows[:, 0]).max() < SESSION_4096.score_error
    stranger = layout.unpack([CkksSession(SESSION_4096).decrypt(data)])
    assert np.abs(stranger).min() > 1e-3


def test_the_secret_key_is_shown_nowhere_and_can_be_restored(session: CkksSession) -> None:
    secret = session.secret_bytes()
    again = CkksSession(SESSION_4096, secret)
    assert again.secret_bytes()[16:] == secret[16:]
    assert "hidden" in repr(session) and "0x" not in repr(session)
    with pytest.raises(CiphertextError, match="a secret key"):
        CkksSession(SESSION_4096, os.urandom(200))
    with pytest.raises(CiphertextError, match="a secret key"):
        CkksSession(SESSION_8192, secret)


@pytest.mark.parametrize("values", [np.zeros(3), np.full(SLOTS, 1.5), np.full(SLOTS, np.nan)])
def test_values_that_do_not_fit_are_refused(session: CkksSession, values: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError):
        session.encrypt(values)


def test_responses_are_gated_too(session: CkksSession) -> None:
    for data in (b"", b"\0" * 100, session.encrypt(np.zeros(SLOTS)), b"x" * 200_000):
        with pytest.raises(CiphertextError):
            session.decrypt(data)


@pytest.mark.parametrize("parameters", [SESSION_4096, SESSION_8192], ids=lambda p: p.name)
def test_rounding_is_unbiased_for_values_below_the_step(parameters: Parameters) -> None:
    """A lone item whose other entries would all round to zero: its score keeps them."""
    rows = np.full((1, 128), 8e-4)
    rows[0, 0] = np.sqrt(1 - 127 * 64e-8)
    vector = np.full(128, 1 / np.sqrt(127))
    vector[0] = 0
    evaluator, session = CkksEvaluator(parameters), CkksSession(parameters)
    layout = SessionLayout(parameters, 1, 128)
    keys = evaluator.load_keys(session.evaluation_keys(layout.galois_elements), layout.galois_elements)
    query = evaluator.load_query(session.encrypt(layout.pack_query(vector)))
    answers = score(evaluator, encode_items(evaluator, layout, rows), query, keys)
    (found,) = layout.unpack([session.decrypt(evaluator.save(answer)) for answer in answers])
    assert rows[0] @ vector > 50 * parameters.score_error
    assert abs(found - rows[0] @ vector) < parameters.score_error


def test_the_dither_lies_where_the_encoder_puts_coefficients(evaluator: CkksEvaluator) -> None:
    """Its coefficients stay below one half: alone it rounds to the zero polynomial, twice itself does not."""
    dither = Dither(4096)
    values = np.random.default_rng(3).normal(size=SLOTS) + 0j
    noise = dither.slots(values) * 2.0**-SESSION_4096.item_scale_bits
    plaintext = seal.Plaintext()
    encoder, level = evaluator._tables.encoder, evaluator._tables.level
    encoder.encode(noise.tolist(), level, 2.0**SESSION_4096.item_scale_bits, plaintext)
    assert plaintext.is_zero()
    encoder.encode((2 * noise).tolist(), level, 2.0**SESSION_4096.item_scale_bits, plaintext)
    assert not plaintext.is_zero()
    np.testing.assert_array_equal(dither.slots(values), dither.slots(values.copy()))
