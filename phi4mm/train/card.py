"""Stage: the cards of the bundled checkpoint and of its adapters, with the figures that were measured."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from phi4mm.model.config import Phi4MMConfig
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.train.data import HELD_OUT_FSDD, HELD_OUT_VOICES
from phi4mm.train.drawing import PRINTED
from phi4mm.train.files import replaced
from phi4mm.train.measure import AS_ROUTED, CONDITIONS, Figure

SPEECH_GROUPS = {
    "fsdd": f"FSDD, speaker {', '.join(HELD_OUT_FSDD)}: single digits",
    "an4": "AN4, every tenth speaker: spelled letters, names, numbers, dates, commands",
    "an4 numbers": "of these, the clips that hold only numbers",
    **{voice: f"synthetic voice {voice}: digits, sequences of 2 to 8, numbers" for voice in HELD_OUT_VOICES},
}
PICTURE_GROUPS = {
    "easy_vqa": "easy-VQA, every tenth picture, all of its questions",
    "asked aloud": f"the same, asked aloud by {', '.join(HELD_OUT_VOICES)}, without any text",
    "shape": "drawn as easy-VQA's, one shape",
    "shapes": "drawn, one to six shapes: how many, and which",
    "text": "drawn, a printed word, number or row of letters, to be read",
}

RECIPE = """\
    pip install -e ".[train]"     # in a checkout; more voices: apt install flite espeak-ng; see phi4mm/train/voices.py
    python -m phi4mm.train --data DATA --work WORK --out . --kokoro-styles STYLES
"""
MEASURE = "python -m phi4mm.train --data DATA --work WORK --out . --stages export measure"

SOURCES = """\
| data | used for | licence |
|---|---|---|
| [Free Spoken Digit Dataset](https://github.com/Jakobovski/free-spoken-digit-dataset) (Zohar Jackson \
and contributors), five speakers less the held-out one | speech | CC BY-SA 4.0 |
| CMU AN4 (Carnegie Mellon University), training part less every tenth speaker | speech | BSD-like |
| synthetic speech: flite, espeak-ng, hibari-tts, Piper en_US-joe-medium, Kokoro-82M (whichever is installed) | speech \
| the engines' own; nothing of them is shipped but the sample clips (flite) |
| Mini LibriSpeech (LibriSpeech, Panayotov et al.): speech less every tenth reader, and all transcripts \
| speech tower, text | CC BY 4.0 |
| [easy-VQA](https://github.com/vzhou842/easy-VQA) (Victor Zhou), pictures less every tenth, and questions \
| pictures, text | MIT |
| pictures drawn by `phi4mm/train/drawing.py`: shapes, and text in the fonts that are installed | pictures | none |
"""


def write_cards(
    out: Path,
    config: Phi4MMConfig,
    figures: Sequence[Figure],
    voices: Sequence[str],
    decoder_hash: str,
    note: str = "",
) -> None:
    """Write ``assets/README.md`` and ``adapters/{speech,vision}/README.md``.

    Args:
        voices: the synthetic voices that were trained on.
        decoder_hash: sha256 of the frozen decoder's tensors.
        note: what else is to be known of this run.
    """
    _write(out / "assets" / "README.md", _checkpoint_card(config, figures, voices, decoder_hash, note))
    _write(out / "adapters" / "speech" / "README.md", _speech_card(config, figures, decoder_hash))
    _write(out / "adapters" / "vision" / "README.md", _vision_card(config, figures, decoder_hash))


def _checkpoint_card(
    config: Phi4MMConfig, figures: Sequence[Figure], voices: Sequence[str], decoder_hash: str, note: str
) -> str:
    with torch.device("meta"):
        model = Phi4MMModel(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    decoder, speech, vision = config.decoder, config.speech, config.vision
    assert speech is not None
    assert vision is not None
    return f"""\
# The bundled checkpoint

Phi-4-multimodal's architecture, small: {total / 1e6:.1f} million parameters, bfloat16, of the speech tower 8 bits each.
It writes down spoken letters, numbers, dates and short commands in English, answers questions about pictures of simple
shapes, typed or spoken, counts them, and reads short printed numbers and words, as well as the tables say. It was
trained from nothing on two CPU cores and is here so that everything can be tried offline; for real work use
`microsoft/Phi-4-multimodal-instruct`.

- Decoder: {decoder.num_layers} layers, width {decoder.hidden_size}, {decoder.num_heads} query and \
{decoder.num_kv_heads} key/value heads, vocabulary {decoder.vocab_size}.
- Speech tower: {speech.num_blocks} Conformer blocks, width {speech.hidden_size}.
- Vision tower: {vision.num_used_layers} layers, width {vision.hidden_size}, crops of {vision.image_size} pixels in \
patches of {vision.patch_size}.

All figures are of this very checkpoint, through the public `Phi4MM`, on speakers, voices and pictures that no part of
it was trained on. No weights were learnt from them, but their figures were watched while the recipe was made.
Measured by `{MEASURE}`.

## Speech

Word error rates. "8 kHz" and "16 kHz" are the same clips resampled first (FSDD is recorded at 8 kHz: at 16 kHz its
upper half is empty, which is detected); "noise 20 dB" has white noise 20 dB below the speech. All audio is scaled to
the same peak (`peak_level` in `config.json`), by 30 dB at most, so it does not matter how loud a recording is.

{speech_table(figures)}
{other_speech_figures(figures)}

## Pictures

Answers that are right to the letter.

{picture_table(figures)}
## What the adapters do

The same without each row's adapter, and with the other modality's adapter in its place.

{adapter_table(figures)}
## Limits

- Vocabulary: digits ("oh" too), numbers, ordinals, months, letters, the few dozen words of AN4 and of the questions
  about pictures. Anything else comes out as those; ordinary read speech is out of reach.
- Clips up to about 8 seconds with up to eight or ten words; longer ones were not in the training data.
- English, close microphone; little noise, no music, one speaker at a time.
- Pictures of up to six flat shapes on a light ground. Printed text: up to four digits or capital letters, or one of
  the {len(PRINTED)} words that the recipe prints (`PRINTED` in `phi4mm/train/drawing.py`), over most of the picture's
  width; best on wide pictures. Larger pictures are scaled down to at most {vision.max_crops} crops of \
{vision.image_size} pixels: what is small
  in them is lost.
- Its chat is a toy: letters, numbers, small sums; asked beyond that, its answer is that it does not know.

## How it was made

1. A byte-level BPE tokenizer of {decoder.vocab_size} entries; every word of the vocabulary is one token.
2. The text decoder, on chat-formatted text: small questions, plain English, and turns in which words are repeated
   as in a tower's embeddings. Then rounded to bfloat16 and frozen.
3. The speech tower: single digits first, then CTC on numbers, then on everything; log-mels augmented in pace, pitch,
   voice-tract length, trimming, room, channel, noise, loudness, and as expanders and noise suppression change speech.
   AN4's clips, where their speakers pause between all words, are also cut into single words and joined anew. Then on
   two views of each clip that must agree (CR-CTC, Yao et al. 2024), first augmented as much as before, then little,
   with single numbers of all speakers at 8 kHz among them; and beside them on ordinary read speech, of which a second
   classifier names pieces of words. Then its matrices are rounded to 8 bits (float8_e4m3).
4. With the tower frozen, the audio projector, taught to give the words of CTC as embeddings; then projector and speech
   adapter through the frozen decoder, on the answers, while the projector keeps to what it was taught.
5. The vision tower, on drawn pictures of which it is known where everything is: each patch names the shape or character
   whose centre it holds, and each averaged token the word that it stands for; then its projector in the same way as for
   speech; then tower, projector and vision adapter on the answers, a share of the questions as a stand-in for speech.
6. The projector of audio beside a picture, in the same way, on spoken questions; all else frozen.

sha256 of the frozen decoder's tensors (`phi4mm/train/fingerprint.py`), the same after every stage:

    {decoder_hash}

To do it again:

{RECIPE}
`DATA` holds the sets below with `train.jsonl` manifests; `STYLES` is the `voices` folder of npm's `kokoro-js`. A source
of voices that is absent is left out. A stage whose result is in `WORK` is not run again; one that was killed goes on.
{textwrap.fill(note, 120)}

## What it was trained on

{SOURCES}
Synthetic voices: {_grouped(voices)}.
Held out: FSDD speaker {", ".join(HELD_OUT_FSDD)}; every tenth AN4 speaker; voices {", ".join(HELD_OUT_VOICES)}; every
tenth easy-VQA picture; every tenth reader of Mini LibriSpeech.

## Samples

`samples/` holds clips spoken by flite's voices rms (held out of training), slt and awb (trained on), and pictures that
the recipe drew; their texts are in `samples/manifest.jsonl`, the pictures' questions in `samples/pictures.jsonl`.
"""


def _speech_card(config: Phi4MMConfig, figures: Sequence[Figure], decoder_hash: str) -> str:
    adapter = next(adapter for adapter in config.adapters if adapter.name == "speech")
    return f"""\
# Speech adapter

A LoRA adapter (rank {adapter.rank}, alpha {adapter.alpha:g}) on `qkv_proj`, `o_proj`, `gate_up_proj` and `down_proj` of
every layer of the bundled checkpoint's decoder, for rows with audio. Trained, with the audio projector, on FSDD, AN4
and synthetic speech, through the frozen decoder (sha256 of its tensors, before and after: `{decoder_hash}`).
Data, licences, recipe and limits: [the checkpoint's card](../../assets/README.md).

Word error rates on held-out speakers:

{speech_table(figures)}
{other_speech_figures(figures)}

{adapter_table([figure for figure in figures if figure.measure == "WER"])}
Measured by `{MEASURE}`.
"""


def _vision_card(config: Phi4MMConfig, figures: Sequence[Figure], decoder_hash: str) -> str:
    adapter = next(adapter for adapter in config.adapters if adapter.name == "vision")
    return f"""\
# Vision adapter

A LoRA adapter (rank {adapter.rank}, alpha {adapter.alpha:g}) on `qkv_proj`, `o_proj`, `gate_up_proj` and `down_proj` of
every layer of the bundled checkpoint's decoder, for rows with images. Trained, with the vision tower and the image
projector, on easy-VQA and drawn pictures, through the frozen decoder (sha256 of its tensors, before and after:
`{decoder_hash}`). Data, licences, recipe and limits:
[the checkpoint's card](../../assets/README.md).

Right answers about held-out pictures:

{picture_table(figures)}
{adapter_table([figure for figure in figures if figure.measure == "accuracy"])}
Measured by `{MEASURE}`.
"""


def speech_table(figures: Sequence[Figure]) -> str:
    """Word error rates by group and condition, in markdown."""
    rates = [figure for figure in figures if figure.measure == "WER" and figure.condition in CONDITIONS]
    rows = {group: {f.condition: f for f in rates if f.group == group} for group in SPEECH_GROUPS}
    lines = [["held-out speech", "clips", "words", *CONDITIONS]]
    for group, by_condition in rows.items():
        if by_condition:
            one = next(iter(by_condition.values()))
            shares = [f"{100 * by_condition[condition].value:.1f} %" for condition in by_condition]
            lines.append([SPEECH_GROUPS[group], str(one.count), str(one.words), *shares])
    return _markdown(lines)


def other_speech_figures(figures: Sequence[Figure]) -> str:
    """What is measured of speech beside the table, in sentences."""
    found = {(figure.group, figure.condition): figure for figure in figures}
    sentences = []
    if read := found.get(("read speech", "as recorded")):
        sentences.append(
            f"Read speech (Mini LibriSpeech, {read.count} clips, {read.words} words, most of which it cannot write): "
            f"{100 * read.value:.1f} %."
        )
    if (start := found.get(("word times", "start"))) and (end := found.get(("word times", "end"))):
        sentences.append(
            f"Word time stamps (`word_timestamps=True`), on {start.count} correctly transcribed words of the held-out "
            f"synthetic voices, joined at known times: starts are off by {1000 * start.value:.0f} ms, ends by "
            f"{1000 * end.value:.0f} ms (medians)."
        )
    return textwrap.fill(" ".join(sentences), 120)


def picture_table(figures: Sequence[Figure]) -> str:
    """Shares of right answers by group, in markdown."""
    found = {f.group: f for f in figures if f.measure == "accuracy" and f.condition == AS_ROUTED}
    lines = [["held-out pictures", "questions", "right"]]
    lines += [
        [text, str(found[group].count), f"{100 * found[group].value:.1f} %"]
        for group, text in PICTURE_GROUPS.items()
        if group in found
    ]
    return _markdown(lines)


def adapter_table(figures: Sequence[Figure]) -> str:
    """Each group with the router's adapter, none, and the other modality's, in markdown."""
    lines = [["", "as routed", "no adapter", "the wrong adapter"]]
    for group, text in {**SPEECH_GROUPS, **PICTURE_GROUPS}.items():
        of_group = {figure.condition: figure for figure in figures if figure.group == group}
        routed = of_group.get(AS_ROUTED, of_group.get("as recorded"))
        wrong = of_group.get("vision adapter", of_group.get("speech adapter"))
        if routed and wrong:
            three = (routed, of_group["no adapter"], wrong)
            kind = "word error rate" if routed.measure == "WER" else "right"
            lines.append([f"{text} ({kind})", *(f"{100 * figure.value:.1f} %" for figure in three)])
    return _markdown(lines)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|---|" + "---:|" * (len(lines[0]) - 1), *rest]) + "\n"


def _grouped(voices: Iterable[str]) -> str:
    engines: dict[str, list[str]] = {}
    for voice in voices:
        engine, _, name = voice.partition("-")
        engines.setdefault(engine, []).append(name)
    return "; ".join(f"{engine} ({len(names)}: {', '.join(names)})" for engine, names in engines.items())


def _write(path: Path, text: str) -> None:
    with replaced(path) as part:
        part.write_text(text, encoding="utf-8")
