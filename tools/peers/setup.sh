#!/usr/bin/env bash
# Makes one peer's own environment: `setup.sh PEER FOLDER`, PEER a file PEER.txt beside this one. Every version is pinned
# there, dependencies too, so none are resolved: some peers' metadata cannot be. The index is the one pip is configured for.
set -euo pipefail
peer="${1:?usage: setup.sh PEER FOLDER}"
folder="${2:?usage: setup.sh PEER FOLDER}"
pins="$(cd "$(dirname "$0")" && pwd)/$peer.txt"
[ -f "$pins" ] || { echo "setup: got peer $peer, expected one with a list $pins" >&2; exit 1; }
if [ -f "$folder/.installed" ] && cmp -s "$pins" "$folder/.installed"; then exit 0; fi
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --requirement "$pins"
cp "$pins" "$folder/.installed"
