"""`veil coordinator` and `veil dealer`: the same as `python -m coordinator` and `python -m dealer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Option("--config", help="TOML file; deploy/ has one with a comment on every key.")]


def coordinator(config: Config) -> None:
    """Run the coordinator: it plans and watches jobs and sees no data.

    Example: veil coordinator --config deploy/coordinator.toml
    """
    from coordinator.__main__ import run

    run(config)


def dealer(config: Config) -> None:
    """Run the dealer: it hands out correlated randomness and sees shapes only. Not on a party's machine.

    Example: veil dealer --config deploy/dealer.toml
    """
    from dealer.__main__ import main

    raise typer.Exit(main(["--config", str(config)]))
