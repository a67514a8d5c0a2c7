"""What of the Ray engine needs no cluster: its settings, and what it says where Ray is not installed.

tests/integration/test_ray_scoring.py has the rest.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from he_inference.engine.ray_cluster import RayCluster
from he_inference.engine.ray_settings import RaySettings
from veil.errors import ConfigError


@pytest.mark.parametrize("address", ["", "auto", "ray://head:10001", "http://head:6379", "head"])
def test_an_address_is_local_or_a_head_node(address: str) -> None:
    with pytest.raises(ConfigError, match="Ray address"):
        RaySettings(address=address)
    assert RaySettings(address="head.internal:6379").address == "head.internal:6379"


@pytest.mark.parametrize("changes", [{"shards": 0}, {"threads": 0}, {"shards": 2000}, {"threads": -1}])
def test_numbers_of_shards_and_threads_are_bounded(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="1 to 1024"):
        RaySettings(**changes)  # type: ignore[arg-type]


def test_without_ray_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with pytest.raises(ConfigError, match=r"Ray is not installed.*veil-recsys\[ray\]"):
        RayCluster(RaySettings())


def test_the_module_is_imported_without_ray_or_a_compiler() -> None:
    program = "import sys, he_inference.engine.ray_cluster; print('ray' in sys.modules, 'numba' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.split() == ["False", "False"]
