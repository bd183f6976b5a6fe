"""The recipe of the bundled checkpoint: where its stages find and leave everything."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.config import Phi4MMConfig
from phi4mm.train.config import small_config
from phi4mm.train.data import Clip, ReadSplit, Split, held_out_questions, speech_corpora, split_read_speech
from phi4mm.train.loop import StageFolder
from phi4mm.train.pictures import PictureSplit, easy_vqa
from phi4mm.train.shards import vocabulary_of
from phi4mm.train.text import COUNT_QUESTIONS, READ_QUESTIONS, Corpus, TextTasks, easy_vqa_questions, read_corpus
from phi4mm.train.words import SPOKEN

NUM_VERSIONS = 6
NUM_NUMBER_VERSIONS = 4
NUM_READ_VERSIONS = 3
NUM_READ = 60  # clips of ordinary read speech that are judged


@dataclass(frozen=True)
class Recipe:
    """Where everything is.

    Attributes:
        data: folder with ``fsdd``, ``an4``, ``mini_librispeech`` and ``easy_vqa``.
        work: what the stages leave to one another.
        out: the repository's root, or any folder, to get ``assets`` and ``adapters``.
        kokoro_styles: the ``voices`` folder of npm's ``kokoro-js``; ``None`` to do without Kokoro.
        note: a remark for the card.
        device: where to train.
    """

    data: Path
    work: Path
    out: Path
    kokoro_styles: Path | None = None
    note: str = ""
    device: str = "cpu"

    def stage(self, name: str) -> StageFolder:
        return StageFolder(self.work, name)

    # What the stages leave, in their order.

    @property
    def voices(self) -> Path:
        return self.work / "voices"

    @property
    def words(self) -> Path:
        return self.work / "words"

    @property
    def versions(self) -> list[Path]:
        return [self.work / "versions" / f"{number}.safetensors" for number in range(NUM_VERSIONS)]

    @property
    def number_versions(self) -> list[Path]:
        return [self.work / "versions" / f"numbers {number}.safetensors" for number in range(NUM_NUMBER_VERSIONS)]

    @property
    def read_versions(self) -> list[Path]:
        return [self.work / "versions" / f"read {number}.safetensors" for number in range(NUM_READ_VERSIONS)]

    @property
    def pieces_file(self) -> Path:
        return self.work / "pieces.json"

    def plain(self, name: str) -> Path:
        return self.work / "held_out" / f"{name}.safetensors"

    @property
    def tokenizer_file(self) -> Path:
        return self.work / "tokenizer.json"

    @property
    def decoder_file(self) -> Path:
        return self.work / "decoder.safetensors"

    @property
    def tower_file(self) -> Path:
        return self.work / "tower.safetensors"

    @property
    def speech_file(self) -> Path:
        return self.work / "speech.safetensors"

    def pictures(self, name: str) -> Path:
        return self.work / "pictures" / f"{name}.safetensors"

    @property
    def vision_file(self) -> Path:
        return self.work / "vision.safetensors"

    @property
    def spoken_file(self) -> Path:
        return self.work / "spoken.safetensors"

    @property
    def checkpoint(self) -> Path:
        return self.work / "checkpoint"

    @property
    def figures_file(self) -> Path:
        return self.work / "figures.json"

    # What is read again and again.

    @cached_property
    def split(self) -> Split:
        return speech_corpora(self.data, self.words, self.voices)

    @cached_property
    def vocabulary(self) -> list[str]:
        """Every word that the speech may hold."""
        asked = {word for question in self.spoken_questions for word in question.rstrip("?").split()}
        return sorted({*vocabulary_of(self.split.train), *SPOKEN, *asked})

    @cached_property
    def spoken_questions(self) -> list[str]:
        """What is asked of pictures aloud."""
        return [*easy_vqa_questions(self.data), *COUNT_QUESTIONS, *READ_QUESTIONS]

    @cached_property
    def corpus(self) -> Corpus:
        return read_corpus(self.data, self.vocabulary)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.tokenizer_file)

    @cached_property
    def config(self) -> Phi4MMConfig:
        return small_config(self.tokenizer)

    @cached_property
    def easy_vqa(self) -> PictureSplit:
        return easy_vqa(self.data / "easy_vqa" / "train")

    @property
    def tasks(self) -> TextTasks:
        return TextTasks(self.tokenizer, self.corpus)

    @cached_property
    def heard(self) -> dict[str, tuple[Clip, ...]]:
        """Of each held-out group of speakers, the clips whose words are all known."""
        known = set(self.vocabulary)
        return {name: tuple(c for c in clips if set(c.words) <= known) for name, clips in self.split.held_out.items()}

    @cached_property
    def read_speech(self) -> ReadSplit:
        """Ordinary read speech; all of its texts are among the decoder's."""
        return split_read_speech(self.data)

    @property
    def judged_read_speech(self) -> tuple[Clip, ...]:
        clips = self.read_speech.held_out
        return clips[:: max(1, len(clips) // NUM_READ)]

    @cached_property
    def asked_aloud(self) -> tuple[Clip, ...]:
        """Questions about pictures, spoken by held-out voices."""
        return held_out_questions(self.voices, easy_vqa_questions(self.data))
