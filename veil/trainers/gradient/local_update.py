"""Per-user updates of a module: one row of numbers for each user, from that user's rows alone.

Guarantee: row i of `Updates.rows` is computed from user i's tensors, the public weights and public draws. The engines
"functional" and "single" hand the module one user at a time, so that no code of a module file can mix two users; with
"opacus" a pass runs over many, layers that mix are refused, and `check_module` compares its rows on invented users with
those of "single". Whatever a row holds, `gridded` bounds it: not finite becomes zero, the rest is clipped.

What is not exact: the engines that run many users at once compute in float32, and the last bits of a user's row may
depend on its place in a block (never on the other rows: blocks have one shape and are filled up with an empty user).
Truncation to the grid can turn that into one grid step, 2^-20 of the clip. "single" has none of it.

One local step: the gradient of the user's mean loss. Several: w_0 - w_s over the local rate, after s steps of gradient
descent on that loss, the pseudo-gradient of federated averaging (McMahan et al. 2018, "Learning Differentially Private
Recurrent Language Models"; Reddi et al. 2021, "Adaptive Federated Optimization"). With s = 1 the two are equal.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _NormBase

from veil.errors import ConfigError, StateError
from veil.privacy.mechanism import to_grid
from veil.trainers.gradient.contract import Engine, Facts, ModuleCode, Tensors
from veil.trainers.gradient.releases import round_bits

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Weights = dict[str, torch.Tensor]

# Numbers that one block of updates may hold: 64 MiB of float32.
_BLOCK_ENTRIES: Final = 1 << 24
_MOST_BLOCK_USERS: Final = 64


class _UserLoss(torch.nn.Module):
    """The module with its loss, as one module whose weights `functional_call` may replace."""

    def __init__(self, module: torch.nn.Module, code: ModuleCode, facts: Facts) -> None:
        super().__init__()
        self.module = module
        self._code, self._facts = code, facts

    def forward(self, users: Tensors, draws: Tensors) -> torch.Tensor:
        losses = self._code.loss(self.module, users, draws, self._facts)
        _check_losses(losses, next(iter(users.values())).shape[0])
        return losses


class Updates:
    """Computes updates of one module with one engine. Raises `ConfigError` on a module that mixes users."""

    def __init__(
        self,
        module: torch.nn.Module,
        code: ModuleCode,
        facts: Facts,
        engine: Engine,
        *,
        local_steps: int = 1,
        local_rate: float = 1.0,
    ) -> None:
        if local_steps > 1 and engine == "opacus":
            raise ConfigError(
                f"got {local_steps} local steps with engine opacus, expected 1",
                hint="use the engine functional or single: every user needs weights of its own",
            )
        refuse_mixing(module, engine)
        self.names = trainable_names(module)
        self.module = module.eval()
        self.engine: Engine = engine
        self._facts, self._code = facts, code
        self.local_steps, self.local_rate = local_steps, local_rate
        self._loss = _UserLoss(module, code, facts)
        own = dict(module.named_parameters())
        self._shapes = {name: own[name].shape for name in self.names}
        self.size = sum(shape.numel() for shape in self._shapes.values())
        self.block_users = 1 if engine == "single" else max(1, min(_MOST_BLOCK_USERS, _BLOCK_ENTRIES // self.size))
        self._wrapped = _hooked(module) if engine == "opacus" else None
        self._batched: Callable[..., Any] = vmap(self._local, in_dims=(None, 0, None), randomness="error")

    def flat(self, arrays: dict[str, torch.Tensor] | None = None) -> npt.NDArray[np.float32]:
        """float32[size]: the trainable weights one after the other; the module's own by default."""
        source = dict(self.module.named_parameters()) if arrays is None else arrays
        parts = [source[name].detach().reshape(-1).to("cpu", torch.float32) for name in self.names]
        return torch.cat(parts).numpy().copy()

    def weights(self, flat: npt.NDArray[np.float32]) -> Weights:
        """The inverse of `flat`. Raises `ConfigError` on another size."""
        if flat.shape != (self.size,):
            raise ConfigError(f"got {flat.shape} weights, expected ({self.size},)")
        parts = torch.split(torch.from_numpy(flat.copy()), [shape.numel() for shape in self._shapes.values()])
        return {name: part.reshape(shape) for part, (name, shape) in zip(parts, self._shapes.items(), strict=True)}

    def rows(self, weights: Weights, users: Tensors, draws: Tensors, seed: int) -> Float64:
        """float64[n, size] for n <= block_users users; a row is zero where the module fails on that user.

        seed: public; every pass starts from it, so that what a module draws by itself is no other user's doing.
        """
        count = next(iter(users.values())).shape[0]
        try:
            return self.compute(weights, users, draws, seed)
        except Exception:  # noqa: BLE001 - one user's rows must not end the job or show in a log: see below
            if count == 1:
                return np.zeros((1, self.size))
        # Somebody's rows made the pass fail. Who, is found one by one; then the pass is made again with a sound user in
        # their places: one of another shape would change the last bits of everybody else's update.
        sound = [i for i in range(count) if self._passes(weights, users, i, draws, seed)]
        rows = np.zeros((count, self.size))
        if sound:
            places = torch.tensor([i if i in sound else sound[0] for i in range(count)])
            try:
                made = self.compute(weights, {name: one[places] for name, one in users.items()}, draws, seed)
            except Exception:  # noqa: BLE001 - as above: a module that takes each of them, but not all together
                alone = [{name: one[i : i + 1] for name, one in users.items()} for i in range(count)]
                made = np.concatenate([self.rows(weights, one, draws, seed) for one in alone])
            rows[sound] = made[sound]
        return rows

    def _passes(self, weights: Weights, users: Tensors, place: int, draws: Tensors, seed: int) -> bool:
        one = {name: tensor[place : place + 1] for name, tensor in users.items()}
        try:
            self.compute(weights, one, draws, seed)
        except Exception:  # noqa: BLE001 - as in `rows`
            return False
        return True

    def compute(self, weights: Weights, users: Tensors, draws: Tensors, seed: int) -> Float64:
        """As `rows`, but raises what the module raises: for users that are invented."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self._wrapped is not None:
                return self._by_hooks(weights, users, draws)
            if self.engine == "functional":
                updates: Weights = self._batched(weights, users, draws)
                return _stacked(updates, self.names)
            count = next(iter(users.values())).shape[0]
            rows = []
            for i in range(count):
                torch.manual_seed(seed)
                rows.append(self._one({name: tensor[i : i + 1] for name, tensor in users.items()}, weights, draws))
            return np.concatenate(rows)

    def _local(self, weights: Weights, user: Tensors, draws: Tensors) -> Weights:
        one = {name: tensor.unsqueeze(0) for name, tensor in user.items()}

        def loss(current: Weights) -> torch.Tensor:
            return self._call(current, one, draws).sum()

        current = weights
        for _ in range(self.local_steps - 1):
            slope = grad(loss)(current)
            current = {name: current[name] - self.local_rate * slope[name] for name in self.names}
        slope = grad(loss)(current)
        # (w_0 - w_s) / rate, written so that one step is the gradient itself
        return {name: (weights[name] - current[name]) / self.local_rate + slope[name] for name in self.names}

    def _one(self, user: Tensors, weights: Weights, draws: Tensors) -> Float64:
        current = {name: weights[name].clone().requires_grad_(True) for name in self.names}
        for step in range(self.local_steps):
            slopes = torch.autograd.grad(
                self._call(current, user, draws).sum(), list(current.values()), allow_unused=True
            )
            slope = {
                name: torch.zeros_like(current[name]) if one is None else one.detach()
                for name, one in zip(self.names, slopes, strict=True)
            }
            if step + 1 < self.local_steps:
                current = {
                    name: (current[name].detach() - self.local_rate * slope[name]).requires_grad_(True)
                    for name in self.names
                }
        moved = {name: (weights[name] - current[name].detach()) / self.local_rate + slope[name] for name in self.names}
        return _stacked({name: one[None] for name, one in moved.items()}, self.names)

    def _call(self, weights: Weights, users: Tensors, draws: Tensors) -> torch.Tensor:
        named = {f"module.{name}": weights[name] for name in self.names}
        losses: torch.Tensor = functional_call(self._loss, named, (users, draws))
        return losses

    def _by_hooks(self, weights: Weights, users: Tensors, draws: Tensors) -> Float64:
        wrapped = self._wrapped
        if wrapped is None:
            raise StateError("got no hooks, expected engine opacus")
        own = dict(self.module.named_parameters())
        with torch.no_grad():
            for name in self.names:
                own[name].copy_(weights[name])
        count = next(iter(users.values())).shape[0]
        wrapped.enable_hooks()
        try:
            losses = self._code.loss(wrapped, users, draws, self._facts)
            _check_losses(losses, count)
            with warnings.catch_warnings():
                # What a first layer does whose inputs are data: as it should be.
                warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
                losses.sum().backward()  # type: ignore[no-untyped-call]
            rows = {}
            for name in self.names:
                each = getattr(own[name], "grad_sample", None)
                if each is None:
                    each = torch.zeros((count, *own[name].shape))
                if not isinstance(each, torch.Tensor) or each.shape != (count, *own[name].shape):
                    raise ConfigError(f"got per-user gradients of {name} in another shape, expected users first")
                rows[name] = each.detach()
            return _stacked(rows, self.names)
        finally:
            wrapped.disable_hooks()
            _forget_pass(self.module)


def gridded(rows: Float64, clip: float) -> Int64:
    """Each row clipped to L2 norm `clip` in integer steps of 2^-bits; rows that are not finite become zero.

    Sensitivity: a user adds one row of this, absent otherwise, and `to_grid` lets no row longer than
    floor(clip 2^bits) steps through, in integer arithmetic, whatever the module, its loss or its engine returned. A row
    that is not finite is one user's doing; to raise would tell everybody, so it counts as zero, which is in bounds.
    """
    finite = np.isfinite(rows).all(axis=1, keepdims=True)
    return to_grid(np.where(finite, rows, 0.0), clip, round_bits(clip))


def trainable_names(module: torch.nn.Module) -> list[str]:
    """Names of the trainable parameters, in the module's own order. Raises `ConfigError` without any or with others
    than float32."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not named:
        raise ConfigError("got a module without a trainable parameter, expected at least one")
    if any(parameter.dtype != torch.float32 for _, parameter in named):
        raise ConfigError("got trainable parameters that are not float32, expected float32")
    return [name for name, _ in named]


def trainable_size(module: torch.nn.Module) -> int:
    """How many trainable numbers a module has. Raises as `trainable_names`."""
    own = dict(module.named_parameters())
    return sum(own[name].numel() for name in trainable_names(module))


def refuse_mixing(module: torch.nn.Module, engine: Engine) -> None:
    """Raises `ConfigError` on layers that make one user's result depend on others (Opacus' ModuleValidator).

    With the engine "opacus", also on layers for which Opacus has no hook.
    """
    judged = module
    if engine != "opacus":
        judged = torch.nn.ModuleList([layer for layer in module.modules() if isinstance(layer, _NormBase)])
    was = {part: part.training for part in judged.modules()}
    judged.train()
    errors = ModuleValidator.validate(judged, strict=False)
    for part, training in was.items():
        part.training = training
    if errors:
        reasons = "; ".join(str(error).split(". ")[0] for error in errors[:3])
        raise ConfigError(f"got a module that cannot be trained per user: {reasons}")


def _hooked(module: torch.nn.Module) -> GradSampleModule:
    try:
        # Not strict: buffers of frozen layers are no harm; `check_module` compares the result with plain autograd.
        wrapped = GradSampleModule(module, loss_reduction="sum", strict=False)
    except (NotImplementedError, ValueError) as error:
        raise ConfigError(f"Opacus does not take the module: {str(error)[:200]}") from None
    # Opacus' hooks run where a layer is in training mode, dropout as well: the former without the latter.
    wrapped.eval()
    wrapped.disable_hooks()
    for layer in module.modules():
        layer.training = any(p.requires_grad for p in layer.parameters(recurse=False))
    return wrapped


def _forget_pass(module: torch.nn.Module) -> None:
    """Takes off what a pass of Opacus leaves behind, also one that broke off half way."""
    for layer in module.modules():
        for name in ("activations", "max_batch_len"):
            if hasattr(layer, name):
                delattr(layer, name)
    for parameter in module.parameters():
        parameter.grad = None
        for name, fresh in (("grad_sample", None), ("_forward_counter", 0)):
            if hasattr(parameter, name):
                setattr(parameter, name, fresh)
        if hasattr(parameter, "_current_grad_sample"):
            del parameter._current_grad_sample


def _check_losses(losses: torch.Tensor, users: int) -> None:
    if losses.shape != (users,):
        raise ConfigError(f"got a loss of shape {tuple(losses.shape)}, expected one number for each of {users} users")


def _stacked(updates: Weights, names: list[str]) -> Float64:
    rows = torch.cat([updates[name].detach().reshape(updates[name].shape[0], -1) for name in names], dim=1)
    return np.asarray(rows.to("cpu").numpy(), dtype=np.float64)
