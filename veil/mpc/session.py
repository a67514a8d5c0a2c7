"""The only file that imports CrypTen: makes its process-wide state fit for use between organisations, for one session.

CrypTen 0.4.1 supplies the sharing and the protocols. From import on, in this process:
  - trusted-first-party, third-party and homomorphic providers raise, as do replicated sharing and `crypten.init`;
  - every share and mask comes from AES-256 streams (`veil.mpc.randomness`); outside of a session drawing raises;
  - opening a shared tensor raises `RevealError`, except for Beaver's masked differences within CrypTen's own
    protocols, and what the session opens because the job lists it;
  - decoding is exact (`veil.mpc.fixedpoint`).
Guarantee of `Session`: nothing that depends on a party's data leaves it other than uniformly masked, and nothing
opens that the job does not list. CrypTen's state is global, so a process holds one session at a time.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor

from veil.errors import InputError, PolicyError, RevealError, StateError
from veil.jobs.spec import Release
from veil.mpc import fixedpoint
from veil.mpc.communicator import LIMIT_BYTES, TensorCommunicator
from veil.mpc.keys import agree_on_streams
from veil.mpc.policy import Opening, Refused, RevealPolicy
from veil.mpc.provider import DealerProvider
from veil.mpc.randomness import KEY_BYTES, RingSource, RingStream, SummedStreams

# CrypTen reads a module that torch no longer has; an empty one is enough for all but ONNX import.
sys.modules.setdefault("torch.onnx.symbolic_registry", types.ModuleType("torch.onnx.symbolic_registry"))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # invalid escapes and deprecations within CrypTen
    import crypten
    import crypten.communicator
    import crypten.encoder
    import crypten.mpc
    import crypten.mpc.primitives.arithmetic
    import crypten.mpc.primitives.beaver
    import crypten.mpc.primitives.binary
    from crypten.mpc import MPCTensor
    from crypten.mpc.primitives import ArithmeticSharedTensor, BinarySharedTensor

SharedTensor = Any  # crypten.mpc.MPCTensor, which has no types
_CPU = torch.device("cpu")
_MASKED = (
    "mul",
    "matmul",
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "square",
    "AND",
    "B2A_single_bit",
)
_log = logging.getLogger("veil.mpc")


class Session:
    """One party's part in the secure computation of one job; use as a context manager.

    `releases` and `openings` are everything that may be opened; `job_digest` binds the keys to the signed job.
    """

    def __init__(
        self,
        communicator: TensorCommunicator,
        provider: DealerProvider,
        *,
        job_digest: bytes,
        releases: Sequence[Release] = (),
        openings: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        if len(job_digest) != KEY_BYTES:
            raise InputError(f"got a job digest of {len(job_digest)} bytes, expected {KEY_BYTES}")
        self._communicator = communicator
        self._provider = provider
        self._digest = job_digest
        self._policy = RevealPolicy(releases, openings or {})

    def __repr__(self) -> str:
        return f"Session(rank={self._communicator.rank}, world_size={self._communicator.world_size})"

    def __enter__(self) -> Self:
        if _State.communicator is not None:
            raise StateError("got a second session, expected one at a time in a process: CrypTen's state is global")
        generators = agree_on_streams(self._communicator, self._digest)
        _State.communicator, _State.provider = self._communicator, self._provider
        for name, source in generators.items():
            crypten.generators[name] = {_CPU: source}
        crypten.cfg.mpc.provider, crypten.cfg.mpc.protocol = "DEALER", "beaver"
        crypten.cfg.debug.debug_mode = crypten.cfg.debug.validation_mode = crypten.cfg.mpc.active_security = False
        return self

    def __exit__(self, *_: object) -> None:
        _State.communicator = _State.provider = None
        _State.opening = 0
        for name in crypten.generators:
            crypten.generators[name] = {}

    # Sharing and opening ------------------------------------------------------------------------------------------

    @property
    def openings(self) -> tuple[Opening, ...]:
        """Everything opened so far, in order."""
        return self._policy.log

    def share(self, tensor: Tensor | None, src: int, size: Sequence[int], precision: int | None = None) -> SharedTensor:
        """`src`'s tensor of shape `size` as a shared tensor; the others pass None. Nothing is sent.

        Floats stand as fixed-point numbers with `precision` bits (CrypTen's 16 by default); 0 for ring elements.
        """
        own = src == self._communicator.rank
        if own and (tensor is None or tuple(tensor.shape) != tuple(size)):
            raise InputError(f"got another tensor at the source, expected shape {tuple(size)}")
        dtype = torch.int64 if precision == 0 else torch.float32
        value = tensor if own and tensor is not None else torch.zeros(tuple(size), dtype=dtype)
        return MPCTensor(value, src=src, precision=precision)

    def open(self, name: str, tensor: SharedTensor) -> Tensor:
        """A listed opening, at every party: float64, decoded exactly; int64 where the precision is 0."""
        self._policy.admit_opening(name, tuple(tensor.share.shape))
        self._communicator.agree(f"open/{name}".encode())
        with _opening():
            ring: Tensor = tensor.reveal()
        self._policy.record(name, "plain", ring)
        bits = tensor.encoder._precision_bits
        return fixedpoint.decode(ring, bits) if bits else ring

    def open_noised_sum(
        self, release: Release, own: Tensor, noise_share: Tensor, permit: Callable[[Release], None]
    ) -> Tensor:
        """The sum of all parties' `own` plus all their noise shares, int64 of the release's shape, at every party.

        (1) every party shares its tensor; nothing is sent for that, shares of zero come from the pairwise streams;
        (2) shares are summed and the noise share is added, all locally: the noise is inside the sharing;
        (3) `permit` (the daemon's ledger: pay, then release) is called and raises to refuse;
        (4) the parties tell each other that they were permitted to open this release, so a refusal stops all;
        (5) only then do the shares go out, and every party adds them up.
        """
        for what, tensor in (("own sum", own), ("noise share", noise_share)):
            if tensor.dtype != torch.int64 or tuple(tensor.shape) != release.shape:
                got = f"{tensor.dtype} {tuple(tensor.shape)}"
                raise InputError(f"got {got} as {what}, expected torch.int64 {release.shape}")
        self._policy.admit_release(release)
        total = torch.zeros(release.shape, dtype=torch.int64)
        for src in range(self._communicator.world_size):  # (1), (2)
            total += self.share(own if src == self._communicator.rank else None, src, release.shape, precision=0).share
        noised = ArithmeticSharedTensor.from_shares(total + noise_share, precision=0)
        permit(release)  # (3)
        statement = f"release/{release.model_dump_json()}".encode()
        self._communicator.agree(self._digest + statement)  # (4)
        with _opening():  # (5)
            opened: Tensor = noised.reveal()
        self._policy.record(release.name, release.mechanism, opened)
        return opened

    def broadcast_public(
        self, value: Tensor | bytes | None, src: int, limit_bytes: int = LIMIT_BYTES
    ) -> Tensor | bytes:
        """`src`'s tensor or bytes at every party; the others pass None. For what is public already: post-processing
        of openings. Bytes come back as bytes, tensors as tensors. Logged by digest."""
        tensor = value
        if isinstance(value, bytes):
            # An unusual dtype marks bytes: no public state is int8.
            tensor = torch.frombuffer(bytearray(value), dtype=torch.int8) if value else torch.empty(0, dtype=torch.int8)
        elif value is not None and value.dtype == torch.int8:
            raise InputError("got an int8 tensor, expected another dtype: int8 marks bytes here")
        public = self._communicator.broadcast_public(tensor if isinstance(tensor, Tensor) else None, src, limit_bytes)
        digest = hashlib.sha256(public.contiguous().numpy().tobytes()).hexdigest()
        _log.info(
            "public %s %s from %s: sha256:%s", public.dtype, list(public.shape), self._communicator.names[src], digest
        )
        return public.numpy().tobytes() if public.dtype == torch.int8 else public

    def all_gather_bytes(self, data: bytes, limit_bytes: int = 2**20) -> list[bytes]:
        """Every party's public bytes (signatures, digests) in rank order."""
        return self._communicator.all_gather_bytes(data, limit_bytes)

    def barrier(self) -> None:
        """Returns when every party has called it."""
        self._communicator.barrier()


# What CrypTen meets in this process -----------------------------------------------------------------------------------


class _State:
    """The process's one session. `opening` counts nested permissions to open."""

    communicator: TensorCommunicator | None = None
    provider: DealerProvider | None = None
    opening = 0


@contextmanager
def _opening() -> Iterator[None]:
    _State.opening += 1
    try:
        yield
    finally:
        _State.opening -= 1


def _active_communicator() -> TensorCommunicator:
    if _State.communicator is None:
        raise StateError("got a call into CrypTen outside of a session, expected `with Session(...)`")
    return _State.communicator


class _Provider:
    """The dealer's shares as CrypTen's tensors."""

    def __init__(self, source: DealerProvider) -> None:
        self._source = source

    def generate_additive_triple(self, size0: Any, size1: Any, op: str, device: Any = None, **kwargs: Any) -> Any:
        return [_arithmetic(part) for part in self._source.generate_additive_triple(size0, size1, op, **kwargs)]

    def square(self, size: Any, device: Any = None) -> Any:
        return [_arithmetic(part) for part in self._source.square(size)]

    def generate_binary_triple(self, size0: Any, size1: Any, device: Any = None) -> Any:
        return [_binary(part) for part in self._source.generate_binary_triple(size0, size1)]

    def wrap_rng(self, size: Any, device: Any = None) -> Any:
        return [_arithmetic(part) for part in self._source.wrap_rng(size)]

    def B2A_rng(self, size: Any, device: Any = None) -> Any:
        additive, binary = self._source.B2A_rng(size)
        return _arithmetic(additive), _binary(binary)


def _arithmetic(share: Tensor) -> Any:
    return ArithmeticSharedTensor.from_shares(share, precision=0)


def _binary(share: Tensor) -> Any:
    return BinarySharedTensor.from_shares(share, precision=0)


def _provider() -> _Provider:
    if _State.provider is None or crypten.cfg.mpc.provider != "DEALER":
        raise PolicyError(
            f"got provider {crypten.cfg.mpc.provider!r}, expected the dealer within a session",
            hint="a trusted first party would see everything",
        )
    return _Provider(_State.provider)


def _draw(size: Any, generator: RingSource | None, options: dict[str, Any]) -> tuple[RingSource, tuple[int, ...]]:
    if torch.device(options.get("device") or _CPU) != _CPU:
        raise InputError("got a device other than the CPU, expected the CPU")
    source = generator if generator is not None else crypten.generators["local"].get(_CPU)
    if source is None:
        raise StateError("got a draw of randomness outside of a session, expected `with Session(...)`")
    if not isinstance(source, RingStream | SummedStreams):
        raise PolicyError(f"got a generator of type {type(source).__name__}, expected an AES-256 stream")
    return source, (size,) if isinstance(size, int) else tuple(size)


def _random_ring(size: Any, ring_size: int = 2**64, generator: RingSource | None = None, **options: Any) -> Tensor:
    if ring_size != 2**64:
        raise InputError(f"got a ring of {ring_size} elements, expected 2^64")
    source, shape = _draw(size, generator, options)
    return source.ring(shape)


def _random_bits(
    size: Any, bitlength: int | None = None, generator: RingSource | None = None, **options: Any
) -> Tensor:
    source, shape = _draw(size, generator, options)
    return source.bits(shape, 64 if bitlength is None else bitlength)


def _masked(protocol: Callable[..., Any]) -> Callable[..., Any]:
    """Within CrypTen's Beaver protocols, what is opened is masked by a uniform value that nobody knows."""

    @functools.wraps(protocol)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _opening():
            return protocol(*args, **kwargs)

    return run


def _guarded(reveal: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(reveal)
    def run(*args: Any, **kwargs: Any) -> Any:
        if _State.opening == 0:
            raise RevealError("got an opening that the job does not list, expected Session.open or open_noised_sum")
        return reveal(*args, **kwargs)

    return run


def _decode(encoder: Any, tensor: Tensor | None) -> Tensor | None:
    if tensor is None or encoder._scale == 1:
        return tensor
    return fixedpoint.decode(tensor, encoder._precision_bits, torch.float32)


def _shape_only(shared: Any) -> str:
    """CrypTen would print the share."""
    return f"{type(shared).__name__}(shape={tuple(shared.share.shape)})"


def _install() -> None:
    communicator = crypten.communicator
    communicator.get = _active_communicator
    communicator.is_initialized = lambda: _State.communicator is not None
    communicator._init = communicator.uninit = Refused("CrypTen's own communicators")
    crypten.init = crypten.init_thread = crypten.uninit = crypten.manual_seed = Refused("crypten.init")
    crypten.is_initialized = communicator.is_initialized
    for name in crypten.generators:
        crypten.generators[name] = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("crypten"):
            if hasattr(module, "generate_random_ring_element"):
                module.generate_random_ring_element = _random_ring  # type: ignore[attr-defined]
            if hasattr(module, "generate_kbit_random_tensor"):
                module.generate_kbit_random_tensor = _random_bits  # type: ignore[attr-defined]
    crypten.mpc.get_default_provider = _provider
    setattr(crypten.mpc, "__SUPPORTED_PROVIDERS", Refused("CrypTen's providers"))
    for provider in (crypten.mpc.provider.TrustedFirstParty, crypten.mpc.provider.TrustedThirdParty):
        for method in ("generate_additive_triple", "square", "generate_binary_triple", "wrap_rng", "B2A_rng"):
            setattr(provider, method, Refused(f"the {provider.NAME} provider"))
    for name in ("TrustedFirstParty", "TrustedThirdParty", "TTPServer", "HomomorphicProvider"):
        setattr(crypten.mpc.provider, name, Refused(f"CrypTen's {name}"))
    crypten.mpc.primitives.arithmetic.replicated = Refused("replicated sharing")
    beaver = crypten.mpc.primitives.beaver
    for name in _MASKED:
        setattr(beaver, name, _masked(getattr(beaver, name)))
    for kind in (ArithmeticSharedTensor, BinarySharedTensor, MPCTensor):
        kind.__repr__ = _shape_only
    for kind in (ArithmeticSharedTensor, BinarySharedTensor):
        kind.reveal = _guarded(kind.reveal)
        kind.reveal_batch = staticmethod(_guarded(kind.reveal_batch))
    crypten.encoder.FixedPointEncoder.decode = _decode


_install()
