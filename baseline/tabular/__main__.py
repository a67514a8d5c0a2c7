"""`python -m baseline.tabular`: the utility table of joint models on split columns, as JSON lines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from veil.errors import VeilError

EPSILONS: Final = (1.0, 3.0, 8.0)
ALTERNATIVES: Final = ("objective perturbation", "sufficient statistics", "naive Bayes counts")
GROUPS: Final = ("plain", "joint", "alternatives", "rates", "neural")


def lines(data: str, folder: Path, parties: int, seeds: int, groups: Sequence[str]) -> Iterator[dict[str, object]]:
    """The table's lines for one data set and split. Raises `VeilError`."""
    from baseline.tabular.plain import best_logistic, best_neural
    from baseline.tabular.table import Bench

    bench = Bench("criteo" if data == "criteo" else "avazu", folder, parties)
    if "plain" in groups:
        ridge, logits = best_logistic(bench.plain)
        yield bench.scored(f"plaintext logistic, ridge {ridge:g}", logits).document()
        yield bench.scored("plaintext factorisation machine", best_neural(bench.plain, "machine")).document()
        yield bench.scored("plaintext perceptron", best_neural(bench.plain, "perceptron")).document()
    if "joint" in groups:
        for epsilon in (None, *EPSILONS):
            yield bench.linear(epsilon, seeds).document()
    if "alternatives" in groups:
        for kind in ALTERNATIVES:
            for epsilon in EPSILONS:
                yield bench.alternative(kind, epsilon, seeds).document()
    if "rates" in groups:
        for epsilon in (None, *EPSILONS):
            yield bench.rate_encoded(epsilon, seeds).document()
    if "neural" in groups:
        for epsilon in (None, *EPSILONS):
            yield bench.neural("perceptron", epsilon, seeds).document()
            yield bench.neural("towers", epsilon, seeds).document()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m baseline.tabular", description=__doc__)
    parser.add_argument("--data", required=True, choices=("criteo", "avazu"))
    parser.add_argument("--folder", required=True, type=Path, help="folder of the samples")
    parser.add_argument("--parties", type=int, default=2, help="2 or 3")
    parser.add_argument("--seeds", type=int, default=5, help="draws of noise for each line")
    parser.add_argument("--group", action="append", choices=GROUPS, help="what to measure; all by default")
    options = parser.parse_args(arguments)
    try:
        for line in lines(options.data, options.folder, options.parties, options.seeds, options.group or GROUPS):
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
    except VeilError as error:
        sys.stderr.write(f"baseline.tabular: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
