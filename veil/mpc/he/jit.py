"""How kernels of homomorphic encryption between parties are compiled: `veil.jit`; each runs on one thread."""

from __future__ import annotations

from pathlib import Path

from veil.jit import compiler, small

__all__ = ["kernel", "small"]

_PACKAGE = Path(__file__).resolve().parent


def _sources() -> list[Path]:
    # Those with kernels, and what they take constants from.
    marked = [path for path in _PACKAGE.glob("*.py") if b"veil.mpc.he.jit" in path.read_bytes()]
    return [*marked, _PACKAGE / "ring.py"]


kernel = compiler(_PACKAGE, "he-kernels", _sources()).kernel
