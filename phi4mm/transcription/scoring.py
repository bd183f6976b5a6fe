"""How sure the model is of a reply: its tokens' log-probabilities, given the prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from phi4mm.inputs.processor import Processor
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.types import Reply, Request


@torch.inference_mode()
def average_log_probabilities(
    model: Phi4MMModel, processor: Processor, requests: Sequence[Request], replies: Sequence[Reply]
) -> list[float]:
    """The mean natural log-probability of each reply's tokens at temperature 1, the end included if it was reached.

    Media, prompts and replies are run once more, in one pass without a cache.

    Args:
        model, processor: those that answered.
        requests, replies: one reply per request.
    """
    if not replies:
        return []
    config = model.config.backbone
    rows = [processor.row(request) for request in requests]
    batch = processor.collate(rows).to(model.device)
    prompts = model.embed(batch)
    embeddings, lengths = [], []
    for index, (row, reply) in enumerate(zip(rows, replies, strict=True)):
        said = torch.tensor(reply.token_ids, dtype=torch.long, device=model.device)
        prompt = prompts[index, : len(row.token_ids)]
        embeddings.append(torch.cat((prompt, model.backbone.embed_tokens(said))))
        lengths.append(len(embeddings[-1]))
    padded = pad_sequence(embeddings, batch_first=True)
    positions = torch.arange(padded.shape[1], device=model.device).expand(len(rows), -1)
    long_rows = model.long_rows(torch.tensor(lengths, device=model.device))
    hidden = model.backbone(padded, positions, long_rows, gate=model.gate(batch.routes))
    averages = []
    for index, (row, reply) in enumerate(zip(rows, replies, strict=True)):
        scores = model.backbone.logits(hidden[index, len(row.token_ids) - 1 : lengths[index]])
        scores = scores.float().log_softmax(dim=-1)
        chosen = [float(scores[place, token_id]) for place, token_id in enumerate(reply.token_ids)]
        if reply.usage.new_tokens > len(reply.token_ids):  # the last token generated was one that ends
            chosen.append(float(scores[-1, list(config.stop_token_ids)].logsumexp(dim=0)))
        averages.append(sum(chosen) / max(len(chosen), 1))
    return averages
