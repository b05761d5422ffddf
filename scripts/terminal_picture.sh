#!/usr/bin/env bash
# Draws docs/terminal.svg: a real run in a real terminal (tmux), in the middle and at its end. Needs tmux and the
# environment of `make`. Usage: scripts/terminal_picture.sh
set -euo pipefail
cd "$(dirname "$0")/.."
folder="$(mktemp -d)"
trap 'SYNTHGEN_HOME="$folder/home" .venv/bin/synthgen db stop >/dev/null 2>&1 || true; tmux kill-session -t picture 2>/dev/null || true; rm -rf "$folder"' EXIT
cp tests/data/gsm8k.jsonl "$folder/"
command="synthgen run gsm8k.jsonl --prompt '{question}' --engine mock --model m -o answers.jsonl"
mock="--engine-option latency=lognormal:0.5:0.4 --engine-option fail_rate=0.004 --engine-option fail_status=400 --in-flight 64 --input-price 0.1 --output-price 0.4"
tmux new-session -d -s picture -x 92 -y 24 \
    "cd '$folder' && SYNTHGEN_HOME='$folder/home' '$PWD/.venv/bin/'$command $mock; sleep 60"
until tmux capture-pane -p -t picture | grep -q 'left$'; do sleep 0.2; done
sleep 5
tmux capture-pane -p -e -t picture >"$folder/middle"
until tmux capture-pane -p -t picture | grep -q 'answers  '; do sleep 0.2; done
tmux capture-pane -p -e -t picture >"$folder/end"
.venv/bin/python - "$command" "$folder/middle" "$folder/end" <<'PYTHON'
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

command, *captures = sys.argv[1:]
console = Console(record=True, width=92, file=open("/dev/null", "w"))
console.print(Text.assemble(("$ ", "bold green"), command))
for capture in captures:
    console.print(Text.from_ansi(Path(capture).read_text().strip("\n")))
    console.print(Text("⋯", "dim") if capture is captures[0] else "")
# Without the fonts that it would fetch from elsewhere: the reader's own monospaced font does.
svg = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="synthgen"), flags=re.DOTALL)
Path("docs/terminal.svg").write_text(svg)
PYTHON
echo "docs/terminal.svg"
