#!/usr/bin/env bash
# Makes the environment: uv in it first, then everything else by uv, which honours the corrected metadata in pyproject.toml.
set -euo pipefail
venv="${1:?usage: setup.sh VENV}"
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "setup: got $("$python" --version 2>&1), expected Python 3.11 or newer; name one by PYTHON=/path/to/python make setup" >&2
  exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
# A folder of wheels that pip knows of (a CPU build of torch, say) is used by uv too; so is pip's index.
links="$("$venv/bin/python" -m pip config get global.find-links 2>/dev/null || true)"
index="$("$venv/bin/python" -m pip config get global.index-url 2>/dev/null || true)"
[ -z "$links" ] || export UV_FIND_LINKS="${UV_FIND_LINKS:-$links}"
[ -z "$index" ] || export UV_INDEX_URL="${UV_INDEX_URL:-$index}"
VIRTUAL_ENV="$(cd "$venv" && pwd)" "$venv/bin/uv" pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
echo "setup: ready; the command is $venv/bin/veil"
