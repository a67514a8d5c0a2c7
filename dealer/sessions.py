"""What the dealer knows of each job, and the rules by which it hands out randomness. No network, no clock of its own.

Rules: a job is its identifier and the text whose digest its parties signed, so that nobody who knows the identifier
takes it from them with another text; a party registers once for an identifier; noise parameters come from that text
alone; only rank 0 asks for corrections, after everybody has registered, in order, each index once and each release's
noise once; a job is forgotten on request of one of its parties or when it is idle too long. Seeds live in memory only
and are never printed.
"""

from __future__ import annotations

import hmac
import re
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dealer.engine_items import EngineItems
from veil.errors import ConfigError, IdentityError, PolicyError, ProtocolMismatch, StateError, WireError
from veil.identity.names import Identity, Role
from veil.jobs.spec import JobSpec, Release, digest, parse
from veil.mpc.engine.items import EngineItem
from veil.mpc.items import MAX_ELEMENTS, MAX_WORK, Item, check
from veil.mpc.triples import correction, item_key
from veil.privacy import noise_of
from veil.privacy.noise import ByteSource, system_source

SEED_BYTES = 32
_JOB_ID = re.compile(r"[0-9a-z][0-9a-z-]{0,63}")  # as in the ledger; it goes into logs


@dataclass(frozen=True)
class Limits:
    """Bounds on what callers may make the dealer do."""

    sessions: int = 64
    # Opened by one party as the first of its job, so that no party uses up all sessions alone.
    sessions_of_a_party: int = 16
    items: int = 1_000_000
    elements: int = MAX_ELEMENTS
    work: int = MAX_WORK
    idle_s: float = 3600.0


@dataclass(repr=False)
class _Job:
    spec: JobSpec
    opened_by: str
    last_used_s: float
    seeds: dict[int, bytes] = field(default_factory=dict)
    next_index: int = 0
    engine: EngineItems | None = None
    noised: set[str] = field(default_factory=set)
    busy: bool = False


class Sessions:
    """All jobs of one dealer. `identity` is the dealer's own; `clock` counts seconds, `entropy` makes seeds."""

    def __init__(
        self,
        identity: Identity,
        *,
        limits: Limits,
        clock: Callable[[], float],
        entropy: Callable[[int], bytes],
        noise_source: Callable[[], ByteSource] = system_source,
    ) -> None:
        self._identity = identity
        self._limits = limits
        self._clock = clock
        self._entropy = entropy
        self._noise_source = noise_source
        self._jobs: dict[tuple[str, bytes], _Job] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Sessions({len(self._jobs)} jobs)"

    def open(self, caller: Identity, job_id: str, text: str, job_digest: bytes) -> bytes:
        """Registers a party for a job; its seed, 32 bytes."""
        if not _JOB_ID.fullmatch(job_id):
            raise WireError(f"got a job id of {len(job_id)} characters, expected 1 to 64 of a-z, 0-9 and '-'")
        spec = parse(text)
        own_digest = digest(text)
        if not hmac.compare_digest(own_digest, job_digest):
            raise ProtocolMismatch(
                "got a digest that is not that of the text, expected the same", culprits=(caller.name,)
            )
        if spec.consortium != self._identity.consortium or spec.dealer != self._identity.name:
            raise ConfigError(
                f"got a job for dealer {spec.dealer!r} of {spec.consortium!r}, "
                f"expected {self._identity.name!r} of {self._identity.consortium!r}"
            )
        rank = self._rank(caller, spec)
        with self._lock:
            self._expire()
            if self._registered(caller, job_id) is not None:
                raise StateError(f"got party {caller.name!r} a second time, expected each once for a job")
            job = self._jobs.get((job_id, own_digest))
            if job is None:
                if len(self._jobs) >= self._limits.sessions:
                    raise StateError(f"got {len(self._jobs)} jobs already, expected fewer", hint="try again later")
                if sum(job.opened_by == caller.name for job in self._jobs.values()) >= self._limits.sessions_of_a_party:
                    raise StateError(
                        f"got {self._limits.sessions_of_a_party} jobs that {caller.name} has opened, expected fewer",
                        hint="try again later",
                    )
                job = self._jobs[job_id, own_digest] = _Job(spec, caller.name, self._clock())
            job.seeds[rank] = self._entropy(SEED_BYTES)
            job.last_used_s = self._clock()
            return job.seeds[rank]

    def correct(self, caller: Identity, job_id: str, index: int, item: Item) -> Tensor:
        """The correction of item number `index`, int64 of the item's dependent shape, for the party of rank 0."""
        with self._lock:
            self._expire()
            job = self._find(caller, job_id)
            self._check_ready(job, caller)
            if job.busy or index != job.next_index or index >= self._limits.items:
                expected = f"index {job.next_index} below {self._limits.items}, one at a time"
                raise StateError(f"got index {index}, expected {expected}")
            item = self._complete(job, item)
            check(item, max_elements=self._limits.elements, max_work=self._limits.work)
            # From here on the index is spent, whatever happens: an index is never served twice.
            job.next_index += 1
            if item.kind == "noise":
                job.noised.add(item.release)
            job.busy = True
            keys = [item_key(job.seeds[rank], index, item) for rank in range(len(job.spec.parties))]
        try:
            return correction(item, keys, self._noise(job, item))
        finally:
            with self._lock:
                job.busy = False
                job.last_used_s = self._clock()

    def provide(
        self, caller: Identity, job_id: str, first: int, items: Sequence[EngineItem]
    ) -> Generator[Tensor, None, None]:
        """Corrections of the engine's items from number `first` on, for the party of rank 0; masks have none.

        The numbers are spent when the first correction is asked of the iterator, whatever happens after; the job serves
        no other request until the iterator has ended or is closed.
        """
        with self._lock:
            self._expire()
            job = self._find(caller, job_id)
            self._check_ready(job, caller)
            if job.engine is None:
                seeds = [job.seeds[rank] for rank in range(len(job.spec.parties))]
                job.engine = EngineItems(seeds, max_items=self._limits.items)
            if job.busy:
                raise StateError("got a request while another is served, expected one at a time")
            items = [self._completed(job, item) for item in items]
            releases = [item.release for item in items if item.kind == "noise"]
            if len(set(releases)) != len(releases):
                raise PolicyError("got the noise of one release twice, expected one draw of each")
            engine = job.engine
            engine.admit(first, items, max_elements=self._limits.elements, max_work=self._limits.work)
            job.noised.update(releases)
            job.busy = True
        try:
            for number, item in enumerate(items, first):
                if item.dependent_shape is not None:
                    yield engine.correction(number, item, self._noise(job, item))
        finally:
            with self._lock:
                job.busy = False
                job.last_used_s = self._clock()

    def _check_ready(self, job: _Job, caller: Identity) -> None:
        if self._rank(caller, job.spec) != 0:
            raise PolicyError(f"got a request of {caller.name!r}, expected it from {job.spec.parties[0]!r} only")
        if len(job.seeds) < len(job.spec.parties):
            missing = [name for rank, name in enumerate(job.spec.parties) if rank not in job.seeds]
            raise StateError(f"got a request before {', '.join(missing)} registered, expected all parties first")

    def _completed(self, job: _Job, item: EngineItem) -> EngineItem:
        """A noise item gets its shape from the job text; other items stay as they are."""
        return replace(item, shape=self._noised(job, item.release).shape) if item.kind == "noise" else item

    def _noise(self, job: _Job, item: Item | EngineItem) -> Tensor | None:
        """The draw of a noise item; None for others, whatever release they name."""
        if item.kind != "noise":
            return None
        return torch.from_numpy(noise_of.draw(job.spec.release(item.release), self._noise_source()))

    def _complete(self, job: _Job, item: Item) -> Item:
        """A noise item gets its shape from the job text; other items stay as they are."""
        return replace(item, shapes=(self._noised(job, item.release).shape,)) if item.kind == "noise" else item

    def _noised(self, job: _Job, name: str) -> Release:
        """The release whose noise is asked for, which may be once. Raises `PolicyError`."""
        release = job.spec.release(name)
        if job.spec.privacy.noise.source != "dealer":
            raise PolicyError("got a request for noise, expected none: by the job text the parties draw it")
        if release.name in job.noised:
            raise PolicyError(f"got a second request for the noise of {release.name!r}, expected one draw")
        return release

    def close(self, caller: Identity, job_id: str) -> None:
        """Forgets a job. One party is enough: without all of them no job goes on. A forgotten job is forgotten."""
        with self._lock:
            own = [key for key, job in self._jobs.items() if key[0] == job_id and _member(caller, job.spec)]
            if not own and any(held == job_id for held, _ in self._jobs):
                raise IdentityError(f"got {caller}, expected a party of the job")
            for key in own:
                del self._jobs[key]

    def expire(self) -> int:
        """Forgets idle jobs; how many are left."""
        with self._lock:
            self._expire()
            return len(self._jobs)

    def _expire(self) -> None:
        oldest = self._clock() - self._limits.idle_s
        for key in [key for key, job in self._jobs.items() if job.last_used_s < oldest and not job.busy]:
            del self._jobs[key]

    def _registered(self, caller: Identity, job_id: str) -> _Job | None:
        """The job of that identifier for which the caller has registered: one at most."""
        for (held, _), job in self._jobs.items():
            if held == job_id and _member(caller, job.spec) and job.spec.rank(caller.name) in job.seeds:
                return job
        return None

    def _find(self, caller: Identity, job_id: str) -> _Job:
        job = self._registered(caller, job_id)
        if job is None:
            raise StateError("got a job that is not open here, expected OpenSession first", hint="it may have expired")
        return job

    def _rank(self, caller: Identity, spec: JobSpec) -> int:
        if not _member(caller, spec):
            raise IdentityError(f"got {caller}, expected a party of the job: {', '.join(spec.parties)}")
        return spec.rank(caller.name)


def _member(caller: Identity, spec: JobSpec) -> bool:
    return caller.role is Role.PARTY and caller.consortium == spec.consortium and caller.name in spec.parties


def payload_bytes(tensor: Tensor) -> memoryview:
    """Little-endian bytes of a correction."""
    return memoryview(tensor.contiguous().numpy().astype("<i8", copy=False).tobytes())
