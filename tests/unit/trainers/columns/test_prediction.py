"""Scores between parties: those of the model on whole rows, at the recipient alone, under uniform messages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.mpc.engine.together import together
from veil.errors import ConfigError, RevealError, StateError
from veil.jobs.columns import AlignmentTerms, HiddenTerms
from veil.jobs.predictions import PredictionsTrainer
from veil.jobs.spec import JobSpec, parse
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.revealing import PairwiseZeros, Revealing
from veil.mpc.engine.waves import fit
from veil.mpc.policy import Opening, RevealPolicy
from veil.tabular.reading import PartyTable
from veil.tabular.schema import Label, NumericColumn, PartyColumns, TabularSchema, equal_shares
from veil.trainers.columns import prediction
from veil.trainers.columns.prediction import (
    OwnParts,
    Prediction,
    PredictionTerms,
    Public,
    dry_run,
    own_parts,
    statement,
)
from veil.trainers.columns.publication import ColumnsModel
from veil.trainers.columns.terms import terms_of

Kind = Literal["logistic", "perceptron", "towers"]
KINDS: tuple[Kind, ...] = ("logistic", "perceptron", "towers")
WIDTH, UNITS, SLOTS = 3, 4, 9
DIGEST = bytes(32)
SERIES = fit(lambda z: 0.6 * np.tanh(z), reach=6.4, period=16, harmonics=6)


def schema(parties: int) -> TabularSchema:
    share = equal_shares(parties, 12)
    columns = tuple(NumericColumn(name=f"c{at}", lower=-1.0, upper=1.0) for at in range(WIDTH))
    made = tuple(
        PartyColumns(party=f"party-{rank}", identifier="id", columns=columns, norm_share=share)
        for rank in range(parties)
    )
    return TabularSchema(slots=SLOTS, bits=12, parties=made, label=Label(name="y"), label_party="party-0")


def hidden_of(kind: Kind, parties: int) -> HiddenTerms | None:
    if kind == "logistic":
        return None
    sides = ((0,), tuple(range(1, parties))) if kind == "towers" else ((), ())
    waves = terms_of(SERIES)
    return HiddenTerms(
        units=UNITS, activation=waves, slope=waves, start=1, spread=1.0, precision_bits=7, left=sides[0], right=sides[1]
    )


def model_of(kind: Kind, parties: int, seed: int, size: float = 1.0) -> ColumnsModel:
    generator = np.random.default_rng(seed)
    width = parties * WIDTH
    return ColumnsModel(
        schema(parties),
        size * generator.normal(size=(width, 1 if kind == "logistic" else 1 + UNITS)),
        generator.uniform(-0.5, 0.5, width),
        np.full(width, 0.9),
        float(generator.normal()),
        hidden_of(kind, parties),
    )


def table_of(model: ColumnsModel, rank: int, rows: np.ndarray) -> PartyTable:
    columns = tuple(pl.Series(f"c{at}", rows[:, at]) for at in range(WIDTH))
    return PartyTable(model.schema.parties[rank], tuple(f"u{row}" for row in range(len(rows))), columns, None)


def trainer_of(
    kind: Kind, parties: int, *, mode: str = "reveal", recipient: int = 1, bits: int = 16
) -> PredictionsTrainer:
    alignment = AlignmentTerms.model_validate({"mode": mode, "sizes": (SLOTS,) * parties, "result": SLOTS})
    return PredictionsTrainer.model_validate(
        {
            "model": "sha256:" + "0" * 64,
            "hidden": hidden_of(kind, parties),
            "alignment": alignment,
            "bits": bits,
            "openings": [{"name": "scores", "shape": [SLOTS], "recipient": f"party-{recipient}"}],
        }
    )


def spec_of(trainer: PredictionsTrainer, parties: int) -> JobSpec:
    return JobSpec(
        name="score",
        nonce="0" * 32,
        consortium="trial",
        parties=tuple(f"party-{rank}" for rank in range(parties)),
        dealer="main",
        trainer=trainer,
        releases=(),
        versions={},
    )


@dataclass
class Seen:
    """What one party has at the end."""

    opened: np.ndarray | None
    log: tuple[Opening, ...]


def play(terms: PredictionTerms, public: Public, own: Sequence[OwnParts]) -> list[Seen]:
    def program(engine: Engine) -> Seen:
        dry = engine.device.type == "meta"
        value = Prediction(terms, public).run(engine, None if dry else own[engine.rank])
        if dry:
            return Seen(None, ())
        policy = RevealPolicy((), {"scores": (terms.slots,)}, {"scores": terms.trainer.recipient})
        zeros = PairwiseZeros(engine._communicator, DIGEST)
        revealing = Revealing(engine._communicator, policy, DIGEST, zeros=zeros)
        opened = revealing.open_to(engine, "scores", value, terms.recipient, mechanism="exact scores")
        return Seen(None if opened is None else opened.numpy() / 2.0**value.bits, revealing.log)

    return together(len(terms.parties), program)


ROW = st.lists(st.sampled_from([-1.0, -0.37, 0.0, 1e-9, 0.5, 1.0]), min_size=WIDTH, max_size=WIDTH)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    parties=st.sampled_from([2, 3, 5]),
    mode=st.sampled_from(["reveal", "hidden"]),
    bits=st.sampled_from([8, 16, 24]),
    size=st.sampled_from([0.0, 1e-3, 1.0, 50.0]),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_the_recipient_alone_gets_the_scores_of_the_model(
    kind: Kind, parties: int, mode: str, bits: int, size: float, seed: int, data: st.DataObject
) -> None:
    model = model_of(kind, parties, seed, size)
    recipient = data.draw(st.integers(0, parties - 1))
    terms = PredictionTerms.of(spec_of(trainer_of(kind, parties, mode=mode, recipient=recipient, bits=bits), parties))
    terms.check_model(model)
    generator = np.random.default_rng(seed)
    users = 6
    rows = [np.array(data.draw(st.lists(ROW, min_size=users, max_size=users))) for _ in range(parties)]
    tables = [table_of(model, rank, own) for rank, own in enumerate(rows)]
    # the last slots hold nobody; where membership is hidden, any party may lack any user
    places = [np.arange(users) for _ in range(parties)]
    if mode == "hidden":
        places = [np.where(generator.random(users) < 0.6, place, -1) for place in places]
    own = [
        own_parts(terms, model, table, place, rank)
        for rank, (table, place) in enumerate(zip(tables, places, strict=True))
    ]
    seen = play(terms, Public.of(model, terms), own)

    parts = []
    for table, place in zip(tables, places, strict=True):
        part = np.zeros((SLOTS, model.weights.shape[1]))
        part[:users][place >= 0] = model.part(table)[place[place >= 0]]
        parts.append(part)
    expected = model.score(parts)
    if mode == "hidden":
        expected[np.append(places[recipient] < 0, np.full(SLOTS - users, True))] = 0
    found = seen[recipient].opened
    assert found is not None
    # half a step for each part and the intercept, one for the truncation; waves of units in fixed point
    units = 0.0 if kind == "logistic" else UNITS * (2e-3 if kind == "towers" else 2e-4)
    np.testing.assert_allclose(found, expected, atol=((parties + 1) / 2 + 1) * 2.0**-bits + units)
    assert [one.opened is None for one in seen] == [rank != recipient for rank in range(parties)]
    for rank, one in enumerate(seen):
        assert [(o.name, o.shape, o.recipient) for o in one.log] == [("scores", (SLOTS,), f"party-{recipient}")]
        assert one.log[0].digest.startswith("sha256:") == (rank == recipient)


def zeros_of(terms: PredictionTerms, slots: int) -> list[OwnParts]:
    """Parts that are easily recognised: 0 at every party but the first, whose part is 1 in every slot."""
    one = 1 << terms.trainer.bits
    return [
        OwnParts(torch.full((slots, 1), one if rank == 0 else 0, dtype=torch.int64), None, None)
        for rank in range(len(terms.parties))
    ]


def sent_to_recipient(monkeypatch: pytest.MonkeyPatch, *, masked: bool) -> np.ndarray:
    """Bytes of what the party of rank 0, whose part is the number 1 in every slot, sends when scores open."""
    slots, parties = 4096, 3
    sent: dict[int, torch.Tensor] = {}
    reduce = TensorCommunicator.reduce

    def recorded(self: TensorCommunicator, tensor: torch.Tensor, dst: int) -> object:
        sent[self.rank] = tensor
        return reduce(self, tensor, dst)

    trainer = trainer_of("logistic", parties)
    alignment = trainer.alignment.model_copy(update={"sizes": (slots,) * parties, "result": slots})
    opening = trainer.openings[0].model_copy(update={"shape": (slots,)})
    terms = PredictionTerms.of(
        spec_of(trainer.model_copy(update={"alignment": alignment, "openings": (opening,)}), parties)
    )
    monkeypatch.setattr(TensorCommunicator, "reduce", recorded)
    if not masked:
        monkeypatch.setattr(PairwiseZeros, "share", lambda self, shape: torch.zeros(shape, dtype=torch.int64))
    seen = play(terms, Public((17.0,) * parties), zeros_of(terms, slots))
    opened = seen[terms.recipient].opened
    assert opened is not None and (opened == 1.0).all()
    return np.frombuffer(sent[0].numpy().tobytes(), dtype=np.uint8)


def chi_square(sample: np.ndarray) -> float:
    """Of 256 equally likely bytes: mean 255, standard deviation 22.6."""
    expected = len(sample) / 256
    return float(((np.bincount(sample, minlength=256) - expected) ** 2 / expected).sum())


def test_what_a_party_sends_is_uniform_whatever_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = sent_to_recipient(monkeypatch, masked=True)
    # eight standard deviations; by byte of the number, too
    assert abs(chi_square(sent) - 255) < 8 * 22.6
    for place in range(8):
        assert abs(chi_square(sent[place::8]) - 255) < 8 * 22.6


def test_without_shares_of_zero_the_same_test_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = sent_to_recipient(monkeypatch, masked=False)
    assert chi_square(sent) > 100 * 255
    assert set(sent.view("<i8").tolist()) == {1 << 16}  # the part itself, in the open


def test_two_openings_have_no_share_of_zero_in_common() -> None:
    def program(engine: Engine) -> list[torch.Tensor]:
        if engine.device.type == "meta":
            return []
        zeros = PairwiseZeros(engine._communicator, DIGEST)
        return [zeros.share((5,)), zeros.share((5,)), PairwiseZeros(engine._communicator, DIGEST).share((5,))]

    found = together(3, program)
    for drawn in zip(*found, strict=True):
        assert torch.equal(torch.stack(drawn).sum(0), torch.zeros(5, dtype=torch.int64))
    own = [tuple(share.tolist()) for share in found[0]]
    assert len(set(own)) == 3


def test_a_log_does_not_tell_the_scores_by_their_digest(caplog: pytest.LogCaptureFixture) -> None:
    """One score of 8 bits has so few values that a digest is as good as the score."""
    terms = PredictionTerms.of(spec_of(trainer_of("logistic", 2, bits=8), 2))
    with caplog.at_level(logging.INFO, "veil.mpc"):
        seen = play(terms, Public((17.0, 0.0)), zeros_of(terms, SLOTS))
    assert "opened scores [9] to party-1 alone" in caplog.text
    assert seen[1].log[0].digest.removeprefix("sha256:") not in caplog.text


def test_an_opening_to_one_party_opens_to_nobody_else() -> None:
    terms = PredictionTerms.of(spec_of(trainer_of("logistic", 2), 2))
    own = zeros_of(terms, SLOTS)

    def program(engine: Engine) -> list[str]:
        if engine.device.type == "meta":
            return []
        policy = RevealPolicy((), {"scores": (SLOTS,)}, {"scores": "party-1"})
        with_zeros = Revealing(engine._communicator, policy, DIGEST, zeros=PairwiseZeros(engine._communicator, DIGEST))
        without = Revealing(engine._communicator, policy, DIGEST)
        value = Prediction(terms, Public((17.0, 0.0))).run(engine, own[engine.rank])
        said = []
        attempts: list[Callable[[], object]] = [
            lambda: with_zeros.open(engine, "scores", value, mechanism="none"),
            lambda: with_zeros.open_to(engine, "scores", value, 0, mechanism="none"),
            lambda: with_zeros.open_to(engine, "others", value, 1, mechanism="none"),
            lambda: with_zeros.open_to(engine, "scores", value.reshape(SLOTS, 1), 1, mechanism="none"),
            lambda: without.open_to(engine, "scores", value, 1, mechanism="none"),
            lambda: with_zeros.open_to(engine, "scores", value, 1, mechanism="none"),
            lambda: with_zeros.open_to(engine, "scores", value, 1, mechanism="none"),
        ]
        for attempt in attempts:
            try:
                attempt()
                said.append("opened")
            except (RevealError, StateError) as error:
                said.append(type(error).__name__)
        assert len(with_zeros.log) == 1
        return said

    for said in together(2, program):
        assert said == [*["RevealError"] * 4, "StateError", "opened", "RevealError"]


@pytest.mark.parametrize("kind", KINDS)
def test_slots_are_computed_block_by_block(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(kind, 2, 5)
    terms = PredictionTerms.of(spec_of(trainer_of(kind, 2), 2))
    rows = np.random.default_rng(1).uniform(-1, 1, (2, SLOTS, WIDTH))
    tables = [table_of(model, rank, rows[rank]) for rank in range(2)]
    own = [own_parts(terms, model, table, np.arange(SLOTS), rank) for rank, table in enumerate(tables)]
    public = Public.of(model, terms)
    monkeypatch.setattr(prediction, "_BLOCK_NUMBERS", 200)
    items = dry_run(terms, public, rank=0).items
    assert bool(items) == (kind != "logistic")
    assert all(item.correction_bytes <= 8 * 200 for item in items)
    found = play(terms, public, own)[1].opened
    assert found is not None
    np.testing.assert_allclose(found, model.score([model.part(table) for table in tables]), atol=5e-3)


def test_numbers_beyond_62_bits_are_refused_before_anything_is_sent() -> None:
    huge = model_of("logistic", 2, 1, size=2.0**50)
    terms = PredictionTerms.of(spec_of(trainer_of("logistic", 2), 2))
    with pytest.raises(ConfigError, match="got numbers of up to"):
        dry_run(terms, Public.of(huge, terms), rank=0)
    # inputs of hidden units count modulo their period
    units = model_of("perceptron", 2, 1, size=2.0**50)
    units.weights[:, 0] = 1.0
    terms = PredictionTerms.of(spec_of(trainer_of("perceptron", 2), 2))
    assert dry_run(terms, Public.of(units, terms), rank=0).rounds == 3


def test_weights_that_would_pack_columns_into_one_score_are_refused() -> None:
    """Radix 2^14: from one score of 2^-12 each column could be read, and all of it fits 62 bits."""
    packing = model_of("logistic", 2, 1)
    packing.weights[:, 0] = 2.0 ** (14 * np.arange(2 * WIDTH) % 42)
    terms = PredictionTerms.of(spec_of(trainer_of("logistic", 2), 2))
    dry_run(terms, Public.of(packing, terms), rank=0)
    with pytest.raises(ConfigError, match=r"norm .* at one party"):
        terms.check_model(packing)
    packing.weights[:, 0] = 1000.0 / WIDTH
    terms.check_model(packing)


def test_what_a_party_must_hold_of_all_units_is_bounded() -> None:
    trainer = trainer_of("perceptron", 2)
    assert trainer.hidden is not None
    slots = 2**20
    sizes = trainer.alignment.model_copy(update={"sizes": (slots, slots), "result": slots})
    opening = trainer.openings[0].model_copy(update={"shape": (slots,)})
    wide = trainer.hidden.model_copy(update={"units": 1024})
    changes = {"alignment": sizes, "openings": (opening,)}
    PredictionTerms.of(spec_of(trainer.model_copy(update=changes), 2))
    with pytest.raises(ConfigError, match="1048576 slots of 1024 units"):
        PredictionTerms.of(spec_of(trainer.model_copy(update={**changes, "hidden": wide}), 2))


def test_a_linear_score_takes_no_randomness_and_one_message() -> None:
    terms = PredictionTerms.of(spec_of(trainer_of("logistic", 5), 5))
    plans = [dry_run(terms, Public.nothing(terms), rank=rank) for rank in range(5)]
    assert not terms.trainer.correlated
    assert [one.items for one in plans] == [()] * 5
    assert [one.messages for one in plans] == [1, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("logistic", {"hidden": hidden_of("perceptron", 2)}, "hidden layer"),
        ("perceptron", {"hidden": None}, "hidden layer"),
        ("towers", {"hidden": hidden_of("perceptron", 2)}, "hidden layer"),
        ("towers", {"hidden": {"left": (0,), "right": (0,)}}, "sides"),
        ("towers", {"hidden": {"left": (0, 1), "right": ()}}, "sides"),
        ("towers", {"hidden": {"left": (0,), "right": (1, 2)}}, "sides"),
        ("logistic", {"alignment": {"sizes": (SLOTS,) * 3}}, "alignment of 3 parties"),
        ("logistic", {"alignment": {"sizes": (4, SLOTS)}}, "rows"),
    ],
)
def test_terms_that_do_not_fit_are_refused(kind: Kind, change: dict[str, object], says: str) -> None:
    trainer = trainer_of(kind, 2)
    for name, value in change.items():
        if isinstance(value, dict):
            change = {name: getattr(trainer, name).model_copy(update=value)}
    spec = spec_of(trainer.model_copy(update=change), 2)
    with pytest.raises(ConfigError, match=says):
        PredictionTerms.of(spec).check_model(model_of(kind, 2, 1))


def test_a_model_of_other_parties_is_refused() -> None:
    terms = PredictionTerms.of(spec_of(trainer_of("logistic", 2), 2))
    with pytest.raises(ConfigError, match="in order, as in the model"):
        terms.check_model(model_of("logistic", 3, 1))


def test_a_job_text_says_what_opens_and_to_whom_or_is_refused() -> None:
    spec = spec_of(trainer_of("towers", 3, mode="hidden"), 3)
    assert parse(spec.text()) == spec
    assert '"privacy":null' in spec.text() and '"releases":[]' in spec.text()
    for old, new, says in (
        ('"recipient":"party-1"', '"recipient":"stranger"', "recipient"),
        ('"name":"scores"', '"name":"weights"', "opening"),
        (f'"shape":[{SLOTS}]', f'"shape":[{SLOTS},2]', "opening"),
        ('"bits":16', '"bits":30', "bits"),
        ('"privacy":null', '"privacy":{"delta":1e-05}', "privacy"),
        ('"catalogue":null', '"catalogue":{"digest":"sha256:' + "0" * 64 + '","features":1,"items":1}', "catalogue"),
    ):
        assert old in spec.text()
        with pytest.raises(ConfigError, match=says):
            parse(spec.text().replace(old, new))
    with pytest.raises(ConfigError, match="privacy terms"):
        _ = spec.privacy


def test_the_end_of_a_job_is_stated_alike_and_says_nothing_of_rows() -> None:
    one, other = (spec_of(trainer_of("logistic", 2, recipient=recipient), 2) for recipient in (0, 1))
    assert statement(one) == statement(parse(one.text())) != statement(other)
    assert len(statement(one)) == 32


def test_how_many_users_a_job_tells_of_follows_from_its_sizes() -> None:
    trainer = trainer_of("logistic", 2)
    alignment = trainer.alignment.model_copy(update={"mode": "hidden", "sizes": (SLOTS - 2, SLOTS - 4)})
    terms = PredictionTerms.of(spec_of(trainer.model_copy(update={"alignment": alignment}), 2))
    assert terms.rows_told("party-1") == 0
    assert terms.rows_told("party-0") == SLOTS - 4
