"""What one party holds of its users, as trainers see it.

Guarantee: no user id and no pseudonym; a user is a row number. `repr` shows counts only.
"""

from __future__ import annotations

from dataclasses import dataclass

from veil.errors import ConfigError
from veil.recsys.interactions import Interactions
from veil.recsys.texts import LabelledTexts


@dataclass(frozen=True, eq=False, repr=False)
class PartyRows:
    """A party's prepared rows; what it does not hold is None.

    Attributes:
        interactions: who met which item of the catalogue.
        texts: labelled texts, each of one user.
    """

    interactions: Interactions | None = None
    texts: LabelledTexts | None = None

    def __repr__(self) -> str:
        return f"PartyRows(interactions={self.interactions!r}, texts={self.texts!r})"

    def need_interactions(self) -> Interactions:
        """The interactions; raises `ConfigError` when this party holds none."""
        if self.interactions is None:
            raise ConfigError("got a job on interactions, expected [data] in the party's config")
        return self.interactions

    def need_texts(self) -> LabelledTexts:
        """The labelled texts; raises `ConfigError` when this party holds none."""
        if self.texts is None:
            raise ConfigError("got a job on labelled texts, expected [texts] in the party's config")
        return self.texts
