"""Configuration files: one TOML file of bounded size becomes one frozen, checked object, read once at start.

Guarantee: unknown keys, wrong types and numbers out of range are errors that name the key; nothing else is read later.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from veil.errors import ConfigError, InputError
from veil.files import read_bounded
from veil.jobs.spec import describe

MAX_BYTES = 64 * 1024

Address = Annotated[str, StringConstraints(pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]{1,253}):[0-9]{1,5}$")]
"""host:port or [IPv6]:port."""


class Section(BaseModel):
    """A table of a configuration file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Settings = TypeVar("Settings", bound=BaseModel)


def read(path: Path, kind: type[Settings], *, explained_in: str) -> Settings:
    """The file as a checked `kind`. Raises `ConfigError`; `explained_in` names the example that explains every key."""
    try:
        document = tomllib.loads(read_bounded(path, MAX_BYTES).decode("utf-8"))
    except InputError as error:
        raise ConfigError(error.message, hint=f"{explained_in} is an example") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: got text that is not TOML: {error}") from None
    return check(document, kind, source=str(path), explained_in=explained_in)


def check(document: object, kind: type[Settings], *, source: str, explained_in: str) -> Settings:
    """A parsed document as a checked `kind`. Raises `ConfigError` that names each wrong key."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{source}: {describe(error)}", hint=f"{explained_in} explains every key") from None
