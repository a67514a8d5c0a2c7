"""A trial consortium for the tests that speak TLS."""

from __future__ import annotations

from pathlib import Path

import pytest

from veil.identity.credentials import Credentials
from veil.identity.trial import make_consortium


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Credentials]:
    """By folder name ("party-alpha", "dealer-main", ...); "stranger" is a party that no job names."""
    directory: Path = tmp_path_factory.mktemp("trial")
    members = make_consortium(directory, "trial", ("alpha", "beta", "gamma", "stranger"))
    return {identity.folder: Credentials.load(folder) for identity, folder in members.items()}
