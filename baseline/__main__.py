"""`python -m baseline`: trains the plaintext twin and its references and writes the metrics as JSON to standard output.

The command with options for people is `veil baseline`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from veil.errors import VeilError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m baseline", description=__doc__)
    parser.add_argument("--data", required=True, help="synthetic, or NAME:FOLDER")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    # Here and not above: --help should not wait for torch.
    from baseline.evaluate import plain_comparison
    from baseline.material import load

    try:
        dataset, catalogue = load(options.data)
        rows = [{"name": row.name, **row.mean()} for row in plain_comparison(dataset, catalogue, options.device)]
    except VeilError as error:
        sys.stderr.write(f"baseline: {error}\n")
        return 1
    sys.stdout.write(json.dumps({"dataset": dataset.name, "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
