"""Makes a tiny Llama with random weights, so that a real vLLM can be tried where no weights are at hand.

Run with the Python of vLLM's environment: ``.venv-vllm/bin/python scripts/make_tiny_model.py OUT_DIR [--seed 1]``.
Equal arguments give equal weights. What it says is noise; that it says it through the real engine is the point.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedTokenizerFast
from transformers.utils import logging

SPECIAL = ("<bos>", "<eos>", "<pad>")
WORDS = "the quick brown fox jumps over the lazy dog and counts one two three four five apples for a question"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level: any text has tokens, so there is no unknown token; about 300 of them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # No control characters but the newline: xgrammar lets them into strings with a maxLength, and random weights would.
    control = {chr(256 + byte) for byte in range(32) if byte != ord("\n")}
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - control)
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([WORDS], trainer)
    bos, eos, pad = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad, chat_template=CHAT_TEMPLATE
    )


def make_config(tokenizer: PreTrainedTokenizerFast, *, hidden: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="bfloat16",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another model (default 0)")
    parser.add_argument("--hidden", type=int, default=128, help="width of the model, a multiple of 128 (default 128)")
    parser.add_argument("--embedding", action="store_true", help="without a language head, for embeddings")
    options = parser.parse_args()

    logging.disable_progress_bar()
    tokenizer = make_tokenizer()
    torch.manual_seed(options.seed)
    config = make_config(tokenizer, hidden=options.hidden)
    model = (LlamaModel if options.embedding else LlamaForCausalLM)(config).to(torch.bfloat16)
    model.save_pretrained(options.folder)
    tokenizer.save_pretrained(options.folder)


if __name__ == "__main__":
    main()
