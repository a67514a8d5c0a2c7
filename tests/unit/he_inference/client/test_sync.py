"""The client against a server in this process: offers, scores, retries, new models, tokens."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from he_inference.client import Recommendation, Retries, ScoringClient, TokenCredentials
from tests.unit.he_inference.client.conftest import TOKEN, Connect
from tests.unit.he_inference.client.desk import DIMENSIONS, ITEMS, SERVER, Desk, make_model, publish
from veil.errors import (
    ArtifactError,
    ConfigError,
    IdentityError,
    InputError,
    LimitError,
    PeerLost,
    ProtocolMismatch,
    QueryBudgetError,
    StateError,
    WireError,
)
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.wire.channel import RunningServer
from veil.wire.v1 import inference_pb2 as messages

VECTOR = np.linspace(-1.0, 1.5, DIMENSIONS)
BUSY = grpc.StatusCode.RESOURCE_EXHAUSTED
AWAY = grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("wishes", "kind", "parameters"),
    [
        ({}, "session", "fast"),
        ({"one_shot": True}, "keyless", "keyless"),
        ({"sets": ["exact", "keyless"]}, "session", "exact"),
        ({"sets": ["keyless"]}, "keyless", "keyless"),
        ({"sets": ["fast"], "one_shot": True}, "session", "fast"),
    ],
)
def test_scores_are_those_of_the_model_in_every_layout(
    connect: Connect, desk: Desk, wishes: dict[str, object], kind: str, parameters: str
) -> None:
    client = connect(**wishes)
    assert (client.offer.layout.kind, client.offer.layout.parameters.name) == (kind, parameters)
    scores = client.score(VECTOR)
    assert scores.dtype == np.float32 and scores.shape == (ITEMS,)
    bound = client.offer.score_error * float(np.linalg.norm(VECTOR))
    assert 0 < np.abs(scores - desk.truth(VECTOR)).max() < bound
    assert scores[11] == pytest.approx(0.0, abs=bound)
    report = client.last_query
    assert report is not None and report.attempts == report.batch_queries == 1
    assert report.query_bytes == len(desk.seen[0].query)
    assert report.response_bytes == sum(map(len, desk.seen[0].results))
    assert (client.key_bytes > 0) is (kind == "session") is bool(desk.keys)


def test_recommendations_carry_ids_and_titles_and_skip_what_was_seen(connect: Connect, desk: Desk) -> None:
    client = connect()
    numbers = [5, 17, 299]
    history = [str(1000 + number) for number in numbers]
    truth = desk.truth(desk.model.user_vector(numbers))
    best = [str(1000 + n) for n in np.argsort(-truth)]
    found = client.recommend(history, k=10)
    assert [one.item_id for one in found] == [item for item in best if item not in history][:10]
    assert all(isinstance(one, Recommendation) and one.title == f"Title {one.item_id}" for one in found)
    assert found[0].score == pytest.approx(truth[int(found[0].item_id) - 1000], abs=0.01)
    assert len(client.recommend(history, k=ITEMS + 5, exclude_seen=False)) == ITEMS
    assert len(client.recommend(history, k=ITEMS)) == ITEMS - 3
    assert client.recommend([], k=1), "an empty history gets the model's general favourites"
    with pytest.raises(InputError, match=r"entries 2 of") as refused:
        client.recommend([history[0], "no-such-item"])
    assert "no-such-item" not in str(refused.value)
    assert client.recommend([history[0], "no-such-item"], skip_unknown=True)
    for wrong in ({"k": 0}, {"history": "1005"}):
        with pytest.raises(InputError):
            client.recommend(**{"history": history, **wrong})  # type: ignore[arg-type]


def test_fold_in_gives_the_vector_that_recommendations_use(connect: Connect, desk: Desk) -> None:
    client = connect()
    vector = client.fold_in.user_vector(["1003", "1001"])
    np.testing.assert_array_equal(vector, desk.model.user_vector([1, 3]))
    best = int(np.argmax(client.score(vector)))
    found = client.recommend(["1003", "1001"], k=1, exclude_seen=False)
    assert found[0].item_id == client.fold_in.model.ids[best]


def test_vectors_that_do_not_fit_are_refused_before_they_leave(connect: Connect, desk: Desk) -> None:
    client = connect()
    for vector in (np.zeros(3), np.full(DIMENSIONS, np.nan), np.zeros((2, DIMENSIONS))):
        with pytest.raises(InputError):
            client.score(vector)
    assert desk.seen == []
    np.testing.assert_array_equal(client.score(np.zeros(DIMENSIONS)), 0.0)


def test_keys_and_model_are_kept_between_runs(connect: Connect, desk: Desk, tmp_path: Path) -> None:
    def stored() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in (tmp_path / "keys").rglob("*") if file.is_file()}

    connect(passphrase=b"word").recommend(["1001"])
    before = stored()
    connect(passphrase=b"word").recommend(["1001"])
    assert stored() == before and len(desk.keys) == 1
    assert {"manifest.json", "client.safetensors"} <= {file.name for file in before}
    assert not any("item_factors" in file.name for file in before)


def test_a_client_without_a_key_directory_writes_nothing(connect: Connect, desk: Desk, tmp_path: Path) -> None:
    client = connect(keys=None, one_shot=True)
    assert client.recommend(["1001"], k=2)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="passphrase"):
        connect(keys=None, passphrase=b"word")


def test_rotated_keys_are_registered_by_themselves(connect: Connect, desk: Desk) -> None:
    client = connect()
    before = client.recommend(["1001"])
    client.rotate_keys()
    assert [one.item_id for one in client.recommend(["1001"])] == [one.item_id for one in before]
    assert len(desk.keys) == 2


# --- retries


@pytest.mark.parametrize("fault", [(AWAY, None), (BUSY, None), (BUSY, LimitError("slowly", retry_after_s=0.02))])
def test_a_retry_is_the_same_bytes_under_the_same_id(
    connect: Connect, desk: Desk, fault: tuple[grpc.StatusCode, LimitError | None]
) -> None:
    client = connect()
    client.score(VECTOR)
    desk.seen.clear()
    desk.faults = [fault, fault]
    assert client.score(VECTOR).shape == (ITEMS,)
    assert len(desk.seen) == 3
    assert len({(seen.request_id, seen.query) for seen in desk.seen}) == 1
    assert len(desk.seen[0].request_id) == 16
    report = client.last_query
    assert report is not None and report.attempts == 3
    client.score(VECTOR)
    first, other = desk.seen[0], desk.seen[-1]
    assert first.request_id != other.request_id and first.query != other.query, "another question, another encryption"


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (BUSY, QueryBudgetError("spent"), QueryBudgetError),
        (grpc.StatusCode.INVALID_ARGUMENT, WireError("malformed"), WireError),
        (grpc.StatusCode.PERMISSION_DENIED, None, IdentityError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, None, PeerLost),
    ],
)
def test_failures_that_do_not_pass_are_not_repeated(
    connect: Connect, desk: Desk, status: grpc.StatusCode, error: WireError | None, kind: type[Exception]
) -> None:
    client = connect()
    desk.faults = [(status, error)]
    with pytest.raises(kind):
        client.score(VECTOR)
    assert len(desk.seen) == 1


def test_retries_end(connect: Connect, desk: Desk) -> None:
    client = connect()
    client.score(VECTOR)
    desk.seen.clear()
    desk.faults = [(AWAY, None)] * 50
    with pytest.raises(PeerLost):
        client.score(VECTOR)
    assert len(desk.seen) == 4
    hurried = connect(timeout_s=0.3, retries=Retries(attempts=100, first_s=0.2, longest_s=0.2))
    started = time.monotonic()
    with pytest.raises(PeerLost):
        hurried.score(VECTOR)
    assert time.monotonic() - started < 5.0
    desk.faults = [(BUSY, LimitError("much later", retry_after_s=3600.0))]
    with pytest.raises(LimitError):
        client.score(VECTOR)


def test_back_off_grows_and_is_not_the_same_for_everyone() -> None:
    pauses = np.array([list(Retries(attempts=8, first_s=0.1, longest_s=1.0).pauses()) for _ in range(500)])
    ceilings = np.minimum(0.1 * 2.0 ** np.arange(7), 1.0)
    assert pauses.shape == (500, 7) and (pauses <= ceilings).all()
    assert (pauses.max(axis=0) > 0.9 * ceilings).all() and (pauses.min(axis=0) < 0.1 * ceilings).all()
    with pytest.raises(ConfigError):
        Retries(attempts=0)


def test_nobody_there_is_told_within_the_time(connect: Connect) -> None:
    with pytest.raises(PeerLost):
        connect(address="127.0.0.1:1", timeout_s=3.0).score(VECTOR)


def test_a_slow_answer_is_not_waited_for(connect: Connect, desk: Desk) -> None:
    client = connect(timeout_s=2.0)
    client.score(VECTOR)
    desk.delay_s = 6.0
    with pytest.raises(PeerLost, match="deadline"):
        client.score(VECTOR)


# --- a server that has changed


def test_a_server_that_has_lost_the_keys_is_sent_them_again(connect: Connect, desk: Desk) -> None:
    client = connect()
    client.score(VECTOR)
    desk.keys.clear()
    desk.seen.clear()
    client.score(VECTOR)
    assert len(desk.keys) == 1 and len(desk.seen) == 2
    assert len({(seen.request_id, seen.query) for seen in desk.seen}) == 1


def test_a_server_that_never_knows_the_keys_is_asked_twice_only(connect: Connect, desk: Desk) -> None:
    client = connect()
    desk.faults = [(grpc.StatusCode.FAILED_PRECONDITION, StateError("no such keys"))] * 10
    with pytest.raises(StateError, match="no such keys"):
        client.score(VECTOR)
    assert len(desk.seen) == 2


def test_a_client_follows_a_server_whose_model_changes(
    connect: Connect, desk: Desk, consortium: Path, published: Path, tmp_path: Path
) -> None:
    client = connect()
    client.recommend(["1001"])
    other = make_model(2)
    desk.publish(other, publish(consortium, other, tmp_path / "second"))
    try:
        with pytest.raises(StateError, match="another model"):
            client.score(VECTOR)
        found = client.recommend(["1001"], k=1)
        truth = desk.truth(other.user_vector([1]))
        truth[1] = -np.inf
        assert found[0].item_id == str(1000 + int(np.argmax(truth)))
        assert np.abs(client.score(VECTOR) - desk.truth(VECTOR)).max() < 0.1
    finally:
        desk.publish(make_model(1), published)


# --- a server that is wrong


@pytest.mark.parametrize("field", ["query_bytes", "results", "score_error", "key_bytes"])
def test_offers_that_differ_from_the_sets_known_here_are_refused(connect: Connect, desk: Desk, field: str) -> None:
    def spoil(answer: messages.GetParametersResponse) -> messages.GetParametersResponse:
        setattr(answer.offers[0], field, 3)
        return answer

    desk.spoil = spoil
    with pytest.raises(ProtocolMismatch, match="differs"):
        connect().score(VECTOR)
    assert desk.seen == [] and desk.keys == {}


def test_sets_and_layouts_that_are_not_known_are_passed_over(connect: Connect, desk: Desk) -> None:
    def spoil(answer: messages.GetParametersResponse) -> messages.GetParametersResponse:
        answer.offers[0].parameters = "fast-2030"
        answer.offers[1].layout = "quantum"
        return answer

    desk.spoil = spoil
    assert connect().offer.layout.kind == "keyless"


def test_a_client_takes_only_sets_that_it_was_told_to(connect: Connect) -> None:
    with pytest.raises(StateError, match="fast \\(session\\)"):
        connect(sets=["pq"]).score(VECTOR)
    for wrong in (["quantum"], [], "pq"):
        with pytest.raises(ConfigError):
            connect(sets=wrong)


@pytest.mark.parametrize("how", ["short", "twice", "order", "none", "model"])
def test_answers_that_do_not_fit_are_refused(connect: Connect, desk: Desk, how: str) -> None:
    def spoil(answer: messages.ScoreResponse) -> list[messages.ScoreResponse]:
        if how == "short":
            answer.results[0] = answer.results[0][:-1]
        elif how == "twice":
            answer.results.append(answer.results[0])
        elif how == "order":
            answer.first_block = 1
        elif how == "model":
            answer.manifest_digest = b"x" * 32
        return [] if how == "none" else [answer]

    client = connect()
    assert client.score(VECTOR) is not None
    desk.spoil_score = spoil
    with pytest.raises(StateError if how == "model" else ProtocolMismatch):
        client.score(VECTOR)


@pytest.mark.parametrize("who", [Identity("trial", Role.SCORING, "other")])
def test_a_server_that_is_somebody_else_is_not_asked(
    running: RunningServer, anna: Credentials, tmp_path: Path, who: Identity, desk: Desk
) -> None:
    with (
        ScoringClient(running.address, anna, who, tmp_path / "keys", timeout_s=10.0) as client,
        pytest.raises(IdentityError, match="other"),
    ):
        client.score(VECTOR)
    assert desk.parameters_asked == 0


def test_a_model_without_a_wanted_signature_is_not_kept(connect: Connect, tmp_path: Path) -> None:
    gamma = Identity("trial", Role.PARTY, "gamma")
    with pytest.raises(ArtifactError, match="gamma"):
        connect(require_signers=[gamma]).recommend(["1001"])
    assert not (tmp_path / "keys" / "models").exists() or not list((tmp_path / "keys" / "models").iterdir())
    connect().recommend(["1001"])
    (cached,) = (tmp_path / "keys" / "models").iterdir()
    (cached / "items.jsonl").write_bytes(b"{}\n")
    assert connect().recommend(["1001"]), "a damaged cache is fetched anew"


# --- tokens


def test_a_token_is_as_good_as_a_certificate(
    connect: Connect, running: RunningServer, anna: Credentials, desk: Desk
) -> None:
    token = TokenCredentials(anna.authority_pem, TOKEN)
    client = connect(address=running.token_address, credentials=token)
    assert client.recommend(["1001"], k=2)
    assert set(desk.tokens) == {TOKEN}
    assert TOKEN not in repr(token) + repr(client) + repr(client._connection)
    wrong = connect(address=running.token_address, credentials=TokenCredentials(anna.authority_pem, "x" * 20))
    with pytest.raises(IdentityError) as refused:
        wrong.score(VECTOR)
    assert "x" * 20 not in str(refused.value)


def test_a_token_goes_to_nobody_else(running: RunningServer, anna: Credentials, tmp_path: Path, desk: Desk) -> None:
    other = Identity("trial", Role.SCORING, "other")
    token = TokenCredentials(anna.authority_pem, TOKEN)
    with (
        ScoringClient(str(running.token_address), token, other, tmp_path / "keys", timeout_s=2.0) as client,
        pytest.raises(PeerLost),
    ):
        client.score(VECTOR)
    assert desk.tokens == []


def test_token_files(anna: Credentials, tmp_path: Path) -> None:
    (tmp_path / "authority.pem").write_bytes(anna.authority_pem)
    with pytest.raises(IdentityError, match="no file token"):
        TokenCredentials.load(tmp_path)
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "token").chmod(0o644)
    with pytest.raises(IdentityError, match="0600"):
        TokenCredentials.load(tmp_path)
    (tmp_path / "token").chmod(0o600)
    assert TokenCredentials.load(tmp_path).token == TOKEN
    (tmp_path / "token").write_text("short")
    with pytest.raises(ConfigError, match="16 to 256"):
        TokenCredentials.load(tmp_path)


# --- around


def test_threads_share_a_client_and_register_once(connect: Connect, desk: Desk) -> None:
    client = connect()
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: results.append(client.score(VECTOR))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(results) == 4 and desk.registrations == 1 and desk.parameters_asked == 1


def test_card_and_budget(connect: Connect, desk: Desk) -> None:
    client = connect()
    assert client.card().items == ITEMS and client.queries_left is None
    desk.queries_left = 12
    client.refresh()
    assert client.offer and client.queries_left == 12


def test_a_closed_client_says_so(connect: Connect) -> None:
    client = connect()
    client.close()
    with pytest.raises(StateError, match="closed"):
        client.score(VECTOR)


def test_logs_and_texts_hold_nothing_of_a_user(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        client = connect()
        client.recommend(["1007"], k=2)
        scores = client.score(VECTOR)
    assert "1007" not in caplog.text and "Title" not in caplog.text
    assert repr(scores) == str(scores) == f"{scores}" == f"Scores({ITEMS} items)"
    assert SERVER.uri in repr(client)
