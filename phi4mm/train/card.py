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

The architecture of Phi-4-multimodal with {total / 1e6:.1f} million parameters, in bfloat16 (matrices of the speech
tower in 8 bits). It was trained from random weights on two CPU cores, so that everything can be tried offline. For
real work use `microsoft/Phi-4-multimodal-instruct`.

It transcribes spoken letters, numbers, dates and short commands in English. It answers questions about pictures of
simple shapes, typed or spoken, counts the shapes, and reads short printed numbers and words. The tables below show how
often it is right, and "Limits" what it cannot do.

- Decoder: {decoder.num_layers} layers, width {decoder.hidden_size}, {decoder.num_heads} query and \
{decoder.num_kv_heads} key/value heads, vocabulary {decoder.vocab_size}.
- Speech tower: {speech.num_blocks} Conformer blocks, width {speech.hidden_size}.
- Vision tower: {vision.num_used_layers} layers, width {vision.hidden_size}, crops of {vision.image_size} pixels in \
patches of {vision.patch_size}.

All figures were measured on this checkpoint through the public `Phi4MM`, by

    {MEASURE}

The speakers, voices and pictures of the tables were held out of training. But their figures were watched while the
recipe was developed, so they may be better than on new ones.

## Speech

Word error rates, counted in words as they are spoken. "8 kHz" and "16 kHz" are the same clips, resampled first. (FSDD
is recorded at 8 kHz; at 16 kHz the upper half of its spectrum is empty, which the model's front end detects.) "noise
20 dB" has white noise 20 dB below the speech. How loud a recording is does not matter: all audio is scaled to the same
peak (`peak_level` in `config.json`), by 30 dB at most.

{speech_table(figures)}
{other_speech_figures(figures)}

## Pictures

Shares of answers that are exactly right.

{picture_table(figures)}
The same figures without an adapter, and with the wrong one: [speech](../adapters/speech/README.md),
[vision](../adapters/vision/README.md).

## Limits

- **Speech.** Its vocabulary is digits ("oh" too), numbers, ordinals, months, letters, and the few dozen words of AN4
  and of the questions about pictures. Other words come out as words of this vocabulary. It was trained on clips of up
  to about 8 seconds and ten words, of one speaker close to the microphone, in English, with little noise and no music.
- **Pictures.** Up to six flat shapes on a light ground. Printed text of up to four digits or capital letters, or one
  of the {len(PRINTED)} words that the recipe prints (`PRINTED` in `phi4mm/train/drawing.py`), over most of the
  picture's width; best on wide pictures. Larger pictures are scaled down to at most {vision.max_crops} crops of
  {vision.image_size} pixels, which loses small detail.
- **Text.** Letters, digits and small sums in the recipe's own wordings ("What comes after three?", "Spell seven.").
  Most other questions get "i do not know that. ask me about letters, numbers or shapes."
- **Questions that it was not trained on**, about a picture or a clip, get an answer of the kind that it was trained
  on, not a refusal. "What animal is this?" about a picture of a shape gets a colour, about printed digits these
  digits. "Translate the audio to German." or "Who is speaking?" gets the transcript.
- It was not trained on tools, JSON, or conversations of several turns.

## How it was made

1. **Tokenizer.** Byte-level BPE with {decoder.vocab_size} entries. Each word of the vocabulary is one token.
2. **Decoder.** Trained on text in the chat format: small questions, plain English, and sequences in which words are
   repeated, as in the embeddings of a tower. Then rounded to bfloat16 and frozen.
3. **Speech tower.** Trained with CTC: on single digits, then on numbers, then on all speech. The log-mels are
   augmented: pace, pitch, vocal-tract length, trimming, room, channel, noise, loudness, and the artefacts of expanders
   and noise suppression. AN4's clips with pauses between all words are also cut into single words, which are joined in
   new orders. The last phase is CR-CTC (Yao et al. 2024): the outputs for two augmented versions of each clip must
   agree. The augmentation is strong at first, then weak. Single numbers of all speakers, resampled to 8 kHz, are
   added, and batches of ordinary read speech, on which a second CTC classifier predicts word pieces. At the end the
   tower's matrices are rounded to 8 bits (float8_e4m3).
4. **Speech projector and adapter.** The tower is frozen. First the projector alone is trained to output the decoder's
   embeddings of the words that CTC recognises. Then projector and adapter are trained through the frozen decoder on
   the answers; the first loss is kept for the projector.
5. **Vision tower, projector and adapter.** Trained on drawn pictures, in which the position of every object is known.
   The tower learns to classify, for each patch, the shape or character whose centre lies in it, and for each image
   token its word. Then the projector is trained as for speech. Then all three are trained on the answers; in part of
   the examples, the question is given as embeddings that imitate speech.
6. **Projector for audio beside an image.** Trained like the speech projector, on spoken questions; everything else is
   frozen.

sha256 of the frozen decoder's tensors (`phi4mm/train/fingerprint.py`), the same after every stage:

    {decoder_hash}

To do it again:

{RECIPE}
`DATA` holds the four corpora below ([layout](../docs/development.md#the-data)); `STYLES` is the `voices` folder of
npm's `kokoro-js`. Voices that are not installed are left out. Stages whose results are in `WORK` are not run again,
and an interrupted stage continues where it stopped.

{note.strip()}

## What it was trained on

{SOURCES}
Synthetic voices: {_grouped(voices)}.
Held out: FSDD speaker {", ".join(HELD_OUT_FSDD)}; every tenth AN4 speaker; voices {", ".join(HELD_OUT_VOICES)}; every
tenth easy-VQA picture; every tenth reader of Mini LibriSpeech.

## Samples

`samples/` holds clips spoken by flite's voices rms (held out of training), slt and awb (trained on), and pictures drawn
by the recipe. `samples/manifest.jsonl` has the texts of the clips, `samples/pictures.jsonl` questions and answers.
"""


def _speech_card(config: Phi4MMConfig, figures: Sequence[Figure], decoder_hash: str) -> str:
    adapter = next(adapter for adapter in config.adapters if adapter.name == "speech")
    return f"""\
# Speech adapter

A LoRA adapter (rank {adapter.rank}, alpha {adapter.alpha:g}) on `qkv_proj`, `o_proj`, `gate_up_proj` and `down_proj` of
every layer of the bundled checkpoint's decoder, for rows with audio. Trained, with the audio projector, on FSDD, AN4
and synthetic speech, through the frozen decoder (sha256 of its tensors, before and after: `{decoder_hash}`).
Data, licences, recipe, limits and error rates: [the checkpoint's card](../../assets/README.md).

Word error rates on held-out speakers with this adapter, as the router chooses it, without it, and with the vision
adapter in its place:

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

Shares of right answers about held-out pictures with this adapter, as the router chooses it, without it, and with the
speech adapter in its place:

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
