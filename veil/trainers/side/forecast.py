"""What a side job will take at each party, before anything runs: bytes, rounds and seconds of each phase.

Rounds and bytes of the outer products come from the dry run of the very program, those of the other phases from the
sizes that the job declares; they are those of the communicator's meter. What the lead broadcasts is counted as its
arrays with as many content directions as the job allows, without the few hundred bytes around them. Seconds are an
estimate: exchanges that follow one another, the larger of bytes sent and received over the bandwidth, and work in
points on the curve, products, bytes and calls (`veil.trainers.columns.speeds`). Not counted: what the item party and
the lead compute between openings, some seconds for a thousand items and a hundred thousand users.
"""

from __future__ import annotations

from typing import Final

from veil.align.traffic import align_points, align_traffic
from veil.jobs.spec import JobSpec, Release
from veil.mpc.engine.plan import Plan
from veil.recsys.postprocess import USER_TERMS
from veil.trainers.columns.forecast import Counted, PartyForecast, PhaseForecast, aligned
from veil.trainers.columns.speeds import EXPANDED_BYTE_S, RECEIVED_BYTE_S, SENT_BYTE_S, Link, Speeds, calls_s
from veil.trainers.side.dry import dry_run, outer_releases
from veil.trainers.side.terms import SideTerms

PHASES: Final = ("align", "rounds", "statistics", "offline", "outer", "model")
"""In order; "offline" only where correlations come without a dealer."""
_HEADER: Final = 16
_EXTENT: Final = 8
_AGREE: Final = 32 + _HEADER + _EXTENT
_FLOAT: Final = 4


def forecast_side(spec: JobSpec, link: Link, speeds: Speeds) -> list[PartyForecast]:
    """For every party in rank order. Raises `ConfigError` unless the job is a sound one with side columns."""
    terms = SideTerms.of(spec)
    ranks, dealt = range(len(spec.parties)), terms.trainer.triples == "dealer"
    plans = [dry_run(terms, spec.releases, spec.privacy.noise, rank=rank) for rank in ranks]
    counted = {
        "align": [aligned(one) for one in align_traffic(terms.alignment)],
        "rounds": [_rounds(spec, terms, rank) for rank in ranks],
        "statistics": [_statistics(spec, terms) for _ in ranks],
        "offline": [] if dealt else [_offline(plans[rank], rank, len(ranks)) for rank in ranks],
        "outer": [_outer(spec, terms, plans, rank) for rank in ranks],
        "model": [_model(terms, len(ranks), rank) for rank in ranks],
    }
    corrections = max(one.correction_bytes for one in plans) if dealt else 0
    found = []
    for rank, party in enumerate(spec.parties):
        phases = []
        for phase in PHASES:
            if not counted[phase]:
                continue
            mine = counted[phase][rank]
            came = mine.received_bytes or 0
            work = [_work(phase, terms, plans[0], one, len(ranks) - 1, speeds) for one in counted[phase]]
            seconds = link.seconds(mine.exchanges, max(mine.sent_bytes, came)) + speeds.elapsed(max(work), sum(work))
            if phase == "outer":
                dealer_s = plans[0].dealer_multiplications * speeds.product_s + _expanded(plans[0]) * EXPANDED_BYTE_S
                seconds = max(seconds, link.seconds(1, corrections) + dealer_s if dealt else 0.0)
            phases.append(PhaseForecast(phase, mine.rounds, mine.sent_bytes, came, seconds))
        found.append(PartyForecast(party, tuple(phases), corrections if rank == 0 else 0))
    return found


def _opening(release: Release) -> int:
    """Bytes to each peer: a statement, and the shares."""
    return 8 * release.size + _HEADER + _EXTENT * len(release.shape) + _AGREE


def _rounds(spec: JobSpec, terms: SideTerms, rank: int) -> Counted:
    """Two rounds for each of the recommender's releases, and the lead's state after it."""
    releases, peers = spec.releases[: terms.recommender_releases], len(spec.parties) - 1
    shared = sum(_opening(release) for release in releases)
    states = sum(_state(terms, step) for step in range(len(releases)))
    sent = peers * (shared + (states if rank == 0 else 0))
    return Counted(3 * len(releases), sent, peers * shared + (0 if rank == 0 else states))


def _state(terms: SideTerms, step: int) -> int:
    """Bytes of the public arrays after a release of the recommender."""
    trainer, items = terms.trainer.recommender, terms.items
    if step == trainer.rounds:
        return _model_bytes(terms)
    return _FLOAT * items * (1 + trainer.dimensions)


def _model_bytes(terms: SideTerms) -> int:
    trainer = terms.trainer.recommender
    columns = trainer.dimensions * (trainer.rounds > 0) + trainer.content_dimensions + USER_TERMS
    return _FLOAT * terms.items * (2 * columns + 2)


def _statistics(spec: JobSpec, terms: SideTerms) -> Counted:
    """One statement and one opening for each side party's sums and moment, and one of what was made of them."""
    peers, side = len(spec.parties) - 1, len(terms.schema.parties)
    releases = spec.releases[terms.recommender_releases : terms.recommender_releases + 2 * side]
    sent = peers * (sum(_opening(release) for release in releases) + _AGREE)
    return Counted(2 * len(releases) + 1, sent, sent)


def _outer(spec: JobSpec, terms: SideTerms, plans: list[Plan], rank: int) -> Counted:
    """The program, and a statement before each opening."""
    peers, releases = len(spec.parties) - 1, outer_releases(terms, spec.releases)
    sent = [one.sent_bytes + peers * len(releases) * _AGREE for one in plans]
    came = sum(one for at, one in enumerate(sent) if at != rank) // peers
    return Counted(plans[rank].rounds + len(releases), sent[rank], came)


def _offline(planned: Plan, rank: int, parties: int) -> Counted:
    from veil.trainers.columns.offline import count_offline

    count = count_offline(planned.items, rank, parties)
    return Counted(count.rounds, count.sent_bytes, count.received_bytes)


def _model(terms: SideTerms, parties: int, rank: int) -> Counted:
    """The lead's arrays."""
    size = _model_bytes(terms) + _FLOAT * terms.items * terms.schema.width
    return Counted(1, (parties - 1) * size, 0) if rank == 0 else Counted(1, 0, size)


def _expanded(planned: Plan) -> int:
    return sum(8 * item.elements + item.correction_bytes for item in planned.items)


def _work(phase: str, terms: SideTerms, planned: Plan, counted: Counted, peers: int, speeds: Speeds) -> float:
    """Seconds of a core at a party in a phase."""
    came = counted.received_bytes or 0
    seconds = calls_s(counted.rounds, peers) + counted.sent_bytes * SENT_BYTE_S + came * RECEIVED_BYTE_S
    if phase == "align":
        seconds += align_points(terms.alignment).longest * speeds.point_s
    elif phase == "offline":
        # A ciphertext is made at one end and used at the other.
        seconds += (counted.sent_bytes + came) / 2 * speeds.ciphertext_byte_s
    elif phase == "outer":
        # Each product of the dealer is two at a party: public by share, share by public.
        seconds += 2 * planned.dealer_multiplications * speeds.product_s + _expanded(planned) * EXPANDED_BYTE_S
    if phase in ("rounds", "statistics", "outer"):
        seconds += counted.rounds / 2 * speeds.entry_s
    return seconds
