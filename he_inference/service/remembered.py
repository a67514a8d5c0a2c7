"""Which queries were counted lately, so that one that is repeated is not counted again, after a restart neither.

Guarantee: of each client and model the last `OF_EACH` are kept, of all together about `OF_ALL` (60 MB of the file of
budgets), the oldest gone first; more than that is never kept, whatever is asked. What is kept is a digest of the whole
query, so that nobody gets another answer for it, and no id can be read off it. Forgetting or losing one can only have
its repetition counted twice, never an answer too many. Nothing is logged.
"""

from __future__ import annotations

import sqlite3
from typing import Final

OF_EACH: Final = 64
OF_ALL: Final = 1 << 18
_LOOK_EVERY: Final = 1024
# Numbers ascend: the largest is never removed before a larger one is there.
_SCHEMA = """CREATE TABLE IF NOT EXISTS asked (
    number INTEGER PRIMARY KEY, account TEXT NOT NULL, model BLOB NOT NULL, request BLOB NOT NULL,
    UNIQUE (account, model, request))"""


class Remembered:
    """Digests of queries, in the file that holds the counts: one transaction of the caller's covers both.

    One thread uses it at a time; processes may share the file. Errors are sqlite3's, for the caller to name.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._until_look = 0
        connection.execute(_SCHEMA)

    def has(self, account: str, model: bytes, request: bytes) -> bool:
        """Whether that query of that client to that model is remembered."""
        found = self._connection.execute(
            "SELECT 1 FROM asked WHERE account=? AND model=? AND request=?", (account, model, request)
        )
        return found.fetchone() is not None

    def add(self, account: str, model: bytes, request: bytes) -> None:
        """Remembers a query, and forgets what is too much."""
        execute = self._connection.execute
        execute("INSERT OR IGNORE INTO asked (account, model, request) VALUES (?, ?, ?)", (account, model, request))
        execute(
            "DELETE FROM asked WHERE account=? AND model=? AND number <= (SELECT number FROM asked"
            " WHERE account=? AND model=? ORDER BY number DESC LIMIT 1 OFFSET ?)",
            (account, model, account, model, OF_EACH),
        )
        # It walks over all rows, so not for every query; the first of a process always, however short it lives.
        if self._until_look == 0:
            execute(
                "DELETE FROM asked WHERE number <= (SELECT number FROM asked ORDER BY number DESC LIMIT 1 OFFSET ?)",
                (OF_ALL,),
            )
            self._until_look = _LOOK_EVERY
        self._until_look -= 1
