"""Recommendations from an application: the history stays in this process, the server sees ciphertext.

Run: python examples/score_from_app.py HOST:PORT CREDENTIALS_DIR KEY_DIR ITEM_ID [ITEM_ID ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

from he_inference.client import ScoringClient
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role


def main(address: str, credentials_dir: str, key_dir: str, *history: str) -> None:
    """Prints ten items for a history."""
    credentials = Credentials.load(Path(credentials_dir))
    expect = Identity(credentials.identity.consortium, Role.SCORING, "main")
    with ScoringClient(address, credentials, expect, Path(key_dir)) as client:
        for item in client.recommend(history=list(history), k=10, exclude_seen=True):
            print(f"{item.score:8.4f}  {item.item_id:>8}  {item.title}")
        manifest = client.model.manifest
        print(
            f"model {manifest.name}: epsilon {manifest.epsilon_micro / 1e6:.3f} at delta {manifest.delta:g}, per user"
        )


if __name__ == "__main__":
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
