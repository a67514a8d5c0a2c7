"""`veil privacy`: what a budget buys, and what a party has spent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help="What a budget buys, and what a party has spent.")


@app.command()
def ledger(
    config: Annotated[Path, typer.Option("--config", help="The party's TOML file.")],
) -> None:
    """Every release on record at this party, and what they compose to. Reads the ledger only.

    Example: veil privacy ledger --config deploy/party.toml
    """
    from rich.console import Console
    from rich.table import Table

    from party.config import load
    from veil.jobs.spec import NEIGHBOURING
    from veil.privacy.ledger import Ledger

    settings = load(config)
    book = Ledger.existing(settings.state / "ledger.sqlite")
    table = Table("job", "release", "sensitivity", "noise", "noise multiplier")
    for entry in book.entries():
        release = entry.release
        multiplier = release.sigma / release.sensitivity
        table.add_row(entry.job_id[:8], release.name, str(release.sensitivity), str(release.sigma), f"{multiplier:.3f}")
    console = Console()
    console.print(table)
    console.print(
        f"spent: epsilon {book.spent():.4f} of {book.epsilon_limit:g} at delta {book.delta:g}, per user, {NEIGHBOURING}"
    )


@app.command()
def plan(
    epsilon: Annotated[float, typer.Option(help="Epsilon of the whole job.")],
    items: Annotated[int, typer.Option(min=1, max=10_000_000, help="Items of the catalogue.")],
    features: Annotated[int, typer.Option(min=1, max=100_000, help="Public features of an item.")] = 200,
    delta: Annotated[float, typer.Option(help="Delta of the whole job.")] = 1e-5,
    noise: Annotated[Literal["dealer", "parties"], typer.Option(help="Who draws the noise.")] = "dealer",
    parties: Annotated[int, typer.Option(min=2, max=16, help="Number of parties.")] = 3,
) -> None:
    """The openings that a job would make, and the noise on each.

    Example: veil privacy plan --epsilon 3 --items 3706
    """
    from rich.console import Console
    from rich.table import Table

    from veil.jobs.spec import NEIGHBOURING
    from veil.privacy import accountant
    from veil.trainers.subspace.plan import plan_subspace

    trainer, releases = plan_subspace(
        epsilon=epsilon, delta=delta, noise_source=noise, parties=parties, items=items, features=features
    )
    table = Table("opening", "shape", "sensitivity", "noise", "noise multiplier")
    for release in releases:
        multiplier = release.sigma / release.sensitivity
        shape = " x ".join(map(str, release.shape))
        table.add_row(release.name, shape, str(release.sensitivity), str(release.sigma), f"{multiplier:.3f}")
    console = Console()
    console.print(table)
    spent = accountant.epsilon(releases, delta)
    console.print(f"epsilon  {spent:.4f} at delta {delta:g} per user, {NEIGHBOURING}")
    console.print(
        f"trainer  {trainer.kind}, {trainer.dimensions} dimensions, {trainer.content_dimensions} of public features, "
        f"{trainer.rounds} round{'' if trainer.rounds == 1 else 's'}",
        highlight=False,
    )
