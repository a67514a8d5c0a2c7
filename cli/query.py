"""`veil query`: aggregate questions over all parties' users, and their answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from veil.jobs.spec import JobSpec
    from veil.queries.answers import Answer, Published

_TABLE_WIDTH = 120

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="""Aggregate questions over all parties' users: plan, ask, show the answers.

    Counts, histograms over the catalogue and popularity by category, with Laplace or Gaussian noise, under a bound on
    what one user can count, paid for from every party's ledger. deploy/query.toml has a comment on every key; a query
    is a job, so `veil job watch`, `show` and `cancel` work on it too.
    """,
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The questions; deploy/query.toml explains every key.")]


@app.command()
def plan(
    file: File,
    text: Annotated[bool, typer.Option("--text", help="Also show the text that the parties would sign.")] = False,
) -> None:
    """What the questions would cost and how much noise their answers would carry. Sends nothing.

    Example: veil query plan deploy/query.toml
    """
    from rich.console import Console

    from cli.job_client import plan_job
    from veil.privacy.accountant import epsilon

    spec = plan_job(file, "plan")
    # A table whose numbers are cut off is of no use: a narrow terminal wraps it instead.
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, _TABLE_WIDTH)
    console.print(_plan_table(spec))
    draws = (
        f"{len(spec.parties)} draws on each value, one by each party" if _parties_draw(spec) else "drawn by the dealer"
    )
    console.print(f"noise    {draws}", markup=False)
    console.print(
        f"privacy  epsilon {epsilon(spec.releases, spec.privacy.delta):.4f} at delta {spec.privacy.delta:g} "
        f"(asked for: {spec.privacy.epsilon:g}), unit: one user with all rows at all times, "
        f"neighbours: {spec.privacy.neighbouring}",
        markup=False,
    )
    if text:
        print(spec.text())


@app.command()
def ask(
    file: File,
    coordinator: Annotated[
        str, typer.Option("--coordinator", envvar="VEIL_COORDINATOR", help="host:port of the coordinator.")
    ],
    credentials: Annotated[
        Path,
        typer.Option(
            "--credentials", envvar="VEIL_CREDENTIALS", help="Directory with the operator's key and certificate."
        ),
    ],
    name: Annotated[
        str, typer.Option("--coordinator-name", help="Name that the coordinator's certificate must carry.")
    ] = "main",
    watch: Annotated[bool, typer.Option(help="Stay and show progress until the job ends.")] = True,
) -> None:
    """Propose the questions to the parties and follow the job until the answers are published.

    Every party checks, signs, pays from its own ledger and keeps the answers in its state folder, in models/JOB; any
    copy will do for `veil query show`.

    Example: veil query ask query.toml --coordinator coordinator.example.org:7000 --credentials credentials
    """
    import sys

    from cli.job_client import Desk, plan_job, submit_job, watch_job
    from cli.job_view import show_live, show_plainly
    from veil.identity.credentials import Credentials

    own = Credentials.load(credentials)
    spec = plan_job(file, own.identity.consortium)
    _only_questions(spec)
    desk = Desk(coordinator, own, name)
    job = submit_job(desk, spec)
    print(f"job     {job.job_id}\ndigest  {job.digest.hex()}", flush=True)
    if watch:
        show = show_live if sys.stdout.isatty() else show_plainly
        try:
            show(watch_job(desk, job.job_id))
        except KeyboardInterrupt:
            print(f"\nthe job goes on; see it again with: veil job watch {job.job_id}")


@app.command()
def show(
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="Published answers: models/JOB in a party's state folder.")
    ],
    authority: Annotated[Path, typer.Option(help="The consortium's authority.pem.")],
    signers: Annotated[
        str, typer.Option(help="Parties that must have signed, with commas; those of the job are always required.")
    ] = "",
    top: Annotated[int, typer.Option(min=1, help="Show this many groups of a question, largest first.")] = 20,
    plot: Annotated[
        Path | None, typer.Option(help="Write bars with their intervals to this file (.png, .svg).")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the verified answers to this file.")] = None,
) -> None:
    """Verify the parties' signatures and show the answers, each with the interval that its noise asks for.

    The interval covers the noise with probability 95%, for one value. It does not cover what the bounds cut off: users
    with more groups or interactions than a question admits are counted only up to its bounds.

    Example: veil query show state/models/3f0c --authority authority.pem --plot answers.png
    """
    from rich.console import Console

    from veil.files import write_atomic
    from veil.identity.certificates import read_pem
    from veil.identity.names import Identity, Role
    from veil.queries.answers import Answers, load_answers, to_bytes

    authority_pem = read_pem(authority)
    published = load_answers(directory, authority_pem)
    if signers:
        consortium = published.manifest.consortium
        wanted = [Identity(consortium, Role.PARTY, name.strip()) for name in signers.split(",")]
        published = load_answers(directory, authority_pem, require_signers=wanted)
    console = Console(highlight=False)
    for answer in published.answers:
        console.print(_answer_table(answer, top))
        for line in _answer_lines(answer, top):
            console.print(line, style="dim", markup=False)
        console.print()
    for line in _manifest_lines(published):
        console.print(line, markup=False)
    if json is not None:
        write_atomic(json, to_bytes(Answers(answers=published.answers)))
    if plot is not None:
        from cli.query_plot import write

        write(published.answers, plot, top)
        console.print(f"plot      {plot}", markup=False)


def _only_questions(spec: JobSpec) -> None:
    from veil.errors import ConfigError

    if spec.trainer.kind != "query":
        raise ConfigError(
            f"got a job of trainer {spec.trainer.kind!r}, expected query", hint="submit others with `veil job submit`"
        )


def _parties_draw(spec: JobSpec) -> bool:
    return spec.privacy.noise.source == "parties"


def _plan_table(spec: JobSpec) -> object:
    from rich.table import Table

    from veil.jobs.spec import QueryTrainer
    from veil.privacy.accountant import epsilon
    from veil.queries.intervals import NoiseOn
    from veil.queries.question import UNIT, from_text

    _only_questions(spec)
    questions = [from_text(text) for text in spec.trainer.questions] if isinstance(spec.trainer, QueryTrainer) else []
    table = Table(box=None, pad_edge=False)
    for heading in ("question", "counts", "groups", "one user", "mechanism", "noise sd", "95% within", "epsilon alone"):
        table.add_column(heading, no_wrap=True, justify="left" if heading in ("question", "counts") else "right")
    for question, release in zip(questions, spec.releases, strict=True):
        noise = NoiseOn.release(spec, release)
        norm = "L1" if question.mechanism == "laplace" else "L2"
        table.add_row(
            question.name,
            f"{question.measure} by {question.by}",
            str(release.size),
            f"{norm} {release.sensitivity / UNIT:.4g}",
            question.mechanism,
            f"{noise.sd:,.1f}",
            f"± {noise.interval_95:,.1f}",
            f"{epsilon([release], spec.privacy.delta):.4f}",
        )
    return table


def ranked(answer: Answer, top: int) -> list[int]:
    """Positions of the groups to show: all in their order where they fit or have one (activity), else the largest."""
    places = range(len(answer.values))
    if len(answer.values) <= top or answer.question.by == "activity":
        return list(places)
    return sorted(places, key=lambda place: -answer.values[place])[:top]


def label(answer: Answer, place: int) -> str:
    """Name of a group for people; what would steer a terminal is replaced."""
    name = f"{answer.groups[place]}  {answer.titles[place]}" if answer.titles else answer.groups[place]
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)


def _answer_table(answer: Answer, top: int) -> object:
    from rich.table import Table
    from rich.text import Text

    question = answer.question
    title = f"{question.name}: {question.measure} by {question.by}"
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("group")
    table.add_column(question.measure, justify="right")
    table.add_column("95% of noise within", justify="right")
    for place in ranked(answer, top):
        # Names come from a catalogue or a question: shown as they are, never read as markup.
        table.add_row(Text(label(answer, place)), f"{answer.values[place]:,.1f}", f"± {answer.interval_95:,.1f}")
    return table


def _answer_lines(answer: Answer, top: int) -> Iterator[str]:
    question = answer.question
    shown = len(ranked(answer, top))
    if shown < len(answer.values):
        yield f"{shown} of {len(answer.values)} groups; --top for more"
    draws = "" if answer.noise_draws == 1 else f", {answer.noise_draws} draws"
    kind = "Laplace noise of scale" if question.mechanism == "laplace" else "Gaussian noise of standard deviation"
    bounds = f"at most {_many(question.groups_per_user, 'group')} a user"
    if question.measure == "interactions":
        bounds += f", {_many(question.interactions_per_group, 'interaction')} in each"
    yield f"{kind} {answer.noise_scale:,.2f}{draws}; {bounds}"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _manifest_lines(published: Published) -> Iterator[str]:
    manifest = published.manifest
    yield f"signed by {', '.join(manifest.parties)}; manifest sha256:{published.digest.hex()}"
    yield (
        f"privacy   epsilon {manifest.epsilon_micro / 1e6:.4f} at delta {manifest.delta:g} for all answers together, "
        f"per {manifest.unit}, {manifest.neighbouring}; noise by {manifest.noise_source}"
    )
