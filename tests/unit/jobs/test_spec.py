"""Job texts from outside: whatever they hold, they parse or raise `ConfigError`."""

from __future__ import annotations

import pytest

from veil.errors import ConfigError
from veil.jobs.columns import AlignmentTerms, ColumnsTrainer, DescentTerms, PlainOpening, SeriesTerms
from veil.jobs.spec import (
    MAX_TEXT_BYTES,
    Catalogue,
    JobSpec,
    Noise,
    Privacy,
    Release,
    SubspaceTrainer,
    digest,
    parse,
)


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


def texts() -> dict[str, JobSpec]:
    """One job with a catalogue and one without, every key as it was when their digests were first written down."""
    catalogue = Catalogue(digest="sha256:" + "0" * 64, items=3, features=2)
    films = JobSpec(
        name="films",
        nonce="0" * 32,
        consortium="trial",
        parties=("a", "b"),
        dealer="main",
        catalogue=catalogue,
        privacy=Privacy(epsilon=1.0, delta=1e-6, noise=Noise(source="dealer")),
        trainer=SubspaceTrainer(dimensions=2, content_dimensions=1, rounds=1, clip=1.0, popularity_power=0.5),
        releases=(Release(name="one", shape=(3, 2), sensitivity=4, sigma=9),),
        versions={"veil": "1"},
    )
    waves = SeriesTerms(period=16, reach=7.0, constant=1, sines=(2,), cosines=(3,), error=0.1)
    columns = ColumnsTrainer(
        columns="{}",
        alignment=AlignmentTerms(mode="reveal", sizes=(5, 5), result=5),
        descent=DescentTerms(
            steps=1, batch=5, rate=1, rate_bits=3, momentum=0, velocity_bits=14, precision_bits=16, sigmoid=waves
        ),
        openings=(PlainOpening(name="weights", shape=(2, 1)),),
    )
    clicks = JobSpec(
        name="clicks",
        nonce="0" * 32,
        consortium="trial",
        parties=("a", "b"),
        dealer="main",
        privacy=Privacy(epsilon=1.0, delta=1e-6, noise=Noise(source="parties", colluding=1)),
        trainer=columns,
        releases=(Release(name="step-0000", shape=(2,), sensitivity=4, sigma=9),),
        versions={"veil": "1"},
    )
    return {"films": films, "clicks": clicks}


@pytest.mark.parametrize(
    ("name", "pinned"),
    [
        ("films", "9a35934a894e258c9ca4d01130fb32909a5cc1f8f6dcd8e0f4d5ce88cf630fa3"),
        ("clicks", "db219297f6b24a0837f0200753ea2bc04c482607f9ac79221fd442580f64b553"),
    ],
)
def test_what_parties_have_signed_keeps_its_digest(name: str, pinned: str) -> None:
    """Published models carry their job text: another digest of the same text, and no copy verifies any more."""
    spec = texts()[name]
    assert digest(spec.text()).hex() == pinned
    assert parse(spec.text()) == spec


@pytest.mark.parametrize("name", ["films", "clicks"])
def test_what_releases_something_states_its_privacy(name: str) -> None:
    text = texts()[name].text()
    for key, empty in (("privacy", "null"), ("releases", "[]")):
        start = text.index(f'"{key}":') + len(key) + 3
        end = text.index(',"trainer"' if key == "releases" else ',"releases"', start)
        with pytest.raises(ConfigError, match="without privacy or without releases"):
            parse(text[:start] + empty + text[end:])
