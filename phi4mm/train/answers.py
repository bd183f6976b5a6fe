"""What the adapters learn from: the answers' tokens, after prompts that hold media."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.lora import row_adapters
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.train.decoder import IGNORED
from phi4mm.train.text import SILENCE
from phi4mm.types import Route


@dataclass(frozen=True)
class Answers:
    """Token ids [rows, tokens] of whole turns, their lengths [rows], and for each position the token to be predicted
    there (or ``IGNORED``) [rows, tokens]."""

    token_ids: Tensor
    lengths: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Answers:
        return Answers(self.token_ids.to(device), self.lengths.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Turn:
    """What stands for the media (their tokens, or stand-ins for them), the question after it, and the answer."""

    media: Sequence[int]
    question: str
    answer: str


def collate_turns(turns: Sequence[Turn], tokenizer: Tokenizer, pad: int) -> Answers:
    rows, targets = [], []
    for turn in turns:
        prompt = [
            tokenizer.control("<|user|>"),
            *turn.media,
            *tokenizer.encode(turn.question),
            tokenizer.control("<|end|>"),
            tokenizer.control("<|assistant|>"),
        ]
        answer = [*tokenizer.encode(turn.answer), tokenizer.control("<|end|>")]
        rows.append(torch.tensor(prompt + answer[:-1]))
        targets.append(torch.tensor([IGNORED] * (len(prompt) - 1) + answer))
    return Answers(
        pad_sequence(rows, batch_first=True, padding_value=pad),
        torch.tensor([len(row) for row in rows]),
        pad_sequence(targets, batch_first=True, padding_value=IGNORED),
    )


def word_embeddings(model: Phi4MMModel, tokenizer: Tokenizer, vocabulary: Sequence[str]) -> Tensor:
    """What a projector is to say where a classifier says nothing (its class 0) or a word: [1 + words, hidden]."""
    names = [SILENCE, *(f" {word}" for word in vocabulary)]
    first_tokens = torch.tensor([tokenizer.encode(name)[0] for name in names], device=model.device)
    return model.decoder.embed_tokens.weight.detach()[first_tokens].float()


def answer_loss(model: Phi4MMModel, embeddings: Tensor, answers: Answers, route: Route) -> Tensor:
    """Cross-entropy of the answers' tokens, from embeddings [rows, tokens, hidden] of rows with one route."""
    num_rows, num_tokens = answers.token_ids.shape
    positions = torch.arange(num_tokens, device=model.device).expand(num_rows, -1)
    adapters = row_adapters([route.adapters] * num_rows, device=model.device)
    hidden = model.decoder(embeddings, positions, model.long_rows(answers.lengths), adapters)
    counted = answers.targets != IGNORED
    return F.cross_entropy(model.decoder.logits(hidden[counted]).float(), answers.targets[counted])
