"""What a conversation with a server consists of, apart from who carries it out: between logic and network.

A conversation is a generator. It yields steps, is sent their answers, and a failed call is thrown into it as
`CallFailed`. `he_inference.client.sync` carries steps out with threads, `he_inference.client.aio` with an event loop;
everything that a client decides is written once, in `he_inference.client.conversation`.

Guarantee: nothing here touches the network, a clock or a file.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import grpc

from veil.errors import BudgetError, ConfigError, IdentityError, InputError, VeilError
from veil.wire.v1 import inference_pb2

Result = TypeVar("Result")
Conversation = Generator["Step", Any, Result]


class Gathering(Protocol):
    """Takes the messages of a stream one by one; whatever it raises ends the call and the step."""

    def add(self, message: Any) -> None:
        """The next message."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, one response, which is the answer."""

    method: Literal["GetParameters", "GetModelCard"]
    request: inference_pb2.GetParametersRequest | inference_pb2.GetModelCardRequest
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Receive:
    """One request, a stream of responses. The answer is `gathering`."""

    method: Literal["Score", "GetClientModel"]
    request: inference_pb2.ScoreRequest | inference_pb2.GetClientModelRequest
    gathering: Gathering
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Send:
    """A stream of requests, one response, which is the answer."""

    method: Literal["RegisterKeys"]
    requests: Sequence[inference_pb2.RegisterKeysRequest]
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing for some time."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """A function that computes or reads files; what it returns is the answer."""

    function: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Alone(Generic[Result]):
    """A conversation of which one at a time is under way in a client; what it returns is the answer."""

    inner: Conversation[Result]


Step = Ask | Receive | Send | Pause | Work | Alone[Any]


class CallFailed(Exception):
    """A call ended with a status; `error` is what it means to the caller."""

    def __init__(self, status: grpc.StatusCode, error: VeilError) -> None:
        super().__init__(str(error))
        self.status = status
        self.error = error

    @property
    def passing(self) -> bool:
        """Whether the same call may succeed a little later: nobody was there, or the server had too much to do.

        A budget that is spent and an identity that does not fit do not pass by waiting.
        """
        if isinstance(self.error, (BudgetError, IdentityError)):
            return False
        return self.status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)

    @property
    def outdated(self) -> bool:
        """Whether the server no longer knows the keys or the offer that the call was made for."""
        return self.status is grpc.StatusCode.FAILED_PRECONDITION and not isinstance(
            self.error, (BudgetError, IdentityError, InputError)
        )

    @property
    def wait_s(self) -> float:
        """How long the server asks to wait; 0 when it does not say."""
        return float(getattr(self.error, "retry_after_s", None) or 0.0)


@dataclass(frozen=True, slots=True)
class Retries:
    """Exponential back-off with full jitter (M. Brooker, "Exponential backoff and jitter", 2015).

    attempts: calls in all. The n-th pause is uniform below first_s 2^(n - 1), at most longest_s, so that clients that
    failed together do not come back together.
    """

    attempts: int = 6
    first_s: float = 0.1
    longest_s: float = 5.0

    def __post_init__(self) -> None:
        if not (1 <= self.attempts <= 100 and 0 < self.first_s <= self.longest_s <= 600):
            raise ConfigError(f"got {self}, expected 1 to 100 attempts and pauses of at most 600 s")

    def pauses(self) -> Iterator[float]:
        """Seconds before the second, third, ... attempt."""
        generator = random.SystemRandom()
        for attempt in range(self.attempts - 1):
            yield generator.uniform(0.0, min(self.longest_s, self.first_s * 2.0**attempt))
