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


def test_what_is_wrong_is_told_on_one_short_line() -> None:
    """Keys come from outside too: they may neither forge a line of a log nor fill it."""
    text = '{"versions":{' + ",".join(f'"{n}\\n\\u001b[2J{"x" * 200}":{n}' for n in range(1000)) + "}}"
    with pytest.raises(ConfigError, match="versions") as refused:
        parse(text)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 5000
