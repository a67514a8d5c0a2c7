"""Masking of what identifies people inside free text: e-mail addresses, web addresses, long numbers.

Guarantee: what the named patterns match is replaced by a fixed word, and counted. This is all it promises: names,
places and turns of phrase still identify people, and no list of patterns finds them. The prepared texts stay at the
party with mode 0600; what leaves it is differentially private in each user, whatever their texts hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import polars as pl

Pattern = Literal["email", "url", "number"]

# In this order, so that an address with a long number in it is one e-mail address and not a number.
_PATTERNS: Mapping[Pattern, str] = {
    # U+FF20 is the at sign of full width, which input methods for Chinese and Japanese write.
    "email": r"[\p{L}\p{N}._%+'&=~-]+[@\x{FF20}][\p{L}\p{N}-]+(?:\.[\p{L}\p{N}-]+)+",
    "url": r"(?i)\b(?:https?://|www\.)\S+",
    # Seven digits or more, perhaps in groups: telephone, account, card and customer numbers; not years. Groups are set
    # apart by any space or dash there is: programs put in ones that do not break, people ones that look well.
    "number": r"\+?\d(?:[\t\p{Zs}()./\p{Pd}\x{2212}]{0,2}\d){6,}",
}


def masked(texts: pl.Series, patterns: Sequence[Pattern]) -> tuple[pl.Series, dict[str, int]]:
    """The texts with "[email]", "[url]" and "[number]" in place of what matches, and how many of each there were."""
    counts: dict[str, int] = {}
    for name, pattern in _PATTERNS.items():
        if name in patterns:
            counts[name] = int(texts.str.count_matches(pattern).sum() or 0)
            texts = texts.str.replace_all(pattern, f"[{name}]")
    return texts, counts
