"""Rows to tensors, one user at a time, and secret coins."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.trainers.gradient.conftest import MakeAlgorithm
from tests.unit.trainers.gradient.module_files import BILINEAR, TEXTS
from veil.errors import ConfigError
from veil.privacy.noise import keyed_source, system_source
from veil.recsys.interactions import Interactions
from veil.recsys.texts import LabelledTexts
from veil.trainers.gradient.examples import prepare, sample, template
from veil.trainers.rows import PartyRows


def test_items_come_in_the_order_of_time(make_algorithm: MakeAlgorithm, odd_users: Interactions) -> None:
    algorithm = make_algorithm(
        BILINEAR.replace("def example", "seen = []\n\ndef example").replace(
            "    if len(user", "    seen.append(user.items.tolist())\n    if len(user"
        )
    )
    seen = algorithm.code.seen  # type: ignore[attr-defined]
    seen.clear()
    users = prepare(algorithm.code, algorithm.facts, PartyRows(odd_users), template(algorithm.code, algorithm.facts))
    # times fall with the item number
    assert seen == [[], [], [4], [9, 5], [26, 25, 24, 23, 22, 21, 20]]
    # one item is too few by this module's own rule; no rows at all are tensors of zeros
    assert users.usable.tolist() == [True, False, True, True]
    assert not users.tensors["x"][1].any()
    assert repr(users) == "Examples(users=4)"


def test_a_user_whose_rows_break_the_module_is_left_out_in_silence(
    make_algorithm: MakeAlgorithm, odd_users: Interactions, caplog: pytest.LogCaptureFixture
) -> None:
    for trouble in ("raise ValueError('9 was met')", "return {'x': x}", "return {'x': y, 'y': x, 'w': w}"):
        algorithm = make_algorithm(
            BILINEAR.replace('    return {"x"', f'    if 9 in user.items: {trouble}\n    return {{"x"')
        )
        users = prepare(algorithm.code, algorithm.facts, PartyRows(odd_users), algorithm._blank)
        assert users.usable.tolist() == [True, False, False, True]
        assert not users.tensors["x"][2].any()
    assert not caplog.records


def test_texts(make_algorithm: MakeAlgorithm) -> None:
    algorithm = make_algorithm(TEXTS)
    labels = len(algorithm.facts.labels)
    label = np.zeros((3, labels), np.bool_)
    label[2, 0] = True
    texts = LabelledTexts(users=3, user=np.array([0, 0, 2]), text=("ab", "c", "def"), label=label)
    users = prepare(algorithm.code, algorithm.facts, PartyRows(texts=texts), algorithm._blank)
    assert users.tensors["x"].tolist() == [[2, 2, 1], [0, 0, 0], [1, 3, 1]]
    assert users.tensors["y"][:, 0].tolist() == [0, 0, 1]
    with pytest.raises(ConfigError, match="labelled texts"):
        prepare(algorithm.code, algorithm.facts, PartyRows(), algorithm._blank)
    other = LabelledTexts(users=1, user=np.array([0]), text=("a",), label=np.zeros((1, labels + 1), np.bool_))
    with pytest.raises(ConfigError, match="labels"):
        prepare(algorithm.code, algorithm.facts, PartyRows(texts=other), algorithm._blank)


def test_coins_are_compared_exactly() -> None:
    def coins(values: list[int]):  # type: ignore[no-untyped-def]
        return lambda size: np.array(values, "<u8").tobytes()[:size]

    half = 2**63
    assert sample(4, 0.5, coins([0, half - 1, half, 2**64 - 1])).tolist() == [True, True, False, False]
    assert sample(2, 1.0, coins([2**64 - 1] * 2)).tolist() == [True, True]
    assert sample(2, 2**-64, coins([0, 1])).tolist() == [True, False]
    assert sample(0, 0.5, coins([])).tolist() == []


def test_coins_fall_as_often_as_they_should() -> None:
    users, sampling = 200_000, 0.3
    taken = sample(users, sampling, keyed_source(b"0" * 16, b"coins")).sum()
    # six standard deviations: false alarm below 1e-8, and the key is fixed
    assert abs(taken - sampling * users) < 6 * (users * sampling * (1 - sampling)) ** 0.5
    assert (sample(64, 0.5, system_source()) != sample(64, 0.5, system_source())).any()


@pytest.mark.parametrize(
    "change", [('return {"x": x, "y": y, "w": w}', "return None"), ("torch.zeros(5, 4)", "torch.zeros(5, 4).double()")]
)
def test_a_user_without_rows_tells_the_shapes(make_algorithm: MakeAlgorithm, change: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="without rows"):
        make_algorithm(BILINEAR.replace(*change))


def test_labels_of_another_meaning_are_refused(make_algorithm: MakeAlgorithm) -> None:
    algorithm = make_algorithm(TEXTS)
    labels = algorithm.facts.labels

    def rows(names: tuple[str, ...]) -> PartyRows:
        label = np.zeros((1, len(names)), np.bool_)
        return PartyRows(texts=LabelledTexts(users=1, user=np.array([0]), text=("a",), label=label, names=names))

    assert prepare(algorithm.code, algorithm.facts, rows(labels), algorithm._blank).count == 1
    for names in (labels[::-1], (*labels[:-1], "another")):
        with pytest.raises(ConfigError, match="labels are not"):
            algorithm.contribution("users", rows(names), {})
