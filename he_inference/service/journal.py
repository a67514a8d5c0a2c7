"""The server's log, one JSON object a line, in which only what is listed here can stand.

Guarantee: a line holds a time, a level, an event of `EVENTS` and fields of `FIELDS`, each a number within bounds, a
truth value or a word of a fixed list. No text that came from anywhere else gets in, be it a message, an argument or an
exception's sentence: of a record that did not come through `Journal`, the line says which line of which source file
wrote it and what class of exception it carries. So a ciphertext, a key, a token, a vector, an item or a client's name
cannot stand in it, whatever some code passes to a logger.

A client is shown as eight hexadecimal digits, a hash under a key that is drawn anew each day (UTC) and never stored:
within a day lines of one client can be put together, and of two days they can't, by nobody, ourselves included.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Final, TextIO

from he_inference import parameters
from he_inference.service.access import Client
from he_inference.service.metrics import OUTCOMES, STAGES

EVENTS: Final = frozenset(
    {
        "started",
        "stopping",
        "stopped",
        "keys_registered",
        "query_answered",
        "query_refused",
        "worker_replaced",
        "index_reloaded",
        "canary_answered",
        "canary_failed",
    }
)
_LARGEST: Final = 2**53
_WORDS: Final[Mapping[str, frozenset[str]]] = {
    "code": frozenset(OUTCOMES),
    "layout": frozenset({"session", "keyless", "history"}),
    "parameters": frozenset((*parameters.NAMES, parameters.HISTORY.name)),
    "stage": frozenset(STAGES),
}
_NUMBERS: Final = frozenset(
    {
        "queries",
        "batch_queries",
        "query_bytes",
        "response_bytes",
        "key_bytes",
        "index_bytes",
        "compute_us",
        "total_us",
        "generation",
        "queue",
        "items",
        "dimensions",
        "offers",
        "workers",
        "worker_restarts",
        "retry_after_s",
        "keys_found",
        "score_error",
        "top10_recall",
    }
)
FIELDS: Final = frozenset(_WORDS) | _NUMBERS
_OWN: Final = "veil_journal"
_LEVELS: Final = frozenset({"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"})
_SOURCE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}(\.[A-Za-z_][A-Za-z0-9_]{0,31}){0,7}")
_MOST_FRAMES: Final = 12
_DAY_S: Final = 86_400


class Pseudonyms:
    """Short names of clients, under a key that lives for a day. clock: seconds since the epoch."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._day = -1
        self._key = b""

    def of(self, client: Client) -> str:
        """Eight hexadecimal digits: the same for one client within a day."""
        day = int(self._clock() // _DAY_S)
        with self._lock:
            if day != self._day:
                self._day, self._key = day, secrets.token_bytes(32)
            key = self._key
        return hashlib.blake2b(client.account.encode(), digest_size=4, key=key).hexdigest()

    def __repr__(self) -> str:
        return "Pseudonyms()"


class Journal:
    """Writes events. Threads may share it."""

    def __init__(self, logger: logging.Logger | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._logger = logger or logging.getLogger("veil.he_inference.service.journal")
        self._pseudonyms = Pseudonyms(clock)

    def write(self, event: str, client: Client | None = None, *, level: int = logging.INFO, **fields: object) -> None:
        """One line. What is not allowed is left out and counted in `dropped`; nothing is raised: a log ends no call."""
        if not self._logger.isEnabledFor(level):
            return
        known = type(event) is str and event in EVENTS
        line: dict[str, object] = {"event": event if known else "other"}
        if client is not None:
            line["client"] = self._pseudonyms.of(client)
        for name, value in fields.items():
            allowed = _allowed(name, value)
            if allowed is not None:
                line[name] = allowed
        dropped = sum(name not in line for name in fields) + (not known)
        if dropped:
            line["dropped"] = dropped
        self._logger.log(level, "%s", line["event"], extra={_OWN: _Line(line)})


class _Line:
    """Content that `Journal` has checked; the class, private to this file, is what tells it from anybody's `extra`."""

    __slots__ = ("content",)

    def __init__(self, content: Mapping[str, object]) -> None:
        self.content = dict(content)


class JsonFormatter(logging.Formatter):
    """The form of every line, of Veil's own events and of all other records."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON, ASCII only."""
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname if record.levelname in _LEVELS else "OTHER",
        }
        own = getattr(record, _OWN, None)
        if isinstance(own, _Line):
            line.update(own.content)
        else:
            line.update(event="log", at=f"{_file(record.pathname)}:{record.lineno}")
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = _word(record.exc_info[0].__name__)
            line["frames"] = _frames(record.exc_info[1])
        return json.dumps(line, ensure_ascii=True, separators=(",", ":"))


def install(level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Makes this form the only one: one handler at the root logger, in place of all that are there."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _allowed(name: str, value: object) -> object | None:
    """The value, when this field may hold it."""
    # exactly these types: a subclass could bring equality or a text form of its own
    if name in _WORDS:
        return value if type(value) is str and value in _WORDS[name] else None
    if name not in _NUMBERS:
        return None
    if type(value) is bool:
        return value
    if type(value) is int:
        return value if abs(value) <= _LARGEST else None
    if type(value) is float:
        # seven digits: enough for a time or an error bound, too few for a decrypted score
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return None


def _frames(error: BaseException | None) -> list[str]:
    """Where an exception passed, outermost first: files and lines of source, no values."""
    found = []
    trace = error.__traceback__ if error is not None else None
    while trace is not None:
        found.append(f"{_file(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}")
        trace = trace.tb_next
    return found[-_MOST_FRAMES:]


def _file(path: str) -> str:
    """The last two parts of a source file's path, when they are plain words."""
    parts = PurePath(path).with_suffix("").parts[-2:]
    return "/".join(_word(part) for part in parts)


def _word(text: str) -> str:
    return text if _SOURCE.fullmatch(text) else "other"
