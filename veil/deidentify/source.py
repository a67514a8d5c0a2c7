"""The file of user attributes as numbers: for each declared column its distinct values, and which one each user has.

Guarantee: only declared columns that some step keeps are read. User ids become pseudonyms as in
`veil.recsys.user_rows`; a value that is too long or holds control characters makes a bad row, reported by line number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from veil.recsys import user_rows
from veil.recsys.attributes import UNKNOWN
from veil.recsys.pseudonyms import PseudonymKey
from veil.recsys.user_rows import UserRowFormat, positions, read_user_rows

MAX_VALUE_CHARACTERS = 256

REASONS: Mapping[str, str] = {
    **user_rows.REASONS,
    "value-long": f"a value longer than {MAX_VALUE_CHARACTERS} characters",
    "value-control": "a control character in a value",
}


class UserColumns(BaseModel):
    """The column that holds the user id; the others are named by their attributes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    user: str = Field(min_length=1)


class UserReadConfig(UserRowFormat):
    """How to read the file."""

    columns: UserColumns


@dataclass(frozen=True, eq=False, repr=False)
class RawUsers:
    """Attributes as they stand in the file. `repr` shows counts only.

    Attributes:
        pseudonyms: of the users, in the order of the rows of `codes`.
        distinct: of each column, its distinct values that are not empty.
        codes: int32[users, columns]: position in `distinct`, or -1 where there is no value.
        rows_read, bad_reasons: of the file. users_read: users with a good row.
        users_left_out, users_without_row: see `aligned`.
    """

    pseudonyms: tuple[str, ...]
    distinct: tuple[tuple[str, ...], ...]
    codes: npt.NDArray[np.int32]
    rows_read: int
    bad_reasons: Mapping[str, int]
    users_read: int
    users_left_out: int = 0
    users_without_row: int = 0

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self.codes)

    def aligned(self, pseudonyms: Sequence[str]) -> RawUsers:
        """The attributes of these users, in this order.

        Users of the file who are not among them are left out: nothing is trained on a user with no other rows, so
        nothing of them is kept. Users without a row have no value.
        """
        row = positions(pseudonyms, self.pseudonyms)
        codes = np.full((len(row), self.codes.shape[1]), UNKNOWN, np.int32)
        codes[row >= 0] = self.codes[row[row >= 0]]
        found = int((row >= 0).sum())
        return replace(
            self,
            pseudonyms=tuple(pseudonyms),
            codes=codes,
            users_left_out=self.users - found,
            users_without_row=len(row) - found,
        )

    def __repr__(self) -> str:
        return f"RawUsers(users={self.users}, columns={self.codes.shape[1]})"


def read_users(path: Path, config: UserReadConfig, columns: Sequence[str], key: PseudonymKey) -> RawUsers:
    """Reads a CSV, TSV or Parquet file (text forms also as .gz); one row a user, a second one is a bad row.

    columns: the source's columns, of which those of the result are in this order. Errors as `read_user_rows`.
    """
    roles = [f"value{number}" for number in range(len(columns))]
    checks = []
    for role in roles:
        checks.append(("value-long", pl.col(role).str.len_chars() > MAX_VALUE_CHARACTERS))
        checks.append(("value-control", pl.col(role).str.contains(r"\p{Cc}")))
    names = {"user": config.columns.user, **dict(zip(roles, columns, strict=True))}
    rows = read_user_rows(path, config, names, key, checks=checks, reasons=REASONS, once=True)
    # The user of each row is its place among the pseudonyms; users whose only row was bad have none.
    frame = rows.frame.sort("user")
    distinct, codes = [], []
    for role in roles:
        text = frame[role]
        values = text.filter(text != "").unique().sort()
        of_value = pl.DataFrame({role: values, "code": pl.int_range(len(values), dtype=pl.Int32, eager=True)})
        code = frame.select(role).join(of_value, on=role, how="left", maintain_order="left")["code"]
        distinct.append(tuple(values.to_list()))
        codes.append(code.fill_null(UNKNOWN).to_numpy())
    return RawUsers(
        pseudonyms=tuple(rows.pseudonyms[number] for number in frame["user"].to_list()),
        distinct=tuple(distinct),
        codes=np.stack(codes, axis=1) if codes else np.zeros((len(frame), 0), np.int32),
        rows_read=rows.rows_read,
        bad_reasons=rows.bad_reasons,
        users_read=len(frame),
    )
