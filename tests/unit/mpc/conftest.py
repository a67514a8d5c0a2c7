"""A trial consortium for the tests that speak TLS."""

from __future__ import annotations

from pathlib import Path

import pytest

from veil.identity.credentials import Credentials
from veil.identity.trial import make_consortium


@pytest.fixture(scope="session")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of credentials by name ("party-alpha", "dealer-main", ...); no job names the party "stranger"."""
    directory: Path = tmp_path_factory.mktemp("trial")
    members = make_consortium(directory, "trial", ("alpha", "beta", "gamma", "stranger"))
    return {identity.folder: folder for identity, folder in members.items()}


@pytest.fixture(scope="session")
def credentials(consortium: dict[str, Path]) -> dict[str, Credentials]:
    """By name, as `consortium`."""
    return {name: Credentials.load(folder) for name, folder in consortium.items()}
