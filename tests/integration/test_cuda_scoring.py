"""`[engine] kind = "cuda"`: a server with a GPU answers, one without it does not start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from he_inference.service.server import start
from tests.integration.scoring_site import ANNA, SERVER, Raw, Site
from veil.errors import ConfigError
from veil.wire.channel import open_channel

pytestmark = pytest.mark.integration
_NO_CUDA = not torch.cuda.is_available()


@pytest.mark.skipif(not _NO_CUDA, reason="there is a CUDA device")
def test_without_a_device_the_server_does_not_start(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="engine cuda, device 0, but torch finds no CUDA device"):
        start(site.config(tmp_path, engine={"kind": "cuda"}))


@pytest.mark.skipif(_NO_CUDA, reason="no CUDA device")
def test_a_server_with_a_device_answers_rightly(site: Site, tmp_path: Path) -> None:
    with (
        start(site.config(tmp_path, engine={"kind": "cuda"})) as server,
        open_channel(server.address, site.credentials(ANNA), SERVER) as channel,
    ):
        client = Raw(channel, site.model)
        for number in range(3):
            client.right(number)
