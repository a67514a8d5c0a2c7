"""A side job at every party, in threads: what opens is what one place opens with the same noise, bit for bit."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from dealer.engine_items import EngineItems
from party.config import Columns
from party.rows.columns import prepare
from party.worker.joint import Seat
from party.worker.side import HeldItems, SideRun
from tests.unit.mpc.engine.test_sources import watched
from tests.unit.trainers.side.shops import (
    BANK,
    CITY,
    IDENTIFIERS,
    SHOP,
    World,
    catalogue,
    columns,
    csv,
    dataset,
    drawn,
    identifiers,
    table,
    total_noise,
)
from veil.errors import BudgetError, ConfigError, PeerLost, PolicyError
from veil.jobs.reports import steps
from veil.jobs.side import SideTrainer
from veil.jobs.spec import JobSpec, Noise, Release, digest
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.engine.items import EngineItem
from veil.mpc.items import MAX_ELEMENTS, MAX_WORK
from veil.mpc.loopback import loopback
from veil.mpc.meters import CommunicationReport
from veil.tabular.rows import take_rows
from veil.trainers.columns.speeds import Link, Speeds
from veil.trainers.side.algorithm import SideAlgorithm
from veil.trainers.side.central import Side, central_side
from veil.trainers.side.forecast import PHASES, forecast_side
from veil.trainers.side.model import SideModel
from veil.trainers.side.terms import release_name

Int64 = np.ndarray


class Rounds:
    """Noised sums as `party.worker.secure_rounds` opens them, without CrypTen, which one process has once."""

    def __init__(self, communicator: TensorCommunicator, spec: JobSpec, events: list[str]) -> None:
        self._communicator, self._spec, self._events = communicator, spec, events
        self.rank = communicator.rank

    def open(self, release: Release, own: Int64) -> Int64:
        self._events.append(f"open {release.name}")
        noise = total_noise(self._spec, release) if self.rank == 0 else 0
        return np.asarray(self._communicator.all_reduce(torch.from_numpy(own + noise)).numpy())

    def broadcast(self, data: bytes | None) -> bytes:
        found = self._communicator.all_gather_bytes(data or b"-", 2**24)[0]
        return bytes(found)


def play(
    spec: JobSpec, folder: Path, *, refuse: tuple[int, str] | None = None, unknown: int = 0
) -> tuple[list[SideModel], list[list[str]], list[CommunicationReport]]:
    """The model, the order of events and the meter at every party.

    refuse: rank and release that its ledger refuses. unknown: users of the shop without an identifier.
    """
    parties = len(spec.parties)
    seeds = [os.urandom(32) for _ in spec.parties]
    dealer = EngineItems(seeds, max_items=10**6)
    transports = loopback(parties)
    models: dict[int, SideModel] = {}
    errors: list[BaseException] = []
    meters: dict[int, CommunicationReport] = {}
    events: list[list[str]] = [[] for _ in spec.parties]

    def fetch(first: int, items: Sequence[EngineItem]) -> bytes:
        dealer.admit(first, items, max_elements=MAX_ELEMENTS, max_work=MAX_WORK)
        found = b""
        for number, item in enumerate(items, first):
            if item.dependent_shape is not None:
                noise = torch.from_numpy(drawn(spec.release(item.release), 99)) if item.release else None
                found += dealer.correction(number, item, noise).numpy().tobytes()
        return found

    def take_part(rank: int) -> None:
        def pay(releases: Sequence[Release]) -> Callable[[], None]:
            def paid() -> None:
                if refuse in [(rank, release.name) for release in releases]:
                    raise BudgetError("got a release beyond the budget")
                events[rank].extend(f"paid {release.name}" for release in releases)

            return paid

        def draw(release: Release) -> torch.Tensor:
            events[rank].append(f"drawn {release.name}")
            return torch.from_numpy(drawn(release, rank))

        try:
            party = spec.parties[rank]
            own = folder / party
            own.mkdir()
            communicator = TensorCommunicator(transports[rank], spec.parties, timeout_s=60.0)
            rounds = Rounds(communicator, spec, events[rank])
            seat = Seat(
                communicator=communicator,
                job_digest=digest(spec.text()),
                seed=seeds[rank],
                rounds=rounds,
                pay=pay,
                fetch=fetch if rank == 0 else None,
                finished=lambda step: events[rank].append(f"finished {step}"),
                scratch=own,
                draw=draw,
            )
            run = SideRun(spec, seat, rounds, catalogue())
            if party == SHOP:
                names = [None] * unknown + identifiers(SHOP)[unknown:]
                models[rank] = run.run_items(HeldItems(dataset().train, names)).model
            else:
                source = folder / f"{party}.csv"
                source.write_text(csv(party))
                use = tuple(column.name for column in columns(party).columns)
                section = Columns.model_validate(
                    {"source": source, "identifier": IDENTIFIERS[party], "use": use, "format": {}}
                )
                models[rank] = run.run_columns(prepare(section, own).path).model
            meters[rank] = communicator.report()
            assert list(run.phases.measured()["seconds"]) == phases(spec)
            assert not list(own.glob("correlations-*"))
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread of the test
            errors.append(error)
            transports[rank].close()

    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in range(parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, PeerLost)), errors[0])
    return [models[rank] for rank in range(parties)], events, [meters[rank] for rank in range(parties)]


def phases(spec: JobSpec) -> list[str]:
    trainer = spec.trainer
    assert isinstance(trainer, SideTrainer)
    return [name for name in PHASES if name != "offline" or trainer.triples == "he"]


def counted(report: CommunicationReport, phase: str) -> tuple[int, int, int]:
    """Rounds, bytes sent and received."""
    peers = [row for row in report.peers if row.phase == phase]
    rounds = sum(row.rounds for row in report.operations if row.phase == phase)
    return rounds, sum(row.bytes_sent for row in peers), sum(row.bytes_received for row in peers)


def central(world: World, spec: JobSpec, opened: dict[str, Int64] | None = None) -> SideModel:
    """The same job in one place."""
    positions = world.aligned()
    sides = {}
    for party in spec.parties:
        if party == SHOP:
            continue
        own, rows = table(party), positions[party]
        if world.mode == "reveal":
            own, rows = take_rows(own, rows), np.arange(len(rows))
        sides[party] = Side(own, rows)
    algorithm = SideAlgorithm(spec, catalogue())
    return central_side(algorithm, dataset().train, positions[SHOP], sides, lambda one: total_noise(spec, one), opened)


def same(one: SideModel, other: SideModel) -> None:
    for name in ("factors", "offset", "scale"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("item_factors", "fold_in", "norm_terms"):
        np.testing.assert_array_equal(getattr(one.recommender, name), getattr(other.recommender, name))
    assert one.score_scale == other.score_scale


@pytest.mark.parametrize(
    "world",
    [
        World(),
        World(parties=(BANK, SHOP), mode="hidden", noise=Noise(source="parties")),
        World(parties=(BANK, SHOP, CITY), noise=Noise(source="parties", colluding=1)),
        World(parties=(SHOP, BANK, CITY), mode="hidden"),
        World(parties=(BANK, SHOP), noise=Noise(source="parties"), triples="he"),
    ],
    ids=["two", "two-hidden", "three", "three-hidden", "no-dealer"],
)
def test_parties_open_what_one_place_opens_bit_for_bit(
    tmp_path: Path, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "veil.mpc")
    spec = world.spec(rounds=1)
    models, events, meters = play(spec, tmp_path)
    opened: dict[str, Int64] = {}
    expected = central(world, spec, opened)
    assert np.abs(expected.factors).max() > 1e-3
    for model in models:
        same(model, expected)
    outers = [release_name("outer", party) for party in spec.parties if party != SHOP]
    for name in outers:
        shape, digest_of = list(opened[name].shape), hashlib.sha256(opened[name].tobytes()).hexdigest()
        line = f"opened {name} {shape} by rounded-gaussian: sha256:{digest_of}"
        assert [record.getMessage() for record in caplog.records].count(line) == len(spec.parties)
    forecast = forecast_side(spec, Link(1e9, 1e-3), Speeds(1e-4, 1e-9))
    for own, meter, planned in zip(events, meters, forecast, strict=True):
        # Paid for before its noise is drawn, and told when it has opened; nothing else is paid for here.
        assert [event for event in own if event.startswith("paid")] == [f"paid {name}" for name in outers]
        if world.noise.source == "parties":
            assert all(own.index(f"paid {name}") < own.index(f"drawn {name}") for name in outers)
        done = [event.removeprefix("finished ") for event in own if event.startswith("finished")]
        assert ["load", "mesh", *done, "publish"] == list(steps(spec))
        for phase in planned.phases:
            got = counted(meter, phase.phase)
            if phase.phase == "outer" or (phase.phase == "align" and world.mode == "hidden"):
                assert got == (phase.rounds, phase.sent_bytes, phase.received_bytes), phase.phase
        assert [phase.phase for phase in planned.phases] == phases(spec)


@pytest.mark.parametrize("triples", ["dealer", "he"])
def test_no_generator_but_the_cryptographic_one_is_touched(tmp_path: Path, triples: str) -> None:
    spec = World(noise=Noise(source="parties"), triples=triples).spec(rounds=0)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    play(spec, tmp_path / "first")  # libraries that are imported at first use make generators of their own
    with watched():
        models, _, _ = play(spec, tmp_path / "second")
    assert np.abs(models[0].factors).max() > 0


def test_users_without_an_identifier_count_for_the_recommender_alone(tmp_path: Path) -> None:
    world = World()
    spec = world.spec(rounds=0)
    models, _, _ = play(spec, tmp_path, unknown=40)
    whole = central(world, spec)
    np.testing.assert_array_equal(models[0].recommender.item_factors, whole.recommender.item_factors)
    assert not np.array_equal(models[0].factors, whole.factors)
    with pytest.raises(ConfigError, match="expected one each"):
        HeldItems(dataset().train, ["a"])


def test_a_ledger_that_refuses_an_outer_product_ends_the_job_for_all(tmp_path: Path) -> None:
    with pytest.raises(BudgetError):
        play(World().spec(rounds=0), tmp_path, refuse=(1, "outer-bank"))


def test_more_common_users_than_declared_end_the_job_before_anything_opens(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="common rows"):
        play(World(result=100).spec(rounds=0), tmp_path)
