"""How jobs look in a terminal: plans as text, progress as bars on a terminal and as lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from cli.job_client import phase_name
from veil.jobs.predictions import PredictionsTrainer
from veil.jobs.spec import JobSpec, digest
from veil.wire.v1 import coordinator_pb2 as wire
from veil.wire.v1 import job_pb2


def moment(time_ms: int) -> str:
    """Unix milliseconds as "2031-05-06 07:08:09 UTC"."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def size(size_bytes: int) -> str:
    """Bytes in the largest unit that keeps the number at 1 or more."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def plan_lines(spec: JobSpec) -> Iterator[str]:
    """The text that parties sign, what it releases, and what that costs, recomputed here."""
    from veil.privacy.accountant import epsilon

    yield f"text      {spec.text()}"
    yield f"digest    {digest(spec.text()).hex()}"
    trainer = spec.trainer
    if isinstance(trainer, PredictionsTrainer):
        yield f"parties   {', '.join(spec.parties)}; dealer {spec.dealer}"
        yield f"model     {trainer.model}"
        yield (
            f"opens     {trainer.openings[0].name} of {trainer.alignment.result} slots to {trainer.recipient} alone, "
            f"of its own users, with {trainer.bits} fractional bits; alignment {trainer.alignment.mode}"
        )
        yield (
            f"privacy   no noise, nothing spent: each score tells {trainer.recipient} one known function of the user's "
            "columns"
        )
        return
    yield f"parties   {', '.join(spec.parties)}; dealer {spec.dealer}; noise drawn by {spec.privacy.noise.source}"
    yield f"{'release':12} {'shape':>16} {'sensitivity':>14} {'sigma':>14} {'noise multiplier':>17}"
    for release in spec.releases:
        shape = "x".join(map(str, release.shape))
        multiplier = release.sigma / release.sensitivity
        yield f"{release.name:12} {shape:>16} {release.sensitivity:>14} {release.sigma:>14} {multiplier:>17.4f}"
    cost = epsilon(spec.releases, spec.privacy.delta)
    yield (
        f"privacy   epsilon {cost:.4f} at delta {spec.privacy.delta:g} (asked for: {spec.privacy.epsilon:g}), "
        f"unit: one user with all rows at all times, neighbours: {spec.privacy.neighbouring}"
    )


def record_lines(record: wire.JobRecord) -> Iterator[str]:
    """What happened to a job."""
    yield f"job       {record.job.job_id}"
    yield f"phase     {phase_name(record.phase)}"
    yield f"submitted {moment(record.submitted_ms)}"
    if record.ended_ms:
        yield f"ended     {moment(record.ended_ms)}"
    yield f"signed by {', '.join(record.signed_by) or 'nobody'}"
    for each in record.progress:
        yield f"progress  {each.party}: {progress_text(each.progress)}"
    if record.HasField("failure"):
        yield f"failure   {record.failure.sentence} [{record.failure.code}]"
        yield f"at fault  {', '.join(record.failure.culprits) or 'not known'}"
    if record.HasField("outcome"):
        yield f"outcome   {outcome_text(record.outcome)}"


def outcome_text(outcome: job_pb2.Outcome) -> str:
    """Digest and cost of a published model."""
    if outcome.delta == "0":  # of a job that releases nothing and publishes no model
        return f"statement sha256:{outcome.manifest_digest.hex()}, nothing spent"
    epsilon = outcome.epsilon_micro / 1e6
    return f"manifest sha256:{outcome.manifest_digest.hex()}, epsilon {epsilon:.4f} at delta {outcome.delta}"


def progress_text(progress: job_pb2.Progress) -> str:
    """Step, share, bytes and seconds in one line."""
    traffic = f"{size(progress.bytes_sent)} sent, {size(progress.bytes_received)} received"
    return f"{progress.step} {progress.done}/{progress.total}, {traffic}, {progress.elapsed_ms / 1000:.1f} s"


def show_plainly(events: Iterable[wire.WatchJobResponse]) -> None:
    """One line per event of the history, for logs and pipes."""
    for event in events:
        line = plain_line(event)
        if line:
            print(line, flush=True)


def plain_line(event: wire.WatchJobResponse) -> str:
    """The event as one line; empty for newer numbers of an old line."""
    if not event.line:
        return ""
    extra = f" ({progress_text(event.progress)})" if event.HasField("progress") else ""
    extra += f" ({outcome_text(event.outcome)})" if event.HasField("outcome") else ""
    return f"{moment(event.time_ms)}  {phase_name(event.phase):9}  {event.line}{extra}"


def show_live(events: Iterable[wire.WatchJobResponse]) -> None:
    """One bar per party, and the history above."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.text import Text

    console = Console(highlight=False)
    columns = (
        TextColumn("{task.fields[party]}", markup=False),
        TextColumn("{task.fields[step]}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}", markup=False),
        TextColumn("{task.fields[traffic]}", markup=False),
        TextColumn("{task.fields[seconds]}", markup=False),
    )
    with Progress(*columns, console=console) as bars:
        rows = {}
        for event in events:
            if event.HasField("progress"):
                if event.party not in rows:
                    rows[event.party] = bars.add_task("", party=event.party, step="", traffic="", seconds="", total=1)
                progress = event.progress
                bars.update(
                    rows[event.party],
                    completed=progress.done,
                    total=max(1, progress.total),
                    step=progress.step,
                    traffic=f"{size(progress.bytes_sent)} sent, {size(progress.bytes_received)} received",
                    seconds=f"{progress.elapsed_ms / 1000:.1f} s",
                )
            elif event.line:
                bars.console.print(Text(plain_line(event)))
