"""Gradient rounds: any `torch.nn.Module`, trained by clipped per-user updates with noise.

Guarantee: what a party contributes to an opening is an exact integer sum over its own users, each of whose summands has
an L2 norm of at most the release's `sensitivity`, whatever the module does (`local_update.gridded`). A user's summand
is computed from that user's rows, the public state and public draws. `advance` reads openings and public data only.

Unit of privacy: one user, who is all rows of one pseudonym at one party. Neighbours: add or remove one user.
Mechanism: Poisson-sampled Gaussian (Abadi et al. 2016, "Deep Learning with Differential Privacy", per user instead of
per row: McMahan et al. 2018), noise added to the integer sum and rounded (`veil.privacy.mechanism`).

    users        2^16 if the user has enough rows                            opens 2^16 n
    public       initial weights of the lead, the same bytes everywhere
    round-t      each user takes part by a secret coin of probability q
                 v_u = trunc(2^b clip(update of u at the public weights, C)) opens sum_u v_u
    public       g = opened / (2^b q n); momentum or Adam (`server`)
    publish      mean of the last weights (`publication`)

The estimate divides by the expected number of sampled users, q times the noised count: the true number of a round is
secret. Timing: how long a contribution takes tells roughly how many users were sampled and how many there are; a party
whose peers may not learn that from the moment its message arrives sets `sampling` to 1 (docs/threat-model.md, timing).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from veil.errors import ConfigError
from veil.jobs.spec import JobSpec
from veil.privacy.mechanism import vector_sum
from veil.privacy.noise import ByteSource, system_source
from veil.privacy.sources import total_sd
from veil.recsys.catalogue import Catalogue
from veil.trainers.gradient import examples, server
from veil.trainers.gradient.contract import ModuleCode, Tensors, draws_of, engine_of
from veil.trainers.gradient.facts import built, facts_digest, job_facts, job_seed
from veil.trainers.gradient.local_update import Updates, gridded
from veil.trainers.gradient.publication import ModulePublication
from veil.trainers.gradient.rehearsal import check_module
from veil.trainers.gradient.releases import MODULE_OPTION_PREFIX, USER_BITS, USERS, check_gradient_releases, round_bits
from veil.trainers.rows import PartyRows
from veil.trainers.seam import PublicState, check_catalogue

Int64 = npt.NDArray[np.int64]

SERVER_OPTIONS: Final = ("server", "rate", "rate_end", "momentum", "second_momentum", "floor", "average")
LOCAL_OPTIONS: Final = ("local_steps", "local_rate")
_MOST_LOCAL_STEPS: Final = 64


class GradientAlgorithm:
    """The trainer of one job. Raises `ConfigError` when job, catalogue and module file do not fit together.

    code: what `veil.trainers.gradient.source.load_code` returned. coins: the secret coins of sampling; another source
    than the system's is for tests.
    """

    def __init__(
        self, spec: JobSpec, catalogue: Catalogue, code: ModuleCode, *, coins: ByteSource | None = None
    ) -> None:
        self.trainer = check_gradient_releases(spec)
        check_catalogue(spec, catalogue)
        self.spec, self.code = spec, code
        self.optimizer, steps, rate = settings_of(self.trainer.options)
        self.facts = job_facts(spec, self.trainer, catalogue)
        self._facts_digest = facts_digest(self.facts, catalogue)
        self._coins = system_source() if coins is None else coins
        module = built(code, self.facts)
        self.updates = Updates(module, code, self.facts, engine_of(code), local_steps=steps, local_rate=rate)
        if self.updates.size != self.trainer.parameters:
            raise ConfigError(
                f"got a module of {self.updates.size} trainable parameters, expected {self.trainer.parameters}"
            )
        self._initial = self.updates.flat()
        self._blank = examples.template(code, self.facts)
        check_module(code, self.facts, self.updates, self._blank, job_seed(spec, "rehearsal"))
        self._prepared: tuple[PartyRows, examples.Examples] | None = None

    @property
    def steps(self) -> Sequence[str]:
        """Names of the releases, in the order in which they open."""
        return [release.name for release in self.spec.releases]

    def contribution(self, step: str, rows: PartyRows, state: PublicState) -> Int64:
        """The exact sum over the users of `rows`; int64[1] or int64[parameters], in grid steps."""
        self.spec.release(step)
        users = self._examples(rows)
        if step == USERS:
            return np.array([users.count << USER_BITS], np.int64)
        weights = self.updates.weights(server.checked(state, self.trainer.parameters)["weights"])
        taken = examples.sample(len(users.usable), self.trainer.sampling, self._coins) & users.usable
        seed = job_seed(self.spec, step)
        draws = draws_of(self.code, self.facts, seed)
        total = np.zeros(self.trainer.parameters, np.int64)
        for block in examples.blocks(np.flatnonzero(taken), self.updates.block_users):
            update = self.updates.rows(weights, self._filled(users, block), draws, seed)[: len(block)]
            total += vector_sum(gridded(update, self.trainer.clip))
        return total

    def advance(self, step: str, opened: Int64, state: PublicState) -> PublicState:
        """The public state after an opening, noise included, in grid steps."""
        release = self.spec.release(step)
        if step == USERS:
            return server.start(self._initial.copy(), int(opened[0]) >> USER_BITS)
        before = server.checked(state, self.trainer.parameters)
        scale = 2.0 ** -round_bits(self.trainer.clip) / (self.trainer.sampling * float(before["users"][0]))
        noise_sd = total_sd(self.spec, release) * scale
        return server.step(before, opened.astype(np.float64) * scale, noise_sd, self.trainer.rounds, self.optimizer)

    def publish(self, state: PublicState) -> ModulePublication:
        """The weights, averaged over the last rounds, by name."""
        return ModulePublication(self.trainer, self._facts_digest, self._named(state))

    def module(self, state: PublicState) -> torch.nn.Module:
        """The trained module, in evaluation mode: for evaluation in one place."""
        module = built(self.code, self.facts)
        _ = module.load_state_dict({k: torch.from_numpy(v) for k, v in self._named(state).items()}, strict=False)
        return module.eval()

    def _named(self, state: PublicState) -> dict[str, npt.NDArray[np.float32]]:
        average = server.checked(state, self.trainer.parameters)["average"]
        return {name: tensor.numpy() for name, tensor in self.updates.weights(average).items()}

    def _examples(self, rows: PartyRows) -> examples.Examples:
        # The same rows in every round: turned into tensors once.
        if self._prepared is None or self._prepared[0] is not rows:
            self._prepared = (rows, examples.prepare(self.code, self.facts, rows, self._blank))
        return self._prepared[1]

    def _filled(self, users: examples.Examples, block: Int64) -> Tensors:
        """A block's tensors, filled up with empty users: every pass has one shape, whoever is in it."""
        missing = self.updates.block_users - len(block)
        chosen = torch.from_numpy(block)
        return {
            name: torch.cat([tensor[chosen], self._blank[name].expand(missing, *self._blank[name].shape)])
            for name, tensor in users.tensors.items()
        }


def settings_of(options: dict[str, float]) -> tuple[server.Optimizer, int, float]:
    """Optimiser, local steps and local rate from a job's options. Raises `ConfigError` on any other option."""
    unknown = sorted(
        name for name in set(options) - {*SERVER_OPTIONS, *LOCAL_OPTIONS} if not name.startswith(MODULE_OPTION_PREFIX)
    )
    if unknown:
        raise ConfigError(f"got unknown options {', '.join(unknown)}, expected some of {', '.join(SERVER_OPTIONS)}")
    steps, rate = options.get("local_steps", 1.0), options.get("local_rate", 1.0)
    if not float(steps).is_integer() or not 1 <= steps <= _MOST_LOCAL_STEPS:
        raise ConfigError(f"got local_steps {steps}, expected 1 to {_MOST_LOCAL_STEPS}")
    if not 0 < rate <= 1000:
        raise ConfigError(f"got local_rate {rate}, expected above 0 and at most 1000")
    chosen = {name: float(options[name]) for name in SERVER_OPTIONS if name in options}
    return server.Optimizer(**chosen), int(steps), float(rate)
