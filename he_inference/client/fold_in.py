"""From a history to a user vector, by the published client's part of a model: the step before encryption.

Guarantee: everything happens in this process; error messages say which entries of a history are at fault, never what
they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from veil.errors import InputError
from veil.recsys.artifact import ClientArtifact, TitlesArtifact

_MOST_PLACES = 10


class Items:
    """A verified model's items: ids, titles, and the numbers that they have in scores. Threads may share it."""

    def __init__(self, model: ClientArtifact | TitlesArtifact) -> None:
        self.digest = model.digest
        self.ids = model.ids
        self.titles = model.titles
        self._numbers: Mapping[str, int] = {item: number for number, item in enumerate(model.ids)}

    def numbers(self, history: Sequence[str], *, skip_unknown: bool = False) -> NDArray[np.int64]:
        """int64[n]: numbers of the items of a history of ids.

        Raises `InputError` for ids that the catalogue does not have, unless they are skipped.
        """
        if isinstance(history, str | bytes):
            raise InputError("got one text as a history, expected a list of item ids")
        unknown = [place for place, item in enumerate(history, 1) if item not in self._numbers]
        if unknown and not skip_unknown:
            places = ", ".join(map(str, unknown[:_MOST_PLACES])) + (", …" if len(unknown) > _MOST_PLACES else "")
            raise InputError(
                f"got {len(unknown)} item ids that the catalogue does not have (entries {places} of the history)",
                hint="ids are those of items.jsonl in the published model; or skip unknown ones",
            )
        return np.array([self._numbers[item] for item in history if item in self._numbers], dtype=np.int64)


class FoldIn(Items):
    """A verified model's tower for users. Threads may share it."""

    def __init__(self, model: ClientArtifact) -> None:
        super().__init__(model)
        self._model = model

    @property
    def model(self) -> ClientArtifact:
        """The model whose vectors these are."""
        return self._model

    def user_vector(self, history: Sequence[str], *, skip_unknown: bool = False) -> NDArray[np.float32]:
        """float32[dimensions] for a history of ids; order and repeats do not matter. Raises `InputError` as above."""
        return self._model.fold_in.user_vector(self.numbers(history, skip_unknown=skip_unknown))
