"""k-anonymity of quasi-identifiers: counting classes, and making the small ones go away.

A quasi-identifier is an attribute that somebody else may know of a person (age, region); a class is all users who are
equal in every quasi-identifier. A table is k-anonymous when no class has fewer than k users (Samarati and Sweeney 1998;
Sweeney, "k-anonymity: a model for protecting privacy", 2002, definition 3). Unknown counts as a value of its own.

What it gives: who reads the prepared table and knows a person's quasi-identifiers cannot tell their row from k - 1
others. What it does not: it is not differential privacy. It says nothing about who knows more than the
quasi-identifiers, about sensitive values that a whole class shares (so `diversity` is reported), about two tables put
together, or about who reasons back from the rule that chose what to hide (Wong et al., "Minimality attack in privacy
preserving data publishing", 2007). It limits what the prepared file shows to those who may read it at the party;
whatever leaves the party is differentially private with or without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veil.recsys.attributes import UNKNOWN

Int64 = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class ClassCounts:
    """How users fall into classes. Sizes only: no class is described.

    Attributes:
        classes: number of distinct combinations.
        smallest: users in the smallest class; 0 without users.
        users_alone: users who are the only one of their class.
        users_below_k: users in classes of fewer than k.
    """

    classes: int
    smallest: int
    users_alone: int
    users_below_k: int


@dataclass(frozen=True)
class Diversity:
    """Distinct l-diversity of a sensitive attribute over the classes (Machanavajjhala et al., 2007, section 4).

    Attributes:
        attribute: its name.
        smallest: fewest distinct known values within a class that has any; 0 when no value is known.
        users_in_uniform_classes: users of classes whose known values are all the same: to know the class is to know it.
    """

    attribute: str
    smallest: int
    users_in_uniform_classes: int


def classes_of(codes: Codes) -> tuple[Int64, Int64]:
    """(class of each user, int64[users]; size of each class). codes: int32[users, attributes], -1 for unknown."""
    label = np.zeros(len(codes), np.int64)
    for column in codes.T:
        # Renumbered after each column, so that the product stays below users x categories.
        span = np.int64(column.max(initial=UNKNOWN)) + 2
        label = np.unique(label * span + column + 1, return_inverse=True)[1].astype(np.int64)
    return label, np.bincount(label).astype(np.int64)


def count_classes(codes: Codes, k: int) -> ClassCounts:
    """Counts for the report."""
    _, sizes = classes_of(codes)
    return ClassCounts(
        classes=len(sizes),
        smallest=int(sizes.min(initial=len(codes))),
        users_alone=int((sizes == 1).sum()),
        users_below_k=int(sizes[sizes < k].sum()),
    )


def suppress(codes: Codes, k: int, order: Sequence[int]) -> Codes:
    """A copy in which every class has at least k users, or every value is unknown where there are fewer than k users.

    order: the attributes, those to be hidden first in front. (1) Of users in small classes the first attribute becomes
    unknown, of those still in small classes the second, and so on: hiding a cell here loses less than hiding a row.
    (2) Users of whom nothing is left are a class as well; while that one is smaller than k, the smallest other class
    joins it whole.
    """
    result = codes.copy()
    for attribute in order:
        label, sizes = classes_of(result)
        small = sizes[label] < k
        if not small.any():
            return result
        result[small, attribute] = UNKNOWN
    blank = (result == UNKNOWN).all(axis=1)
    while 0 < int(blank.sum()) < k and not blank.all():
        label, sizes = classes_of(result)
        sizes[label[blank][0]] = len(result) + 1
        result[label == int(sizes.argmin())] = UNKNOWN
        blank = (result == UNKNOWN).all(axis=1)
    return result


def climb(
    codes: Codes, k: int, rungs: Sequence[Sequence[npt.NDArray[np.int32]]], allowed_below: int
) -> tuple[Codes, list[int]]:
    """Coarser codes until at most `allowed_below` users are in small classes, and how many rungs each attribute rose.

    rungs[attribute]: maps from the codes given to coarser ones, finest first; after the last one, the attribute is
    unknown for all. Greedy: the attribute with the most distinct values in the table goes up next (Sweeney, "Datafly",
    1997), the first of them at a tie. Each step merges classes, so it ends; it need not end at the best table, which
    is NP-hard to find (Meyerson and Williams, 2004).
    """
    height = [0] * codes.shape[1]
    result = codes.copy()
    while count_classes(result, k).users_below_k > allowed_below:
        distinct = [len(np.unique(column)) for column in result.T]
        open_ = [place for place, steps in enumerate(rungs) if height[place] <= len(steps)]
        if not open_:
            break
        place = max(open_, key=lambda one: (distinct[one], -one))
        height[place] += 1
        if height[place] > len(rungs[place]):
            result[:, place] = UNKNOWN
        else:
            coarser = rungs[place][height[place] - 1]
            known = codes[:, place] != UNKNOWN
            result[known, place] = coarser[codes[known, place]]
    return result, height


def diversity(attribute: str, codes: Codes, sensitive: npt.NDArray[np.integer]) -> Diversity:
    """How much a class tells of a sensitive attribute, of which `sensitive` holds each user's code."""
    label, sizes = classes_of(codes)
    known = sensitive != UNKNOWN
    if not known.any():
        return Diversity(attribute, 0, 0)
    pairs = np.unique(np.stack([label[known], sensitive[known].astype(np.int64)]), axis=1)
    distinct = np.bincount(pairs[0], minlength=len(sizes))
    return Diversity(attribute, int(distinct[distinct > 0].min()), int(sizes[distinct == 1].sum()))
