"""How fast and how much at a time: token buckets and counts of running calls, for each client and for all.

Guarantee: within any t seconds at most burst + rate * t queries pass, of a client and of all together; no client has
more calls running than it may. Look-ups (GetParameters, GetModelCard) and other streams (GetClientModel, RegisterKeys)
have a bucket of their own for each client: they take nothing from its queries, nor those from them. Memory is bounded:
at most `most_clients` are remembered, and one is forgotten only when its buckets are full again and it has nothing
running, so that forgetting gives nobody anything. Time is monotonic.

Token bucket: J. Turner, "New directions in communications" (IEEE Communications Magazine 24(10), 1986).
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import Field

from he_inference.service.access import Client
from veil.errors import LimitError
from veil.settings import Section


class LimitSettings(Section):
    """Rates are calls per second, bursts are calls that may come at once after a pause."""

    per_client_rate_s: float = Field(default=50.0, gt=0, le=1e6)
    per_client_burst: int = Field(default=100, ge=1, le=1_000_000)
    overall_rate_s: float = Field(default=2000.0, gt=0, le=1e6)
    overall_burst: int = Field(default=2000, ge=1, le=1_000_000)
    # Look-ups (GetParameters, GetModelCard) per second of one client, and how many may come at once after a pause.
    lookup_rate_s: float = Field(default=10.0, gt=0, le=1e6)
    lookup_burst: int = Field(default=100, ge=1, le=1_000_000)
    # Other streams (evaluation keys, files of the model) that one client may begin per second; at once after a pause.
    stream_rate_s: float = Field(default=5.0, gt=0, le=1e6)
    stream_burst: int = Field(default=100, ge=1, le=1_000_000)
    # Queries of one client that may wait or run at a time.
    per_client_at_once: int = Field(default=8, ge=1, le=1024)
    # Such streams of one client at a time.
    streams_at_once: int = Field(default=4, ge=1, le=1024)
    # Clients that are remembered.
    most_clients: int = Field(default=10_000, ge=1, le=1_000_000)


@dataclass(slots=True)
class _Bucket:
    """tokens: at the time `at`; more come at `rate_s` up to `burst`."""

    rate_s: float
    burst: float
    tokens: float
    at: float

    @classmethod
    def full(cls, rate_s: float, burst: int, now: float) -> _Bucket:
        """One that nothing was taken from yet."""
        return cls(rate_s, float(burst), float(burst), now)

    def fill(self, now: float) -> float:
        """Tokens now."""
        self.tokens = min(self.burst, self.tokens + max(0.0, now - self.at) * self.rate_s)
        self.at = now
        return self.tokens

    def wait_s(self, now: float) -> float:
        """Seconds until one call may pass; 0 when it may now."""
        missing = 1.0 - self.fill(now)
        # a hair of rounding must not turn one call away
        return max(0.0, missing / self.rate_s) if missing > 1e-9 else 0.0


@dataclass(slots=True)
class _Account:
    bucket: _Bucket
    lookups: _Bucket
    begun: _Bucket
    queries: int = 0
    streams: int = 0

    def idle(self, now: float) -> bool:
        """Whether forgetting it changes nothing."""
        if self.queries or self.streams:
            return False
        return all(bucket.fill(now) >= bucket.burst for bucket in (self.bucket, self.lookups, self.begun))


class Limiter:
    """Threads may share it. clock: seconds, monotonic."""

    def __init__(self, settings: LimitSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._overall = _Bucket.full(settings.overall_rate_s, settings.overall_burst, clock())
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    def __len__(self) -> int:
        """Clients that are remembered."""
        return len(self._accounts)

    @contextmanager
    def query(self, client: Client) -> Iterator[None]:
        """One query, for as long as the block lasts; raises `LimitError` that says when one may pass again."""
        settings = self._settings
        with self._lock:
            now = self._clock()
            account = self._account(client, now)
            if account.queries >= settings.per_client_at_once:
                raise _many("queries", settings.per_client_at_once)
            wait_s = account.bucket.wait_s(now)
            if wait_s:
                raise _fast(f"{settings.per_client_rate_s:g} queries a second of one client", wait_s)
            wait_s = self._overall.wait_s(now)
            if wait_s:
                raise _fast(f"{settings.overall_rate_s:g} queries a second of all clients", wait_s)
            # only now, when both have one: a query that is refused takes nothing from either
            account.bucket.tokens -= 1.0
            self._overall.tokens -= 1.0
            account.queries += 1
        try:
            yield
        finally:
            with self._lock:
                account.queries -= 1

    @contextmanager
    def stream(self, client: Client) -> Iterator[None]:
        """One stream of another kind, for as long as the block lasts; raises `LimitError` when the client has too many
        running, or has begun too many, and then says when one may pass again."""
        with self._lock:
            now = self._clock()
            account = self._account(client, now)
            if account.streams >= self._settings.streams_at_once:
                raise _many("streams of keys or files", self._settings.streams_at_once)
            wait_s = account.begun.wait_s(now)
            if wait_s:
                raise _fast(f"{self._settings.stream_rate_s:g} streams of keys or files a second of one client", wait_s)
            account.begun.tokens -= 1.0
            account.streams += 1
        try:
            yield
        finally:
            with self._lock:
                account.streams -= 1

    def lookup(self, client: Client) -> None:
        """One look-up; raises `LimitError` that says when one may pass again."""
        with self._lock:
            now = self._clock()
            account = self._account(client, now)
            wait_s = account.lookups.wait_s(now)
            if wait_s:
                raise _fast(f"{self._settings.lookup_rate_s:g} look-ups a second of one client", wait_s)
            account.lookups.tokens -= 1.0

    def _account(self, client: Client, now: float) -> _Account:
        found = self._accounts.get(client.account)
        if found is None:
            self._forget(now)
            settings = self._settings
            found = _Account(
                _Bucket.full(settings.per_client_rate_s, settings.per_client_burst, now),
                _Bucket.full(settings.lookup_rate_s, settings.lookup_burst, now),
                _Bucket.full(settings.stream_rate_s, settings.stream_burst, now),
            )
            self._accounts[client.account] = found
        self._accounts.move_to_end(client.account)
        return found

    def _forget(self, now: float) -> None:
        """Makes room for one more. The front of the order asked least recently; a few are looked at, not all."""
        for _ in range(4):
            if len(self._accounts) < self._settings.most_clients:
                return
            oldest, account = next(iter(self._accounts.items()))
            if account.idle(now):
                del self._accounts[oldest]
            else:
                self._accounts.move_to_end(oldest)
        if len(self._accounts) >= self._settings.most_clients:
            settings = self._settings
            refill_s = max(
                settings.per_client_burst / settings.per_client_rate_s,
                settings.lookup_burst / settings.lookup_rate_s,
                settings.stream_burst / settings.stream_rate_s,
            )
            raise LimitError(
                f"got more than {settings.most_clients} clients at a time, expected fewer",
                retry_after_s=min(math.ceil(refill_s), 60.0),
                hint="try again later",
            )


def _many(what: str, limit: int) -> LimitError:
    return LimitError(
        f"got more than {limit} {what} of one client at a time, expected at most that many",
        hint="wait for the answer to one of them",
    )


def _fast(what: str, wait_s: float) -> LimitError:
    return LimitError(
        f"got more than {what}, expected at most that many",
        retry_after_s=wait_s,
        hint=f"try again in {wait_s:.3f} s",
    )
