"""The recipe of the first bundled checkpoint: each stage reads what earlier ones left in the work folder, and is
skipped where its own result is already there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from phi4mm.api import Phi4MM
from phi4mm.checkpoint.names import is_lora
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.config import Phi4MMConfig
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.train.backbone import BackboneOptions, train_backbone
from phi4mm.train.card import write_cards
from phi4mm.train.config import small_config
from phi4mm.train.data import Split, speech_corpora
from phi4mm.train.export import assemble, export, ship
from phi4mm.train.files import read_json, read_tensors, write_json, write_tensors
from phi4mm.train.fingerprint import backbone_tensors, fingerprint
from phi4mm.train.measure import CONDITIONS, figures, word_error_rate
from phi4mm.train.samples import SAMPLES, write_samples
from phi4mm.train.shards import vocabulary_of, write_plain, write_varied
from phi4mm.train.speech import SpeechOptions, name_the_words, train_speech
from phi4mm.train.synthesis import synthesise
from phi4mm.train.text import Corpus, TextTasks, read_corpus
from phi4mm.train.tokenizer import train_tokenizer
from phi4mm.train.tower import TowerOptions, WordTower, train_tower
from phi4mm.train.voices import available_voices
from phi4mm.train.words import NUMBER_WORDS

log = logging.getLogger(__name__)

NUM_VERSIONS = 8


@dataclass(frozen=True)
class Recipe:
    """Where everything is.

    Attributes:
        data: folder with ``fsdd``, ``an4``, ``mini_librispeech`` and ``easy_vqa``.
        work: what the stages leave to one another.
        out: the repository's root, or any folder, to get ``assets`` and ``adapters``.
        kokoro_styles: the ``voices`` folder of npm's ``kokoro-js``; ``None`` to do without Kokoro.
        note: a remark for the card.
    """

    data: Path
    work: Path
    out: Path
    kokoro_styles: Path | None = None
    note: str = ""

    # What the stages leave, in their order.

    @property
    def voices(self) -> Path:
        return self.work / "voices"

    @property
    def versions(self) -> list[Path]:
        return [self.work / "versions" / f"{number}.safetensors" for number in range(NUM_VERSIONS)]

    def plain(self, name: str) -> Path:
        return self.work / "held_out" / f"{name}.safetensors"

    @property
    def tokenizer_file(self) -> Path:
        return self.work / "tokenizer.json"

    @property
    def backbone_file(self) -> Path:
        return self.work / "backbone.safetensors"

    @property
    def tower_file(self) -> Path:
        return self.work / "tower.safetensors"

    @property
    def speech_file(self) -> Path:
        return self.work / "speech.safetensors"

    @property
    def checkpoint(self) -> Path:
        return self.work / "checkpoint"

    @property
    def figures_file(self) -> Path:
        return self.work / "figures.json"

    # What is read again and again.

    @cached_property
    def split(self) -> Split:
        return speech_corpora(self.data, self.voices)

    @cached_property
    def vocabulary(self) -> list[str]:
        """Every word that the speech may hold."""
        return sorted({*vocabulary_of(self.split.train), *NUMBER_WORDS})

    @cached_property
    def corpus(self) -> Corpus:
        return read_corpus(self.data, self.vocabulary)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.tokenizer_file)

    @cached_property
    def config(self) -> Phi4MMConfig:
        return small_config(self.tokenizer)


def prepare_voices(recipe: Recipe) -> None:
    synthesise(available_voices(recipe.kokoro_styles), recipe.voices)


def prepare_features(recipe: Recipe) -> None:
    for name, clips in recipe.split.held_out.items():
        known = [clip for clip in clips if set(clip.words) <= set(recipe.vocabulary)]
        if not recipe.plain(name).exists():
            write_plain(recipe.plain(name), known, recipe.vocabulary)
    if not all(path.exists() for path in recipe.versions):
        write_varied(recipe.versions, recipe.split.train, recipe.vocabulary)


def prepare_tokenizer(recipe: Recipe) -> None:
    if not recipe.tokenizer_file.exists():
        train_tokenizer(recipe.corpus.all_texts(), recipe.corpus.all_words(), recipe.tokenizer_file)


def make_backbone(recipe: Recipe) -> None:
    """Train it, round it to the precision that the checkpoint stores, and note its hash."""
    if recipe.backbone_file.exists():
        return
    tasks = TextTasks(recipe.tokenizer, recipe.corpus)
    tensors = backbone_tensors(train_backbone(recipe.config.backbone, tasks, BackboneOptions()))
    write_json(recipe.work / "backbone.json", {"sha256": fingerprint(tensors)})
    write_tensors(recipe.backbone_file, tensors)


def make_tower(recipe: Recipe) -> None:
    if recipe.tower_file.exists():
        return
    assert recipe.config.speech is not None
    held_out = {name: recipe.plain(name) for name in recipe.split.held_out}
    tower = train_tower(recipe.config.speech, recipe.versions, held_out, recipe.vocabulary, TowerOptions())
    write_tensors(recipe.tower_file, tower.state_dict())


def make_speech(recipe: Recipe) -> None:
    if recipe.speech_file.exists():
        return
    words = trained_tower(recipe)
    model = assemble(recipe.config, read_tensors(recipe.backbone_file), words.tower.state_dict())
    options = SpeechOptions()
    name_the_words(model, words, recipe.versions, recipe.tokenizer, options)

    def watch(model: Phi4MMModel) -> str:
        phi4mm = Phi4MM(model, recipe.tokenizer_file)
        few = {name: clips[:: max(1, len(clips) // 60)] for name, clips in recipe.split.held_out.items()}
        return "WER " + ", ".join(f"{name} {100 * word_error_rate(phi4mm, clips):.1f} %" for name, clips in few.items())

    train_speech(model, recipe.versions, recipe.vocabulary, recipe.tokenizer, options, watch)
    state = model.state_dict()
    learnt = {name: state[name] for name in state if name.startswith("speech.") or is_lora(name)}
    write_tensors(recipe.speech_file, learnt)


def trained_tower(recipe: Recipe) -> WordTower:
    """The tower with its classifier, frozen."""
    assert recipe.config.speech is not None
    words = WordTower(recipe.config.speech, recipe.vocabulary)
    words.load_state_dict(read_tensors(recipe.tower_file))
    return words.requires_grad_(False)


def make_checkpoint(recipe: Recipe) -> None:
    """The checkpoint in the work folder, and a copy where it is shipped from."""
    words = trained_tower(recipe)
    model = assemble(recipe.config, read_tensors(recipe.backbone_file), words.tower.state_dict())
    model.load_state_dict(read_tensors(recipe.speech_file), strict=False)
    frozen = read_json(recipe.work / "backbone.json")["sha256"]
    export(model, recipe.tokenizer_file, recipe.checkpoint, expected_backbone=frozen)
    ship(recipe.checkpoint, recipe.out)


def measure(recipe: Recipe) -> None:
    phi4mm = Phi4MM.from_pretrained(recipe.checkpoint, device="cpu")
    found = figures(phi4mm, recipe.split.held_out, list(CONDITIONS))
    for figure in found:
        log.info("%s, %s: WER %.2f %%", figure.group, figure.condition, 100 * figure.wer)
    write_json(recipe.figures_file, [figure.to_dict() for figure in found])


def make_samples(recipe: Recipe) -> None:
    folder = recipe.out / "assets" / "samples"
    write_samples(folder)
    phi4mm = Phi4MM.from_pretrained(recipe.checkpoint, device="cpu")
    for sample in SAMPLES:
        heard = phi4mm.transcribe(folder / sample.name).text
        log.info("sample %s: %r, %s", sample.name, heard, "right" if heard == sample.text else f"not {sample.text!r}")


def make_cards(recipe: Recipe) -> None:
    voices = sorted({clip.speaker for clip in recipe.split.train if clip.corpus not in ("fsdd", "an4")})
    frozen = read_json(recipe.work / "backbone.json")["sha256"]
    write_cards(recipe.out, recipe.config, read_json(recipe.figures_file), voices, frozen, recipe.note)


STAGES: dict[str, Callable[[Recipe], None]] = {
    "voices": prepare_voices,
    "features": prepare_features,
    "tokenizer": prepare_tokenizer,
    "backbone": make_backbone,
    "tower": make_tower,
    "speech": make_speech,
    "export": make_checkpoint,
    "measure": measure,
    "samples": make_samples,
    "card": make_cards,
}


def run(recipe: Recipe, stages: list[str], threads: int) -> None:
    """Run the named stages in the recipe's order."""
    torch.set_num_threads(threads)
    for name, stage in STAGES.items():
        if name in stages:
            log.info("stage %s", name)
            stage(recipe)
