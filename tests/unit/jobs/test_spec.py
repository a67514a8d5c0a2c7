"""Job texts from outside: whatever they hold, they parse or raise `ConfigError`."""

from __future__ import annotations

import pytest

from veil.errors import ConfigError
from veil.jobs.spec import MAX_TEXT_BYTES, parse


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1" * 5000,  # more digits than Python converts: a ValueError that is no JSONDecodeError
        '{"name":' + "9" * 5000 + "}",
        "[" * 200_000,
        "NaN",
        '"\\ud800"',
        '{"versions":{"a":1e999}}',
        "é",
        " " * (MAX_TEXT_BYTES + 1),
    ],
)
def test_hostile_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="job text"):
        parse(text)
