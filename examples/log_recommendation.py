"""A recommendation for a user, and a log line about it that is differentially private.

The user sees the exact best ten. What leaves for the log is one item, drawn so that it hides the history: at epsilon 3
no item is more than e^3 = 20 times as probable under one history as under another (`veil.privacy.selection`). Each line
costs the user epsilon again; the file beside the keys keeps count.

Run: python examples/log_recommendation.py HOST:PORT CREDENTIALS_DIR KEY_DIR EPSILON ITEM_ID [ITEM_ID ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

from he_inference.client import ScoringClient, load_credentials, scoring_server
from veil.privacy.selection import SelectionBudget, release_from_best

LIMIT = 30.0
"""Epsilon over all lines that are ever logged about one user."""


def main(address: str, credentials_dir: str, key_dir: str, epsilon: str, *history: str) -> None:
    """Prints ten items for the user, then the line for the log."""
    credentials = load_credentials(Path(credentials_dir))
    budget = SelectionBudget(Path(key_dir) / "logged.epsilon", limit=LIMIT)
    with ScoringClient(address, credentials, scoring_server(credentials), Path(key_dir)) as client:
        for item in client.recommend(history=list(history), k=10, exclude_seen=True):
            print(f"{item.score:8.4f}  {item.item_id:>8}  {item.title}")
        model = client.model
        scores = client.score_history(list(history))
    # All items take part, those seen too: which ones are left out would tell the history.
    budget.pay(float(epsilon))
    (chosen,) = release_from_best(scores, 1, float(epsilon), best=10)
    print(f"log: {model.ids[chosen]}  {model.titles[chosen]}  (epsilon {epsilon}, {budget.spent:g} of {LIMIT:g} spent)")


if __name__ == "__main__":
    if len(sys.argv) < 6:
        sys.exit(__doc__)
    main(*sys.argv[1:])
