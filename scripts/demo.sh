#!/usr/bin/env bash
# The sample batch from start to end on the embedded default: no server, no key, no model.
# Everything it makes is in the folder "demo" of this checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
synthgen="${1:-.venv/bin}/synthgen"

# What is set for real runs stays out of this one.
unset "${!SYNTHGEN_@}"
export SYNTHGEN_HOME="$PWD/demo/home"
mkdir -p demo
trap '"$synthgen" db stop >/dev/null 2>&1 || true' EXIT

"$synthgen" run examples/questions.jsonl --engine mock --engine-option latency=0.2 --model any-model \
    --name demo --output demo/answers.jsonl

cat <<END

The text of these answers is mocked: made-up words in place of a model's. All else was real: a PostgreSQL of its own,
checkpoints, cache, results in input order.

  answers   demo/answers.jsonl, one line for each line of examples/questions.jsonl
  again     make demo: now every answer comes from the cache

With a real model, on any OpenAI-compatible server:

  export OPENAI_API_KEY=...
  $synthgen run examples/questions.jsonl --base-url http://localhost:8000/v1 --model MODEL -o answers.jsonl
END
