"""What is read from vLLM's own arguments, which are passed on untouched.

Some decide what is answered, so they belong to the name of the weights; some would take the server to where its worker
does not look for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from synthgen.errors import BadInput

_LONG: Final = {"-q": "--quantization", "-sc": "--speculative-config"}
_DECIDING: Final = frozenset(
    {
        *("--quantization", "--quantization-config", "--kv-cache-dtype"),
        *("--tokenizer", "--tokenizer-revision", "--tokenizer-mode"),
        *("--hf-overrides", "--hf-config-path", "--config"),
        *("--generation-config", "--override-generation-config", "--logits-processors"),
        *("--chat-template", "--chat-template-content-format", "--default-chat-template-kwargs"),
        *("--lora-modules", "--default-mm-loras"),
        *("--reasoning-parser", "--tool-call-parser"),
        *("--runner", "--convert", "--pooler-config"),
    }
)
"""Not ``--dtype`` and what else changes only how numbers are rounded, or how fast."""

_NOT_YOURS: Final = frozenset({"--port", "--host", "--uds", "--headless", "--root-path", "--api-key", "--grpc"})

_OTHERS: Final = frozenset(
    {
        *("--tokenizer", "--hf-config-path", "--trust-remote-code"),
        *("--speculative-config", "--spec-model", "--lora-modules", "--default-mm-loras"),
    }
)
"""What they name, or what it names in turn, may lie on the hub besides the model itself."""


def options_of(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each option in its long form with dashes, and the words that are given to it."""
    found: list[tuple[str, list[str]]] = []
    for word in arguments:
        if word.startswith("-"):
            flag, equals, text = word.partition("=")
            name, dot, key = _LONG.get(flag, flag).partition(".")  # --hf-overrides.rope_theta: the key is the user's
            found.append((name.replace("_", "-") + dot + key, [text] if equals else []))
        elif found:
            found[-1][1].append(word)
    return found


def argument(name: str, arguments: Sequence[str]) -> str | None:
    """What is given as ``--name TEXT`` or ``--name=TEXT``, None where it is not; the last one counts."""
    given = [words for option, words in options_of(arguments) if option == name]
    return " ".join(given[-1][:1]) if given else None


def check(arguments: Sequence[str]) -> None:
    """Raises BadInput for what would leave a server that its worker cannot reach, or that serves other weights."""
    for name, _ in options_of(arguments):
        if name in _NOT_YOURS or name.startswith("--ssl-"):
            raise BadInput(
                f"vLLM's {name} cannot stand after --: the worker opens the server itself, on a loopback port that it "
                "chooses, for itself alone. Leave it out."
            )
        if name == "--model":
            raise BadInput("vLLM's --model cannot stand after --: name the model with --model before it.")


def needs_hub(arguments: Sequence[str]) -> bool:
    """Whether something besides the model may have to be fetched."""
    return any(name.partition(".")[0] in _OTHERS for name, _ in options_of(arguments))


def deciding(arguments: Sequence[str]) -> list[str]:
    """The words of those that change what is answered; however they are written and ordered, the same."""
    options = sorted(options_of(arguments), key=lambda option: option[0])
    return [word for name, words in options if name.partition(".")[0] in _DECIDING for word in (name, *words)]
