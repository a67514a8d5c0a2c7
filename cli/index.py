"""`veil index`: the encoded items that a scoring server reads, in one file: build, show, update, remove."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from he_inference.index.published_items import PublishedItems
    from he_inference.index.store import Index

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="""The index of a scoring server: items encoded once, in a file that is mapped into memory.

    A server builds the files that it lacks by itself; make one here to build it on another machine, to change it in
    place, or to look at it. Every change replaces the file as a whole: a running server takes up the new one without
    dropping a request.
    """,
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="An index file.")]
Model = Annotated[Path, typer.Option(help="Directory of the published model, or of models on columns.")]
LinearPart = Annotated[
    bool, typer.Option("--linear-part", help="Take models on columns that are more than linear: their linear part.")
]
Authority = Annotated[
    Path | None, typer.Option(help="The consortium's authority.pem: check the model's signatures as well.")
]


@app.command()
def build(
    model: Model,
    out: Annotated[Path, typer.Option(help="The index file; one that is there is replaced.")],
    params: Annotated[str, typer.Option(help="Parameter set; veil tune helps to choose.")] = "pq",
    layout: Annotated[str | None, typer.Option(help="session or keyless; default: what the set is for.")] = None,
    packing: Annotated[
        int, typer.Option(help="Of a keyless layout; 0: the one with the fewest bytes on the wire.")
    ] = 0,
    headroom: Annotated[
        float,
        typer.Option(help="How much longer than the longest item a later one may be, from 1; widens the error."),
    ] = 1.0,
    authority: Authority = None,
    linear_part: LinearPart = False,
    rows: Annotated[bool, typer.Option(help="Write FILE.rows too, from which `remove` and programs change it.")] = True,
) -> None:
    """Encode a model's items. The files hold the item vectors: a new one can be read by its owner alone.

    Example: veil index build --model model --params fast --layout session --out items.index

    Example: veil index build --model model --params keyless --packing 8 --headroom 1.1 --out items.index

    Models on columns of several parties have one item each: --model is a published directory, or a folder with one for
    each model, named as clients are to call it.

    Example: veil index build --model campaigns --params keyless --authority authority.pem --out items.index
    """
    from he_inference import parameters
    from he_inference.index import build as indexes
    from he_inference.index.store import Index
    from he_inference.layouts.catalogue import best_packing, layout_of, usual_kind

    items = _items(model, authority, linear_part)
    chosen = parameters.named(params)
    kind = layout or usual_kind(chosen)
    count, dimensions = items.factors.shape
    made = layout_of(kind, chosen, count, dimensions, packing or best_packing(kind, chosen, count, dimensions))
    norm = indexes.norm_of(items.factors, headroom)
    with _progress("encoding") as advance:
        indexes.build(
            out,
            made,
            indexes.ScaledRows(items.factors, norm),
            item_norm=norm,
            model_digest=items.digest,
            item_ids_digest=indexes.item_ids_digest(items.ids),
            keep_rows=rows,
            progress=advance,
        )
    with Index.open(out, verify=False) as index:
        typer.echo(_line(out, index))


@app.command()
def show(
    file: File,
    verify: Annotated[bool, typer.Option(help="Read the whole file and compare its checksums.")] = True,
) -> None:
    """Verify an index and print what is in it; exit status 1 when a byte of it is wrong.

    Example: veil index show items.index
    """
    from he_inference.encoding.deviation import stated_error
    from he_inference.index.rows import rows_path
    from he_inference.index.store import Index
    from he_inference.layouts.catalogue import key_bytes, packing_of, query_bytes, result_bytes

    with Index.open(file, verify=verify) as index:
        layout = index.layout
        removed = index.removed.tolist()
        shape = " x ".join(map(str, index.blocks.shape))
        packing = f", packing {packing_of(layout)}" if packing_of(layout) else ""
        listed = ", ".join(map(str, removed[:10])) + (", ..." if len(removed) > 10 else "")
        for name, value in (
            ("generation", str(index.generation)),
            ("parameters", f"{layout.parameters.name}: {layout.parameters.security}"),
            ("layout", f"{layout.kind}{packing}"),
            ("items", f"{layout.items} of {layout.dimensions} dimensions"),
            ("removed", f"{len(removed)}{': ' if removed else ''}{listed}"),
            ("item norm", f"{index.item_norm:.6g}, longest row {index.largest_norm:.4f} of it"),
            ("error", f"of a score at most {stated_error(layout) * index.item_norm:.3g}"),
            ("blocks", f"{shape}, uint32"),
            ("size", f"{_size(index.size_bytes)}, {_bytes_each(index):.2f} bytes for each item and dimension"),
            (
                "query",
                f"{_size(query_bytes(layout))}, keys {_size(key_bytes(layout))} once,"
                f" response {_size(layout.blocks * result_bytes(layout))}",
            ),
            ("rows", "beside it" if rows_path(file).exists() else "not beside it"),
            ("model", f"sha256:{index.model_digest.hex()}"),
            ("item ids", f"sha256:{index.item_ids_digest.hex()}"),
            ("checksums", "all compared, no difference" if verify else "of the header only"),
        ):
            typer.echo(f"{name:<11} {value}")


@app.command()
def update(
    file: File,
    model: Model,
    authority: Authority = None,
    linear_part: LinearPart = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build anew when an item is longer than the index has room for.")
    ] = False,
    restore: Annotated[bool, typer.Option("--restore", help="Take removed items up again.")] = False,
) -> None:
    """Bring an index to another version of its model; only blocks with rows that differ are encoded.

    Removed items stay removed as long as the item ids are the same.

    Example: veil index update items.index --model model-of-june

    Example: veil index update items.index --model model-of-june --rebuild
    """
    from he_inference.index import build as indexes
    from he_inference.index.rows import rows_path
    from he_inference.index.store import Index
    from veil.errors import ConfigError, StateError

    items = _items(model, authority, linear_part)
    ids = indexes.item_ids_digest(items.ids)
    with Index.open(file, verify=False) as index:
        layout, norm = index.layout, index.item_norm
        if items.factors.shape[1] != layout.dimensions:
            raise ConfigError(
                f"got a model of {items.factors.shape[1]} dimensions, expected the index's {layout.dimensions}",
                hint="veil index build makes an index for it",
            )
        if len(index.removed) and ids != index.item_ids_digest and not restore:
            raise StateError(
                f"got a model with other items, expected those that the {len(index.removed)} removed ones have",
                hint="--restore takes all items up; remove those that must not be shown by their new numbers",
            )
    keep = rows_path(file).exists()
    try:
        with _progress("encoding") as advance:
            encoded, blocks = indexes.sync(
                file,
                indexes.ScaledRows(items.factors, norm),
                removed=() if restore else None,
                model_digest=items.digest,
                item_ids_digest=ids,
                keep_rows=keep,
                progress=advance,
            )
    except indexes.RebuildRequired:
        longest = indexes.norm_of(items.factors)
        if not rebuild:
            raise indexes.RebuildRequired(
                f"got an item of norm {longest:.6g}, expected at most the index's {norm:.6g}",
                hint="--rebuild encodes all items with a larger norm; --headroom of veil index build leaves room",
            ) from None
        encoded, blocks = _rebuilt(file, items, longest, keep, restore)
    with Index.open(file, verify=False) as index:
        typer.echo(f"encoded {encoded} of {blocks} blocks\n{_line(file, index)}")


@app.command()
def remove(
    file: File,
    numbers: Annotated[list[int], typer.Argument(metavar="NUMBER...", help="Numbers of items, from 0.")],
) -> None:
    """Take items out: their rows become zero and the others keep their numbers. Needs FILE.rows.

    Example: veil index remove items.index 17 2301
    """
    from he_inference.index import build as indexes
    from he_inference.index.store import Index

    with _progress("encoding") as advance:
        indexes.remove(file, numbers, progress=advance)
    with Index.open(file, verify=False) as index:
        typer.echo(_line(file, index))


def _rebuilt(file: Path, items: PublishedItems, norm: float, keep: bool, restore: bool) -> tuple[int, int]:
    from he_inference.index import build as indexes
    from he_inference.index.store import Index
    from he_inference.layouts.catalogue import layout_of, packing_of

    with Index.open(file, verify=False) as index:
        old, removed = index.layout, index.removed
    layout = layout_of(old.kind, old.parameters, len(items.factors), old.dimensions, packing_of(old))
    with _progress("encoding") as advance:
        indexes.build(
            file,
            layout,
            indexes.ScaledRows(items.factors, norm),
            item_norm=norm,
            model_digest=items.digest,
            item_ids_digest=indexes.item_ids_digest(items.ids),
            removed=() if restore else removed.tolist(),
            keep_rows=keep,
            progress=advance,
        )
    return layout.blocks, layout.blocks


def _items(model: Path, authority: Path | None, linear_part: bool) -> PublishedItems:
    from he_inference.index.published_items import read_items
    from veil.files import read_bounded

    certificate = None if authority is None else read_bounded(authority, 64 * 1024)
    return read_items(model, certificate, linear_part=linear_part)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        task = bars.add_task(f"{what} blocks", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _line(path: Path, index: Index) -> str:
    layout = index.layout
    return (
        f"{path}: generation {index.generation}, {layout.items} items of {layout.dimensions} dimensions"
        f" ({len(index.removed)} removed), {layout.kind} layout, parameters {layout.parameters.name},"
        f" {_size(index.size_bytes)}"
    )


def _bytes_each(index: Index) -> float:
    return index.size_bytes / (index.layout.items * index.layout.dimensions)


def _size(size_bytes: int) -> str:
    if size_bytes < 1_000_000:
        return f"{size_bytes / 1000:.1f} KB"
    return f"{size_bytes / 1_000_000:.1f} MB"
