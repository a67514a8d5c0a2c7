#!/usr/bin/env bash
# Regenerates veil/wire/v1 from protos/; with --check only says whether what is committed is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."
bin="$PWD/.venv/bin"
out="$(mktemp -d)"
trap 'rm -rf "$out"' EXIT
PATH="$bin:$PATH" "$bin/python" -m grpc_tools.protoc -I protos \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" \
  protos/veil/wire/v1/*.proto
printf '"""Generated from protos/ by `make protos`; never edited by hand."""\n' > "$out/veil/wire/v1/__init__.py"
if [ "${1:-}" = "--check" ]; then
  diff -r --exclude=__pycache__ "$out/veil/wire/v1" veil/wire/v1 || {
    echo "protos: veil/wire/v1 is not what protos/ generates; run make protos and commit the result" >&2
    exit 1
  }
else
  rm -rf veil/wire/v1
  cp -r "$out/veil/wire/v1" veil/wire/v1
fi
