"""Stage: the cards of the bundled checkpoint and of its adapters, with the figures that were measured."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from phi4mm.model.config import Phi4MMConfig
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.train.data import HELD_OUT_FSDD, HELD_OUT_VOICES
from phi4mm.train.files import replaced

ALL_OF_AN4 = "an4"
GROUPS = {
    "fsdd": f"FSDD, speaker {', '.join(HELD_OUT_FSDD)}: single digits",
    "an4 numbers": "AN4, every tenth speaker: the clips that hold only numbers",
    ALL_OF_AN4: "AN4, every tenth speaker: all clips (spelled letters, names, numbers, commands)",
    **{voice: f"synthetic voice {voice}: digits, sequences of 2 to 8, numbers" for voice in HELD_OUT_VOICES},
}

RECIPE = """\
    pip install "phi4mm[train]"     # and, for more voices: apt install flite espeak-ng; see phi4mm/train/voices.py
    python -m phi4mm.train first --data DATA --work WORK --out . --kokoro-styles STYLES
"""
MEASURE = "python -m phi4mm.train first --data DATA --work WORK --out . --stages export measure"

SOURCES = """\
| data | used for | licence |
|---|---|---|
| [Free Spoken Digit Dataset](https://github.com/Jakobovski/free-spoken-digit-dataset) (Zohar Jackson \
and contributors), five speakers less the held-out one | speech | CC BY-SA 4.0 |
| CMU AN4 (Carnegie Mellon University), training part less every tenth speaker | speech, text | BSD-like |
| synthetic speech: flite, espeak-ng, hibari-tts, Piper en_US-joe-medium, Kokoro-82M (whichever is installed) | speech \
| the engines' own; nothing of them is shipped but the sample clips (flite) |
| Mini LibriSpeech transcripts (LibriSpeech, Panayotov et al.) | text | CC BY 4.0 |
| [easy-VQA](https://github.com/vzhou842/easy-VQA) questions (Victor Zhou) | text | MIT |
"""


def write_cards(
    out: Path,
    config: Phi4MMConfig,
    figures: Sequence[Mapping[str, Any]],
    voices: Sequence[str],
    backbone: str,
    note: str = "",
) -> None:
    """Write ``assets/README.md`` and ``adapters/{speech,vision}/README.md``.

    Args:
        figures: ``measure.Figure`` as mappings.
        voices: the synthetic voices that were trained on.
        backbone: sha256 of the frozen backbone's tensors.
        note: what else is to be known of this run.
    """
    _write(out / "assets" / "README.md", _checkpoint_card(config, figures, voices, backbone, note))
    _write(out / "adapters" / "speech" / "README.md", _speech_card(config, figures, backbone))
    _write(out / "adapters" / "vision" / "README.md", _vision_card(config, backbone))


def _checkpoint_card(
    config: Phi4MMConfig, figures: Sequence[Mapping[str, Any]], voices: Sequence[str], backbone: str, note: str
) -> str:
    with torch.device("meta"):
        model = Phi4MMModel(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    decoder, speech = config.backbone, config.speech
    assert speech is not None
    return f"""\
# The bundled checkpoint

Phi-4-multimodal's architecture, small: {total / 1e6:.1f} million parameters, bfloat16. It writes down spoken digits and
number sequences in English. It was trained from nothing on two CPU cores and is here so that everything can be tried
offline; for real work use `microsoft/Phi-4-multimodal-instruct`.

- Decoder: {decoder.num_layers} layers, width {decoder.hidden_size}, {decoder.num_heads} query and \
{decoder.num_kv_heads} key/value heads, vocabulary {decoder.vocab_size}.
- Speech tower: {speech.num_blocks} Conformer blocks, width {speech.hidden_size}.
- Vision tower: **untrained** (random weights), as is the vision adapter. Answers about pictures mean nothing yet.
- The projector for audio beside an image is a copy of the speech projector.

## How well it hears

Word error rates of this very checkpoint on speakers that no part of it was trained on, with
`Phi4MM.transcribe_batch`. No weights learnt from these clips, but their error rates were watched while the recipe was
made. "8 kHz" and "16 kHz" are the same clips resampled first; "noise 20 dB" has white noise 20 dB below
the speech.

{_table(figures)}
Measured by `{MEASURE}`.

## Limits

- Vocabulary: digits ("oh" too), numbers, the letters and the few dozen words of AN4. Anything else comes out as those.
- Clips up to about 8 seconds with up to eight or ten words; longer ones were not in the training data.
- English, close microphone; little noise, no music, one speaker at a time.
- Its chat is a toy: questions about digits and simple shapes.

## How it was made

1. A byte-level BPE tokenizer of {decoder.vocab_size} entries; every digit word is one token.
2. The text backbone, on chat-formatted text: small questions, plain English, and turns in which words are stretched out
   as a tower hears them. Then rounded to bfloat16 and frozen.
3. The speech tower: single digits first, then CTC on sequences, then on everything; log-mels augmented in pace, pitch,
   voice-tract length, trimming, room, channel, noise, loudness, and as expanders and noise suppression change speech.
4. The audio projector and the speech LoRA adapter, and the tower at a lower learning rate, through the frozen backbone,
   on the loss of the answers alone.

sha256 of the frozen backbone's tensors (`phi4mm/train/fingerprint.py`), before and after the speech training:

    {backbone}

To do it again:

{RECIPE}
`DATA` holds the sets below with `train.jsonl` manifests; `STYLES` is the `voices` folder of npm's `kokoro-js`. A source
of voices that is absent is left out. A stage whose result is in `WORK` is not run again.
{textwrap.fill(note, 120)}

## What it was trained on

{SOURCES}
Synthetic voices: {_grouped(voices)}.
Held out: FSDD speaker {", ".join(HELD_OUT_FSDD)}; every tenth AN4 speaker; voices {", ".join(HELD_OUT_VOICES)}.

## Sample clips

`samples/` holds clips spoken by flite's voices rms (held out of training), slt and awb (trained on); their texts are in
`samples/manifest.jsonl`.
"""


def _speech_card(config: Phi4MMConfig, figures: Sequence[Mapping[str, Any]], backbone: str) -> str:
    adapter = next(adapter for adapter in config.adapters if adapter.name == "speech")
    return f"""\
# Speech adapter

A LoRA adapter (rank {adapter.rank}, alpha {adapter.alpha:g}) on `qkv_proj`, `o_proj`, `gate_up_proj` and `down_proj` of
every layer of the bundled checkpoint's decoder, for rows with audio. Trained, with the audio projector, on spoken
digits and numbers, AN4 and synthetic speech, through the frozen backbone (sha256 of its tensors, before and after:
`{backbone}`). Data, licences, recipe and limits: [the checkpoint's card](../../assets/README.md).

{_table(figures)}
Measured by `{MEASURE}`.
"""


def _vision_card(config: Phi4MMConfig, backbone: str) -> str:
    adapter = next(adapter for adapter in config.adapters if adapter.name == "vision")
    return f"""\
# Vision adapter

**Untrained.** A LoRA adapter (rank {adapter.rank}, alpha {adapter.alpha:g}) on `qkv_proj`, `o_proj`, `gate_up_proj` and
`down_proj` of every layer of the bundled checkpoint's decoder, for rows with images; its B matrices are zero, so it
changes nothing. The vision tower is untrained too: answers about pictures mean nothing yet. The backbone is the frozen
one of [the checkpoint's card](../../assets/README.md) (`{backbone}`).
"""


def _table(figures: Sequence[Mapping[str, Any]]) -> str:
    conditions = list(dict.fromkeys(figure["condition"] for figure in figures))
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    for figure in figures:
        rows.setdefault(figure["group"], {})[figure["condition"]] = figure
    header = ["held-out speech", "clips", "words", *conditions]
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    for group, by_condition in sorted(rows.items(), key=lambda item: list(GROUPS).index(item[0])):
        any_figure = next(iter(by_condition.values()))
        shares = " | ".join(f"{100 * by_condition[condition]['wer']:.1f} %" for condition in conditions)
        lines.append(f"| {GROUPS[group]} | {any_figure['clips']} | {any_figure['words']} | {shares} |")
    pooled = [rows[group] for group in rows if group != ALL_OF_AN4]
    clips, words = (sum(next(iter(row.values()))[key] for row in pooled) for key in ("clips", "words"))
    shares = " | ".join(
        f"{100 * sum(row[condition]['wer'] * row[condition]['words'] for row in pooled) / words:.1f} %"
        for condition in conditions
    )
    name = "digits and numbers of all held-out speakers (all rows but that of all AN4 clips)"
    lines.append(f"| {name} | {clips} | {words} | {shares} |")
    return "\n".join(lines) + "\n"


def _grouped(voices: Iterable[str]) -> str:
    engines: dict[str, list[str]] = {}
    for voice in voices:
        engine, _, name = voice.partition("-")
        engines.setdefault(engine, []).append(name)
    return "; ".join(f"{engine} ({len(names)}: {', '.join(names)})" for engine, names in engines.items())


def _write(path: Path, text: str) -> None:
    with replaced(path) as part:
        part.write_text(text, encoding="utf-8")
