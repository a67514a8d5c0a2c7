"""Parts that the tests of identities share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from veil.identity import certificates


@pytest.fixture
def site(consortium: Path, tmp_path: Path) -> Path:
    """A copy of party-alpha's directory, to be changed freely."""
    return Path(shutil.copytree(consortium / "party-alpha", tmp_path / "party-alpha"))


@pytest.fixture
def days_from_now() -> Callable[[int], AbstractContextManager[None]]:
    """A block within which Veil's clock shows another day."""

    @contextmanager
    def moved(days: int) -> Iterator[None]:
        moment = certificates.now() + timedelta(days=days)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(certificates, "now", lambda: moment)
            yield

    return moved
