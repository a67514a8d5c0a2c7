"""Whether all parties published the same model at the same price, and who differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from veil.jobs.reports import Failure, Outcome


def disagreement(parties: Sequence[str], outcomes: Mapping[str, Outcome]) -> Failure | None:
    """None when all outcomes are equal; otherwise a failure that names the minority, or everyone without a majority.

    A majority is more than half of the parties. The failure says what differs: the manifest, the budget or both.
    """
    counts = Counter(outcomes[party] for party in parties)
    if len(counts) == 1:
        return None
    common, votes = counts.most_common(1)[0]
    culprits = (
        tuple(party for party in parties if outcomes[party] != common) if 2 * votes > len(parties) else (*parties,)
    )
    what = []
    if len({outcome.manifest_digest for outcome in outcomes.values()}) > 1:
        what.append("different models")
    if len({(outcome.epsilon_micro, outcome.delta) for outcome in outcomes.values()}) > 1:
        what.append("different budgets")
    return Failure("ARTIFACT", f"parties reported {' and '.join(what)}; at odds: {', '.join(culprits)}", culprits)
