#!/usr/bin/env bash
# Writes requirements_lock.txt anew from pyproject.toml: every package that tfgen and its checks need, at the newest
# version that fits, with the hashes of its files. Bazel remakes its environment on the next build.
#   tools/lock.sh                             keeps the versions that still fit
#   tools/lock.sh --upgrade                   takes the newest
#   tools/lock.sh --upgrade-package numpy     takes the newest of one
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet 'uv>=0.7,<1'

"$scratch/venv/bin/uv" pip compile pyproject.toml --extra baselines --extra dev --extra ray --extra reports --extra serving \
  --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --no-annotate \
  --custom-compile-command tools/lock.sh --quiet --output-file requirements_lock.txt "$@"

# The project needs Python 3.11 anyway, so a marker for that on every line says nothing.
sed -i -e "s/ ; python_full_version < '3.12' and / ; /" -e "s/ ; python_full_version < '3.12'//" requirements_lock.txt
