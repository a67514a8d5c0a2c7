"""How many queries a client may make to one model before it could know the items.

Every answer holds the inner products of all items with one vector. With d linearly independent vectors, d the length of
a vector, solving linear equations gives every item's vector, up to rounding. Which vectors were asked stands under
encryption, so that their rank cannot be seen; each query therefore counts as a new direction. With
`queries_per_dimension` below 1 a client that uses up its whole budget still lacks (1 - it) d directions of every item.

Guarantee: a query is counted before anything is computed for it, and no client gets more answers within a window than
the budget, whatever crashes: what is counted lies on disk first (SQLite, WAL, synchronous=FULL), in steps of at most a
sixteenth of the budget, so that a kill can only count up to one such step too many. The same request again (by its
digest, which covers the whole query) is answered again and counted once, as long as it is remembered: the last 64 of a
client and model, in the same file (`he_inference.service.remembered`), so across a restart or a kill as well. A power
failure may take the last of these away, and never a count. Several processes may use one file.

What it does not do: clients that pool their answers have the sum of their budgets, and a budget that renews only slows
a client down: at a half per dimension the third window completes the matrix at the latest, unless a new model came
first. Limits of this kind: F. Tramèr et al., "Stealing Machine Learning Models via Prediction APIs" (USENIX 2016).
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from he_inference.service.access import Account, Client
from he_inference.service.remembered import Remembered
from veil.errors import QueryBudgetError, StateError, WireError
from veil.settings import Section

REQUEST_ID_BYTES = 16
_DAY_S = 86_400.0
_STEPS = 16
_LARGEST_STEP = 64
_REMEMBERED_CLIENTS = 4096
_BUSY_TIMEOUT_S = 5.0
_REQUEST_DOMAIN = b"veil/request/v1\x00"
_SCHEMA = """CREATE TABLE IF NOT EXISTS spent (
    account TEXT NOT NULL, model BLOB NOT NULL, since REAL NOT NULL, queries INTEGER NOT NULL CHECK (queries >= 0),
    PRIMARY KEY (account, model)) WITHOUT ROWID"""
_log = logging.getLogger("veil.he_inference.service.budget")


class BudgetSettings(Section):
    """How much of a model's items one client may come to know."""

    # False: queries are not counted, and any client may know every item after d queries.
    enabled: bool = True
    # Queries to one model, as a multiple of the length d of its vectors. From 1 on, one window is enough for all items.
    queries_per_dimension: float = Field(default=0.5, gt=0, le=1e6)
    # Days after a client's first query after which its budget for that model starts anew; 0: never.
    window_days: float = Field(default=30.0, ge=0, le=3650)
    # Other multiples for some clients: certificate/<name> or token/<name>.
    accounts: dict[Account, Annotated[float, Field(gt=0, le=1e6)]] = Field(default_factory=dict, max_length=1024)
    # Clients that are not counted, such as the operator's own canary.
    exempt: tuple[Account, ...] = Field(default=(), max_length=1024)

    def queries(self, account: str, dimensions: int) -> int:
        """The budget of one client for one model; at least one query."""
        return max(1, int(self.accounts.get(account, self.queries_per_dimension) * dimensions))


@dataclass(slots=True)
class _Lease:
    """Queries that are counted on disk already and may still be answered by this process."""

    left: int = 0
    since: float = 0.0


class QueryBudget:
    """The budgets of all clients, in one file of mode 0600; threads may share it. A context manager that closes it.

    clock: seconds since the epoch; budgets renew by it, and never early when it goes back. Raises `StateError` when the
    file cannot be used.
    """

    def __init__(self, path: Path, settings: BudgetSettings, *, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._leases: OrderedDict[tuple[str, bytes], _Lease] = OrderedDict()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute(_SCHEMA)
            self._remembered = Remembered(self._connection)
        except (sqlite3.Error, OSError) as error:
            raise StateError(
                f"got no usable file of query budgets at {path}: {error}", hint="without it no query may be answered"
            ) from None

    def spend(self, client: Client, model: bytes, dimensions: int, request: bytes) -> int | None:
        """Counts one query, durably, and says how many are left; None for a client that is not counted.

        model: digest of its manifest. dimensions: d of the vectors (of the items, for encrypted histories). request:
        `request_digest` of the query. Raises `QueryBudgetError` when nothing is left, `StateError` when it cannot be
        counted; nothing may be computed then.
        """
        if not self._counted(client):
            return None
        limit = self._settings.queries(client.account, dimensions)
        with self._lock:
            lease = self._lease(client.account, model)
            with self._reading():
                since, queries = self._row(client.account, model)
                if self._remembered.has(client.account, model, request):
                    return self._left(limit, since, queries, lease)
            # what was counted ahead in a window that is over, is over with it
            if lease.left and lease.since == since:
                # The count is on disk. That of the query itself may be lost with the power, which is the safe side.
                with self._writing(durable=False):
                    self._remembered.add(client.account, model, request)
            else:
                with self._writing(durable=True):
                    since, queries = self._row(client.account, model)
                    step = min(max(1, limit // _STEPS), _LARGEST_STEP, limit - queries)
                    if step <= 0:
                        raise self._spent(limit, dimensions, since)
                    queries += step
                    self._connection.execute(
                        "INSERT INTO spent VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET since=excluded.since,"
                        " queries=excluded.queries",
                        (client.account, model, since, queries),
                    )
                    self._remembered.add(client.account, model, request)
                # the transaction has ended, so what it wrote is on disk
                lease.left, lease.since = step, since
            lease.left -= 1
            return self._left(limit, since, queries, lease)

    def left(self, client: Client, model: bytes, dimensions: int) -> int | None:
        """Queries that this client may still make to that model; None when they are not counted."""
        if not self._counted(client):
            return None
        limit = self._settings.queries(client.account, dimensions)
        with self._lock:
            lease = self._leases.get((client.account, model), _Lease())
            with self._reading():
                since, queries = self._row(client.account, model)
            return self._left(limit, since, queries, lease)

    def close(self) -> None:
        """Gives back what was counted ahead and not used."""
        with self._lock:
            while self._leases:
                self._give_back()
            self._connection.close()

    def __enter__(self) -> QueryBudget:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _counted(self, client: Client) -> bool:
        return self._settings.enabled and client.account not in self._settings.exempt

    @staticmethod
    def _left(limit: int, since: float, queries: int, lease: _Lease) -> int:
        return max(0, limit - queries) + (lease.left if lease.since == since else 0)

    def _lease(self, account: str, model: bytes) -> _Lease:
        lease = self._leases.setdefault((account, model), _Lease())
        self._leases.move_to_end((account, model))
        while len(self._leases) > _REMEMBERED_CLIENTS:
            self._give_back()
        return lease

    def _give_back(self) -> None:
        """Forgets the client that asked least recently. A failure leaves too much counted, which is the safe side."""
        (account, model), lease = self._leases.popitem(last=False)
        if not lease.left:
            return
        try:
            self._connection.execute(
                "UPDATE spent SET queries = max(0, queries - ?) WHERE account=? AND model=? AND since=?",
                (lease.left, account, model, lease.since),
            )
        except sqlite3.Error:
            _log.warning("queries that were counted ahead could not be given back")

    def _row(self, account: str, model: bytes) -> tuple[float, int]:
        """Start of the window and queries counted in it; of a window that starts now when the last one is over."""
        now = self._clock()
        found = self._connection.execute(
            "SELECT since, queries FROM spent WHERE account=? AND model=?", (account, model)
        ).fetchone()
        if found is None:
            return now, 0
        since, queries = float(found[0]), int(found[1])
        window_s = self._settings.window_days * _DAY_S
        return (now, 0) if window_s and now >= since + window_s else (since, queries)

    def _reading(self) -> AbstractContextManager[None]:
        return self._transaction("BEGIN")

    @contextmanager
    def _writing(self, *, durable: bool) -> Iterator[None]:
        """durable: on disk when the block has ended. If not, it survives the end of the process, not that of the power;
        writes that follow and are durable take it along (sqlite.org/pragma.html#pragma_synchronous, of WAL)."""
        with self._named_errors():
            self._connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        with self._transaction("BEGIN IMMEDIATE"):
            yield

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        with self._named_errors():
            self._connection.execute(begin)
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @staticmethod
    @contextmanager
    def _named_errors() -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StateError(
                f"got no count of this query: {type(error).__name__}", hint="the operator looks at the file of budgets"
            ) from None

    def _spent(self, limit: int, dimensions: int, since: float) -> QueryBudgetError:
        said = f"got one query more than the {limit} that this client may make to this model of {dimensions} dimensions"
        window_s = self._settings.window_days * _DAY_S
        if not window_s:
            return QueryBudgetError(said, hint="this budget does not renew; ask the server's operator")
        wait_s = max(0.0, since + window_s - self._clock())
        return QueryBudgetError(
            said, retry_after_s=wait_s, hint=f"the budget renews in {wait_s / 3600:.1f} hours, or ask the operator"
        )


def request_digest(request_id: bytes, offer_digest: bytes, key_digest: bytes, query: bytes) -> bytes:
    """What one query is known by, 32 bytes. It covers the query itself: one id can't pay for two different queries.

    Raises `WireError` for an id that is not 16 bytes.
    """
    if len(request_id) != REQUEST_ID_BYTES:
        raise WireError(f"got a request id of {len(request_id)} bytes, expected {REQUEST_ID_BYTES}")
    digest = hashlib.sha256(_REQUEST_DOMAIN + request_id)
    for part in (offer_digest, key_digest, query):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()
