"""Recommendations from an application: the history stays in this process, the server sees ciphertext.

Run: python examples/score_from_app.py HOST:PORT CREDENTIALS_DIR KEY_DIR ITEM_ID [ITEM_ID ...]

CREDENTIALS_DIR holds authority.pem, cert.pem and key.pem, or authority.pem and a token.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from he_inference.client import AsyncScoringClient, ScoringClient, load_credentials, scoring_server


def main(address: str, credentials_dir: str, key_dir: str, *history: str) -> None:
    """Prints ten items for a history, then what of it may be shown to others."""
    credentials = load_credentials(Path(credentials_dir))
    with ScoringClient(address, credentials, scoring_server(credentials), Path(key_dir)) as client:
        # (1) What the user sees.
        for item in client.recommend(history=list(history), k=10, exclude_seen=True):
            print(f"{item.score:8.4f}  {item.item_id:>8}  {item.title}")

        # (2) What may be shown to anyone else, the server's owner included. Decrypted scores may not: they would tell
        #     the secret key. Released ones are noised and rounded, and counted until keys rotate.
        released = client.release(client.score_history(list(history)), k=3)
        ids = [client.items.ids[number] for number in released.numbers]
        print(
            f"to be shown: {', '.join(ids)}, scores to {released.bound:.3f} ({released.releases_left} more like this)"
        )

        # (3) What the model is, signed by the parties that trained it.
        manifest = client.model.manifest
        print(
            f"model {manifest.name}: epsilon {manifest.epsilon_micro / 1e6:.3f} at delta {manifest.delta:g}, per user"
        )


async def recommend_to_many(address: str, credentials_dir: str, key_dir: str, histories: list[list[str]]) -> None:
    """The same in an event loop: many histories at a time over one connection."""
    credentials = load_credentials(Path(credentials_dir))
    async with AsyncScoringClient(address, credentials, scoring_server(credentials), Path(key_dir)) as client:
        found = await asyncio.gather(*(client.recommend(history, k=1) for history in histories))
    for history, best in zip(histories, found, strict=True):
        print(f"{len(history)} items -> {best[0].item_id}  {best[0].title}")


if __name__ == "__main__":
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
    where, who, keys, *items = sys.argv[1:]
    asyncio.run(recommend_to_many(where, who, keys, [items, items[:1]]))
