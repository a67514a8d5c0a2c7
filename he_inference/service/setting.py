"""How a compute process computes, and what of the environment it inherits for that.

Guarantee: paths and locale, numbers of threads, and with an engine that needs it what names its cluster or its device;
nothing else that the server's environment holds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import he_inference

_INHERITED = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT", "NUMBA_CACHE_DIR")


@dataclass(frozen=True, slots=True)
class Setting:
    """How a process computes.

    threads: 0 for one on each core that may be used. kernels: a folder for compiled kernels, for where the package's
    own cannot be written. ray: fields of `he_inference.engine.ray_settings.RaySettings`; cuda: the number of a GPU.
    Both None: in the process itself.
    """

    threads: int = 0
    kernels: Path | None = None
    ray: Mapping[str, Any] | None = None
    cuda: int | None = None

    def environment(self) -> dict[str, str]:
        """What the process inherits of the environment."""
        return environment(self.threads, self.kernels) | _of_engine(self)


def environment(threads: int, kernels: Path | None) -> dict[str, str]:
    """What a process that computes inherits of the environment; arguments as of `Setting`."""
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    package = Path(he_inference.__file__).resolve().parent
    if kernels is not None and not os.access(package / "ring", os.W_OK):
        kept.setdefault("NUMBA_CACHE_DIR", str(kernels))
    count = str(threads or _cores())
    return kept | {
        "NUMBA_NUM_THREADS": count,
        "OMP_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": str(package.parent),
    }


def _of_engine(setting: Setting) -> dict[str, str]:
    """What an engine has from the environment and from nowhere else."""
    kept: dict[str, str] = {}
    if setting.ray is not None:
        # Certificates and token; HOME is where the token may lie.
        kept |= {name: value for name, value in os.environ.items() if name.startswith("RAY_") or name == "HOME"}
    if setting.cuda is not None:
        # Which devices there are, and where the toolkit lies. Kernels are kept beside ours: a service's user may have
        # no home to write to.
        if setting.kernels is not None:
            kept |= {
                "TRITON_CACHE_DIR": str(setting.kernels / "triton"),
                "CUDA_CACHE_PATH": str(setting.kernels / "cuda"),
            }
        kept |= {name: value for name, value in os.environ.items() if name.startswith(("CUDA_", "TRITON_"))}
    return kept


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
