"""`veil certs`: keys and certificates of a consortium, from its authority's first day to every renewal.

Guarantee: private keys stay in the directory in which they were made and are never shown; what travels between
organisations (request.pem, cert.pem, authority.pem) is public.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from veil.errors import ConfigError

FROM_ENVIRONMENT = "VEIL_AUTHORITY_PASSPHRASE"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="""Keys and certificates: make, request, sign, show, renew.

    Everything on one machine, for a trial:

        veil certs init --dir out/certs --consortium trial --parties alpha,beta,gamma

    Between organisations: the authority runs `init` once and gives authority.pem to every site; a site runs `issue`
    and sends request.pem; the authority checks with the site who it is and runs `sign`; the site runs `issue --cert`.
    """,
)

Consortium = Annotated[str, typer.Option("--consortium", help="Name of the consortium: a-z, 0-9 and '-'.")]
RoleOption = Annotated[str, typer.Option("--role", help="party, coordinator, dealer, scoring, client or operator.")]
NameOption = Annotated[str, typer.Option("--name", help="Name within the role: a-z, 0-9 and '-'.")]


@app.command()
def init(
    directory: Annotated[Path, typer.Option("--dir", help="The authority is made in DIR/authority.")],
    consortium: Consortium,
    parties: Annotated[
        str | None,
        typer.Option("--parties", help="Comma-separated: also issue a whole trial consortium, DIR/<role>-<name>."),
    ] = None,
    passphrase: Annotated[
        bool,
        typer.Option("--passphrase", help=f"Encrypt the authority's key; asks, or reads {FROM_ENVIRONMENT}."),
    ] = False,
) -> None:
    """Make a consortium's authority; it is never replaced once it exists.

    Example: veil certs init --dir authority-of-acme --consortium acme --passphrase

    Example: veil certs init --dir out/certs --consortium trial --parties alpha,beta,gamma
    """
    from veil.identity.authority import make_authority
    from veil.identity.trial import AUTHORITY_FOLDER, make_consortium

    secret = _passphrase(confirm=True) if passphrase else None
    if parties is None:
        make_authority(directory / AUTHORITY_FOLDER, consortium, passphrase=secret)
        typer.echo(f"authority of {consortium}: {directory / AUTHORITY_FOLDER}")
        typer.echo("next: give authority.pem in it to every site; keep authority-key.pem away from networks")
        return
    names = [name.strip() for name in parties.split(",")]
    for identity, folder in make_consortium(directory, consortium, names, passphrase=secret).items():
        typer.echo(f"{identity}  {folder}")


@app.command()
def issue(
    directory: Annotated[Path, typer.Option("--dir", help="This site's own directory; its key stays there.")],
    consortium: Annotated[str | None, typer.Option("--consortium", help="Name of the consortium.")] = None,
    role: Annotated[str | None, typer.Option("--role", help="party, coordinator, dealer, scoring, client…")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name within the role: a-z, 0-9 and '-'.")] = None,
    certificate: Annotated[
        Path | None, typer.Option("--cert", help="The signed certificate, once it has come.")
    ] = None,
    authority: Annotated[
        Path | None, typer.Option("--authority", help="The consortium's authority.pem, with --cert.")
    ] = None,
) -> None:
    """At a site: make a key and a request; later, with --cert, put the signed certificate in its place.

    Example: veil certs issue --dir certs --consortium acme --role party --name alpha

    Example: veil certs issue --dir certs --cert alpha.pem --authority authority.pem
    """
    from veil.identity.names import Identity, parse_role
    from veil.identity.site import make_request

    if certificate is not None:
        _install(directory, certificate, authority)
        return
    if consortium is None or role is None or name is None:
        raise ConfigError("got no --cert and not all of --consortium, --role and --name, expected one or the other")
    identity = Identity(consortium, parse_role(role), name)
    request = make_request(directory, identity)
    typer.echo(f"request of {identity}: {request}")
    typer.echo(f"next: send it to the authority; then veil certs issue --dir {directory} --cert FILE --authority FILE")


@app.command()
def sign(
    directory: Annotated[Path, typer.Option("--dir", help="The directory that was given to `init`.")],
    request: Annotated[Path, typer.Option("--request", help="The site's request.pem.")],
    role: RoleOption,
    name: NameOption,
    out: Annotated[Path, typer.Option("--out", help="Where the certificate goes; must not exist.")],
    days: Annotated[int, typer.Option("--days", min=1, max=398, help="Validity in days.")] = 90,
) -> None:
    """At the authority: sign a site's request, for exactly the role and the name that you give.

    Example: veil certs sign --dir ca --request alpha.pem --role party --name alpha --out alpha-cert.pem
    """
    from veil.files import write_atomic
    from veil.identity.authority import AUTHORITY_KEY_FILE, key_is_encrypted, sign_request
    from veil.identity.certificates import read_pem
    from veil.identity.names import parse_role

    if out.exists():
        raise ConfigError(f"got --out {out}, which exists, expected a new file")
    directory = _authority(directory)
    secret = _passphrase(confirm=False) if key_is_encrypted(directory / AUTHORITY_KEY_FILE) else None
    pem = sign_request(directory, read_pem(request), role=parse_role(role), name=name, passphrase=secret, days=days)
    write_atomic(out, pem)
    typer.echo(f"certificate: {out}")
    _show(out)
    typer.echo("next: send it back to the site, with authority.pem if it has none yet")


@app.command()
def show(
    directory: Annotated[Path, typer.Option("--dir", help="A site's or the authority's directory, or one .pem file.")],
) -> None:
    """What a directory or a file holds: identities, dates, fingerprints; never keys.

    Example: veil certs show --dir out/certs/party-alpha

    Example: veil certs show --dir request.pem
    """
    _show(_authority(directory))


@app.command()
def renew(
    directory: Annotated[Path, typer.Option("--dir", help="This site's own directory.")],
    certificate: Annotated[
        Path | None, typer.Option("--cert", help="The signed certificate, once it has come.")
    ] = None,
    keep_key: Annotated[bool, typer.Option("--keep-key", help="Ask for the same key again.")] = False,
) -> None:
    """At a site: ask for the same identity again; the old certificate stays in use until the new one is put in place.

    Example: veil certs renew --dir certs

    Example: veil certs renew --dir certs --cert alpha.pem
    """
    from veil.identity.site import renew as make_renewal

    if certificate is not None:
        _install(directory, certificate, None)
        return
    request = make_renewal(directory, new_key=not keep_key)
    typer.echo(f"request: {request}")
    typer.echo(f"next: send it to the authority; then veil certs renew --dir {directory} --cert FILE")


def _install(directory: Path, certificate: Path, authority: Path | None) -> None:
    from veil.identity.certificates import read_pem
    from veil.identity.site import install

    authority_pem = None if authority is None else read_pem(authority)
    identity = install(directory, read_pem(certificate), authority_pem)
    typer.echo(f"{identity} is in place in {directory}")
    _show(directory)


def _authority(directory: Path) -> Path:
    """The authority's own folder, also when the directory that holds it was given."""
    from veil.identity.authority import AUTHORITY_KEY_FILE
    from veil.identity.trial import AUTHORITY_FOLDER

    inner = directory / AUTHORITY_FOLDER
    return inner if (inner / AUTHORITY_KEY_FILE).exists() else directory


def _show(path: Path) -> None:
    from veil.identity.site import describe

    for found in describe(path):
        typer.echo(f"{found.kind}: {found.subject}")
        typer.echo(f"  file: {found.path}")
        if found.valid_from is not None and found.valid_until is not None:
            typer.echo(f"  valid: {_day(found.valid_from)} to {_day(found.valid_until)}")
        typer.echo(f"  SHA-256: {found.fingerprint}")


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _passphrase(*, confirm: bool) -> bytes:
    """From the environment, or else asked for; never an argument, which other users of the machine could read."""
    given = os.environ.get(FROM_ENVIRONMENT)
    if given is None:
        given = typer.prompt("Passphrase of the authority's key", hide_input=True, confirmation_prompt=confirm)
    return str(given).encode()
