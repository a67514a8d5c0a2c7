"""Margins of noise against trials with the real kernel and real keys. Deviations: encoding/test_deviation.py."""

from __future__ import annotations

import numpy as np
import pytest

from he_inference.encoding import deviation
from he_inference.layouts.catalogue import layout_of, usual_kind
from he_inference.noise import KINDS, noise_margin_bits
from he_inference.parameters import HISTORY, NAMES, named
from he_inference.tuning.subjects import Histories, subject_of
from he_inference.tuning.trial import in_memory
from veil.errors import ConfigError


def test_every_set_has_room_left() -> None:
    for name in (*NAMES, HISTORY.name):
        parameters = named(name)
        kind = usual_kind(parameters)
        assert kind in KINDS
        for items, dimensions in ((300, 16), (4096, 128)):
            packing = {"session": 0, "keyless": 8, "history": 3}[kind]
            margin = noise_margin_bits(layout_of(kind, parameters, items, dimensions, packing))
            # A stated bound is seven standard deviations, log2(7) bits, or more.
            assert margin.modulus > 0.45 and margin.bound > np.log2(deviation.SIGMAS), name


def test_longer_vectors_leave_less_room_in_the_exact_set() -> None:
    margins = [noise_margin_bits(layout_of("session", "exact", 4096, d)).modulus for d in (16, 64, 256, 1024)]
    assert margins == sorted(margins, reverse=True) and margins[0] > margins[-1] + 1


@pytest.mark.parametrize(
    ("kind", "parameters", "packing"),
    [("session", "fast", 0), ("keyless", "keyless-small", 4), ("history", "history", 1), ("history", "history", 3)],
)
def test_no_coefficient_comes_nearer_to_the_modulus_than_the_margin_says(
    kind: str, parameters: str, packing: int
) -> None:
    """Of real answers: two scores of 1 in every slot are never seen, so there is more room than that."""
    layout = layout_of(kind, parameters, 1500, 16, packing)
    subject = subject_of(layout, 1)
    scene = in_memory(subject)
    largest = 0.0
    for question in subject.questions(np.random.default_rng(2), 3):
        (results,) = scene.compute.answer(
            scene.index, [scene.client.encrypt(subject.entries(question))], [scene.client.keys]
        )
        numbers, bits = scene.client.secret.decrypt(results, layout.coefficient_places())
        half = 1 << (bits - 1)
        largest = max(largest, float(np.abs(((numbers + half) & ((1 << bits) - 1)) - half).max()) / half)
    assert np.log2(1.0 / largest) > noise_margin_bits(layout).modulus


def test_an_empty_history_decrypts_to_noise_of_the_expected_size() -> None:
    """Nothing is folded in and nothing scored with: what is left is the noise of ciphertexts."""
    layout = layout_of("history", "history", 8192, 64, 1)
    scene = in_memory(Histories.of(layout, 3))
    outputs = scene.client.decrypt(
        scene.compute.answer(scene.index, [scene.client.encrypt(np.zeros(8192))], [scene.client.keys])[0]
    )
    assert outputs.std() == pytest.approx(deviation.expected(layout, 0.0), rel=0.1)


def test_a_part_of_an_index_has_no_margin() -> None:
    with pytest.raises(ConfigError, match="got layout history-fold-in"):
        noise_margin_bits(layout_of("history", "history", 100, 16, 3).fold_in)  # type: ignore[attr-defined]
