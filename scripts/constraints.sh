#!/usr/bin/env bash
# Writes constraints.txt: the exact version of everything that a fresh environment gets, as name==version and no more.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${1:-python3}"
fresh="$(mktemp -d)"
trap 'rm -rf "$fresh"' EXIT

"$python" -m venv "$fresh"
"$fresh/bin/python" -m pip install -qq --disable-pip-version-check -e '.[dev]'
"$fresh/bin/python" -m pip freeze --exclude-editable --disable-pip-version-check 2>/dev/null | LC_ALL=C sort -f > "$fresh/constraints.txt"

if grep -vE '^[A-Za-z0-9._-]+==[A-Za-z0-9.+!-]+$' "$fresh/constraints.txt"; then
    echo "These lines are not of the form name==version; constraints.txt was left as it was." >&2
    exit 1
fi
cp "$fresh/constraints.txt" constraints.txt
echo "constraints.txt: $(wc -l < constraints.txt) exact versions" >&2
