"""Stage: the text decoder, trained on chat-formatted text alone; from then on it is frozen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from phi4mm.model.config import DecoderConfig
from phi4mm.model.decoder import Decoder
from phi4mm.train.batches import by_length
from phi4mm.train.loop import Pace, StageFolder, adamw, half_precision, train
from phi4mm.train.text import Example, TextTasks

IGNORED = -100


@dataclass(frozen=True)
class DecoderOptions:
    """A step is a batch of at most ``tokens`` tokens."""

    pace: Pace = Pace(steps=4000, warmup=200, average=0.99, log_every=250)
    tokens: int = 2048
    learning_rate: float = 2e-3
    weight_decay: float = 0.05


@dataclass(frozen=True)
class TextBatch:
    """Token ids [rows, tokens] and, for each position, the token to be predicted there (or ``IGNORED``)."""

    token_ids: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> TextBatch:
        return TextBatch(self.token_ids.to(device), self.targets.to(device))


def collate_text(examples: Sequence[Example], pad: int) -> TextBatch:
    longest = max(len(example.token_ids) for example in examples)
    token_ids = torch.full((len(examples), longest), pad)
    targets = torch.full((len(examples), longest), IGNORED)
    for row, example in enumerate(examples):
        tokens = torch.tensor(example.token_ids)
        token_ids[row, : len(tokens)] = tokens
        targets[row, example.answer_start - 1 : len(tokens) - 1] = tokens[example.answer_start :]
    return TextBatch(token_ids, targets)


def answer_logits(decoder: Decoder, batch: TextBatch) -> tuple[Tensor, Tensor]:
    """Logits [answer tokens, vocabulary] and targets [answer tokens] of the positions that count."""
    rows, length = batch.token_ids.shape
    device = batch.token_ids.device
    positions = torch.arange(length, device=device).expand(rows, -1)
    short = torch.zeros(rows, dtype=torch.bool, device=device)
    hidden = decoder(decoder.embed_tokens(batch.token_ids), positions, short)
    counted = batch.targets != IGNORED
    return decoder.logits(hidden[counted]), batch.targets[counted]


def initialise(decoder: Decoder) -> None:
    """Weights that keep the size of what passes through; those of a full-size decoder are too small for this one."""
    for layer in decoder.layers:
        for name, weight in layer.named_parameters():
            if name.endswith("proj.weight"):
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                depth = 2 * len(decoder.layers) if into_residual else 1
                nn.init.normal_(weight, std=(weight.shape[1] * depth) ** -0.5)
    nn.init.normal_(decoder.embed_tokens.weight, std=decoder.config.hidden_size**-0.5)


def train_decoder(
    config: DecoderConfig, tasks: TextTasks, options: DecoderOptions, folder: StageFolder, device: torch.device
) -> Decoder:
    """Train a decoder without adapters."""
    torch.manual_seed(0)
    decoder = Decoder(config)
    initialise(decoder)
    decoder.to(device)
    matrices = [weight for weight in decoder.layers.parameters() if weight.dim() == 2 and weight.numel()]
    others = [*decoder.embed_tokens.parameters(), *(p for p in decoder.parameters() if p.dim() == 1)]
    muon = torch.optim.Muon(
        matrices, lr=options.learning_rate, weight_decay=options.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    judged = [tasks.draw(Random(-number)) for number in range(1, 513)]

    def rounds(number: int, step: int) -> Iterator[TextBatch]:
        random, generator = Random(number), torch.Generator().manual_seed(number)
        pool = [tasks.draw(random) for _ in range(1024)]
        for group in by_length([len(example.token_ids) for example in pool], options.tokens, generator):
            yield collate_text([pool[index] for index in group], config.pad_token_id).to(device)

    def loss_of(batch: TextBatch, step: int) -> Tensor:
        # Short rows: the plain product is faster in bfloat16 than the fused attention.
        with half_precision(device), sdpa_kernel(SDPBackend.MATH):
            logits, targets = answer_logits(decoder, batch)
        return F.cross_entropy(logits.float(), targets)

    train(
        decoder,
        [muon, adamw([(others, options.learning_rate)])],
        rounds,
        loss_of,
        options.pace,
        folder,
        lambda: {f"right/{task}": share for task, share in accuracy(decoder, judged).items()},
    )
    return decoder


@torch.inference_mode()
def accuracy(decoder: Decoder, examples: Sequence[Example]) -> dict[str, float]:
    """Per task, the share of answers of which every token is the likeliest one after those before it."""
    right: dict[str, list[bool]] = defaultdict(list)
    for example in sorted(examples, key=lambda example: example.task):
        batch = collate_text([example], decoder.config.pad_token_id).to(decoder.embed_tokens.weight.device)
        logits, targets = answer_logits(decoder, batch)
        right[example.task].append(bool((logits.argmax(-1) == targets).all()))
    return {task: sum(found) / len(found) for task, found in right.items()}
