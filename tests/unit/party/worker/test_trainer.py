"""Joint training equals the same mechanism run in one place with the same noise: bit for bit, not nearly."""

from __future__ import annotations

import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from baseline.evaluate import LinearTrainer, simulation_spec
from party.worker.trainer import train
from tests.unit.mpc.parties import processes
from veil.errors import ProtocolMismatch
from veil.jobs.spec import JobSpec, Release, digest, parse
from veil.mpc.loopback import socket_pairs
from veil.privacy.noise import keyed_source, rounded_gaussian
from veil.queries.algorithm import QueryAlgorithm
from veil.queries.plan import plan_queries
from veil.recsys import synthetic
from veil.recsys.catalogue import Catalogue
from veil.recsys.features import build_catalogue
from veil.recsys.parties import split_as_given
from veil.trainers.registry import central_run, recommender_of
from veil.trainers.rows import PartyRows
from veil.trainers.subspace.algorithm import SubspaceAlgorithm

_PARTIES = 3


def _data() -> tuple[Any, Catalogue]:
    dataset = synthetic.generate(200, 320, seed=5)
    return dataset, build_catalogue(dataset.table)


def _noise(release: Release, party: int) -> np.ndarray:
    source = keyed_source(bytes([party]) * 32, release.name.encode())
    return rounded_gaussian(release.size, release.sigma, source).reshape(release.shape)


def _play(rank: int, sockets: dict[int, socket.socket], text: str, pipe: Connection) -> None:
    """One party in a process of its own: the product's session and rounds, with the test's noise keys."""
    import torch

    from party.worker import secure_rounds
    from veil.mpc.communicator import TensorCommunicator
    from veil.mpc.loopback import SocketTransport
    from veil.mpc.provider import DealerProvider
    from veil.mpc.session import Session

    torch.set_num_threads(1)
    permitted: list[str] = []

    class Daemon:
        def ask(self, kind: str, body: dict[str, Any]) -> Callable[[float], dict[str, Any]]:
            permitted.extend(f"{kind} {name}" for name in body["releases"])
            return lambda timeout_s: {}

    secure_rounds.party_noise = lambda release: torch.from_numpy(_noise(release, rank))
    dataset, catalogue = _data()
    spec = parse(text)
    own = split_as_given(dataset)[rank].data.train
    communicator = TensorCommunicator(SocketTransport(rank, sockets), spec.parties, 60.0)
    provider = DealerProvider(rank, bytes(32), lambda request: b"")
    with Session(communicator, provider, job_digest=digest(text), releases=spec.releases) as session:
        rounds = secure_rounds.SecureRounds(session, provider, spec, rank, Daemon())
        state = train(spec, recommender_of(spec, catalogue), PartyRows(own), rounds, lambda step: None)
    pipe.send((dict(state), permitted, own.users))


def _joint(spec: JobSpec) -> list[tuple[dict[str, np.ndarray], list[str], int]]:
    context = processes()
    players = []
    for rank, sockets in enumerate(socket_pairs(_PARTIES)):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_play, args=(rank, sockets, spec.text(), sender), daemon=True)
        process.start()
        sender.close()
        for own_end in sockets.values():
            own_end.close()
        players.append((process, receiver))
    results = []
    for process, receiver in players:
        assert receiver.poll(120), "a party gave no result"
        results.append(receiver.recv())
        process.join(20)
    return results


@pytest.mark.parametrize(
    ("trainer", "overrides"),
    [("subspace", {}), ("als", {"rounds": 2.0, "item_gram": 1.0})],
)
def test_joint_equals_central_with_the_same_noise(trainer: LinearTrainer, overrides: dict[str, float]) -> None:
    dataset, catalogue = _data()
    spec = simulation_spec(
        catalogue,
        epsilon=8.0,
        delta=1e-5,
        noise_source="parties",
        parties=_PARTIES,
        trainer=trainer,
        overrides=overrides,
    )
    assert len(spec.releases) >= 2
    results = _joint(spec)
    assert sum(users for _, _, users in results) == dataset.train.users
    assert len({users for _, _, users in results}) == _PARTIES, "the split should be unequal"

    def noise(release: Release) -> np.ndarray:
        return sum((_noise(release, party) for party in range(_PARTIES)), np.zeros(release.shape, np.int64))

    central = central_run(spec, catalogue, dataset.train, noise)
    algorithm = recommender_of(spec, catalogue)
    for state, permitted, _ in results:
        joint = algorithm.model(state)
        assert np.array_equal(joint.item_factors, central.item_factors)
        assert np.array_equal(joint.fold_in, central.fold_in)
        assert np.array_equal(joint.norm_terms, central.norm_terms)
        # each opening was paid for, in order, at every party
        assert permitted == [f"permit {release.name}" for release in spec.releases]

    # and the noise is really in it: another draw gives another model
    other = central_run(spec, catalogue, dataset.train, lambda release: noise(release) + 1)
    assert not np.array_equal(other.item_factors, central.item_factors)


class _Central:
    """`party.worker.trainer.Rounds` of a single party, with a lead that may lie."""

    def __init__(self, rank: int, broadcast: bytes | None = None) -> None:
        self.rank = rank
        self._broadcast = broadcast

    def open(self, release: Release, own: np.ndarray) -> np.ndarray:
        return own

    def broadcast(self, data: bytes | None) -> bytes:
        return self._broadcast if self._broadcast is not None else data or b""


@pytest.mark.parametrize("lie", [b"", b"not safetensors", b"\xff" * 64])
def test_a_public_state_that_does_not_parse_names_the_lead(lie: bytes) -> None:
    dataset, catalogue = _data()
    spec = simulation_spec(catalogue, epsilon=8.0, delta=1e-5, parties=_PARTIES)
    algorithm = SubspaceAlgorithm(spec, catalogue)
    with pytest.raises(ProtocolMismatch) as wrong:
        train(spec, algorithm, PartyRows(dataset.train), _Central(1, lie), lambda step: None)
    assert wrong.value.culprits == (spec.parties[0],)


def test_a_public_state_with_infinities_names_the_lead() -> None:
    dataset, catalogue = _data()
    spec = simulation_spec(catalogue, epsilon=8.0, delta=1e-5, parties=_PARTIES)
    algorithm = SubspaceAlgorithm(spec, catalogue)
    lie = save({"counts": np.full(catalogue.items, np.inf, np.float32)})
    with pytest.raises(ProtocolMismatch, match="non-finite"):
        train(spec, algorithm, PartyRows(dataset.train), _Central(1, lie), lambda step: None)


_QUESTIONS = (
    {"name": "by-category", "by": "category", "groups_per_user": 2},
    {"name": "all", "by": "nothing", "mechanism": "gaussian"},
)


def _questions() -> tuple[QueryAlgorithm, PartyRows]:
    dataset, catalogue = _data()
    names = {name for of_item in catalogue.categories for name in of_item}
    trainer, releases = plan_queries(_QUESTIONS, epsilon=2.0, delta=1e-6, items=catalogue.items, categories=len(names))
    spec = simulation_spec(catalogue, epsilon=2.0, delta=1e-6, parties=_PARTIES)
    spec = JobSpec.model_validate(
        {
            **spec.model_dump(by_alias=True),
            "trainer": trainer.model_dump(),
            "releases": [one.model_dump() for one in releases],
        }
    )
    return QueryAlgorithm(spec, catalogue), PartyRows(dataset.train)


class _LyingLead(_Central):
    """A lead that changes what it states, the first time."""

    def __init__(
        self, lie: Callable[[dict[str, np.ndarray]], object], algorithm: QueryAlgorithm, rank: int = 1
    ) -> None:
        super().__init__(rank)
        self._lie, self._algorithm = lie, algorithm
        self._state: dict[str, np.ndarray] = {}
        self.lied = False

    def open(self, release: Release, own: np.ndarray) -> np.ndarray:
        self._state = self._algorithm.advance(release.name, own, self._state)
        return own

    def broadcast(self, data: bytes | None) -> bytes:
        told = {name: array.copy() for name, array in self._state.items()}
        if not self.lied:
            self.lied = True
            self._lie(told)
        return save(told)


def test_answers_of_an_honest_lead_are_the_openings_at_every_party() -> None:
    algorithm, rows = _questions()
    followed = train(algorithm.spec, algorithm, rows, _LyingLead(lambda told: None, algorithm), lambda step: None)
    led = train(algorithm.spec, algorithm, rows, _Central(0), lambda step: None)
    assert followed.keys() == led.keys() == set(algorithm.steps)
    for step in algorithm.steps:
        np.testing.assert_array_equal(followed[step], algorithm.contribution(step, rows, {}))
        np.testing.assert_array_equal(followed[step], led[step])


@pytest.mark.parametrize(
    "lie",
    [
        lambda told: told["by-category"].__setitem__(0, told["by-category"][0] + 1),
        lambda told: told.update({"by-category": told["by-category"].astype(np.float64)}),
        lambda told: told.update({"by-category": told["by-category"][:-1]}),
        lambda told: told.update({"more": np.zeros(3)}),
        lambda told: told.pop("by-category"),
    ],
)
def test_answers_that_did_not_open_here_are_not_signed(lie: Callable[[dict[str, np.ndarray]], object]) -> None:
    """The lead cannot have the other parties sign counts of its own making."""
    algorithm, rows = _questions()
    with pytest.raises(ProtocolMismatch, match="not what opened here") as wrong:
        train(algorithm.spec, algorithm, rows, _LyingLead(lie, algorithm), lambda step: None)
    assert wrong.value.culprits == (algorithm.spec.parties[0],)
