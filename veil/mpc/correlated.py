"""Both ends of a party's dealings with the dealer under one name: the daemon's client and the worker's provider.

A worker imports `veil.mpc.provider` alone and so stays without gRPC; a daemon may import `veil.mpc.dealer_client`
alone and so stays without torch.
"""

from __future__ import annotations

from veil.mpc.dealer_client import DealerClient
from veil.mpc.provider import Correct, DealerProvider, party_noise

__all__ = ["Correct", "DealerClient", "DealerProvider", "party_noise"]
