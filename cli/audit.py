"""`veil audit`: the attacks that would catch a wrong epsilon, run on data that one holds."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from baseline.audit.report import AuditPlan, AuditReport
    from veil.recsys.catalogue import Catalogue
    from veil.recsys.interactions import Interactions

_DATA = "synthetic, or NAME:FOLDER with NAME of ml-1m, ml-100k, amazon-grocery, retailrocket."
_SHOWN_FAILURES = 8


def audit(
    out: Annotated[Path, typer.Option(help="Directory for report.html and report.json.")],
    data: Annotated[str, typer.Option(help=_DATA)] = "synthetic",
    epsilon: Annotated[float, typer.Option(help="The claim to attack.")] = 3.0,
    delta: Annotated[float, typer.Option(help="Delta of the claim.")] = 1e-5,
    runs: Annotated[int, typer.Option(help="Runs with canaries.")] = 5,
    canaries: Annotated[int, typer.Option(help="Made-up users, each in a run by a fair coin.")] = 256,
    users: Annotated[int, typer.Option(help="Users of the data beside them, drawn at random; 0 for all.")] = 2000,
    models: Annotated[int, typer.Option(help="Published models to attack by membership inference; 0: none.")] = 24,
    targets: Annotated[int, typer.Option(help="Users to attack, half of them canaries.")] = 160,
    noise: Annotated[Literal["dealer", "parties"], typer.Option(help="Who draws the noise.")] = "dealer",
    parties: Annotated[int, typer.Option(min=2, max=16, help="Parties, which matters for --noise parties.")] = 3,
    colluding: Annotated[int | None, typer.Option(help="Parties that may pool their draws; all but one.")] = None,
    trainer: Annotated[Literal["subspace", "als"], typer.Option(help="The private trainer.")] = "subspace",
    confidence: Annotated[float, typer.Option(help="Of the lower bounds.")] = 0.999,
    seed: Annotated[int | None, typer.Option(help="Repeat an audit; without it, coins and noise are fresh.")] = None,
    controls: Annotated[
        bool, typer.Option("--controls/--no-controls", help="Audit the sabotaged mechanisms too: each must fail.")
    ] = True,
    sabotage: Annotated[
        str | None, typer.Option(help="Audit a broken mechanism instead: noise-off, clipping-off, ... (must fail).")
    ] = None,
    text: Annotated[bool, typer.Option("--text/--no-text", help="Embed titles, or categories and years alone.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Attack the private trainer on data that you hold; exit with 1 when it breaks its promise.

    Canaries in one run give lower bounds on epsilon (Steinke et al. 2023), which must stay below the claim; the noise
    of every opening is tested; extreme users must stay within the sensitivity; membership inference reads the published
    model. The same checks on sabotaged mechanisms show what they can see. Nothing is charged to a ledger, and the
    report is as private as the data.

    Example: veil audit --data ml-100k:../shared/data/ml-100k --epsilon 5 --runs 20 --out out/audit
    """
    from rich.console import Console

    from baseline.audit.report import AuditPlan
    from baseline.material import load
    from cli import audit_report
    from veil.files import write_atomic

    plan = AuditPlan(
        epsilon=epsilon,
        delta=delta,
        noise_source=noise,
        parties=parties,
        colluding=colluding,
        trainer=trainer,
        runs=runs,
        canaries=canaries,
        users=users,
        models=models,
        shadows=max(4, models),
        targets=targets,
        confidence=confidence,
        seed=seed,
        sabotaged=sabotage,
        controls=controls and sabotage is None,
    )
    console = Console()
    started = time.monotonic()
    dataset, catalogue = load(data, text=text)
    report = _run(dataset.train, catalogue, plan, console)
    seconds = time.monotonic() - started
    figures: dict[str, Any] = {"data": dataset.name, "seconds": round(seconds, 1), **report.as_dict()}
    out.mkdir(parents=True, exist_ok=True)
    audit_report.write(figures, out)
    if json_file is not None:
        write_atomic(json_file, (json.dumps(figures, indent=2, allow_nan=False) + "\n").encode())
    _show(report, dataset.name, seconds, console)
    console.print(f"report: {out / 'report.html'}", markup=False, soft_wrap=True)
    if not report.passed:
        raise typer.Exit(1)


def _run(data: Interactions, catalogue: Catalogue, plan: AuditPlan, console: Console) -> AuditReport:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from baseline.audit.examine import audit as examine

    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("canaries", total=plan.work)
        return examine(data, catalogue, plan, lambda what: bars.update(task, advance=1, description=what))


def _show(report: AuditReport, name: str, seconds: float, console: Console) -> None:
    from rich import box
    from rich.table import Table

    claim = report.spec.privacy
    console.print(
        f"{name}: {report.users} users, {report.plan.canaries} canaries, {len(report.runs)} runs;"
        f" claim: epsilon {claim.epsilon:g}, delta {claim.delta:g}, {report.spec.trainer.kind},"
        f" noise by {claim.noise.source}; {seconds:.0f} s",
        markup=False,
    )
    bounds = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for heading in ("lower bound on epsilon", "least", "mean", "largest", "all runs as one"):
        bounds.add_column(heading, justify="left" if heading.startswith("lower") else "right")
    titles = {"general": "any mechanism", "gaussian": "Gaussian, any scores", "parametric": "Gaussian, normal noise"}
    for kind, title in titles.items():
        values = [run.as_dict()[kind] for run in report.runs]
        whole = report.pooled.as_dict()[kind]
        bounds.add_row(
            title, f"{min(values):.2f}", f"{sum(values) / len(values):.2f}", f"{max(values):.2f}", f"{whole:.2f}"
        )
    console.print(bounds)
    console.print(
        f"below the claim in {report.below_claim} of {len(report.runs)} runs, each bound at"
        f" {100 * report.plan.confidence:g}% confidence"
    )
    if report.membership is not None:
        _show_membership(report.membership, console)
    checks = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("check", "passed"):
        checks.add_column(heading)
    for check, (good, total) in report.by_check().items():
        checks.add_row(check, f"{good} of {total}" + ("" if good == total else "  FAILED"))
    console.print(checks)
    if report.controls:
        broken = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("sabotage", "caught by"):
            broken.add_column(heading)
        for control in report.controls:
            counts = Counter(finding.check for finding in control.failed)
            broken.add_row(control.title, ", ".join(counts) if control.caught else "NOT CAUGHT")
        console.print(broken)
    for finding in report.failed[:_SHOWN_FAILURES]:
        low, high = finding.limits
        console.print(
            f"failed: {finding.check}, {finding.subject}: {finding.statistic:.4g}, expected {low:.4g} to {high:.4g}"
            f" ({finding.what})",
            markup=False,
        )
    if len(report.failed) > _SHOWN_FAILURES:
        console.print(f"... and {len(report.failed) - _SHOWN_FAILURES} more, all in the report")
    console.print("verdict: no violation found" if report.passed else "verdict: VIOLATION", style="bold")


def _show_membership(figures: dict[str, Any], console: Console) -> None:
    area = figures["auc"]["all"]
    low, high = area["limits"]
    line = (
        f"membership inference on {figures['models']} published models: AUC {area['auc']:.3f}"
        f" ({low:.3f} to {high:.3f}), allowed {figures['allowed_auc']:.3f}"
    )
    if "without_noise" in figures:
        line += f"; without noise {figures['without_noise']['auc']['all']['auc']:.3f}"
    console.print(line)
    for rate in figures["rates"]:
        console.print(
            f"  TPR at {100 * rate['fpr']:g}% FPR: {rate['tpr']:.4f}"
            f" ({rate['tpr_limits'][0]:.4f} to {rate['tpr_limits'][1]:.4f});"
            f" e^eps FPR + delta = {rate['allowed_by_epsilon']:.4f}, Gaussian {rate['allowed_by_gaussian']:.4f}"
        )
