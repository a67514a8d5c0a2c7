"""Tokens: what the file keeps, what a server lets in, and what nobody gets to see."""

from __future__ import annotations

import json
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from he_inference.service import tokens
from he_inference.service.access import Access, AccessSettings, Client, open_access
from he_inference.service.tokens import MOST_TOKENS, TokenEntry, TokenFile
from veil import settings
from veil.errors import ConfigError, IdentityError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.wire.channel import RunningServer, Service, open_channel, open_token_channel, serve
from veil.wire.status import translated

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SERVER = Identity("trial", Role.SCORING, "main")
NAME = "test.v1.WhoService"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def refused(opened: TokenFile, token: str, now: datetime = NOW) -> str:
    with pytest.raises(IdentityError) as caught:
        opened.name_of(token, now)
    return str(caught.value)


# --- the file


def test_a_token_opens_until_it_expires(file: Path) -> None:
    token, entry = tokens.add(file, "app1", 90, NOW)
    opened = TokenFile(file)
    assert opened.name_of(token, NOW) == "app1"
    assert opened.name_of(token, NOW + timedelta(days=90) - timedelta(seconds=1)) == "app1"
    refused(opened, token, NOW + timedelta(days=90))
    assert entry.expires == "2026-05-30T12:00:00+00:00"


def test_tokens_are_long_and_all_different(file: Path) -> None:
    made = {tokens.add(file, "app1", 1, NOW)[0] for _ in range(20)}
    assert len(made) == 20
    # 43 characters of base64 are 258 bits, the last of which carry 256
    assert all(len(token) == 5 + 43 and token.startswith("veil_") for token in made)


def test_the_file_holds_no_token_and_is_the_owners_alone(file: Path) -> None:
    token, entry = tokens.add(file, "app1", 90, NOW)
    text = file.read_text()
    assert token not in text and token[5:] not in text and token[5:25] not in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert token not in repr(entry) and entry.hash not in repr(entry)
    assert entry.hash not in repr(TokenFile(file))
    # the same token under another file's salt has another hash: files cannot be compared
    other = file.with_name("other.json")
    document = json.loads(text)
    document["salt"] = "00" * 32
    other.write_text(json.dumps(document))
    other.chmod(0o600)
    refused(TokenFile(other), token)


def test_all_that_is_wrong_gets_one_answer(file: Path) -> None:
    good, _ = tokens.add(file, "app1", 90, NOW)
    ended, entry = tokens.add(file, "app2", 90, NOW)
    tokens.revoke(file, entry.id, NOW)
    late, _ = tokens.add(file, "app3", 1, NOW - timedelta(days=5))
    opened = TokenFile(file)
    flipped = good[:-1] + ("A" if good[-1] != "A" else "B")
    wrong = [ended, late, flipped, good[:-1], good + "A", good.upper(), "veil_" + "A" * 43, "", "ä" * 48, good[5:]]
    assert len({refused(opened, token) for token in wrong}) == 1
    assert opened.name_of(good, NOW) == "app1"


def test_a_revoked_token_ends_at_once_and_others_go_on(file: Path) -> None:
    first, entry = tokens.add(file, "app1", 90, NOW)
    second, _ = tokens.add(file, "app1", 90, NOW)
    third, _ = tokens.add(file, "app2", 90, NOW)
    opened = TokenFile(file)
    assert opened.name_of(first, NOW) == "app1"
    assert tokens.revoke(file, entry.id, NOW) == 1
    refused(opened, first)
    # a rotation: the newer token of the same client was there before the older one ended
    assert opened.name_of(second, NOW) == "app1"
    assert tokens.revoke(file, "app1", NOW) == 1
    refused(opened, second)
    assert opened.name_of(third, NOW) == "app2"
    assert tokens.revoke(file, "app1", NOW) == 0
    with pytest.raises(ConfigError, match="expected the id of a token or the name"):
        tokens.revoke(file, "nobody", NOW)


@pytest.mark.parametrize("harm", ["gone", "rubbish", "open to others"])
def test_a_file_that_cannot_be_used_any_more_admits_nobody(
    file: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    token, _ = tokens.add(file, "app1", 90, NOW)
    opened = TokenFile(file)
    assert opened.name_of(token, NOW) == "app1"
    kept = file.read_bytes()
    if harm == "gone":
        file.unlink()
    elif harm == "rubbish":
        file.write_text(f'{{"token": "{token}"}}')
    else:
        file.chmod(0o640)
    with caplog.at_level(logging.INFO, "veil"):
        refused(opened, token)
    assert "nobody is admitted" in caplog.text and token not in caplog.text
    file.unlink(missing_ok=True)
    file.touch(0o600)
    file.write_bytes(kept)
    assert opened.name_of(token, NOW) == "app1"


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"salt": "00"},
        {"salt": "zz" * 32},
        {"more": 1},
        {"tokens": [{}]},
        {"tokens": "x"},
        {"tokens": [{"id": "x", "name": "app1"}]},
    ],
)
def test_a_damaged_file_is_refused_without_its_text(file: Path, change: dict[str, Any]) -> None:
    tokens.add(file, "app1", 90, NOW)
    document = json.loads(file.read_text()) | change
    file.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"damaged file of tokens tokens\.json") as caught:
        TokenFile(file)
    assert caught.value.__cause__ is None and document["salt"] not in str(caught.value)


@pytest.mark.parametrize("field", ["id", "name", "created", "expires", "hash"])
def test_every_field_of_an_entry_is_checked(file: Path, field: str) -> None:
    tokens.add(file, "app1", 90, NOW)
    for wrong in ("", "x y", None, 5):
        document = json.loads(file.read_text())
        document["tokens"][0][field] = wrong
        file.write_text(json.dumps(document))
        with pytest.raises(ConfigError, match="damaged"):
            TokenFile(file)
        file.unlink()
        tokens.add(file, "app1", 90, NOW)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604])
def test_a_file_that_others_may_touch_is_refused(file: Path, mode: int) -> None:
    tokens.add(file, "app1", 90, NOW)
    file.chmod(mode)
    for use in (
        lambda: TokenFile(file),
        lambda: tokens.add(file, "app2", 90, NOW),
        lambda: tokens.revoke(file, "app1"),
    ):
        with pytest.raises(ConfigError, match="expected 0600"):
            use()


def test_their_number_is_bounded_and_dead_ones_give_way(file: Path) -> None:
    tokens.add(file, "old", 1, NOW - timedelta(days=3))
    document = json.loads(file.read_text())
    row = document["tokens"][0]
    document["tokens"] = [row | {"id": f"{number:08x}"} for number in range(MOST_TOKENS)]
    file.write_text(json.dumps(document))
    token, _ = tokens.add(file, "new", 1, NOW)
    assert [entry.name for entry in tokens.entries(file)] == ["new"]
    assert TokenFile(file).name_of(token, NOW) == "new"
    live = json.loads(file.read_text())["tokens"][0]
    document["salt"] = json.loads(file.read_text())["salt"]
    document["tokens"] = [live | {"id": f"{number:08x}"} for number in range(MOST_TOKENS)]
    file.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="expected at most 1024"):
        tokens.add(file, "more", 1, NOW)
    assert len(tokens.entries(file)) == MOST_TOKENS


@pytest.mark.parametrize(("name", "days"), [("App", 1), ("", 1), ("a b", 1), ("a\n", 1), ("app", 0), ("app", 3651)])
def test_malformed_requests_make_nothing(file: Path, name: str, days: int) -> None:
    with pytest.raises(ConfigError):
        tokens.add(file, name, days, NOW)
    assert not file.exists()


def test_two_who_add_at_once_lose_nothing(file: Path) -> None:
    made: list[str] = []

    def several(name: str) -> None:
        made.extend(tokens.add(file, name, 1, NOW)[0] for _ in range(10))

    threads = [threading.Thread(target=several, args=(f"app{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    opened = TokenFile(file)
    assert len(made) == 40 and {opened.name_of(token, NOW) for token in made} == {f"app{number}" for number in range(4)}
    assert not [name for name in os.listdir(file.parent) if name.endswith(".tmp")]


def test_every_entry_is_compared_in_constant_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [tokens.add(file, f"app{number}", 1, NOW)[0] for number in range(5)]
    opened = TokenFile(file)
    seen = 0
    real = tokens.hmac.compare_digest

    def counted(left: bytes, right: bytes) -> bool:
        nonlocal seen
        seen += 1
        return real(left, right)

    monkeypatch.setattr(tokens.hmac, "compare_digest", counted)
    opened.name_of(made[0], NOW)
    # the first one matches, and the other four are looked at all the same
    assert seen == 5


# --- the door


def who_service(access: Access) -> Service:
    def behave(request: StringValue, context: grpc.ServicerContext) -> StringValue:
        return StringValue(value=access.client(context).account)

    handler = grpc.unary_unary_rpc_method_handler(behave, StringValue.FromString, StringValue.SerializeToString)

    def add(server: grpc.Server) -> None:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, {"Who": handler}),))

    roles = frozenset({Role.CLIENT, Role.PARTY})
    return Service(NAME, add, roles, bearer=access.check_bearer if access.takes_tokens else None)


def who(channel: grpc.Channel) -> str:
    call: Any = channel.unary_unary(f"/{NAME}/Who", StringValue.SerializeToString, StringValue.FromString)
    with translated("the server"):
        answer: str = call(StringValue(), timeout=20).value
    return answer


@pytest.fixture
def running(consortium: Path, file: Path) -> Iterator[tuple[RunningServer, str]]:
    token, _ = tokens.add(file, "main", 90)
    access = open_access(AccessSettings(token_listen="127.0.0.1:0", tokens=file))
    credentials = Credentials.load(consortium / "scoring-main")
    with serve("127.0.0.1:0", credentials, [who_service(access)], token_address="127.0.0.1:0") as server:
        yield server, token


def by_token(consortium: Path, server: RunningServer, token: str) -> str:
    authority = (consortium / "scoring-main" / "authority.pem").read_bytes()
    assert server.token_address is not None
    with open_token_channel(server.token_address, authority, token, SERVER) as channel:
        return who(channel)


def test_the_two_ways_make_two_clients_of_one_name(consortium: Path, running: tuple[RunningServer, str]) -> None:
    server, token = running
    assert by_token(consortium, server, token) == "token/main"
    with open_channel(server.address, Credentials.load(consortium / "client-main"), SERVER) as channel:
        assert who(channel) == "certificate/main"


def test_a_member_that_is_no_client_is_no_client(consortium: Path, running: tuple[RunningServer, str]) -> None:
    # the service of this test admits parties: even so, they are not taken for clients
    server, _ = running
    with (
        open_channel(server.address, Credentials.load(consortium / "party-alpha"), SERVER) as channel,
        pytest.raises(IdentityError, match="expected role client"),
    ):
        who(channel)


def test_a_running_server_notices_a_revoked_token(
    consortium: Path, running: tuple[RunningServer, str], file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, token = running
    with caplog.at_level(logging.DEBUG, "veil"):
        assert by_token(consortium, server, token) == "token/main"
        newer, _ = tokens.add(file, "main", 90)
        assert by_token(consortium, server, newer) == "token/main"
        tokens.revoke(file, "main")
        for one in (token, newer):
            with pytest.raises(IdentityError, match="no client certificate and no valid token"):
                by_token(consortium, server, one)
    assert token not in caplog.text and newer not in caplog.text


def test_without_the_setting_no_token_is_taken(consortium: Path) -> None:
    access = open_access(AccessSettings())
    assert not access.takes_tokens
    with pytest.raises(IdentityError):
        access.check_bearer("veil_" + "A" * 43)
    with serve("127.0.0.1:0", Credentials.load(consortium / "scoring-main"), [who_service(access)]) as server:
        assert server.token_address is None


@pytest.mark.parametrize("given", [{"token_listen": "127.0.0.1:0"}, {"tokens": "tokens.json"}])
def test_half_a_setting_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="together, or neither"):
        settings.check(given, AccessSettings, source="test", explained_in="x")


def test_an_absent_file_is_told_at_start(file: Path) -> None:
    with pytest.raises(ConfigError, match="veil tokens add"):
        open_access(AccessSettings(token_listen="127.0.0.1:0", tokens=file))


def test_a_client_does_not_show_who_it_is() -> None:
    shown: Callable[[object], str] = repr
    assert shown(Client("token/app1")) == "Client(token)" and str(Client("certificate/bob")) == "Client(certificate)"
    entry = TokenEntry("00000000", "app1", "", "", None, "")
    assert "app1" not in shown(entry)
