"""How speech is found, cut and decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from phi4mm.inputs.clip import Clip
from phi4mm.options import DecodingOptions
from phi4mm.validate import check_bool, check_known, check_number, check_text, check_whole, make_plain, wrong

LONGEST_SUMMARY = 1800.0  # seconds: Phi-4-multimodal was trained to summarise up to 30 minutes


@dataclass(frozen=True)
class SpeechOptions:
    """What ``Phi4MM.transcribe`` takes beside the request's own options. The last three thresholds are Whisper's
    (Radford et al. 2022, section 4.5).

    Attributes:
        vad: find speech first and transcribe only that. ``False``: everything is transcribed, silence and noise too.
        channel: transcribe this one, counted from 0; ``None`` for the mean of all.
        track: transcribe this sound track of a file, counted from 0; ``None`` for the one that players take.
        clip: transcribe this part, ``"START-END"`` in seconds or MM:SS ("1.5-3", "1:30-", "-10"); times stay those of
            the whole.
        max_piece: the longest piece in seconds; ``None`` for what the checkpoint was trained on.
        min_silence: a pause of so many seconds ends a piece.
        vad_threshold: the probability at which speech begins.
        batch_size: the most pieces decoded together.
        temperature_increment: a reply that fails is decoded again at a temperature higher by this, up to 1; 0: never.
        compression_ratio_threshold: a text that zlib shortens more than this repeats itself: it fails.
        logprob_threshold: a mean log-probability of a reply's tokens below this: it fails.
        no_speech_threshold: a piece less probably speech than 1 minus this, whose reply fails by its log-probability,
            gives no segment.
        word_timestamps: estimate when each word is said; costs one more pass over each piece.

    Raises:
        PromptError: a value has the wrong type or is out of range; it names the option.
    """

    vad: bool = True
    channel: int | None = None
    track: int | None = None
    clip: str | None = None
    max_piece: float | None = None
    min_silence: float = 1.0
    vad_threshold: float = 0.5
    batch_size: int = 16
    temperature_increment: float = 0.2
    compression_ratio_threshold: float = 2.4
    logprob_threshold: float = -1.0
    no_speech_threshold: float = 0.6
    word_timestamps: bool = False

    def __post_init__(self) -> None:
        make_plain(self)
        check_bool("vad", self.vad)
        check_whole("channel", self.channel, 0, or_none=True)
        check_whole("track", self.track, 0, or_none=True)
        check_text("clip", self.clip, or_none=True)
        _ = self.part  # refuses what is no clip
        check_number("max_piece", self.max_piece, 1.0, or_none=True)
        check_number("min_silence", self.min_silence, 0.0, open_below=True)
        check_number("vad_threshold", self.vad_threshold, 0.2, 1.0, open_above=True)
        check_whole("batch_size", self.batch_size, 1)
        check_number("temperature_increment", self.temperature_increment, 0.0, 1.0)
        if 0.0 < self.temperature_increment < 0.01:
            raise wrong("temperature_increment", self.temperature_increment, "0 (never), or 0.01 to 1")
        for name in ("compression_ratio_threshold", "logprob_threshold", "no_speech_threshold"):
            check_number(name, getattr(self, name))
        check_bool("word_timestamps", self.word_timestamps)

    @property
    def part(self) -> Clip:
        """``clip``, or the whole."""
        return Clip() if self.clip is None else Clip.parse(self.clip)

    def temperatures(self, first: float) -> list[float]:
        """Those that are tried, one after another."""
        if not self.temperature_increment:
            return [first]
        retries = int((1.0 - first) / self.temperature_increment + 1e-9)
        return [round(first + number * self.temperature_increment, 6) for number in range(max(retries, 0) + 1)]

    @classmethod
    def split(cls, options: Mapping[str, Any], *, task: str = "transcribe") -> tuple[SpeechOptions, dict[str, Any]]:
        """These options, and those that are left for the request; a summary is by default of all that is said.

        Raises:
            PromptError: an option is not known, a value is bad, or it does not go with the task.
        """
        check_known(options, TranscribeOptions.__annotations__)
        if task == "summarize":
            options = {"max_piece": LONGEST_SUMMARY, "min_silence": LONGEST_SUMMARY, **options}
        names = {field.name for field in fields(cls)}
        speech = cls(**{name: value for name, value in options.items() if name in names})
        if speech.word_timestamps and task != "transcribe":
            raise wrong("word_timestamps", True, f"False for the task {task!r}")
        return speech, {name: value for name, value in options.items() if name not in names}


class TranscribeOptions(DecodingOptions, total=False):
    """The fields of ``SpeechOptions`` and how to answer, as keyword arguments."""

    vad: bool
    channel: int | None
    track: int | None
    clip: str | None
    max_piece: float | None
    min_silence: float
    vad_threshold: float
    batch_size: int
    temperature_increment: float
    compression_ratio_threshold: float
    logprob_threshold: float
    no_speech_threshold: float
    word_timestamps: bool
