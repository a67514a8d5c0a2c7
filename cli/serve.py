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
    state: Annotated[Path | None, typer.Option(help="Directory for clients' evaluation keys.")] = None,
    params: Annotated[str | None, typer.Option(help="Parameter set: session-8192 or session-4096.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that compute, one core each.")] = None,
) -> None:
    """Serve a published model to clients that send encrypted vectors. Options override the file.

    Example: veil serve --config deploy/scoring.toml

    Example: veil serve --model model --credentials certs/scoring-main --listen 0.0.0.0:7440 --signers alpha,beta
    """
    from he_inference import config as configs
    from he_inference.__main__ import run
    from veil.errors import ConfigError

    given: dict[str, Any] = {
        "model": model,
        "credentials": credentials,
        "listen": listen,
        "require_signers": tuple(name.strip() for name in signers.split(",")) if signers else None,
        "state": state,
        "parameters": params,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    if config is None:
        needed = {"model": "model", "credentials": "credentials", "listen": "listen", "signers": "require_signers"}
        missing = [f"--{option}" for option, name in needed.items() if name not in chosen]
        if missing:
            raise ConfigError(f"got neither --config nor {', '.join(missing)}", hint="give a file, or these options")
        chosen.setdefault("state", Path("state/scoring"))
        settings = configs.check(_with_workers(chosen, workers), Path.cwd(), source="options")
    else:
        base = configs.load(config).model_dump()
        for name in ("model", "credentials", "state"):
            if name in chosen:
                chosen[name] = Path.cwd() / chosen[name]
        settings = configs.check(_with_workers({**base, **chosen}, workers), Path.cwd(), source=str(config))
    run(settings, ready=lambda line: typer.echo(line, err=True))


def _with_workers(document: dict[str, Any], workers: int | None) -> dict[str, Any]:
    if workers is None:
        return document
    return {**document, "load": {**document.get("load", {}), "workers": workers}}
