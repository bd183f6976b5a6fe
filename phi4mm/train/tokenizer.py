"""Stage: a small byte-level BPE tokenizer in which every word of the recipe's vocabulary is one token."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from phi4mm.train.files import replaced

CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|endoftext10|>",  # stands where an image's embeddings go
    "<|endoftext11|>",  # stands where a clip's embeddings go
    "<|endofprompt|>",
    "<|assistant|>",
    "<|end|>",
    "<|user|>",
    "<|system|>",
    "<|tool|>",
    "<|/tool|>",
    "<|tool_call|>",
    "<|/tool_call|>",
    "<|tool_response|>",
    "<|tag|>",
)
PAD_TOKEN, IMAGE_TOKEN, AUDIO_TOKEN, END_TOKEN = "<|endoftext|>", "<|endoftext10|>", "<|endoftext11|>", "<|end|>"

VOCABULARY_SIZE = 1536
_WORD_WEIGHT = 5000  # how often each wanted word is shown, so that its merges come before those of ordinary text


def train_tokenizer(texts: Iterable[str], words: Iterable[str], file: Path) -> None:
    """Write a ``tokenizer.json`` of ``VOCABULARY_SIZE`` entries; the control tokens have its last ids.

    Args:
        texts: what ordinary merges are learnt from.
        words: lower-case words to be one token each, with and without a space before them.
        file: where to write.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    wanted = [form for word in sorted(set(words)) for form in (word, f" {word}")]
    tokenizer.train_from_iterator([*texts, *(wanted * _WORD_WEIGHT)], trainer)
    split = [form for form in wanted if len(tokenizer.encode(form).ids) != 1]
    if split:
        raise ValueError(f"{len(split)} words are not single tokens ({split[:3]}...): enlarge VOCABULARY_SIZE")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    with replaced(file) as part:
        tokenizer.save(str(part))
