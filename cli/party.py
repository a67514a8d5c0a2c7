"""`veil party`: a data owner's daemon, and what its own staff ask of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from veil.wire.v1.party_pb2_grpc import PartyServiceStub

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="""A data owner's daemon and its operator's calls.

    `check` and `start` run where the rows are. The others call the running daemon with the certificate of an operator
    whom its file names under `operators`; VEIL_PARTY and VEIL_CREDENTIALS save typing --party and --credentials.
    """,
)

Config = Annotated[Path, typer.Option("--config", help="TOML file; deploy/party.toml has a comment on every key.")]
Address = Annotated[str, typer.Option("--party", envvar="VEIL_PARTY", help="host:port of the party's daemon.")]
Name = Annotated[str, typer.Option("--name", help="Name that the party's certificate must carry.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Identifier of the job, or its first characters.")]
CredentialsDir = Annotated[
    Path,
    typer.Option("--credentials", envvar="VEIL_CREDENTIALS", help="Directory with the operator's key.pem, cert.pem."),
]

_JOB_ID_DIGITS = 32


@app.command()
def start(config: Config) -> None:
    """Run the daemon: prepare the rows, join the coordinator, take part in jobs.

    Example: veil party start --config deploy/party.toml
    """
    from party.__main__ import run

    run(config)


@app.command()
def check(
    config: Config,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Write what de-identification changed here: counts, as .json or .md."),
    ] = None,
) -> None:
    """Read the rows as the daemon would, report what is wrong with them and what was changed, and send nothing.

    Example: veil party check --config deploy/party.toml --report report.md
    """
    from party.config import load
    from party.rows import store
    from veil.errors import ConfigError
    from veil.files import write_atomic
    from veil.identity.credentials import Credentials
    from veil.recsys.catalogue import Catalogue

    if report is not None and report.suffix not in (".json", ".md"):
        raise ConfigError(f"got {report.name}, expected a name that ends in .json or .md")
    settings = load(config)
    identity = Credentials.load(settings.credentials).identity
    catalogue = None if settings.catalogue is None else Catalogue.load(settings.catalogue)
    prepared = store.prepare(settings, catalogue)
    print(f"identity   {identity}")
    if catalogue is not None:
        print(f"catalogue  {catalogue.items} items, {catalogue.digest}")
    if prepared.columns is not None:
        held = prepared.columns
        print(f"columns    {held.rows} rows, {len(held.use)} columns for joint models, {len(held.labels)} labels")
    if prepared.identifiers is not None:
        print(f"ids        of {prepared.identifiers.users} users kept, for jobs that align them")
    if settings.predictions is not None:
        rules = settings.predictions
        told = ", ".join(rules.recipients) or "nobody else"
        print(f"scores     of {rules.source.name} to {told}, {rules.rows_a_day} rows a day")
    if prepared.interactions is not None:
        rows = prepared.interactions
        print(
            f"rows       {rows.rows_read} read, {rows.rows_kept} kept, {rows.rows_bad} bad, "
            f"{rows.rows_duplicate} repeated, {rows.rows_unknown_item} of items that the catalogue does not have"
        )
    if prepared.texts is not None:
        texts = prepared.texts
        print(
            f"texts      {texts.rows_read} read, {texts.rows_kept} kept, {texts.rows_bad} bad, "
            f"{texts.rows_unlabelled} without a public label, {texts.labels_dropped} other labels left out"
        )
    print()
    for line in prepared.deidentification.lines():
        print(line)
    if report is not None:
        found = prepared.deidentification
        text = found.json() if report.suffix == ".json" else found.markdown()
        write_atomic(report, text.encode(), mode=0o600)  # exact counts of people: for the party's own staff


@app.command()
def status(party: Address, name: Name, credentials: CredentialsDir) -> None:
    """Budget, jobs and data of a running daemon.

    Example: veil party status --party alpha.example.org:7100 --name alpha --credentials operator
    """
    from veil.wire.v1 import party_pb2

    with _stub(party, name, credentials) as stub:
        reply = stub.GetStatus(party_pb2.GetStatusRequest())
    budget, ingest = reply.budget, reply.ingest
    print(f"party      {reply.party}, Veil {reply.software_version}, {'joined' if reply.joined else 'not joined'}")
    print(
        f"budget     epsilon {budget.epsilon_spent_micro / 1e6:.4f} of {budget.epsilon_limit_micro / 1e6:g} spent "
        f"at delta {budget.delta}, {budget.releases} releases"
    )
    print(f"rows       {ingest.rows_kept} kept of {ingest.rows_read}, {ingest.rows_bad} bad")
    print(f"running    {', '.join(reply.running_jobs) or 'nothing'}")
    print(f"waiting    {', '.join(reply.pending_jobs) or 'nothing'}")


@app.command()
def pending(party: Address, name: Name, credentials: CredentialsDir) -> None:
    """Jobs that wait for a decision: text, digest, every opening, and the epsilon, recomputed here.

    Example: veil party pending --party alpha.example.org:7100 --name alpha --credentials operator
    """
    from cli.job_view import plan_lines
    from veil.errors import StateError
    from veil.jobs.spec import digest, parse
    from veil.wire.v1 import party_pb2

    with _stub(party, name, credentials) as stub:
        reply = stub.ListPendingJobs(party_pb2.ListPendingJobsRequest())
    for job in reply.jobs:
        if job.digest != digest(job.text):
            raise StateError(
                "got a digest that is not the one of the job's text, expected it to be", hint="do not sign"
            )
        print(f"job       {job.job_id}")
        for line in plan_lines(parse(job.text)):
            print(line)
        whom = f"--party {party} --name {name} --credentials {credentials}"
        print(f"to sign   veil party approve {job.job_id} --digest {job.digest.hex()} {whom}\n")
    if not reply.jobs:
        print("nothing waits")


@app.command()
def approve(
    job: JobId,
    digest: Annotated[str, typer.Option("--digest", help="The digest that you have looked at (veil party pending).")],
    party: Address,
    name: Name,
    credentials: CredentialsDir,
) -> None:
    """Sign a job that waits.

    Example: veil party approve 3f0c --digest DIGEST --party alpha.example.org:7100 --name alpha --credentials operator
    """
    from veil.errors import ConfigError
    from veil.wire.v1 import party_pb2

    if re.fullmatch("[0-9a-f]{64}", digest) is None:
        raise ConfigError(
            f"got digest {digest[:80]!r}, expected 64 hexadecimal digits", hint="see `veil party pending`"
        )
    digest_bytes = bytes.fromhex(digest)
    with _stub(party, name, credentials) as stub:
        job_id = _complete(stub, job)
        stub.ApproveJob(party_pb2.ApproveJobRequest(job_id=job_id, digest=digest_bytes))
    print(f"signed {job_id}")


@app.command()
def refuse(
    job: JobId,
    reason: Annotated[str, typer.Option("--reason", help="Shown to the job's operator.")],
    party: Address,
    name: Name,
    credentials: CredentialsDir,
) -> None:
    """Decline a job that waits; it fails at once and says who declined.

    Example: veil party refuse 3f0c --reason cost --party alpha.example.org:7100 --name alpha --credentials operator
    """
    from veil.wire.v1 import party_pb2

    with _stub(party, name, credentials) as stub:
        job_id = _complete(stub, job)
        stub.RefuseJob(party_pb2.RefuseJobRequest(job_id=job_id, reason=reason))
    print(f"declined {job_id}")


def _complete(stub: PartyServiceStub, prefix: str) -> str:
    """The whole identifier of the one waiting job that begins with `prefix`; a whole one as it is."""
    from veil.errors import StateError
    from veil.wire.v1 import party_pb2

    if len(prefix) == _JOB_ID_DIGITS:
        return prefix
    waiting = [job.job_id for job in stub.ListPendingJobs(party_pb2.ListPendingJobsRequest()).jobs]
    found = [job_id for job_id in waiting if prefix and job_id.startswith(prefix)]
    if len(found) != 1:
        raise StateError(
            f"got job {prefix[:32]!r}, which fits {len(found)} of {len(waiting)} waiting jobs, expected one",
            hint="see `veil party pending`",
        )
    return found[0]


def _stub(address: str, name: str, credentials: Path) -> AbstractContextManager[PartyServiceStub]:
    from contextlib import contextmanager

    from veil.identity.credentials import Credentials
    from veil.identity.names import Identity, Role
    from veil.wire.channel import open_channel
    from veil.wire.status import translated
    from veil.wire.v1.party_pb2_grpc import PartyServiceStub

    @contextmanager
    def connected() -> Iterator[PartyServiceStub]:
        own = Credentials.load(credentials)
        expect = Identity(own.identity.consortium, Role.PARTY, name)
        with open_channel(address, own, expect) as channel, translated(str(expect)):
            yield PartyServiceStub(channel)

    return connected()
