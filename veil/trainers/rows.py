"""What one party holds of its users, as trainers see it.

Guarantee: no user id and no pseudonym; a user is a row number, the same in every kind of rows. `repr` shows
counts only.
"""

from __future__ import annotations

from dataclasses import dataclass

from veil.errors import ConfigError, DataError
from veil.recsys.attributes import UserAttributes
from veil.recsys.interactions import Interactions
from veil.recsys.texts import LabelledTexts


@dataclass(frozen=True, eq=False, repr=False)
class PartyRows:
    """A party's prepared rows; what it does not hold is None.

    Attributes:
        interactions: who met which item of the catalogue.
        texts: labelled texts, each of one user.
        attributes: de-identified attributes of the users.
    """

    interactions: Interactions | None = None
    texts: LabelledTexts | None = None
    attributes: UserAttributes | None = None

    def __post_init__(self) -> None:
        """Raises `DataError` when kinds of rows count different users."""
        counts = {kind.users for kind in (self.interactions, self.texts, self.attributes) if kind is not None}
        if len(counts) > 1:
            raise DataError(f"got rows of {', '.join(map(str, sorted(counts)))} users, expected the same users in all")

    def __repr__(self) -> str:
        return f"PartyRows(interactions={self.interactions!r}, texts={self.texts!r}, attributes={self.attributes!r})"

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

    def need_attributes(self) -> UserAttributes:
        """The users' attributes; raises `ConfigError` when this party holds none."""
        if self.attributes is None:
            raise ConfigError("got a job on user attributes, expected [users] in the party's config")
        return self.attributes
