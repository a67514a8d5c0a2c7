"""`veil privacy`: what a budget buys, and what a party has spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from cli.expectation import Expected
    from cli.privacy_plan import Plan
    from veil.privacy.history import JobSpending
    from veil.privacy.ledger import Ledger

app = typer.Typer(add_completion=False, no_args_is_help=True, help="What a budget buys, and what a party has spent.")

_TABLE_WIDTH = 110
_FORMATS = (".png", ".svg", ".pdf")
_MAX_MANIFEST_BYTES = 4 * 2**20

JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")]
PlotFile = Annotated[Path | None, typer.Option("--plot", help="Also draw this file: .png, .svg or .pdf.")]


@app.command()
def ledger(
    config: Annotated[Path, typer.Option("--config", help="The party's TOML file.")],
    releases: Annotated[bool, typer.Option("--releases", help="Every release on record, too.")] = False,
    json_file: JsonFile = None,
    plot: PlotFile = None,
) -> None:
    """What this party has spent, by job, and what is left. Reads the ledger only.

    "alone" is what a job would cost without all others; "added" by how much it raised the total, which is less, since
    budgets do not add up but compose. The plot shows the total over time against the limit.

    Example: veil privacy ledger --config deploy/party.toml --plot spent.png
    """
    from party.config import load
    from veil.jobs.spec import NEIGHBOURING
    from veil.privacy.history import by_job
    from veil.privacy.ledger import Ledger

    _check_plot(plot)
    settings = load(config)
    book = Ledger.existing(settings.state / "ledger.sqlite")
    jobs = by_job(book.entries(), book.delta)
    names = {job.job_id: _published_name(settings.state / "models" / job.job_id, job.digest) for job in jobs}
    console = _console()
    _show_jobs(console, jobs, names)
    if releases:
        _show_releases(console, book)
    left = max(0.0, book.epsilon_limit - book.spent())
    console.print(
        f"spent  epsilon {book.spent():.4f} of {book.epsilon_limit:g}, {left:.4f} below the limit, at delta"
        f" {book.delta:g}, per user, {NEIGHBOURING}",
        markup=False,
    )
    if json_file is not None:
        _write_json(json_file, _ledger_document(book, jobs, names))
    if plot is not None:
        from cli.privacy_plot import spent_over_time

        spent_over_time(book, names, plot)


@app.command()
def plan(
    epsilon: Annotated[float, typer.Option(help="Epsilon of the whole job.")],
    items: Annotated[int | None, typer.Option(min=1, max=10_000_000, help="Items of the catalogue.")] = None,
    features: Annotated[int, typer.Option(min=0, max=65_536, help="Public features of an item.")] = 200,
    users: Annotated[
        int | None, typer.Option(min=1, max=10**9, help="Users of all parties together, for what to expect.")
    ] = None,
    trainer: Annotated[Literal["subspace", "als", "gradient"], typer.Option(help="Which trainer.")] = "subspace",
    parameters: Annotated[
        int | None, typer.Option(min=1, max=2**26, help="gradient: trainable numbers of the module.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=0, max=1000, help="Rounds, instead of the trainer's own.")] = None,
    sampling: Annotated[
        float | None, typer.Option(help="gradient: probability with which a user takes part in a round.")
    ] = None,
    delta: Annotated[float, typer.Option(help="Delta of the whole job.")] = 1e-5,
    noise: Annotated[Literal["dealer", "parties"], typer.Option(help="Who draws the noise.")] = "dealer",
    colluding: Annotated[
        int | None, typer.Option(min=0, max=15, help="parties: how many may pool their draws; default all others.")
    ] = None,
    parties: Annotated[int, typer.Option(min=2, max=16, help="Number of parties.")] = 3,
    measured: Annotated[
        Path | None, typer.Option(help="Figures of `veil bench privacy` to expect by, instead of the built-in ones.")
    ] = None,
    json_file: JsonFile = None,
    plot: PlotFile = None,
) -> None:
    """What epsilon buys: the openings a job would make, their noise, and the utility to expect from measured figures.

    The plot shows epsilon against expected utility and against noise.

    Example: veil privacy plan --epsilon 3 --items 3706 --users 6000 --plot buys.png
    """
    from rich.table import Table

    from cli import expectation
    from cli.privacy_plan import Wish, document, expected, planned
    from veil.errors import ConfigError

    _check_plot(plot)
    if not 0 < epsilon <= 1000 or not 0 < delta < 0.01:
        raise ConfigError(f"got epsilon {epsilon:g}, delta {delta:g}, expected up to 1000, and above 0 and below 0.01")
    if colluding is not None and (noise != "parties" or colluding >= parties):
        raise ConfigError("got --colluding, expected it with --noise parties and below the number of parties")
    known = expectation.references(measured)
    chosen = planned(
        Wish(epsilon, delta, trainer, noise, parties, colluding, users, items, features, parameters, rounds, sampling)
    )
    table = Table("opening", "times", "shape", "sampling", "sensitivity", "noise", "noise multiplier")
    for first, last, count in chosen.groups():
        table.add_row(
            first.name if count == 1 else f"{first.name} to {last.name}",
            str(count),
            " x ".join(map(str, first.shape)),
            f"{first.sampling:g}",
            str(first.sensitivity),
            str(first.sigma),
            f"{first.sigma / first.sensitivity:.4g}",
        )
    console = _console()
    console.print(table)
    _show_plan(console, chosen)
    _show_expected(console, chosen, expected(chosen, known))
    if json_file is not None:
        _write_json(json_file, document(chosen, known))
    if plot is not None:
        from cli.privacy_plot import what_epsilon_buys

        what_epsilon_buys(chosen, known, plot)


def _show_jobs(console: Console, jobs: list[JobSpending], names: dict[str, str | None]) -> None:
    from rich.table import Table

    table = Table("job", "from (UTC)", "until", "releases")
    for heading in ("epsilon alone", "added", "total after"):
        table.add_column(heading, justify="right", no_wrap=True)
    for job in jobs:
        name = names[job.job_id]
        table.add_row(
            job.job_id[:8] if name is None else f"{name} ({job.job_id[:8]})",
            _minute(job.first_at),
            _minute(job.last_at),
            str(job.releases),
            f"{job.epsilon:.4f}",
            f"{job.added:.4f}",
            f"{job.total:.4f}",
        )
    console.print(table)


def _show_releases(console: Console, book: Ledger) -> None:
    from rich.table import Table

    table = Table("job", "release", "mechanism", "sampling", "sensitivity", "noise", "noise multiplier")
    for entry in book.entries():
        release = entry.release
        multiplier = release.sigma / release.sensitivity
        table.add_row(
            *(entry.job_id[:8], release.name, release.mechanism, f"{release.sampling:g}"),
            *(str(release.sensitivity), str(release.sigma), f"{multiplier:.4g}"),
        )
    console.print(table)


def _show_plan(console: Console, plan: Plan) -> None:
    from cli.job_view import size
    from cli.privacy_plan import draw_variance, mean_update_noise
    from veil.jobs.spec import NEIGHBOURING

    drawn = "one draw by the dealer"
    if plan.wish.noise == "parties":
        drawn = f"a draw by each party, {draw_variance(plan.wish):.3g} times that variance on the total"
    kept = ("dimensions", "content_dimensions", "rounds", "clip", "sampling", "parameters")
    facts = {name: value for name, value in plan.trainer.model_dump().items() if name in kept}
    lines = [
        f"epsilon  {plan.epsilon:.4f} at delta {plan.wish.delta:g} per user, {NEIGHBOURING}",
        f"opened   {plan.numbers:,} numbers ({size(8 * plan.numbers)}) in {len(plan.releases)} openings",
        f"noise    {drawn}",
        f"trainer  {plan.trainer.kind}: " + ", ".join(f"{name} {value:g}" for name, value in facts.items()),
    ]
    update = mean_update_noise(plan)
    if update is not None:
        lines.append(f"rounds   noise on the mean update: {update:.3g} times the clipping norm (L2), in the last round")
    if plan.wish.trainer == "gradient" and plan.wish.noise == "parties" and plan.wish.users is None:
        lines.append("rounds   pass --users for the noise on the mean update")
    console.print("\n".join(lines), markup=False)


def _show_expected(console: Console, plan: Plan, expected: list[Expected]) -> None:
    from rich.table import Table

    if plan.wish.trainer == "gradient":
        console.print("expected not stated: it depends on the module; measure it on public data", markup=False)
        return
    if not expected:
        console.print("expected pass --users, the number of users of all parties together", markup=False)
        return
    table = Table("measured on", "users", "trainer", title="what to expect", title_justify="left")
    for heading in ("gain kept", "HR@10", "plaintext", "best-sellers"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in expected:
        reference = one.reference
        table.add_row(
            *(reference.data, f"{reference.users:,}", reference.trainer),
            (f"{one.share:.0%}" if one.share > 0 else "below") + ("" if one.measured else " *"),
            *(f"{value:.3f}" for value in (one.hr_at_10, reference.plaintext, reference.popularity)),
        )
    console.print(table)
    console.print(
        f"At a noise of {plan.ratio:.2g} times the number of users, as in this plan. gain kept: share of the plaintext"
        " model's gain\nover best-sellers; below: best-sellers are better. *: beyond the noise that was measured there,"
        " the nearest figure.\nRead off figures on public data (docs/benchmarks.md). Yours will differ: long histories"
        " and good item texts are like\nMovieLens, short ones like Amazon.",
        markup=False,
    )


def _published_name(directory: Path, digest: bytes) -> str | None:
    """The job's name by the manifest that this party published for it; None where there is none."""
    from veil.errors import VeilError
    from veil.files import read_bounded

    try:
        manifest = json.loads(read_bounded(directory / "manifest.json", _MAX_MANIFEST_BYTES))
    except (OSError, ValueError, RecursionError, VeilError):
        return None
    if not isinstance(manifest, dict) or manifest.get("job_digest") != f"sha256:{digest.hex()}":
        return None
    name = manifest.get("name")
    return name if isinstance(name, str) and name.isprintable() and len(name) <= 48 else None


def _ledger_document(book: Ledger, jobs: list[JobSpending], names: dict[str, str | None]) -> dict[str, object]:
    return {
        "epsilon_limit": book.epsilon_limit,
        "delta": book.delta,
        "spent": book.spent(),
        "limits": [
            {"epsilon_limit": change.epsilon_limit, "delta": change.delta, "at": change.recorded_at}
            for change in book.limit_changes()
        ],
        "jobs": [
            {
                "job_id": job.job_id,
                "name": names[job.job_id],
                "digest": job.digest.hex(),
                "first_at": job.first_at,
                "last_at": job.last_at,
                "releases": job.releases,
                "epsilon_alone": job.epsilon,
                "epsilon_added": job.added,
                "total_after": job.total,
            }
            for job in jobs
        ],
        "releases": [
            {"job_id": entry.job_id, "at": entry.recorded_at, **entry.release.model_dump(mode="json")}
            for entry in book.entries()
        ],
    }


def _console() -> Console:
    from rich.console import Console

    # A table whose numbers are cut off is of no use: a narrow terminal wraps it instead.
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, _TABLE_WIDTH)
    return console


def _check_plot(path: Path | None) -> None:
    from veil.errors import ConfigError

    if path is not None and path.suffix.lower() not in _FORMATS:
        raise ConfigError(f"got {path.name}, expected a name that ends in {', '.join(_FORMATS)}")


def _write_json(path: Path, figures: dict[str, object]) -> None:
    from veil.files import write_atomic

    write_atomic(path, (json.dumps(figures, indent=2, allow_nan=False) + "\n").encode())


def _minute(moment: str) -> str:
    return moment[:16].replace("T", " ")
