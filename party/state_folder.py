"""The folder of a party's state: ledger, prepared rows, models.

Guarantee: nobody but its owner may enter it, and one that has published models has its ledger too: a new one would
forget what was spent on them.
"""

from __future__ import annotations

from pathlib import Path

from veil.errors import StateError


def prepare_state(state: Path) -> None:
    """Makes it. Raises `StateError` for one that others may enter, or that has published but lost its ledger."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    mode = state.stat().st_mode & 0o777
    if mode & 0o077:
        raise StateError(f"got mode {mode:04o} on {state}, expected 0700", hint=f"chmod 700 {state}")
    if not (state / "ledger.sqlite").exists() and any((state / "models").glob("*")):
        raise StateError(
            f"got {state} with published models and without ledger.sqlite, expected what was spent on them",
            hint="restore the ledger from its backup; a new one would forget what was spent",
        )
