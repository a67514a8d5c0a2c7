"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Before anything imports Numba or torch, which take no other number afterwards: tests share the cores with each other
# (`make test` runs several at a time) and with their processes.
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

_SHARED_DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Path of a real data set beside the checkout; skips the test where it is absent."""

    def find(name: str) -> Path:
        folder = _SHARED_DATA / name
        if not folder.is_dir():
            pytest.skip(f"data set {name} is not beside this checkout (expected ../shared/data/{name})")
        return folder.resolve()

    return find


@pytest.fixture(scope="session")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial consortium "trial" with parties alpha, beta and gamma: folders <role>-<name>, made once per session.

    Load one with `Credentials.load(consortium / "party-alpha")`; tests that change a folder copy it first.
    """
    from veil.identity.trial import make_consortium

    folder = tmp_path_factory.mktemp("consortium")
    make_consortium(folder, "trial", ["alpha", "beta", "gamma"])
    return folder
