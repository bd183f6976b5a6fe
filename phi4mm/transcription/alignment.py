"""When each word of a transcript is said: an estimate, from attention and loudness.

What the decoder attends to while it generates a word lies within that word, nearly always at its middle: that is the
word's anchor. Between the anchors of two neighbours the longest span that is quiet beside both is the pause between
them; where there is none, they meet where it is quietest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.functional import forced_align

from phi4mm.engine.client import Client
from phi4mm.engine.core import Core
from phi4mm.inputs.audio import FRAMES_PER_SECOND
from phi4mm.inputs.processor import Row
from phi4mm.inputs.tokenizer import TextStream, Tokenizer
from phi4mm.model.lora import row_adapters
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.types import Request, Word

NUM_HEADS = 4  # of attention that are averaged
STEP = 0.01  # seconds between measurements of loudness
LOUDNESS_WINDOW = 0.025  # seconds
NEAR = 0.08  # seconds around an anchor in which a word is as loud as it gets
QUIET = 0.4  # a pause is below this share of the way, in dB, from the quietest place up to the words beside it
SHORTEST_PAUSE = 0.05  # seconds; quieter moments within words, before a plosive, are about as long
LEAST_RANGE = 6.0  # dB; where loudness varies by less between two anchors there is no pause


def align_words(
    client: Client, request: Request, token_ids: Sequence[int], speech: tuple[float, float]
) -> tuple[Word, ...] | None:
    """The words of a reply, in seconds from the start of its audio.

    Prompt and reply are run once more, in one pass, over the encoded audio that is there already. Languages without
    spaces get one word.

    Args:
        client: of the engine, between whose steps the pass is made.
        request: with one audio, as ``(samples, sampling_rate)``.
        token_ids: of the reply.
        speech: where it begins and ends.

    Returns:
        Words in order, without overlap, within the speech; ``None`` where the reply has more tokens than the audio.
    """
    [(samples, rate)] = request.audios
    texts, tokens = _words(token_ids, client.processor.tokenizer)
    if not texts:
        return ()
    row = client.processor.row(request)
    centres = _centres(client.engine.call(lambda core: _attention_to_audio(client.model, core, row, token_ids)))
    if centres is None:
        return None
    encoder = client.model.config.speech
    assert encoder is not None
    seconds = encoder.time_reduction / FRAMES_PER_SECOND  # an audio token's
    anchors = [((centres[first] + 0.5) * seconds, (centres[last] + 0.5) * seconds) for first, last in tokens]
    times = _within(_edges(samples, rate, anchors), *speech)
    return tuple(Word(text, start, end) for text, (start, end) in zip(texts, times, strict=True))


def _words(token_ids: Sequence[int], tokenizer: Tokenizer) -> tuple[list[str], list[tuple[int, int]]]:
    """The words of a text and the places of each word's first and last token."""
    stream = TextStream(tokenizer)
    pieces = [stream.push(token_id) for token_id in token_ids]
    ends = np.cumsum([len(piece) for piece in pieces])
    texts, tokens = [], []
    for match in re.finditer(r"\S+", "".join(pieces)):
        texts.append(match.group())
        first, last = np.searchsorted(ends, (match.start(), match.end() - 1), side="right")
        tokens.append((int(first), int(last)))
    return texts, tokens


class _AttentionRecorder:
    """Attends causally within one row, and keeps how much some of its tokens attend to some others.

    Args:
        queries, keys: where the tokens lie.
    """

    def __init__(self, queries: slice, keys: slice) -> None:
        self.queries = queries
        self.keys = keys
        self.weights: list[Tensor] = []  # of each layer [heads, queries, keys]

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        visible = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=query.device).tril()
        every_key = keys.repeat_interleave(query.shape[1] // keys.shape[1], dim=1)
        logits = query[0, :, self.queries] @ every_key[0].transpose(1, 2) / math.sqrt(query.shape[-1])
        weights = logits.float().masked_fill(~visible[self.queries], float("-inf")).softmax(-1)
        self.weights.append(weights[:, :, self.keys].cpu())
        return F.scaled_dot_product_attention(query, keys, values, is_causal=True, enable_gqa=True)


def _attention_to_audio(model: Phi4MMModel, core: Core, row: Row, token_ids: Sequence[int]) -> Tensor:
    """How much each head attends to each audio token when it generates each token [heads, tokens, audio tokens]."""
    device = model.device
    embeddings = model.decoder.embed_tokens(torch.tensor([*row.token_ids, *token_ids], device=device))
    for item, values in zip(row.media, core.embed_media(row.media), strict=True):
        embeddings[item.start : item.start + item.num_tokens] = values
    [clip] = [item for item in row.media if item.kind == "audio"]
    length, prompt = len(embeddings), len(row.token_ids)
    # The token before it generates a token.
    recorder = _AttentionRecorder(slice(prompt - 1, length - 1), slice(clip.start, clip.start + clip.num_tokens))
    model.decoder(
        embeddings[None],
        torch.arange(length, device=device)[None],
        model.long_rows(torch.tensor([length], device=device)),
        adapters=row_adapters([row.route.adapters], device=device),
        cache=recorder,
    )
    return torch.cat(recorder.weights)


def _centres(attention: Tensor) -> list[float] | None:
    """The audio token at the middle of each generated one's; they never go back.

    Args:
        attention: [heads, tokens, audio tokens]. The heads that point at single audio tokens, further on with each
            generated token, are averaged.
    """
    _, num_tokens, num_audio = attention.shape
    if num_tokens > num_audio:
        return None
    places = attention.argmax(-1)
    onward = (places[:, 1:] > places[:, :-1]).float().mean(-1) if num_tokens > 1 else torch.ones(len(attention))
    best = (onward * attention.amax(-1).mean(-1)).argsort(descending=True)[:NUM_HEADS]
    seen = attention[best].mean(0)
    # What no token attends to more than to the average audio token is between the words: CTC's blank.
    blank = torch.full((num_audio, 1), 1 / num_audio)
    emissions = torch.cat((blank, seen.T), dim=1).clamp(min=1e-8).log().log_softmax(-1)
    path, _ = forced_align(emissions[None], torch.arange(1, num_tokens + 1, dtype=torch.int32)[None])
    centres = []
    for token in range(num_tokens):
        places = (path[0] == token + 1).nonzero()[:, 0]
        weights = seen[token, places] + 1e-9
        centres.append(float((places * weights).sum() / weights.sum()))
    return centres


def _edges(samples: np.ndarray, rate: int, anchors: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Start and end of each word, from the first and last place in it, all in seconds."""
    levels = _levels(samples, rate)
    places = [[min(int(place / STEP), len(levels) - 1) for place in pair] for pair in anchors]
    near = round(NEAR / STEP)
    tops = [[levels[max(place - near, 0) : place + near + 1].max() for place in pair] for pair in places]
    silence = float("inf")  # neither side of the audio is a word that could be quiet
    pauses = [
        _pause(levels, begin, end, min(top, next_top), inner=0 < number < len(places))
        for number, (begin, end, top, next_top) in enumerate(
            zip(
                [0, *(last for _, last in places)],
                [*(first for first, _ in places), len(levels)],
                [silence, *(last for _, last in tops)],
                [*(first for first, _ in tops), silence],
                strict=True,
            )
        )
    ]
    return [(before[1] * STEP, after[0] * STEP) for before, after in pairwise(pauses)]


def _within(times: Sequence[tuple[float, float]], begin: float, end: float) -> list[tuple[float, float]]:
    """Times of consecutive words, none outside ``begin`` to ``end``. Those left without length share a neighbour's."""
    inside = [(min(max(first, begin), end), min(max(last, begin), end)) for first, last in times]
    shared: list[list[tuple[float, float]]] = []  # words with one among them that has a length
    for time in inside:
        if shared and (time[0] == time[1] or all(first == last for first, last in shared[-1])):
            shared[-1].append(time)
        else:
            shared.append([time])
    return [
        (start + (stop - start) * place / len(words), start + (stop - start) * (place + 1) / len(words))
        if len(words) > 1
        else words[0]
        for words in shared
        for start, stop in [(words[0][0], words[-1][1])]
        for place in range(len(words))
    ]


def _pause(levels: np.ndarray, begin: int, end: int, top: float, *, inner: bool) -> tuple[int, int]:
    """Where the pause between ``begin`` and ``end`` begins and ends; in one place where there is none."""
    between = levels[begin:end]
    if not len(between):
        return begin, begin
    quietest = begin + int(between.argmin())
    floor = float(between.min())
    if top - floor < LEAST_RANGE:
        return quietest, quietest
    quiet = np.concatenate(([False], between < floor + QUIET * (top - floor), [False]))
    starts, ends = np.flatnonzero(np.diff(quiet.astype(int)) == 1), np.flatnonzero(np.diff(quiet.astype(int)) == -1)
    longest = int((ends - starts).argmax())
    if inner and (ends[longest] - starts[longest]) * STEP < SHORTEST_PAUSE:
        return quietest, quietest
    return begin + int(starts[longest]), begin + int(ends[longest])


def _levels(samples: np.ndarray, rate: int) -> np.ndarray:
    """Loudness in dB of full scale, every ``STEP`` seconds."""
    step, window = round(STEP * rate), round(LOUDNESS_WINDOW * rate)
    power = np.convolve(np.square(samples, dtype=np.float64), np.ones(window) / window, "same")[step // 2 :: step]
    return 10 * np.log10(power + 1e-10)
