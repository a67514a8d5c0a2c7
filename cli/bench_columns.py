"""`veil bench columns` and `columns-all`: joint models on split columns beside plaintext, and what a job of them takes.

Guarantee: without noise the model comes from the real engine over real processes; at a budget every draw is a whole job
(`cli.columns_jobs`). Nothing is chosen on test rows. An evaluation of data that one holds anyway: not private.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from veil.errors import ConfigError
from veil.files import read_bounded

if TYPE_CHECKING:
    from cli.columns_jobs import Consortium, JobKind
    from cli.columns_tables import Draw

DataName = Literal["criteo", "avazu"]
_SAMPLES = "ctr-samples"
_MODELS = ("logistic", "perceptron", "towers")
_EXTRA_EPSILON = 3.0
_MOST_LINES = 16
_MOST_FILE_BYTES = 16 * 2**20

Epsilons = Annotated[str, typer.Option("--epsilon", help="Budgets, separated by commas.")]
Draws = Annotated[int, typer.Option(min=1, max=100, help="Jobs at each budget, with a draw of noise each.")]
Models = Annotated[str, typer.Option("--models", help="Of logistic, perceptron, towers; all budgets each.")]
Extras = Annotated[
    bool,
    typer.Option("--extras/--no-extras", help="At epsilon 3 also noise by the parties, a perceptron and towers."),
]
Bandwidth = Annotated[str, typer.Option(help="Of the link that forecasts are for; this machine's own by default.")]
Latency = Annotated[str, typer.Option(help="There and back, of the same link.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the figures here, after every line.")]


def columns(
    data: Annotated[str, typer.Option(help="criteo:FOLDER or avazu:FOLDER.")],
    parties: Annotated[int, typer.Option(min=2, max=3, help="Over how many parties columns are split.")] = 2,
    epsilon: Epsilons = "1,3,8",
    draws: Draws = 3,
    models: Models = "logistic",
    extras: Extras = True,
    bandwidth: Bandwidth = "10Gbit",
    latency: Latency = "100us",
    json_file: JsonFile = None,
) -> None:
    """AUC of click models on columns of 2 or 3 parties: plaintext, joint without noise, and whole jobs at budgets.

    Without noise: the real engine between processes. At a budget: daemons, coordinator and dealer over mutual TLS, one
    job a draw, with its seconds, its bytes, and the forecast beside them. delta 1e-5, one row stands for one user.

    Example: veil bench columns --data criteo:../shared/data/ctr-samples --parties 3 --epsilon 1,3,8 --draws 3
    """
    from cli.columns_tables import show

    name, _, folder = data.partition(":")
    if name not in ("criteo", "avazu") or not folder:
        raise ConfigError(f"got data {data[:80]!r}, expected criteo:FOLDER or avazu:FOLDER")
    asked = Asked(
        cast(DataName, name), Path(folder), parties, budgets(epsilon), draws, chosen(models), extras, bandwidth, latency
    )
    figures = measure(asked, save=_saving(json_file))
    show(figures)


def columns_all(
    folder: Annotated[Path, typer.Option("--data", help="Folder that holds ctr-samples.")],
    out: Annotated[Path, typer.Option(help="Folder for one JSON file a case.")] = Path("out/bench-columns"),
    only: Annotated[list[str] | None, typer.Option(help="Of criteo-2, criteo-3, avazu-2, avazu-3.")] = None,
    epsilon: Epsilons = "1,3,8",
    draws: Draws = 3,
    keep: Annotated[bool, typer.Option("--continue", help="Keep the lines that are in the files already.")] = False,
    bandwidth: Bandwidth = "10Gbit",
    latency: Latency = "100us",
) -> None:
    """Both samples over 2 and 3 parties; with 3, other models and noise by the parties too. Half an hour or more.

    Example: veil bench columns-all --data ../shared/data --out out/bench-columns
    """
    from cli.columns_tables import show

    cases = [
        Asked(
            data, folder / _SAMPLES, parties, budgets(epsilon), draws, ("logistic",), parties == 3, bandwidth, latency
        )
        for data in ("criteo", "avazu")
        for parties in (2, 3)
    ]
    unknown = sorted(set(only or ()) - {case.name for case in cases})
    if unknown:
        raise ConfigError(f"got case {unknown[0][:40]!r}, expected some of {', '.join(case.name for case in cases)}")
    for case in cases:
        if only and case.name not in only:
            continue
        file = out / f"{case.name}.json"
        show(measure(case, save=_saving(file), known=known_lines(file, case) if keep else ()))


@dataclass(frozen=True)
class Asked:
    """One case. bandwidth, latency: of the link that forecasts are for."""

    data: DataName
    folder: Path
    parties: int
    epsilons: tuple[float, ...]
    draws: int
    models: tuple[str, ...] = ("logistic",)
    extras: bool = False
    bandwidth: str = "10Gbit"
    latency: str = "100us"

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.data}-{self.parties}"

    @property
    def link(self) -> dict[str, str]:
        """For the JSON."""
        return {"bandwidth": self.bandwidth, "latency": self.latency}

    def kinds(self) -> list[tuple[JobKind, int]]:
        """Jobs and how many of each, none twice."""
        from cli.columns_jobs import JobKind

        found = {JobKind(cast(Any, model), epsilon): self.draws for model in self.models for epsilon in self.epsilons}
        if self.extras:
            found.setdefault(JobKind("logistic", _EXTRA_EPSILON, "parties"), self.draws)
            found.setdefault(JobKind("perceptron", _EXTRA_EPSILON), 1)
            found.setdefault(JobKind("towers", _EXTRA_EPSILON), 1)
        return list(found.items())


def budgets(text: str) -> tuple[float, ...]:
    """Numbers of a list such as "1,3,8". Raises `ConfigError`."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not 1 <= len(found) <= _MOST_LINES or not all(0.01 <= value <= 100 for value in found):
        raise ConfigError(f"got epsilon {text[:80]!r}, expected up to {_MOST_LINES} numbers of 0.01 to 100 as in 1,3,8")
    return tuple(dict.fromkeys(found))


def chosen(text: str) -> tuple[str, ...]:
    """Models of a list. Raises `ConfigError`."""
    found = tuple(dict.fromkeys(text.split(",")))
    if set(found) - set(_MODELS):
        raise ConfigError(f"got models {text[:80]!r}, expected some of {', '.join(_MODELS)}, separated by commas")
    return found


def known_lines(file: Path, asked: Asked) -> list[dict[str, Any]]:
    """Lines of an earlier run of a case; none where there is no file. Raises `ConfigError` for another file."""
    if not file.exists():
        return []
    try:
        document = json.loads(read_bounded(file, _MOST_FILE_BYTES))
        lines: list[dict[str, Any]] = document["lines"]
        for one in lines:
            _key(one)
        same = (document["data"], document["parties"]) == (asked.data, asked.parties)
        if document["link"] != asked.link:
            # Forecasts for another link.
            lines = [one for one in lines if one["epsilon"] is None]
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ConfigError(f"got {file.name} of another form, expected figures of {asked.name}", hint="remove it")
    return lines


def measure(
    asked: Asked, *, save: Callable[[dict[str, Any]], None], known: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """The figures of a case. save: called after every line. known: lines that need not be measured again."""
    from cli.columns_data import Sample
    from cli.columns_jobs import Consortium
    from cli.columns_tables import line
    from cli.machine import machine

    kept = {_key(one): one for one in known}
    sample = Sample(asked.data, asked.folder, asked.parties)
    figures: dict[str, Any] = {
        "data": asked.data,
        "parties": asked.parties,
        **sample.facts(),
        "standard_error": {},
        "lines": [],
        "link": asked.link,
        "load_average": os.getloadavg()[0],
        "machine": machine(),
    }

    def add(make: Callable[[], Draw], draws: int, model: str, epsilon: float | None = None, noise: str = "") -> None:
        made = kept.get((model, epsilon, noise, draws))
        figures["lines"].append(made or line(model, [make() for _ in range(draws)], epsilon=epsilon, noise=noise))
        save(figures)

    own = sample.own_logistic()
    figures["standard_error"] = sample.standard_errors(own)
    add(lambda: own, 1, "plaintext logistic")
    add(sample.scikit_logistic, 1, "plaintext, scikit-learn")
    add(sample.same_descent, 1, "plaintext, the same descent")
    add(sample.joint_without_noise, 1, "joint logistic")
    with ExitStack() as stack:
        started: list[Consortium] = []

        def job(kind: JobKind) -> Draw:
            # Not before the first job that is not known: starting takes as long as a job.
            if not started:
                started.append(stack.enter_context(Consortium(sample, asked.bandwidth, asked.latency)))
            return started[0].draw(kind)

        for kind, draws in asked.kinds():
            noise = kind.noise if kind.noise == "dealer" else f"parties, t = {asked.parties - 1}"
            add(lambda kind=kind: job(kind), draws, f"joint {kind.model}", kind.epsilon, noise)  # type: ignore[misc]
    return figures


def _key(one: dict[str, Any]) -> tuple[str, float | None, str, int]:
    return (one["model"], one["epsilon"], one["noise"], one["draws"])


def _saving(file: Path | None) -> Callable[[dict[str, Any]], None]:
    from veil.files import write_atomic

    def save(figures: dict[str, Any]) -> None:
        if file is not None:
            write_atomic(file, (json.dumps(figures, indent=2, allow_nan=False) + "\n").encode())

    return save
