"""`veil serve`: the scoring server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def serve(
    config: Annotated[
        Path | None, typer.Option(help="TOML file; deploy/scoring.toml has one with a comment on every key.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Directory of the published model.")] = None,
    credentials: Annotated[
        Path | None, typer.Option(help="Directory with key.pem, cert.pem and authority.pem, role scoring.")
    ] = None,
    listen: Annotated[str | None, typer.Option(help="Address to listen at, host:port; port 0: any free one.")] = None,
    signers: Annotated[
        str | None, typer.Option(help="Parties that must have signed the model, comma-separated.")
    ] = None,
    linear_part: Annotated[
        bool,
        typer.Option("--linear-part", help="Serve models on columns that are more than linear: their linear part."),
    ] = False,
    state: Annotated[
        Path | None, typer.Option(help="Directory for index files, clients' evaluation keys and counts of queries.")
    ] = None,
    params: Annotated[
        str | None,
        typer.Option(help="Ways to ask, the preferred one first, comma-separated: fast, pq, exact, keyless, …"),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads that compute; 0: one for each core.")] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="Where the arithmetic runs: process, cuda (products with items on a GPU) or ray (shards on a Ray"
            " cluster); more about each in section engine of the file."
        ),
    ] = None,
) -> None:
    """Serve a published model to clients that send encrypted vectors. Options override the file.

    Example: veil serve --config deploy/scoring.toml

    Example: veil serve --model model --credentials certs/scoring-main --listen 0.0.0.0:7440 --signers alpha,beta

    Models on columns of several parties are served alike: --model is one published directory, or a folder with one for
    each model. Clients ask with `veil score-rows`.
    """
    from he_inference.__main__ import run
    from he_inference.service import config as configs
    from veil.errors import ConfigError

    given: dict[str, Any] = {
        "model": model,
        "credentials": credentials,
        "listen": listen,
        "require_signers": _names(signers),
        "state": state,
        "offers": _names(params),
        "linear_part": linear_part or None,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    if config is None:
        needed = {"model": "model", "credentials": "credentials", "listen": "listen", "signers": "require_signers"}
        missing = [f"--{option}" for option, name in needed.items() if name not in chosen]
        if missing:
            raise ConfigError(f"got neither --config nor {', '.join(missing)}", hint="give a file, or these options")
        chosen.setdefault("state", Path("state/scoring"))
        settings = configs.check(_nested(chosen, threads, engine), Path.cwd(), source="options")
    else:
        base = configs.load(config).model_dump()
        for name in ("model", "credentials", "state"):
            if name in chosen:
                chosen[name] = Path.cwd() / chosen[name]
        settings = configs.check(_nested({**base, **chosen}, threads, engine), Path.cwd(), source=str(config))
    run(settings, lambda line: typer.echo(line, err=True), config)


def _names(text: str | None) -> tuple[str, ...] | None:
    return tuple(name.strip() for name in text.split(",")) if text else None


def _nested(document: dict[str, Any], threads: int | None, engine: str | None) -> dict[str, Any]:
    """The document with options that stand in sections of the file."""
    changed = dict(document)
    for section, key, value in (("load", "threads", threads), ("engine", "kind", engine)):
        if value is not None:
            changed[section] = {**changed.get(section, {}), key: value}
    return changed
