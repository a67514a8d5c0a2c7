"""Labelled texts of a party's users: what a text classifier is trained on.

Guarantee: complete and consistent once it exists: every text has one user and one row of labels, all in range. Neither
its `repr` nor an error shows a text, a label or a user. `veil.recsys.reading_texts` makes one from a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from veil.errors import DataError

MAX_TEXT_CHARACTERS = 4096
MAX_LABELS = 1024


@dataclass(frozen=True, eq=False, repr=False)
class LabelledTexts:
    """Texts with labels, each owned by one user. The unit of privacy is the user with all of their texts.

    Attributes:
        users: number of users; a user may own several texts, or none.
        user: int64[texts] in [0, users), rising: whose text it is.
        text: the texts, at most 4,096 characters each.
        label: bool[texts, labels]: which of the public labels each text has.
        names: the public labels, in the order of `label`'s columns; None when not known.
        pseudonyms: one keyed pseudonym for each user (see `veil.recsys.pseudonyms`); None when absent.
    """

    users: int
    user: npt.NDArray[np.int64]
    text: Sequence[str]
    label: npt.NDArray[np.bool_]
    names: tuple[str, ...] | None = None
    pseudonyms: Sequence[str] | None = field(default=None)

    def __post_init__(self) -> None:
        """Checks everything; raises `DataError` (counts only)."""
        object.__setattr__(self, "text", tuple(self.text))
        count = len(self.text)
        if self.user.shape != (count,) or self.label.ndim != 2 or self.label.shape[0] != count:
            raise DataError(
                f"got {count} texts, {self.user.shape} users and {self.label.shape} labels, expected one each"
            )
        if self.user.dtype != np.int64 or self.label.dtype != np.bool_:
            raise DataError(f"got users of {self.user.dtype} and labels of {self.label.dtype}, expected int64 and bool")
        if not 1 <= self.label.shape[1] <= MAX_LABELS:
            raise DataError(f"got {self.label.shape[1]} labels, expected 1 to {MAX_LABELS}")
        if count and (self.user[0] < 0 or self.user[-1] >= self.users or bool((np.diff(self.user) < 0).any())):
            raise DataError("got texts that are not in the order of their users")
        if any(len(text) > MAX_TEXT_CHARACTERS for text in self.text):
            raise DataError(f"got a text of more than {MAX_TEXT_CHARACTERS} characters, expected at most that many")
        if self.names is not None:
            object.__setattr__(self, "names", tuple(self.names))
            if len(set(self.names)) != len(self.names) or len(self.names) != self.label.shape[1]:
                raise DataError(f"got {len(self.names)} names of labels, expected {self.label.shape[1]} distinct ones")
        if self.pseudonyms is not None:
            object.__setattr__(self, "pseudonyms", tuple(self.pseudonyms))
            if len(self.pseudonyms) != self.users:
                raise DataError(f"got {len(self.pseudonyms)} pseudonyms, expected {self.users}")

    def __repr__(self) -> str:
        return f"LabelledTexts(users={self.users}, texts={len(self.text)}, labels={self.label.shape[1]})"
