"""`veil tune`: which layout and parameters of encrypted scoring suit a catalogue and a link, checked by trial."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from he_inference.tuning.tune import Check, Plan

_FIGURES = ("query_bytes", "key_bytes", "response_bytes", "index_bytes", "server_ms", "client_ms", "total_ms")

# A table whose numbers are cut off is of no use: a narrow terminal wraps it instead.
_TABLE_WIDTH = 132


def tune(
    items: Annotated[int, typer.Option(min=1, help="Number of items.")],
    dim: Annotated[int, typer.Option(min=1, help="Dimensions of a vector.")],
    uplink: Annotated[str, typer.Option(help="From client to server, as in 5Mbit.")] = "5Mbit",
    downlink: Annotated[str, typer.Option(help="From server to client, as in 20Mbit.")] = "20Mbit",
    post_quantum: Annotated[
        bool,
        typer.Option("--pq/--classical", help="128 bits against a quantum attacker too, or a classical one alone."),
    ] = True,
    one_shot: Annotated[
        bool, typer.Option("--one-shot", help="Clients ask once: their keys count with the query.")
    ] = False,
    history: Annotated[
        bool, typer.Option("--history", help="Clients send their history and have no part of the model.")
    ] = False,
    error: Annotated[
        float, typer.Option(min=1e-9, max=1.0, help="Largest error of a score of unit vectors that is acceptable.")
    ] = 0.01,
    queries: Annotated[int, typer.Option(min=0, max=10_000, help="Queries of the trial; 0 for no trial.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="What the trial's random vectors follow from.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Predict bytes, error and time of every layout and parameter set for a link, and try the best one.

    The exact set rounds vectors first and needs --error 0.015 to be looked at. With --history the layout that folds
    encrypted histories in is predicted beside those for vectors, and tried; its errors are those of its outputs, before
    a model's own factors.

    Sizes are exact. Times follow from what a few primitives cost on this machine now, errors from formulas
    (he_inference/encoding/deviation.py). The best is then really built, encrypted and asked, with random vectors.

    Exit status 1 when the trial contradicts a size or the stated error.

    Example: veil tune --items 100000 --dim 64 --uplink 5Mbit --downlink 20Mbit --pq
    """
    from rich.console import Console

    from he_inference.tuning.calibration import calibrate
    from he_inference.tuning.tune import Link, bits_per_second, check, layouts, plans
    from veil.errors import StateError
    from veil.files import write_atomic

    link = Link(bits_per_second(uplink), bits_per_second(downlink))
    found = layouts(items, dim, post_quantum=post_quantum, largest_error=error, history=history)
    console, messages = Console(highlight=False), Console(stderr=True)
    console.width = max(console.width, _TABLE_WIDTH)
    with messages.status("measuring what primitives cost here"):
        costs = calibrate(dict.fromkeys(one.parameters for one in found))
    predicted = plans(found, costs, link, one_shot=one_shot)
    best = next(plan for plan in predicted if plan.from_history == history)
    console.print(_plans_table(predicted, items, dim, one_shot))
    console.print(_described(best), markup=False)
    document: dict[str, Any] = {
        "items": items,
        "dim": dim,
        "uplink_bits_per_s": link.up,
        "downlink_bits_per_s": link.down,
        "post_quantum": post_quantum,
        "one_shot": one_shot,
        "history": history,
        "plans": [_document(plan) for plan in predicted],
        "costs_ms": {name: asdict(cost) for name, cost in costs.items()},
        "trial": None,
        **_machine(),
    }
    tried = None
    if queries:
        with messages.status(f"trying {best.name}"):
            tried = check(best, costs[best.layout.parameters.name], link, queries=queries, seed=seed)
        console.print(_trial_table(tried, items))
        document["trial"] = {"predicted": _document(tried.plan), "measured": _measured(tried)}
    if json_file is not None:
        write_atomic(json_file, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())
    if tried is not None and not tried.sound:
        raise StateError(
            f"got a trial of {best.name} that contradicts its prediction: an error of {tried.largest_error:.3g},"
            f" {tried.error_of_stated:.0%} of a stated bound; expected at most {best.stated_error:g} and such sizes",
            hint="do not serve with this parameter set; a score error beyond its bound is a defect of Veil",
        )


def _plans_table(predicted: list[Plan], items: int, dim: int, one_shot: bool) -> Table:
    from rich.table import Table

    asks = "clients that ask once" if one_shot else "clients that come back (keys are sent once)"
    table = Table(title=f"{items:,} items x {dim}, {asks}", title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in ("total ms", "server ms", "client ms", "query", "keys", "response", "index", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("stated", justify="right", no_wrap=True)
    table.add_column("dominated by", no_wrap=True)
    for plan in predicted:
        sizes = (plan.query_bytes, plan.key_bytes, plan.response_bytes, plan.index_bytes)
        table.add_row(
            plan.name,
            f"{plan.total_ms:,.0f}",
            f"{plan.server_ms:,.1f}",
            f"{plan.client_ms:,.1f}",
            *map(_bytes, sizes),
            f"{plan.largest_error:.1e}",
            f"{plan.stated_error:.1e}",
            plan.dominated_by or "",
            style="dim" if plan.dominated_by else "",
        )
    return table


def _described(plan: Plan) -> str:
    layout, parameters = plan.layout, plan.layout.parameters
    primes = " + ".join(map(str, parameters.data_bits))
    special = f", special {' + '.join(map(str, parameters.special_bits))}" if parameters.special_bits else ""
    scales = (
        f"integers modulo {parameters.plain_modulus}"
        if parameters.scheme == "bfv"
        else f"scales 2^{parameters.query_scale_bits} (query), 2^{parameters.item_scale_bits} (items)"
    )
    return (
        f"best     {plan.name}: degree {parameters.degree}, primes of {primes} bits{special}; {scales}\n"
        f"layout   {layout.query_ciphertexts} query ciphertexts, {layout.rotations} baby, {layout.groups} giant steps"
        f", {layout.blocks:,} results of {layout.block_items:,} items\n"
        f"security {parameters.security}\n"
        f"error    largest expected in one query {plan.largest_error:.2g}, stated bound {plan.stated_error:g}"
    )


def _trial_table(tried: Check, items: int) -> Table:
    from rich.table import Table

    size = "" if tried.items == items else f" with {tried.items:,} items, so that it takes seconds"
    table = Table("", title=f"trial: {tried.queries} queries{size}", title_justify="left", box=None, pad_edge=False)
    for heading in ("predicted", "measured", "measured / predicted"):
        table.add_column(heading, justify="right")
    plan = tried.plan
    for key in (*_FIGURES, "error_deviation", "largest_error"):
        expected = float(getattr(plan, key))
        if key == "largest_error":
            from he_inference.tuning.tune import expected_largest

            expected = expected_largest(plan.error_deviation, plan.numbers * tried.queries)
        measured = float(getattr(tried, key))
        shown = f"{{:,.{0 if key.endswith('bytes') else 1}f}}" if "error" not in key else "{:.2e}"
        table.add_row(
            key, shown.format(expected), shown.format(measured), f"{measured / expected:.2f}" if expected else ""
        )
    return table


def _document(plan: Plan) -> dict[str, Any]:
    from he_inference.layouts.catalogue import packing_of

    layout, parameters = plan.layout, plan.layout.parameters
    return {
        "name": plan.name,
        "params": parameters.name,
        "layout": layout.kind,
        "packing": packing_of(layout),
        "degree": parameters.degree,
        "data_bits": parameters.data_bits,
        "special_bits": parameters.special_bits,
        "query_scale_bits": parameters.query_scale_bits,
        "item_scale_bits": parameters.item_scale_bits,
        "response_bits": parameters.response_bits,
        "rotations": layout.rotations,
        "groups": layout.groups,
        "results": layout.blocks,
        "security": parameters.security,
        **{key: getattr(plan, key) for key in _FIGURES},
        "error_deviation": plan.error_deviation,
        "largest_error": plan.largest_error,
        "max_abs_error_stated": plan.stated_error,
        "dominated_by": plan.dominated_by,
    }


def _measured(tried: Check) -> dict[str, Any]:
    names = ("items", "queries", *_FIGURES, "error_deviation", "largest_error", "error_of_stated")
    return {**{name: getattr(tried, name) for name in names}, "sound": tried.sound}


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} B"


def _machine() -> dict[str, Any]:
    from cli.machine import machine

    return {"machine": machine()}
