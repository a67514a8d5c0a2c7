"""`veil catalogue`: build the public item catalogue from an items file, and look at one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from veil.text.encoder import TextEncoder

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The public item catalogue: build, show.")

_SHOWN = 5


@app.command()
def build(
    items: Annotated[Path, typer.Option(help="Items file: CSV, TSV, Parquet, or .gz of a text form.")],
    out: Annotated[Path, typer.Option(help="Directory to make; it must not exist.")],
    identifier: Annotated[str, typer.Option("--id", help="Column of the item id.")] = "item_id",
    title: Annotated[
        str | None, typer.Option(help="Column of the title; a year in brackets at its end is read.")
    ] = None,
    categories: Annotated[str | None, typer.Option(help="Column of the categories.")] = None,
    category_separator: Annotated[str, typer.Option(help="Between categories.")] = "|",
    year: Annotated[str | None, typer.Option(help="Column of the year.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="Column of further text; may be given again.")] = None,
    separator: Annotated[str, typer.Option(help="Between fields; auto goes by the file's name.")] = "auto",
    names: Annotated[
        str | None, typer.Option(help="Column names by position, with commas, if the file has none.")
    ] = None,
    encoding: Annotated[str, typer.Option(help="utf-8, latin-1 or cp1252.")] = "utf-8",
    encoder: Annotated[
        str, typer.Option(help="minilm (if installed), none, a model's folder or its hub id.")
    ] = "minilm",
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model, to pin it.")] = None,
    phrasing: Annotated[str, typer.Option(help="Sentences for the encoder: generic or movies.")] = "generic",
    dimensions: Annotated[int, typer.Option(help="Text columns to keep at most.")] = 160,
    cache: Annotated[Path | None, typer.Option(help="Where embeddings are kept; default ~/.cache/veil.")] = None,
) -> None:
    """Build a catalogue directory: items, public features and a digest that every participant checks.

    Example: veil catalogue build --items items.csv --title title --categories genres --out catalogue
    """
    from pydantic import ValidationError

    from veil.errors import ConfigError, StateError
    from veil.jobs.spec import describe
    from veil.recsys.features import build_catalogue
    from veil.recsys.items import ItemColumns, read_items
    from veil.recsys.table import TableFormat

    if out.exists():
        raise StateError(f"got {out}, which exists, expected a new directory", hint="remove it or choose another")
    try:
        columns = ItemColumns(id=identifier, title=title, categories=categories, year=year, texts=tuple(text or ()))
        layout = TableFormat.model_validate(
            {
                "separator": "\t" if separator == "\\t" else separator,
                "encoding": encoding,
                "names": None if names is None else names.split(","),
            }
        )
    except ValidationError as error:
        raise ConfigError(f"options: {describe(error)}", hint="veil catalogue build --help lists them") from None
    table = read_items(items, columns, layout, category_separator=category_separator)
    model = _encoder(encoder, revision, cache)
    catalogue = build_catalogue(
        table,
        embed=None if model is None else model.encode,
        encoder="none" if model is None else model.label,
        phrasing=phrasing,
        text_dimensions=dimensions,
    )
    catalogue.save(out)
    print(f"{out}: {catalogue.items} items, {catalogue.features.shape[1]} features\ndigest {catalogue.digest}")


@app.command()
def show(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A catalogue directory.")],
    digest: Annotated[str | None, typer.Option(help="Refuse any other digest, sha256:….")] = None,
) -> None:
    """Verify a catalogue and print what is in it.

    Example: veil catalogue show catalogue
    """
    from veil.recsys.catalogue import Catalogue

    catalogue = Catalogue.load(directory, expect_digest=digest)
    print(f"digest     {catalogue.digest}")
    print(f"items      {catalogue.items}")
    print(f"encoder    {catalogue.encoder}, phrasing {catalogue.phrasing}")
    for block in catalogue.blocks:
        print(f"features   {block.size:>5} {block.name}: {block.scaling}")
    print(f"categories {_most_common(catalogue.categories)}")
    for identifier, title in list(zip(catalogue.ids, catalogue.titles, strict=True))[:_SHOWN]:
        print(f"           {identifier}  {title}")


def _encoder(name: str, revision: str | None, cache: Path | None) -> TextEncoder | None:
    from veil.text.encoder import MISSING_DEFAULT, TextEncoder, default_encoder

    if name == "none":
        return None
    if name == "minilm":
        model = default_encoder(cache)
        if model is None:
            typer.echo(f"veil: {MISSING_DEFAULT}", err=True)
        return model
    return TextEncoder(name, revision=revision, cache=cache)


def _most_common(categories: Sequence[Sequence[str]]) -> str:
    counted = Counter(name for names in categories for name in names).most_common(8)
    return ", ".join(f"{name} ({count})" for name, count in counted) or "none"
