"""The scoring server: what `veil serve` starts, from a verified model to an address that is listened at, and its end.

Guarantee: nothing is offered unless every required party signed it; nothing listens before every kernel has run once
on every index. This process never holds a secret key, a user vector or a score, and computes on nothing that a client
sent: that happens in a process without credentials (`he_inference.service.worker`).
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from he_inference.service.access import open_access
from he_inference.service.budget import QueryBudget
from he_inference.service.config import ScoringConfig
from he_inference.service.generations import Generation, Generations, View
from he_inference.service.journal import Journal
from he_inference.service.key_cache import KeyCache, Limits
from he_inference.service.limits import Limiter
from he_inference.service.metrics import Metrics
from he_inference.service.pool import WorkerPool
from he_inference.service.published import PublishedModel, open_model
from he_inference.service.reload import Loader, Reloader
from he_inference.service.servicer import InferenceServicer, Policy
from he_inference.service.setting import Setting
from veil.errors import IdentityError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.wire.channel import RunningServer, Service, serve
from veil.wire.v1 import inference_pb2_grpc

NAME = "veil.wire.v1.InferenceService"
_DAY_S = 86_400.0
# Beside the queries that wait and run: threads for keys, files and parameters.
_MORE_THREADS = 24
_log = logging.getLogger("veil.he_inference.service.server")


@dataclass(frozen=True, eq=False)
class ScoringServer:
    """A server that listens, with its compute process; a context manager that stops both."""

    running: RunningServer
    pool: WorkerPool
    generations: Generations
    reloader: Reloader
    policy: Policy
    metrics_address: str | None
    _drain_s: float
    _resources: ExitStack = field(repr=False)

    @property
    def address(self) -> str:
        """Where it listens for clients with certificates."""
        return self.running.address

    @property
    def token_address(self) -> str | None:
        """Where it listens for clients with tokens; None where it does not."""
        return self.running.token_address

    @property
    def offers(self) -> View:
        """What clients that may know every item are offered now."""
        return self.generations.current.everybody

    def reload(self) -> bool:
        """Takes up another model or changed index files now; whether there was something."""
        return self.reloader.check()

    def stop(self, grace_s: float | None = None) -> None:
        """Takes no new requests, gives running ones `grace_s` (as configured unless given), ends the process."""
        self.policy.journal.write("stopping", queue=self.pool.waiting)
        self.running.stop(self._drain_s if grace_s is None else grace_s)
        self._resources.close()
        self.policy.journal.write("stopped", worker_restarts=self.pool.replaced)

    def __enter__(self) -> ScoringServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(0.0)


class _Told:
    """Of the work in the queue: metrics, and a line in the log where a process was replaced."""

    def __init__(self, metrics: Metrics, journal: Journal) -> None:
        self._journal = journal
        self.queue_is = metrics.queue_is
        self.batch_was = metrics.batch_was
        self.keys_found = metrics.keys_found
        self._restarted = metrics.worker_restarted

    def worker_restarted(self) -> None:
        """The compute process was replaced."""
        self._restarted()
        self._journal.write("worker_replaced", level=logging.WARNING)


def start(config: ScoringConfig) -> ScoringServer:
    """Verifies the model, finds or builds the index of each offer, runs every kernel, then listens.

    Raises `IdentityError`, `ArtifactError`, `ConfigError` or `StateError`; nothing listens then.
    """
    credentials = Credentials.load(config.credentials)
    own = credentials.identity
    if own.role is not Role.SCORING:
        raise IdentityError(f"got credentials of {own}, expected role scoring", hint="veil certs issue --role scoring")
    signers = [Identity(own.consortium, Role.PARTY, name) for name in config.require_signers]

    def opened() -> PublishedModel:
        return open_model(config.model, credentials.authority_pem, signers, linear_part=config.linear_part)

    state = _private(config.state)
    with ExitStack() as resources:
        metrics, journal = Metrics(), Journal()
        endpoint = None
        if config.metrics.listen is not None:
            endpoint = resources.enter_context(metrics.serve(config.metrics.listen))
        budget = resources.enter_context(QueryBudget(state / "budget.sqlite", config.budget))
        policy = Policy(open_access(config.access), Limiter(config.limits), budget, metrics, journal)
        load = config.load
        loader = Loader(config)
        model = opened()
        with ExitStack() as unused:
            unused.callback(model.close)
            pool = resources.enter_context(
                WorkerPool(
                    setting=Setting(load.threads, state / "index", config.engine.ray_fields, config.engine.cuda_device),
                    queue_limit=load.queue,
                    batch=load.batch,
                    timeout_s=load.timeout_s,
                    observer=_Told(metrics, journal),
                )
            )
            generation = loader.first(model, pool)
            unused.pop_all()
        generations = Generations(generation, config.reload.grace_s)
        resources.callback(_close_all, generations)

        def changed(new: Generation) -> None:
            layouts = [offer.layout for offer in new.everybody.offers]
            first, number = layouts[0], new.everybody.indexes[0].generation
            metrics.offers(layouts)
            journal.write("index_reloaded", items=first.items, dimensions=first.dimensions, generation=number)

        metrics.offers([offer.layout for offer in generation.everybody.offers])
        reloader = Reloader(loader, opened, generations, pool, config.reload.every_s, changed)
        kept = Limits(config.keys.max_bytes, config.keys.max_per_client, config.keys.lifetime_days * _DAY_S)
        keys = KeyCache(state / "keys", kept)
        running = _listen(config, credentials, InferenceServicer(generations, pool, keys, policy), policy)
        resources.callback(running.stop, 0.0)
        reloader.start()
        resources.callback(reloader.stop)
        layout = generation.everybody.offers[0].layout
        journal.write(
            "started",
            offers=len(generation.everybody.offers),
            items=layout.items,
            dimensions=layout.dimensions,
            parameters=layout.parameters.name,
            layout=layout.kind,
        )
        address = None if endpoint is None else endpoint.address
        return ScoringServer(running, pool, generations, reloader, policy, address, load.drain_s, resources.pop_all())


def _listen(
    config: ScoringConfig, credentials: Credentials, servicer: InferenceServicer, policy: Policy
) -> RunningServer:
    def add(server: grpc.Server) -> None:
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)

    bearer = policy.access.check_bearer if policy.access.takes_tokens else None
    return serve(
        config.listen,
        credentials,
        [Service(NAME, add, frozenset({Role.CLIENT}), bearer)],
        # Every place in the queue is a thread that waits, and so is every query of a batch.
        max_workers=config.load.queue + config.load.batch + _MORE_THREADS,
        token_address=config.access.token_listen,
    )


def _close_all(generations: Generations) -> None:
    for generation in generations.held:
        generation.close()


def _private(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return directory
