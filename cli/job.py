"""`veil job`: training jobs of a consortium, from an operator's seat."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cli.job_client import Desk
    from veil.jobs.spec import JobSpec

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="""Training jobs: plan, submit, watch, list, show, cancel, report.

    All but `plan`, `report` and `submit --dry-run` call the coordinator with an operator's certificate;
    VEIL_COORDINATOR and VEIL_CREDENTIALS save typing --coordinator and --credentials.
    """,
)

Address = Annotated[str, typer.Option("--coordinator", envvar="VEIL_COORDINATOR", help="host:port of the coordinator.")]
CredentialsDir = Annotated[
    Path,
    typer.Option("--credentials", envvar="VEIL_CREDENTIALS", help="Directory with the operator's key.pem, cert.pem."),
]
Name = Annotated[str, typer.Option("--coordinator-name", help="Name that the coordinator's certificate must carry.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Identifier of the job, or its first characters.")]


Bandwidth = Annotated[str, typer.Option("--bandwidth", help="Bits a second each way between two parties: 100Mbit.")]
Latency = Annotated[str, typer.Option("--latency", help="Round trip between two parties, as ping shows it: 20ms.")]
Cores = Annotated[
    int | None,
    typer.Option("--cores", help="Of one machine that runs all parties; without it each has a machine like this one."),
]


@app.command()
def plan(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="job.toml of a job on columns of several parties.")],
    bandwidth: Bandwidth = "1Gbit",
    latency: Latency = "1ms",
    cores: Cores = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")] = False,
) -> None:
    """Forecast bytes, rounds and seconds of each phase at each party, before anything runs. Sends nothing.

    Example: veil job plan deploy/job-columns.toml --bandwidth 100Mbit --latency 20ms
    """
    import json

    from cli.job_client import plan_job
    from cli.job_forecast import document, forecast_of, lines, link_of

    link = link_of(bandwidth, latency)
    found = forecast_of(plan_job(file, "plan"), link, cores=cores)
    print(json.dumps(document(found), indent=2) if as_json else "\n".join(lines(found)))


@app.command()
def report(
    file: Annotated[Path, typer.Argument(metavar="REPORT", help="A party's report, state/reports/JOB.json.")],
    bandwidth: Bandwidth = "1Gbit",
    latency: Latency = "1ms",
    cores: Cores = None,
) -> None:
    """What a job took at a party, beside what was forecast for it.

    Example: veil job report state/reports/JOB.json --bandwidth 100Mbit --latency 20ms
    """
    from cli.job_forecast import compared, forecast_of, link_of, read_report
    from veil.jobs.spec import parse

    measured = read_report(file)
    for line in compared(measured, forecast_of(parse(measured.job_text), link_of(bandwidth, latency), cores=cores)):
        print(line)


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="job.toml; deploy/job.toml has a comment on every key.")],
    credentials: CredentialsDir,
    coordinator: Annotated[
        str, typer.Option("--coordinator", envvar="VEIL_COORDINATOR", help="host:port of the coordinator.")
    ] = "",
    name: Name = "main",
    watch: Annotated[bool, typer.Option("--watch", help="Stay and show progress until the job ends.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what the parties would sign; send nothing.")] = False,
) -> None:
    """Plan a job from a TOML file and propose it to its parties.

    Example: veil job submit job.toml --credentials credentials --dry-run

    Example: veil job submit job.toml --credentials credentials --coordinator coordinator.example.org:7000 --watch
    """
    from cli.job_client import plan_job, submit_job
    from veil.identity.credentials import Credentials

    spec = plan_job(file, Credentials.load(credentials).identity.consortium)
    if dry_run:
        _show_plan(spec)
        return
    if not coordinator:
        raise typer.BadParameter("expected host:port, here or in VEIL_COORDINATOR", param_hint="--coordinator")
    desk = _desk(coordinator, credentials, name)
    job = submit_job(desk, spec)
    print(f"job     {job.job_id}\ndigest  {job.digest.hex()}")
    if watch:
        _watch(desk, job.job_id)


@app.command()
def watch(job: JobId, coordinator: Address, credentials: CredentialsDir, name: Name = "main") -> None:
    """Show a job's history and follow it until it ends. Exit status 1 when it fails or is cancelled.

    Example: veil job watch 3f0c --coordinator coordinator.example.org:7000 --credentials credentials
    """
    from cli.job_client import get_job

    desk = _desk(coordinator, credentials, name)
    _watch(desk, get_job(desk, job).job.job_id)


@app.command(name="list")
def list_(
    coordinator: Address,
    credentials: CredentialsDir,
    name: Name = "main",
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many, newest first.")] = 20,
) -> None:
    """The newest jobs, one a line: identifier, submission, phase, name, parties.

    Example: veil job list --coordinator coordinator.example.org:7000 --credentials credentials
    """
    from cli.job_client import list_jobs, phase_name, spec_of
    from cli.job_view import moment

    records = list_jobs(_desk(coordinator, credentials, name), limit)
    for record in records:
        spec = spec_of(record)
        phase = phase_name(record.phase)
        parties = ",".join(spec.parties)
        print(f"{record.job.job_id}  {moment(record.submitted_ms)}  {phase:9}  {spec.name}  {parties}")
    if not records:
        print("no jobs")


@app.command()
def show(job: JobId, coordinator: Address, credentials: CredentialsDir, name: Name = "main") -> None:
    """One job with everything known of it: text, releases, signatures, progress, end.

    Example: veil job show 3f0c --coordinator coordinator.example.org:7000 --credentials credentials
    """
    from cli.job_client import get_job, spec_of
    from cli.job_view import record_lines

    record = get_job(_desk(coordinator, credentials, name), job)
    spec = spec_of(record)
    for line in record_lines(record):
        print(line)
    _show_plan(spec)


@app.command()
def cancel(job: JobId, coordinator: Address, credentials: CredentialsDir, name: Name = "main") -> None:
    """Stop a job that has not ended.

    Example: veil job cancel 3f0c --coordinator coordinator.example.org:7000 --credentials credentials
    """
    from cli.job_client import cancel_job

    print(cancel_job(_desk(coordinator, credentials, name), job))


def _desk(address: str, credentials: Path, name: str) -> Desk:
    from cli.job_client import Desk
    from veil.identity.credentials import Credentials

    return Desk(address, Credentials.load(credentials), name)


def _show_plan(spec: JobSpec) -> None:
    from cli.job_view import plan_lines

    for line in plan_lines(spec):
        print(line)


def _watch(desk: Desk, job_id: str) -> None:
    import sys

    from cli.job_client import watch_job
    from cli.job_view import show_live, show_plainly

    events = watch_job(desk, job_id)
    show = show_live if sys.stdout.isatty() else show_plainly
    try:
        show(events)
    except KeyboardInterrupt:
        print(f"\nthe job goes on; see it again with: veil job watch {job_id}")
