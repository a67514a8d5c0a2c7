"""Whose fault a failure was, from the accounts of several parties.

When party A dies, B and C report that they lost a peer, perhaps before the end of A's own stream is seen. Worse, B
tears its connections down when it gives up, so that C, which was waiting for B, may blame B; and a party that was only
slow blames the others once they have given up on it. The rule is to follow blame to where it ends:

1. An account is an arrow from who gives it to whom it blames. One that blames nobody, or its own giver, has no arrows:
   it is a confession. So is the end of a party's stream, unless the party had given an account before.
2. Starting from everyone who is blamed, who is gone, and the first to report, the arrows end somewhere: at a party
   that blames nobody else, which is at fault, or in a ring of parties that blame each other.
3. In a ring the earliest account stands: whoever it blames was failing when the others still worked.

A party that knows that a peer failed, but not which, neither blames nor confesses. A confession that comes after the
first report from somebody whom nobody blames is a reaction, and counts for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coordinator.states import Report
from veil.jobs.reports import Failure

# Codes that speak of a peer.
PEER_CODES = frozenset({"PEER", "PEER_LOST", "PROTOCOL"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """`settled`: everyone at fault has been heard of, so that there is nothing to wait for."""

    failure: Failure
    settled: bool


def judge(reports: Sequence[Report], parties: Sequence[str]) -> Verdict:
    """The verdict on `reports` (at least one, in order of arrival) in a job of `parties` (rank order)."""
    first = reports[0]
    heard: dict[str, Report] = {}
    for report in reports:
        heard.setdefault(report.party, report)
    arrows = {name: _blamed(report) for name, report in heard.items()}  # (1)
    suspects = {name for names in arrows.values() for name in names}
    suspects |= {name for name, report in heard.items() if report.gone}
    if not _anonymous(first):
        suspects.add(first.party)
    if not suspects:
        return Verdict(first.failure, settled=set(parties) <= set(heard))
    reachable = {name: _reachable(name, arrows) for name in suspects}
    sources: set[str] = set()
    for name in suspects:  # (2)
        ring = {other for other in reachable[name] if name in reachable[other]}
        if ring == reachable[name]:
            sources |= _earliest(ring, list(heard.values()), arrows) if len(ring) > 1 else ring
    ranked = [name for name in parties if name in sources] + sorted(sources - set(parties))
    settled = all(name in heard or name not in parties for name in ranked)
    return Verdict(_account(ranked, heard, arrows), settled)


def _blamed(report: Report) -> frozenset[str]:
    if report.gone or report.party in report.failure.culprits:
        return frozenset()
    return frozenset(report.failure.culprits)


def _anonymous(report: Report) -> bool:
    """Whether it says that a peer failed, but not which."""
    return report.failure.code in PEER_CODES and not report.failure.culprits


def _reachable(start: str, arrows: Mapping[str, frozenset[str]]) -> set[str]:
    """Everyone to whom arrows lead from `start`, and `start` itself."""
    found, ahead = {start}, [start]
    while ahead:
        for name in arrows.get(ahead.pop(), frozenset()) - found:
            found.add(name)
            ahead.append(name)
    return found


def _earliest(ring: set[str], accounts: Sequence[Report], arrows: Mapping[str, frozenset[str]]) -> set[str]:
    """(3) Whom the earliest account in the ring blames."""
    return next(set(arrows[report.party] & ring) for report in accounts if report.party in ring)


def _account(ranked: Sequence[str], heard: Mapping[str, Report], arrows: Mapping[str, frozenset[str]]) -> Failure:
    """What is told: the words of one at fault where it confessed, else the first words of one who blames it."""
    confessions = [heard[name] for name in ranked if name in heard and not arrows[name]]
    confessions.sort(key=lambda report: report.gone)  # a reason before the mere end of a stream
    accusations = [report for report in heard.values() if arrows[report.party] & set(ranked)]
    words = next(iter(confessions + accusations)).failure
    return Failure(words.code, words.sentence, tuple(ranked))
