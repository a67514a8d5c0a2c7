"""A columns job at every party, in threads: what opens is what a plain computation gives with the same noise."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dealer.engine_items import EngineItems
from party.config import Columns
from party.rows.columns import prepare, read_columns, scratch
from party.worker.joint import JointRun, Seat
from tests.unit.mpc.engine.test_sources import watched
from tests.unit.trainers.columns.clicks import BANK, COMMON, SHOP, job, section, write_tables
from veil.errors import BudgetError, PeerLost, PolicyError
from veil.jobs.reports import steps
from veil.jobs.spec import JobSpec, Noise, Release, digest
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.engine.items import EngineItem
from veil.mpc.items import MAX_ELEMENTS, MAX_WORK
from veil.mpc.loopback import loopback
from veil.mpc.meters import CommunicationReport
from veil.privacy.noise import keyed_source, rounded_gaussian
from veil.privacy.sources import party_release
from veil.tabular.rows import take_rows
from veil.tabular.statistics import contribution, release_name
from veil.trainers.columns.logistic import Logistic
from veil.trainers.columns.material import base_rate, own_columns, standardisations
from veil.trainers.columns.perceptron import Perceptron
from veil.trainers.columns.publication import ColumnsModel
from veil.trainers.columns.terms import ColumnsTerms, step_name


def drawn(release: Release, who: int) -> np.ndarray:
    source = keyed_source(bytes([who]) * 32, release.name.encode())
    return rounded_gaussian(release.size, release.sigma, source).reshape(release.shape)


def total_noise(spec: JobSpec, release: Release) -> np.ndarray:
    if spec.privacy.noise.source == "dealer":
        return drawn(release, 99)
    each = party_release(release, spec.privacy.noise, len(spec.parties))
    return sum(drawn(each, rank) for rank in range(len(spec.parties)))  # type: ignore[return-value]


class Rounds:
    """Noised sums as `party.worker.secure_rounds` opens them, without CrypTen, which one process has once."""

    def __init__(self, communicator: TensorCommunicator, spec: JobSpec, events: list[str]) -> None:
        self._communicator, self._spec, self._events = communicator, spec, events

    def open(self, release: Release, own: np.ndarray) -> np.ndarray:
        self._events.append(f"open {release.name}")
        noise = total_noise(self._spec, release) if self._communicator.rank == 0 else 0
        return np.asarray(self._communicator.all_reduce(torch.from_numpy(own + noise)).numpy())


def play(
    spec: JobSpec,
    folder: Path,
    *,
    refuse: tuple[int, str] | None = None,
    reports: list[CommunicationReport] | None = None,
    paths: dict[str, Path] | None = None,
) -> tuple[list[ColumnsModel], list[list[str]]]:
    """The published model and the order of events at each party. refuse: rank and release that its ledger refuses."""
    parties = len(spec.parties)
    paths = write_tables(folder) if paths is None else paths
    seeds = [os.urandom(32) for _ in spec.parties]
    dealer = EngineItems(seeds, max_items=10**6)
    transports = loopback(parties)
    models: dict[int, ColumnsModel] = {}
    errors: dict[int, BaseException] = {}
    measured: dict[int, CommunicationReport] = {}
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
                for release in releases:
                    if refuse == (rank, release.name):
                        raise BudgetError("got a release beyond the budget")
                    events[rank].append(f"paid {release.name}")

            return paid

        def draw(release: Release) -> torch.Tensor:
            events[rank].append(f"drawn {release.name}")
            return torch.from_numpy(drawn(release, rank))

        try:
            party = spec.parties[rank]
            held = prepare(Columns.model_validate(section(party, paths[party])), folder / f"{party}-kept")
            communicator = TensorCommunicator(transports[rank], spec.parties, timeout_s=60.0)
            seat = Seat(
                communicator=communicator,
                job_digest=digest(spec.text()),
                seed=seeds[rank],
                rounds=Rounds(communicator, spec, events[rank]),
                pay=pay,
                fetch=fetch if rank == 0 else None,
                finished=lambda step: events[rank].append(f"finished {step}"),
                scratch=held.path.parent,
                draw=draw,
            )
            models[rank] = JointRun(spec, seat).run(held.path).model
            measured[rank] = communicator.report()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread of the test
            errors[rank] = error
            transports[rank].close()

    for party in spec.parties:
        (folder / f"{party}-kept").mkdir(exist_ok=True)
    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in range(parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors.values() if not isinstance(error, PeerLost)), next(iter(errors.values())))
    if reports is not None:
        reports.extend(measured[rank] for rank in range(parties))
    return [models[rank] for rank in range(parties)], events


def plain_weights(spec: JobSpec, folder: Path) -> tuple[np.ndarray, Any]:
    """The same descent in floating point on rows in one place, with the same noise."""
    terms = ColumnsTerms.of(spec)
    files = {party: folder / f"{party}-kept" / "columns.parquet" for party in spec.parties}
    tables = {party: read_columns(file, terms.schema, party) for party, file in files.items()}
    if terms.alignment.mode == "reveal":
        common = sorted(set(tables[BANK].identifiers) & set(tables[SHOP].identifiers))
    else:
        common = sorted(set(tables[BANK].identifiers) | set(tables[SHOP].identifiers))
    positions = {}
    for party, table in tables.items():
        place = {name: row for row, name in enumerate(table.identifiers)}
        rows = np.array([place.get(name, -1) for name in common])
        if terms.alignment.mode == "reveal":
            tables[party], rows = take_rows(table, rows), np.arange(len(rows))
        positions[party] = rows
    opened = {}
    for party in spec.parties:
        release = spec.release(release_name(party))
        opened[party] = contribution(terms.schema, tables[party]) + total_noise(spec, release)
    found = standardisations(terms, opened)
    own = [own_columns(terms, tables[party], found[party], positions[party]) for party in spec.parties]
    features = np.concatenate([one.features.numpy() for one in own], axis=1) / 2.0**terms.schema.bits  # type: ignore[union-attr]
    holder = own[terms.layout.label]
    labels = holder.labels.numpy()[:, 0]  # type: ignore[union-attr]
    row_weights = np.ones(len(labels)) if holder.weights is None else holder.weights.numpy()[:, 0] / 16
    offset = terms.offset(base_rate(found, terms.schema.label_party)) / 2**16
    descent, program = terms.descent, terms.program()
    width = terms.layout.widths[0]
    weights = np.zeros((terms.layout.columns, terms.outputs))
    if not isinstance(program, Logistic):
        weights = program.starting_weights().numpy() / 2.0**program.weight_bits
    velocity = np.zeros_like(weights)
    for step in range(descent.steps):
        score, backs = features @ weights[:, 0] + offset, []
        if not isinstance(program, Logistic):
            a, b = program.hidden.activation, program.hidden.slope
            signs = np.array([1.0 if unit % 2 == 0 else -1.0 for unit in range(terms.outputs - 1)])
            if isinstance(program, Perceptron):
                z = features @ weights[:, 1:]
                score = score + a(z) @ signs
                backs = [(features, b(z) * signs)]
            else:
                own_left = program.sides.left == (0,)
                first, second = features.copy(), features.copy()
                first[:, width:], second[:, :width] = 0, 0
                left, right = (first, second) if own_left else (second, first)
                z_left, z_right = left @ weights[:, 1:], right @ weights[:, 1:]
                score = score + (a(z_left) * a(z_right)) @ signs
                backs = [(left, b(z_left) * a(z_right) * signs), (right, b(z_right) * a(z_left) * signs)]
        residual = ((descent.sigmoid(score) - labels) * row_weights)[:, None]
        hidden = np.zeros((terms.layout.columns, terms.outputs - 1))
        for side, back in backs:
            hidden = hidden + side.T @ (back * residual)
        noise = total_noise(spec, spec.release(step_name(step))) / 2.0**program.gradient_bits
        gradient = np.concatenate([features.T @ residual, hidden], axis=1)
        velocity = descent.momentum / 256 * velocity + gradient + noise.reshape(gradient.shape)
        weights = weights - descent.rate / 2.0**descent.rate_bits * velocity
    return weights, found


@pytest.mark.parametrize(
    ("noise", "mode", "positive_weight", "triples", "model"),
    [
        (Noise(source="dealer"), "reveal", 1.0, "dealer", "logistic"),
        (Noise(source="parties"), "reveal", 2.5, "dealer", "logistic"),
        (Noise(source="dealer"), "hidden", 1.0, "dealer", "logistic"),
        (Noise(source="parties", colluding=0), "hidden", 0.5, "dealer", "logistic"),
        (Noise(source="parties"), "reveal", 1.0, "he", "logistic"),
        (Noise(source="dealer"), "reveal", 1.0, "dealer", "perceptron"),
        (Noise(source="parties"), "hidden", 1.0, "dealer", "perceptron"),
        (Noise(source="dealer"), "reveal", 2.0, "dealer", "towers"),
    ],
)
def test_the_weights_are_those_of_the_plain_computation(
    tmp_path: Path, noise: Noise, mode: str, positive_weight: float, triples: str, model: str
) -> None:
    spec = job(noise=noise, mode=mode, positive_weight=positive_weight, triples=triples, model=model)
    models, events = play(spec, tmp_path)
    expected, found = plain_weights(spec, tmp_path)
    for one in models:
        np.testing.assert_array_equal(one.weights, models[0].weights)
        np.testing.assert_array_equal(one.scale, np.concatenate([found[party].scale for party in spec.parties]))
        np.testing.assert_array_equal(one.offset, np.concatenate([found[party].offset for party in spec.parties]))
    assert np.abs(expected).max() > 0.1
    # hidden units leave fewer bits to residuals
    relative = 2e-3 if spec.trainer.hidden is None else 6e-3  # type: ignore[union-attr]
    assert np.abs(models[0].weights - expected).max() < relative * max(1.0, np.abs(expected).max())

    # nothing of the correlations is left
    assert not list(tmp_path.glob("*-kept/correlations-*"))

    # each step is paid for before its noise is drawn, and no step without
    for own in events:
        assert [event.removeprefix("paid ") for event in own if event.startswith("paid")] == [
            step_name(step) for step in range(6)
        ]
        for step in range(6) if noise.source == "parties" else ():
            assert own.index(f"paid {step_name(step)}") < own.index(f"drawn {step_name(step)}")
        done = [event.removeprefix("finished ") for event in own if event.startswith("finished")]
        assert ["load", "mesh", *done, "publish"] == list(steps(spec))


@pytest.mark.parametrize("triples", ["dealer", "he"])
def test_no_generator_but_the_cryptographic_one_is_touched(tmp_path: Path, triples: str) -> None:
    spec = job(noise=Noise(source="parties"), triples=triples)
    paths = write_tables(tmp_path)
    play(spec, tmp_path, paths=paths)  # libraries that are imported at first use make generators of their own
    for party in spec.parties if triples == "he" else ():  # what a run that was killed leaves there
        left = scratch(tmp_path / f"{party}-kept", digest(spec.text()))
        left.mkdir()
        (left / "items").write_bytes(b"shares of masks")
    with watched():
        models, _ = play(spec, tmp_path, paths=paths)
    assert np.abs(models[0].weights).max() > 0
    assert not list(tmp_path.glob("*-kept/correlations-*"))


def test_a_ledger_that_refuses_a_step_ends_the_job_for_all(tmp_path: Path) -> None:
    with pytest.raises(BudgetError):
        play(job(), tmp_path, refuse=(1, "step-0003"))


def test_more_common_users_than_declared_end_the_job_before_anything_opens(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="common rows"):
        play(job(result=COMMON - 1), tmp_path)
