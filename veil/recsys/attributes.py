"""Attributes of a party's users, after de-identification: a number for each declared category, or unknown.

Guarantee: complete and consistent once it exists: every code is unknown or in range, categories are distinct, the array
is read-only. The categories are those that the party's configuration declares, whichever of them occur. Neither its
`repr` nor an error shows a code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from veil.errors import ConfigError, DataError

UNKNOWN: Final = -1
"""The code of a value that is missing, outside of the declared categories, or suppressed."""
MAX_ATTRIBUTES = 64
MAX_CATEGORIES = 2**15 - 1

Int16 = npt.NDArray[np.int16]


@dataclass(frozen=True, eq=False, repr=False)
class UserAttributes:
    """What is kept of each user, beside the rows of the same user numbers.

    Attributes:
        names: of the attributes, distinct.
        categories: the declared categories of each attribute; empty for one that was wholly suppressed.
        codes: int16[users, attributes]: position among the attribute's categories, or -1 for unknown.
    """

    names: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    codes: Int16

    def __post_init__(self) -> None:
        """Checks everything; raises `DataError` (shapes and counts only)."""
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "categories", tuple(tuple(one) for one in self.categories))
        count = len(self.names)
        if not 1 <= count <= MAX_ATTRIBUTES or len(set(self.names)) != count or len(self.categories) != count:
            raise DataError(
                f"got {count} names and {len(self.categories)} lists of categories,"
                f" expected 1 to {MAX_ATTRIBUTES} distinct names with one list each"
            )
        for name, categories in zip(self.names, self.categories, strict=True):
            if len(categories) > MAX_CATEGORIES or len(set(categories)) != len(categories):
                raise DataError(
                    f"got {len(categories)} categories of {name}, expected at most {MAX_CATEGORIES} distinct ones"
                )
        codes = np.asarray(self.codes)
        if codes.dtype != np.int16 or codes.ndim != 2 or codes.shape[1] != count:
            raise DataError(f"got codes of {codes.dtype} and shape {codes.shape}, expected int16 and (users, {count})")
        most = np.array([len(categories) for categories in self.categories])
        if codes.size and (int(codes.min()) < UNKNOWN or bool((codes >= most).any())):
            raise DataError("got a code that is neither unknown nor one of its attribute's categories")
        if codes.flags.writeable:
            codes = codes.copy()
            codes.flags.writeable = False
        object.__setattr__(self, "codes", codes)

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self.codes)

    def column(self, name: str) -> Int16:
        """int16[users]: the codes of one attribute. Raises `ConfigError` when there is none of that name."""
        return self.codes[:, self._place(name)]

    def categories_of(self, name: str) -> tuple[str, ...]:
        """The categories of one attribute. Raises `ConfigError` when there is none of that name."""
        return self.categories[self._place(name)]

    def _place(self, name: str) -> int:
        if name not in self.names:
            raise ConfigError(f"got attribute {name!r}, expected one of {', '.join(self.names)}")
        return self.names.index(name)

    def __repr__(self) -> str:
        sizes = ", ".join(str(len(categories)) for categories in self.categories)
        return f"UserAttributes(users={self.users}, attributes={len(self.names)}, categories=({sizes}))"
