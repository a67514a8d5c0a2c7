"""The log: attempts to get something into it that must not stand there."""

from __future__ import annotations

import io
import json
import logging
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from he_inference.service import journal
from he_inference.service.access import Client
from he_inference.service.journal import EVENTS, FIELDS, Journal, JsonFormatter, Pseudonyms
from veil.errors import CiphertextError

TOKEN = "veil_" + secrets.token_urlsafe(32).replace("-", "a").replace("_", "b")
CLIENT = Client("token/jane-doe")
CIPHERTEXT = secrets.token_bytes(64)
SECRETS = (TOKEN, "jane-doe", CIPHERTEXT.hex(), repr(CIPHERTEXT), "user-4711", str(int.from_bytes(CIPHERTEXT, "big")))


@pytest.fixture
def written() -> Iterator[tuple[logging.Logger, Callable[[], list[dict[str, Any]]]]]:
    """A logger of its own, and what was written so far."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger(f"test.journal.{secrets.token_hex(4)}")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)

    def lines() -> list[dict[str, Any]]:
        text = stream.getvalue()
        for secret in SECRETS:
            assert secret not in text
        assert text.isascii() and text.count("\n") == len(text.splitlines())
        return [json.loads(line) for line in text.splitlines()]

    yield logger, lines
    logger.removeHandler(handler)


def test_an_event_with_its_fields(written: Any) -> None:
    logger, lines = written
    Journal(logger).write(
        "query_answered", CLIENT, code="OK", layout="session", parameters="pq", compute_us=2900, batch_queries=3
    )
    (line,) = lines()
    assert line.pop("time").endswith("Z") and len(line.pop("client")) == 8
    assert line == {
        "level": "INFO",
        "event": "query_answered",
        "code": "OK",
        "layout": "session",
        "parameters": "pq",
        "compute_us": 2900,
        "batch_queries": 3,
    }


@pytest.mark.parametrize("field", sorted(FIELDS))
@pytest.mark.parametrize(
    "value",
    [
        TOKEN,
        CLIENT,
        CLIENT.account,
        CIPHERTEXT,
        [1, 2, 3],
        {"a": TOKEN},
        int.from_bytes(CIPHERTEXT, "big"),
        float("nan"),
        None,
        (TOKEN,),
        1j,
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_field_takes_what_it_is_not_for(written: Any, field: str, value: object) -> None:
    logger, lines = written
    Journal(logger).write("query_answered", **{field: value})
    (line,) = lines()
    assert field not in line and line["dropped"] == 1


def test_an_object_that_shows_itself_as_a_number_does_not_get_in(written: Any) -> None:
    logger, lines = written

    class Sly(int):
        def __repr__(self) -> str:
            return json.dumps(TOKEN)

        __str__ = __repr__

    class Word(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return hash("OK")

    Journal(logger).write("query_answered", compute_us=Sly(5), code=Word(TOKEN))
    (line,) = lines()
    assert "compute_us" not in line and line["dropped"] == 2


@pytest.mark.parametrize("name", ["query", "token", "client", "user", "keys", "vector", "message", "event", "level"])
def test_other_fields_do_not_exist(written: Any, name: str) -> None:
    logger, lines = written
    fields: dict[str, Any] = {name: "user-4711"}
    if name in ("client", "event", "level"):
        # these are parameters; what is passed as one is never shown as it is
        arguments: dict[str, Any] = {"event": "started", "client": None, "level": logging.INFO}
        arguments[name] = {"event": "user-4711", "client": Client("token/user-4711"), "level": 20}[name]
        Journal(logger).write(**arguments)
    else:
        Journal(logger).write("started", **fields)
    (line,) = lines()
    assert set(line) <= {"time", "level", "event", "client", "dropped"} and line["event"] in EVENTS | {"other"}


@pytest.mark.parametrize(
    "write",
    [
        lambda log: log.info("client %s sent %s", CLIENT.account, TOKEN),
        lambda log: log.warning(f"token {TOKEN} of user-4711"),
        lambda log: log.error("got %r", CIPHERTEXT),
        lambda log: log.info("x", extra={"token": TOKEN, "veil_journal": {"event": TOKEN}}),
        lambda log: log.log(33, TOKEN),
        lambda log: log.info("x", stack_info=True, extra={"compute_us": TOKEN}),
        lambda log: log.info({"user-4711": TOKEN}),
    ],
)
def test_a_record_from_elsewhere_shows_where_it_comes_from_and_nothing_else(
    written: Any, write: Callable[[logging.Logger], None]
) -> None:
    logger, lines = written
    write(logger)
    (line,) = lines()
    assert set(line) == {"time", "level", "event", "at"}
    assert line["event"] == "log" and line["at"].startswith("service/test_journal:")


def test_a_record_that_does_not_fit_together_is_a_line_too() -> None:
    record = logging.LogRecord("x", 33, f"/home/user-4711/{TOKEN}.py", 7, "%s%s", (TOKEN,), None)
    assert json.loads(JsonFormatter().format(record)) | {"time": ""} == {
        "time": "",
        "level": "OTHER",
        "event": "log",
        "at": "other/other:7",
    }


def test_an_exception_shows_class_and_places_and_not_its_sentence(written: Any) -> None:
    logger, lines = written

    def fail() -> None:
        local = TOKEN
        try:
            raise KeyError(local)
        except KeyError:
            raise CiphertextError(f"got {CIPHERTEXT.hex()} of user-4711", hint=local) from None

    try:
        fail()
    except CiphertextError:
        logger.exception("it failed for %s", CLIENT.account)
    (line,) = lines()
    assert line["exception"] == "CiphertextError"
    assert [place.rpartition(":")[0] for place in line["frames"]] == ["service/test_journal"] * 2
    named = type(TOKEN, (Exception,), {})
    try:
        raise named("x")
    except named:
        logger.exception("x")
    assert lines()[1]["exception"] == "other"


@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    event=st.text(max_size=20),
    fields=st.dictionaries(
        st.one_of(st.sampled_from(sorted(FIELDS)), st.text(min_size=1, max_size=12)),
        st.one_of(
            st.text(), st.binary(), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.integers())
        ),
        max_size=6,
    ),
)
def test_whatever_is_written_only_words_of_the_lists_and_numbers_come_out(
    written: Any, event: str, fields: dict[str, Any]
) -> None:
    logger, lines = written
    given_fields = {name: value for name, value in fields.items() if name not in ("event", "client", "level", "self")}
    Journal(logger).write(event, **given_fields)
    line = lines()[-1]
    words = EVENTS | {"other", "INFO"} | set().union(*journal._WORDS.values())
    assert set(line) <= FIELDS | {"time", "level", "event", "dropped"}
    for name, value in line.items():
        if name != "time":
            assert isinstance(value, (bool, int, float)) or value in words


def test_a_score_is_cut_to_what_can_hurt_nobody(written: Any) -> None:
    logger, lines = written
    Journal(logger).write("canary_answered", score_error=0.123456789012345)
    assert lines()[0]["score_error"] == 0.1234568


def test_pseudonyms_hold_for_a_day_and_cannot_be_computed_again() -> None:
    now = [1_700_000_000.0]
    names, others = Pseudonyms(lambda: now[0]), Pseudonyms(lambda: now[0])
    today = {number: names.of(Client(f"token/c{number}")) for number in range(50)}
    assert len(set(today.values())) == 50
    assert all(names.of(Client(f"token/c{number}")) == name for number, name in today.items())
    # another process has another key
    assert others.of(Client("token/c0")) != today[0]
    now[0] += 86_400
    tomorrow = {number: names.of(Client(f"token/c{number}")) for number in range(50)}
    assert not set(tomorrow.values()) & set(today.values())
    now[0] -= 86_400
    # and a day that is over does not come back
    assert not {names.of(Client(f"token/c{number}")) for number in range(50)} & set(today.values())


def test_installed_it_is_the_only_form(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    try:
        journal.install(stream=stream)
        logging.getLogger("veil.wire.server").warning("refused %s", TOKEN)
        logging.getLogger("anything").info("%s", TOKEN)
        assert len(root.handlers) == 1
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert len(stream.getvalue().splitlines()) == 2 and TOKEN not in stream.getvalue()
    assert TOKEN not in "".join(capsys.readouterr())
