"""Module files: found by name in a party's own configuration, checked by digest, executed in a worker.

Guarantee: `load_code` executes bytes only after it has compared their SHA-256 with the one that the job names, and it
executes the very bytes that it compared. `check_source` compares and executes nothing. A job therefore trains code that
every party has placed on its own machine, listed by name, and signed for by digest.

The digest is of one file. What that file imports (torch, a transformer library, weights in a folder) is as trusted as
the party's own environment; a module file that must be the same everywhere imports installed packages alone.
`veil.trainers.gradient.contract` says what a module file defines.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

from veil.errors import ConfigError, InputError, PolicyError
from veil.files import read_bounded
from veil.jobs.spec import GradientTrainer

if TYPE_CHECKING:
    # Not at run time: a daemon checks digests without torch.
    from veil.trainers.gradient.contract import ModuleCode

MAX_SOURCE_BYTES: Final = 1024 * 1024
_NEEDED: Final = ("build", "example", "loss")


def source_digest(path: Path) -> str:
    """`sha256:` and the SHA-256 of a module file. Raises `InputError` when it cannot be read."""
    return _digest(read_bounded(path, MAX_SOURCE_BYTES))


def check_source(trainer: GradientTrainer, modules: Mapping[str, Path]) -> bytes:
    """The bytes of the module file that a job names, when this party lists it and it has the job's digest.

    modules: name to file, from the party's configuration. Executes nothing. Raises `PolicyError`.
    """
    path = modules.get(trainer.module)
    if path is None:
        raise PolicyError(
            f"got a job on module {trainer.module!r}, expected one that this party lists",
            hint="[modules] in the party's config, after reading the file",
        )
    try:
        source = read_bounded(path, MAX_SOURCE_BYTES)
    except InputError as error:
        raise PolicyError(f"module {trainer.module!r}: {error.message}", hint="see [modules]") from None
    found = _digest(source)
    if found != trainer.module_sha256:
        raise PolicyError(
            f"got a job on module {trainer.module!r} with {trainer.module_sha256[:23]}…, expected {found[:23]}…",
            hint="the file listed under [modules] is another version",
        )
    return source


def load_code(trainer: GradientTrainer, modules: Mapping[str, Path]) -> ModuleCode:
    """Checks as `check_source`, then executes the file. Raises `PolicyError`, `ConfigError`."""
    return execute(check_source(trainer, modules), trainer.module)


def read_code(path: Path, name: str) -> tuple[ModuleCode, str]:
    """Executes one's own module file, for planning and for evaluation; returns its code and its digest."""
    source = read_bounded(path, MAX_SOURCE_BYTES)
    return execute(source, name), _digest(source)


def execute(source: bytes, name: str) -> ModuleCode:
    """Runs the bytes of a module file as a Python module of their own. Raises `ConfigError`."""
    module = ModuleType(f"veil_module_{name.replace('-', '_')}_{hashlib.sha256(source).hexdigest()[:16]}")
    # dataclasses and torch look a class's module up by name
    sys.modules[module.__name__] = module
    try:
        code = compile(source, f"<module {name}>", "exec", dont_inherit=True)
        exec(code, module.__dict__)  # noqa: S102 - the file is trusted by digest and by the party's own list, see above
    except Exception as error:  # noqa: BLE001 - a foreign file may raise anything
        del sys.modules[module.__name__]
        raise ConfigError(f"module {name!r} does not load: {type(error).__name__}: {str(error)[:200]}") from None
    missing = [need for need in _NEEDED if not callable(getattr(module, need, None))]
    if missing:
        raise ConfigError(f"module {name!r} lacks {', '.join(missing)}, expected functions of these names")
    return module


def _digest(source: bytes) -> str:
    return f"sha256:{hashlib.sha256(source).hexdigest()}"
