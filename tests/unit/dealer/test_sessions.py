"""The dealer's rules, one by one, without a network."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch

from dealer.sessions import Limits, Sessions, payload_bytes
from tests.unit.mpc.parties import job_text
from veil.errors import ConfigError, IdentityError, PolicyError, ProtocolMismatch, StateError, VeilError, WireError
from veil.identity.names import Identity, Role
from veil.jobs.spec import digest
from veil.mpc.engine.expand import Expander
from veil.mpc.engine.items import EngineItem
from veil.mpc.items import Item
from veil.mpc.triples import expand_dependent, expand_independent, item_key
from veil.privacy.noise import ByteSource, keyed_source, rounded_gaussian

DEALER = Identity("trial", Role.DEALER, "main")
PARTIES = [Identity("trial", Role.PARTY, name) for name in ("alpha", "beta", "gamma")]
TEXT = job_text(3)
SQUARE = Item("square", ((4,),))
NOISE = Item("noise", ((),), release="counts")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def sessions(clock: Clock | None = None, **limits: Any) -> Sessions:
    return Sessions(
        DEALER,
        limits=Limits(**limits),
        clock=clock or Clock(),
        entropy=os.urandom,
        noise_source=lambda: keyed_source(b"k" * 32, b"test"),
    )


def opened(found: Sessions, text: str = TEXT, job_id: str = "job") -> list[bytes]:
    return [found.open(party, job_id, text, digest(text)) for party in PARTIES]


def test_seeds_are_fresh_and_corrections_fit_them() -> None:
    found = sessions()
    seeds = opened(found)
    assert len(set(seeds)) == 3 and {len(seed) for seed in seeds} == {32}
    correction = found.correct(PARTIES[0], "job", 0, SQUARE)
    keys = [item_key(seed, 0, SQUARE) for seed in seeds]
    root = sum(expand_independent(SQUARE, key)[0] for key in keys)
    rest = sum(expand_dependent(SQUARE, key, (4,)) for key in keys[1:])
    assert isinstance(root, torch.Tensor)
    assert torch.equal(correction + rest, root * root)
    np.testing.assert_array_equal(np.frombuffer(payload_bytes(correction), "<i8"), correction.numpy())


def test_noise_follows_the_job_text_and_is_drawn_once() -> None:
    found = sessions()
    seeds = opened(found)
    correction = found.correct(PARTIES[0], "job", 0, NOISE)
    item = Item("noise", ((7, 3),), release="counts")
    rest = sum(expand_dependent(item, item_key(seed, 0, item), (7, 3)) for seed in seeds[1:])
    expected = rounded_gaussian(21, 5000, keyed_source(b"k" * 32, b"test")).reshape(7, 3)
    np.testing.assert_array_equal((correction + rest).numpy(), expected)
    with pytest.raises(PolicyError, match="second request"):
        found.correct(PARTIES[0], "job", 1, NOISE)
    with pytest.raises(ConfigError, match="expected one that the job lists"):
        found.correct(PARTIES[0], "job", 1, Item("noise", ((),), release="other"))


def test_noise_by_the_parties_is_not_the_dealers_business() -> None:
    text = TEXT.replace('"source":"dealer"', '"source":"parties"')
    found = sessions()
    opened(found, text)
    with pytest.raises(PolicyError, match="the parties draw it"):
        found.correct(PARTIES[0], "job", 0, NOISE)


@pytest.mark.parametrize(
    ("party", "text", "given", "error"),
    [
        (Identity("trial", Role.PARTY, "delta"), TEXT, None, IdentityError),
        (Identity("trial", Role.COORDINATOR, "alpha"), TEXT, None, IdentityError),
        (Identity("other", Role.PARTY, "alpha"), TEXT, None, IdentityError),
        (PARTIES[0], TEXT, bytes(32), ProtocolMismatch),
        (PARTIES[0], TEXT, b"", ProtocolMismatch),
        (PARTIES[0], TEXT.replace('"dealer":"main"', '"dealer":"second"'), None, ConfigError),
        (PARTIES[0], TEXT.replace('"consortium":"trial"', '"consortium":"other"'), None, ConfigError),
        (PARTIES[0], "{}", None, ConfigError),
        (PARTIES[0], TEXT + " ", None, ConfigError),
    ],
)
def test_registration_is_refused(party: Identity, text: str, given: bytes | None, error: type[VeilError]) -> None:
    with pytest.raises(error, match="got"):
        sessions().open(party, "job", text, digest(text) if given is None else given)


@pytest.mark.parametrize("job_id", ["", "x" * 65, "é", "job\nINFO forged", "../job", "JOB"])
def test_job_ids_are_bounded(job_id: str) -> None:
    with pytest.raises(WireError):
        sessions().open(PARTIES[0], job_id, TEXT, digest(TEXT))


def test_a_party_registers_once_for_an_identifier_and_all_with_one_digest() -> None:
    found = sessions()
    found.open(PARTIES[0], "job", TEXT, digest(TEXT))
    other = job_text(3, nonce="1" * 32)
    for text in (TEXT, other):
        with pytest.raises(StateError, match="a second time"):
            found.open(PARTIES[0], "job", text, digest(text))
    for party in PARTIES[1:]:
        found.open(party, "job", other, digest(other))
    with pytest.raises(StateError, match="before beta, gamma registered"):  # for the text of alpha
        found.correct(PARTIES[0], "job", 0, SQUARE)


def test_who_knows_an_identifier_cannot_take_it_from_a_jobs_parties() -> None:
    """A party of the consortium, not of the job, comes first, with a text of its own that names the others too."""
    squatter = Identity("trial", Role.PARTY, "delta")
    own = TEXT.replace('"parties":["alpha","beta","gamma"]', '"parties":["delta","alpha","beta"]')
    assert own != TEXT
    found = sessions()
    found.open(squatter, "job", own, digest(own))
    seeds = opened(found)
    found.correct(PARTIES[0], "job", 0, SQUARE)
    assert len(list(found.provide(PARTIES[0], "job", 0, [CUT]))) == 1
    with pytest.raises(StateError, match="before alpha, beta registered"):
        found.correct(squatter, "job", 1, SQUARE)
    found.close(squatter, "job")  # ends its own, nothing else
    found.correct(PARTIES[0], "job", 1, SQUARE)
    with pytest.raises(IdentityError):
        found.close(squatter, "job")
    with pytest.raises(StateError, match="not open here"):
        found.correct(squatter, "job", 2, SQUARE)
    found.close(PARTIES[2], "job")
    assert found.expire() == 0 and not set(seeds) & set(opened(found))


def test_corrections_only_for_rank_zero_in_order_after_all_registered() -> None:
    found = sessions()
    for party in PARTIES[:2]:
        found.open(party, "job", TEXT, digest(TEXT))
    with pytest.raises(StateError, match="gamma"):
        found.correct(PARTIES[0], "job", 0, SQUARE)
    found.open(PARTIES[2], "job", TEXT, digest(TEXT))
    for rank in (1, 2):
        with pytest.raises(PolicyError, match="alpha"):
            found.correct(PARTIES[rank], "job", 0, SQUARE)
    for index in (1, 2**40):
        with pytest.raises(StateError, match="index 0"):
            found.correct(PARTIES[0], "job", index, SQUARE)
    found.correct(PARTIES[0], "job", 0, SQUARE)
    with pytest.raises(StateError, match="index 1"):
        found.correct(PARTIES[0], "job", 0, SQUARE)
    with pytest.raises(StateError, match="not open here"):
        found.correct(PARTIES[0], "other", 0, SQUARE)


def test_limits_on_elements_work_items_and_jobs() -> None:
    found = sessions(elements=121, work=1000, items=1, sessions=1)
    opened(found)
    with pytest.raises(WireError, match="at most 121"):
        found.correct(PARTIES[0], "job", 0, Item("square", ((122,),)))
    with pytest.raises(WireError, match="1331 multiplications"):
        found.correct(PARTIES[0], "job", 0, Item("additive", ((11, 11), (11, 11)), operation="matmul"))
    found.correct(PARTIES[0], "job", 0, SQUARE)
    with pytest.raises(StateError, match="below 1"):
        found.correct(PARTIES[0], "job", 1, SQUARE)
    with pytest.raises(StateError, match="1 jobs"):
        found.open(PARTIES[0], "second", TEXT, digest(TEXT))


def test_no_party_uses_up_all_sessions_alone() -> None:
    found = sessions(sessions=4, sessions_of_a_party=2)
    for number in range(2):
        found.open(PARTIES[0], f"job-{number}", TEXT, digest(TEXT))
    with pytest.raises(StateError, match="2 jobs that alpha has opened"):
        found.open(PARTIES[0], "job-2", TEXT, digest(TEXT))
    # others may, and it may register for theirs
    found.open(PARTIES[1], "job-2", TEXT, digest(TEXT))
    found.open(PARTIES[0], "job-2", TEXT, digest(TEXT))


def test_idle_jobs_are_forgotten_with_their_seeds() -> None:
    clock = Clock()
    found = sessions(clock, idle_s=10.0)
    opened(found)
    clock.now = 9.0
    found.correct(PARTIES[0], "job", 0, SQUARE)
    clock.now = 18.0
    assert found.expire() == 1
    clock.now = 20.0
    assert found.expire() == 0
    with pytest.raises(StateError, match="not open here"):
        found.correct(PARTIES[0], "job", 1, SQUARE)


def test_a_party_closes_its_job_and_a_new_one_has_new_seeds() -> None:
    found = sessions()
    before = opened(found)
    with pytest.raises(IdentityError):
        found.close(Identity("trial", Role.PARTY, "delta"), "job")
    found.close(PARTIES[1], "job")
    assert not set(before) & set(opened(found))


def test_seeds_do_not_print() -> None:
    found = sessions()
    seeds = opened(found)
    shown = repr(found) + repr(found._jobs)
    assert not any(seed.hex() in shown or repr(seed) in shown for seed in seeds)


CUT = EngineItem("truncation", (3,), shift=4)
DRAW = EngineItem("noise", (), release="counts")


def test_corrections_of_the_engine_fit_the_seeds_and_its_noise_follows_the_job_text() -> None:
    found = sessions()
    expanders = [Expander(rank, seed) for rank, seed in enumerate(opened(found))]
    cut, noise = found.provide(PARTIES[0], "job", 0, [EngineItem("mask", (2,)), CUT, DRAW])
    root = sum(expander.independent(1, CUT) for expander in expanders)
    rest = sum(expander.dependent(1, CUT) for expander in expanders[1:])
    assert isinstance(root, torch.Tensor)
    assert torch.equal((cut + rest)[0], (root >> 4) & (2**60 - 1)) and torch.equal((cut + rest)[1], (root < 0).long())
    item = EngineItem("noise", (7, 3), release="counts")
    drawn = noise + sum(expander.dependent(2, item) for expander in expanders[1:])
    expected = rounded_gaussian(21, 5000, keyed_source(b"k" * 32, b"test")).reshape(7, 3)
    np.testing.assert_array_equal(drawn.numpy(), expected)


def test_the_noise_of_a_release_is_drawn_once_whoever_asks() -> None:
    found = sessions()
    opened(found)
    with pytest.raises(PolicyError, match="twice"):
        list(found.provide(PARTIES[0], "job", 0, [DRAW, DRAW]))
    assert len(list(found.provide(PARTIES[0], "job", 0, [DRAW]))) == 1
    with pytest.raises(PolicyError, match="second request"):
        list(found.provide(PARTIES[0], "job", 1, [CUT, DRAW]))
    with pytest.raises(PolicyError, match="second request"):
        found.correct(PARTIES[0], "job", 0, NOISE)
    with pytest.raises(ConfigError, match="expected one that the job lists"):
        list(found.provide(PARTIES[0], "job", 1, [EngineItem("noise", ())]))


def test_numbers_are_spent_when_a_request_starts_and_one_is_served_at_a_time() -> None:
    found = sessions()
    opened(found)
    found.provide(PARTIES[0], "job", 0, [CUT])  # never run: spends nothing
    under_way = found.provide(PARTIES[0], "job", 0, [CUT, CUT])
    next(under_way)
    for request in (found.provide(PARTIES[0], "job", 2, [CUT]), found.provide(PARTIES[0], "job", 0, [CUT])):
        with pytest.raises(StateError, match="one at a time"):
            next(request)
    with pytest.raises(StateError, match="one at a time"):
        found.correct(PARTIES[0], "job", 0, SQUARE)
    under_way.close()
    with pytest.raises(StateError, match="expected 2 on"):
        next(found.provide(PARTIES[0], "job", 0, [CUT]))
    assert len(list(found.provide(PARTIES[0], "job", 2, [CUT]))) == 1
    for rank in (1, 2):
        with pytest.raises(PolicyError, match="alpha"):
            next(found.provide(PARTIES[rank], "job", 3, [CUT]))


def test_no_noise_is_drawn_but_for_noise_items() -> None:
    """Else a small item that names a large release would cost the dealer a draw that nobody counts."""

    def untouched() -> ByteSource:
        raise AssertionError("a draw")

    found = Sessions(DEALER, limits=Limits(), clock=Clock(), entropy=os.urandom, noise_source=untouched)
    opened(found)
    found.correct(PARTIES[0], "job", 0, Item("square", ((4,),), release="counts"))
    with pytest.raises(WireError, match="noise only"):
        next(found.provide(PARTIES[0], "job", 0, [EngineItem("truncation", (1,), shift=4, release="counts")]))
