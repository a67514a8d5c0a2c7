"""The `veil` command. A program is imported only when its command runs, so that `veil --help` is instant.

Guarantee: what goes wrong for a reason outside this code (input, peers, files) is one paragraph and exit status 1;
wrong options exit with 2; a traceback is a bug.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys

import typer
from rich.console import Console
from rich.table import Table

from veil import __version__
from veil.errors import DataError, PeerError, VeilError

# command -> (module, attribute, one line for the overview). Attributes are typer apps or plain functions.
_COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("cli.demo", "demo", "The whole way on one machine: joint training, encrypted scoring, a report."),
    "certs": ("cli.certs", "app", "Keys and certificates: make, request, sign, show, renew."),
    "catalogue": ("cli.catalogue", "app", "The public item catalogue: build, show."),
    "coordinator": ("cli.programs", "coordinator", "Run the coordinator."),
    "dealer": ("cli.programs", "dealer", "Run the dealer of correlated randomness."),
    "party": ("cli.party", "app", "A data owner's daemon: start, check the data, status, approve or refuse jobs."),
    "job": ("cli.job", "app", "Training jobs: plan, submit, watch, list, show, cancel, report."),
    "query": ("cli.query", "app", "Aggregate questions over all parties' users: plan, ask, show the answers."),
    "privacy": ("cli.privacy", "app", "What a budget buys, and what a party has spent."),
    "serve": ("cli.serve", "serve", "Serve a published model to clients that send encrypted vectors."),
    "index": ("cli.index", "app", "The encoded items that a scoring server reads: build, show, update, remove."),
    "tokens": ("cli.tokens", "app", "Bearer tokens for clients of a scoring server: add, list, revoke."),
    "predict": ("cli.predict", "predict", "Predictions of a published model on columns of several parties."),
    "score-rows": ("cli.score_rows", "score_rows", "Ask a server for scores of rows without showing it a feature."),
    "recommend": ("cli.recommend", "recommend", "Ask a server for recommendations without showing it the history."),
    "tune": ("cli.tune", "tune", "Choose layout and parameters of encrypted scoring for a link, checked by trial."),
    "baseline": (
        "cli.baseline",
        "app",
        "The same model in plaintext on all the data: what privacy is measured against.",
    ),
    "audit": ("cli.audit", "audit", "Attack the private trainer on data that you hold; exit 1 if it breaks its claim."),
    "bench": ("cli.bench", "app", "Timings as ratios, measured side by side in one run."),
}

# Programs that run until they are stopped; they say what they do without being asked to.
_DAEMONS = (["coordinator"], ["dealer"], ["party", "start"], ["serve"])
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def main() -> None:
    """Entry point. A `VeilError` or `OSError` becomes one paragraph and exit status 1; nothing else is swallowed."""
    arguments = sys.argv[1:]
    verbose = arguments[:1] in (["-v"], ["--verbose"])
    arguments = arguments[1:] if verbose else arguments
    daemon = any(arguments[: len(words)] == words for words in _DAEMONS)
    level = os.environ.get("VEIL_LOG", "INFO" if verbose or daemon else "WARNING").upper()
    if level not in _LEVELS:
        sys.exit(f"veil: got VEIL_LOG={level[:40]!r}, expected one of {', '.join(_LEVELS)}")
    for stream in (sys.stdout, sys.stderr):
        # Titles and help are Unicode; a terminal that is not gets them escaped, not an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not daemon:
        # A caller gets a failed handshake as our own error; gRPC's lines of C++ say less. Servers keep them.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _overview()
        return
    if arguments[0] == "--version":
        print(f"veil {__version__}")
        return
    command, rest = arguments[0], arguments[1:]
    if command not in _COMMANDS:
        print(
            f"veil: got command {command[:40]!r}, expected one of {', '.join(_COMMANDS)}\n  see: veil --help",
            file=sys.stderr,
        )
        sys.exit(2)
    try:
        application(command)(args=rest, prog_name=f"veil {command}")
    except VeilError as error:
        sys.exit(describe(error))
    except BrokenPipeError:
        # The reader of a pipe (head, say) has had enough; nothing is left to say, and closing must not say it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        logging.getLogger("veil.cli").debug("where it happened", exc_info=True)
        where = f" at {error.filename}" if error.filename else ""
        sys.exit(f"veil: the system says: {error.strerror or error}{where}\n  code: SYSTEM")
    except KeyboardInterrupt:
        sys.exit("veil: stopped")


def application(command: str) -> typer.Typer:
    """The typer application behind one command, imported now."""
    module, attribute, summary = _COMMANDS[command]
    target = getattr(importlib.import_module(module), attribute)
    if isinstance(target, typer.Typer):
        target.info.help = target.info.help or summary
        app = target
    else:
        app = typer.Typer(add_completion=False)
        app.command()(target)
    # Our own errors are one paragraph; a bug should show a plain traceback, without local variables in it.
    app.pretty_exceptions_enable = False
    return app


def describe(error: VeilError) -> str:
    """What went wrong, who or where, and what to do."""
    lines = [f"veil: {error.message}"]
    if isinstance(error, PeerError) and error.culprits:
        lines.append(f"  at fault: {', '.join(error.culprits)}")
    if isinstance(error, DataError) and error.lines:
        lines.append(f"  lines: {', '.join(map(str, error.lines))}")
    if error.hint:
        lines.append(f"  what to do: {error.hint}")
    lines.append(f"  code: {error.code}")
    return "\n".join(lines)


def _overview() -> None:
    console = Console()
    console.print(
        "Train one recommender across organisations that may not show each other their\n"
        "users' data, and score it for clients that do not show what they like.\n"
    )
    console.print("usage: veil [-v] COMMAND [OPTIONS]      veil COMMAND --help says more\n", markup=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, (_, _, summary) in _COMMANDS.items():
        table.add_row(f"  {name}", summary)
    console.print(table)
    console.print(
        "\nall of it on one machine:  veil demo --out out/demo\n"
        "between machines:          README.md, tutorial 1\n"
        "more logging:              -v, or VEIL_LOG=DEBUG",
        markup=False,
    )
