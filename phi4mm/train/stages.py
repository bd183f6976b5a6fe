"""The stages of the recipe: each reads what earlier ones left in the work folder, and is skipped where its own result
is already there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from random import Random

import torch
from torch import Tensor

from phi4mm.api import Phi4MM
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.model.speech import SpeechTower
from phi4mm.train.bank import PictureBank, write_bank
from phi4mm.train.card import write_cards
from phi4mm.train.consistency import STRONG, WEAK, ConsistencyShards, train_consistency
from phi4mm.train.cuts import cut_words
from phi4mm.train.data import HELD_OUT_VOICES, read_clips, write_manifest
from phi4mm.train.decoder import DecoderOptions, train_decoder
from phi4mm.train.drawing import PRINTED, draw_shape, draw_shapes, draw_text
from phi4mm.train.export import assemble, export, in_float8, learnt, ship
from phi4mm.train.files import read_json, read_tensors, write_json, write_tensors
from phi4mm.train.fingerprint import decoder_tensors, fingerprint
from phi4mm.train.measure import (
    Figure,
    accuracy,
    asked_aloud,
    asked_of,
    picture_figures,
    read_speech_figure,
    speech_figures,
    word_error_rate,
    word_time_figures,
)
from phi4mm.train.picture_words import NamingOptions, name_the_pictures, train_picture_words
from phi4mm.train.pictures import Picture
from phi4mm.train.read_speech import Pieces, train_pieces, write_read_versions
from phi4mm.train.recipe import Recipe
from phi4mm.train.samples import SAMPLES, write_picture_samples, write_samples
from phi4mm.train.shards import write_plain, write_single_numbers, write_varied
from phi4mm.train.speech import PROJECTOR, Naming, SpeechOptions, speech_batches, train_speech
from phi4mm.train.spoken import SpokenOptions, train_spoken
from phi4mm.train.synthesis import MANIFEST, numbers, sentences, synthesise
from phi4mm.train.text import COLOURS, SHAPES
from phi4mm.train.tokenizer import train_tokenizer
from phi4mm.train.tower import TowerOptions, WordTower, train_tower
from phi4mm.train.vision import VisionOptions, train_vision
from phi4mm.train.vision import initialise as initialise_vision
from phi4mm.train.voices import available_voices

log = logging.getLogger(__name__)

NUM_DRAWN = {"shape": 2000, "shapes": 10000, "text": 24000}
PER_ROUND = {"easy_vqa": 150, "shape": 100, "shapes": 400, "text": 350}  # pictures of each bank
NUM_HELD_OUT = 200
WATCHED_WORDS = ("shapes", "text")  # pictures whose words are watched
WATCHED = 60  # clips or pictures of each group that are judged while training


def prepare_voices(recipe: Recipe) -> None:
    voices = available_voices(recipe.kokoro_styles)
    synthesise(voices, numbers, recipe.voices / "numbers")
    native = [voice for voice in voices if not voice.foreign]
    synthesise(native, sentences(recipe.spoken_questions), recipe.voices / "sentences")


def prepare_words(recipe: Recipe) -> None:
    if not (recipe.words / MANIFEST).exists():
        cut_words(read_clips(recipe.data / "an4" / "train.jsonl", "an4"), recipe.words)


def prepare_features(recipe: Recipe) -> None:
    for name, clips in recipe.heard.items():
        write_manifest(recipe.plain(name).with_suffix(".jsonl"), clips)
        if not recipe.plain(name).exists():
            write_plain(recipe.plain(name), clips, recipe.vocabulary)
    if not all(path.exists() for path in recipe.versions):
        write_varied(recipe.versions, recipe.split.train, recipe.vocabulary)
    if not all(path.exists() for path in recipe.number_versions):
        write_single_numbers(recipe.number_versions, recipe.split.train, recipe.vocabulary)
    read = recipe.read_speech.train
    if not recipe.pieces_file.exists():
        train_pieces(read, recipe.pieces_file)
    write_read_versions(recipe.read_versions, read, Pieces(recipe.pieces_file))


def prepare_tokenizer(recipe: Recipe) -> None:
    if not recipe.tokenizer_file.exists():
        train_tokenizer(recipe.corpus.all_texts(), recipe.corpus.all_words(), recipe.tokenizer_file)


def make_decoder(recipe: Recipe) -> None:
    """Train it, round it to the precision that the checkpoint stores, and note its hash."""
    if recipe.decoder_file.exists():
        return
    decoder = train_decoder(
        recipe.config.decoder, recipe.tasks, DecoderOptions(), recipe.stage("decoder"), torch.device(recipe.device)
    )
    tensors = decoder_tensors(decoder)
    write_json(recipe.work / "decoder.json", {"sha256": fingerprint(tensors)})
    write_tensors(recipe.decoder_file, tensors)


def make_tower(recipe: Recipe) -> None:
    """Train it, and round it to the precision that the checkpoint stores before anything is learnt on top of it."""
    if recipe.tower_file.exists():
        return
    assert recipe.config.speech is not None
    held_out = {name: recipe.plain(name) for name in recipe.split.held_out}
    tower = train_tower(
        recipe.config.speech,
        recipe.versions,
        held_out,
        recipe.vocabulary,
        TowerOptions(),
        recipe.stage("tower"),
        torch.device(recipe.device),
    )
    torch.manual_seed(0)
    reader = WordTower(tower.tower, recipe.config.speech, Pieces(recipe.pieces_file).vocabulary).to(recipe.device)
    shards = ConsistencyShards(recipe.versions, recipe.number_versions, recipe.read_versions)
    for name, options in (("strong", STRONG), ("weak", WEAK)):
        train_consistency(tower, reader, shards, held_out, options, recipe.stage(f"tower, two {name} views"))
    write_tensors(recipe.tower_file, in_float8(tower.state_dict()))


def trained_tower(recipe: Recipe) -> WordTower:
    """The speech tower with its classifier, frozen."""
    assert recipe.config.speech is not None
    words = WordTower(SpeechTower(recipe.config.speech), recipe.config.speech, recipe.vocabulary)
    words.load_state_dict(read_tensors(recipe.tower_file))
    return words.requires_grad_(False)


def assembled(recipe: Recipe, *parts: Mapping[str, Tensor]) -> Phi4MMModel:
    """The model with the frozen decoder and the speech tower, and what other stages learnt."""
    tower = {f"speech.tower.{name}": tensor for name, tensor in trained_tower(recipe).tower.state_dict().items()}
    return assemble(recipe.config, read_tensors(recipe.decoder_file), tower, *parts).to(recipe.device)


def make_speech(recipe: Recipe) -> None:
    if recipe.speech_file.exists():
        return
    words, model, options = trained_tower(recipe).to(recipe.device), assembled(recipe), SpeechOptions()
    versions = [*recipe.versions, *recipe.number_versions]
    naming = Naming(model, words, recipe.tokenizer, PROJECTOR)
    naming.learn(
        lambda number, step: speech_batches(versions, words.vocabulary, options, number, model.device),
        options.naming,
        options.naming_learning_rate,
        recipe.stage("projector"),
    )

    def watch(model: Phi4MMModel) -> dict[str, float]:
        phi4mm = Phi4MM(model, recipe.tokenizer_file)
        few = {name: clips[:: max(1, len(clips) // WATCHED)] for name, clips in recipe.heard.items()}
        return {f"WER/{name}": 100 * word_error_rate(phi4mm, clips) for name, clips in few.items()}

    stage = recipe.stage("speech")
    train_speech(model, naming, versions, recipe.tokenizer, options, stage, watch)
    write_tensors(recipe.speech_file, learnt(model, ["speech.projectors.speech."], "speech"))


def drawn(name: str, seed: str, total: int) -> Iterator[Picture]:
    """``total`` pictures of one of the kinds of ``NUM_DRAWN``."""
    random = Random(seed)
    draw: dict[str, Callable[[], Picture]] = {
        "shape": lambda: draw_shape(random),
        "shapes": lambda: draw_shapes(random),
        "text": lambda: draw_text(random, PRINTED),
    }
    return (draw[name]() for _ in range(total))


def pictures_held_out(recipe: Recipe) -> dict[str, list[Picture]]:
    """easy-VQA's held-out pictures, and drawn ones that are not trained on."""
    found = {"easy_vqa": [picture.open() for picture in recipe.easy_vqa.held_out]}
    return found | {name: list(drawn(name, f"{name} held out", NUM_HELD_OUT)) for name in NUM_DRAWN}


def prepare_pictures(recipe: Recipe) -> None:
    assert recipe.config.vision is not None
    split = recipe.easy_vqa
    sets: dict[str, tuple[Iterator[Picture], int]] = {
        "easy_vqa": ((picture.open() for picture in split.train), len(split.train)),
        **{f"{name} held out": (drawn(name, f"{name} held out", NUM_HELD_OUT), NUM_HELD_OUT) for name in WATCHED_WORDS},
        **{name: (drawn(name, name, total), total) for name, total in NUM_DRAWN.items()},
    }
    for name, (pictures, total) in sets.items():
        if not recipe.pictures(name).exists():
            write_bank(recipe.pictures(name), pictures, recipe.config.vision, total=total)


def make_vision(recipe: Recipe) -> None:
    if recipe.vision_file.exists():
        return
    banks = {name: PictureBank(recipe.pictures(name)) for name in ("easy_vqa", *NUM_DRAWN)}
    mixture = [(bank, PER_ROUND[name]) for name, bank in banks.items()]
    held_out = {name: asked_of(pictures, WATCHED) for name, pictures in pictures_held_out(recipe).items()}
    model = assemble(recipe.config, read_tensors(recipe.decoder_file)).to(recipe.device)
    assert model.vision is not None
    initialise_vision(model.vision)
    options, device = NamingOptions(), torch.device(recipe.device)
    vocabulary = sorted({*recipe.vocabulary, *COLOURS, *SHAPES})
    judged = {name: PictureBank(recipe.pictures(f"{name} held out")) for name in WATCHED_WORDS}
    stage = recipe.stage("picture words")
    words = train_picture_words(model.vision, list(banks.values()), judged, vocabulary, options, stage, device)
    name_the_pictures(model, words, list(banks.values()), recipe.tokenizer, options, recipe.stage("image projector"))

    def watch(model: Phi4MMModel) -> dict[str, float]:
        phi4mm = Phi4MM(model, recipe.tokenizer_file)
        return {f"right/{name}": accuracy(phi4mm, asked) for name, asked in held_out.items()}

    train_vision(model, mixture, recipe.tasks, VisionOptions(), recipe.stage("vision"), watch)
    write_tensors(recipe.vision_file, learnt(model, ["vision."], "vision"))


def make_spoken(recipe: Recipe) -> None:
    if recipe.spoken_file.exists():
        return
    words, model = (
        trained_tower(recipe).to(recipe.device),
        assembled(recipe, *map(read_tensors, (recipe.speech_file, recipe.vision_file))),
    )
    banks = [PictureBank(recipe.pictures(name)) for name in ("easy_vqa", "shape")]
    judged = asked_aloud(recipe.asked_aloud, pictures_held_out(recipe)["easy_vqa"], each=1)

    def watch(model: Phi4MMModel) -> dict[str, float]:
        return {"right/asked aloud": accuracy(Phi4MM(model, recipe.tokenizer_file), judged)}

    folders = recipe.stage("spoken projector"), recipe.stage("spoken")
    train_spoken(model, words, recipe.versions, banks, recipe.tokenizer, SpokenOptions(), folders, watch)
    write_tensors(recipe.spoken_file, learnt(model, ["speech.projectors.vision."]))


def make_checkpoint(recipe: Recipe) -> None:
    """The checkpoint in the work folder, and a copy where it is shipped from."""
    model = assembled(recipe, *map(read_tensors, (recipe.speech_file, recipe.vision_file, recipe.spoken_file)))
    frozen = read_json(recipe.work / "decoder.json")["sha256"]
    export(model, recipe.tokenizer_file, recipe.checkpoint, expected_decoder=frozen)
    ship(recipe.checkpoint, recipe.out)


def measure(recipe: Recipe) -> None:
    phi4mm = Phi4MM.from_pretrained(recipe.checkpoint, device="cpu")
    pictures = pictures_held_out(recipe)
    groups = {name: asked_of(some) for name, some in pictures.items()}
    groups["asked aloud"] = asked_aloud(recipe.asked_aloud, pictures["easy_vqa"], each=5)
    found = [*speech_figures(phi4mm, recipe.heard), *picture_figures(phi4mm, groups)]
    found.append(read_speech_figure(phi4mm, recipe.judged_read_speech))
    found += word_time_figures(
        phi4mm, {voice: recipe.heard[voice] for voice in HELD_OUT_VOICES if voice in recipe.heard}
    )
    for figure in found:
        log.info("%s, %s: %s %.4f", figure.group, figure.condition, figure.measure, figure.value)
    write_json(recipe.figures_file, [figure.to_dict() for figure in found])


def make_samples(recipe: Recipe) -> None:
    folder = recipe.out / "assets" / "samples"
    write_samples(folder)
    phi4mm = Phi4MM.from_pretrained(recipe.checkpoint, device="cpu")
    for sample in SAMPLES:
        heard = phi4mm.transcribe(folder / sample.name).text
        log.info("sample %s: %r, %s", sample.name, heard, "right" if heard == sample.text else f"not {sample.text!r}")
    for row in write_picture_samples(folder):
        asked_in = [folder / row["audio_filepath"]] if "audio_filepath" in row else []
        question = "" if asked_in else row["question"]
        said = phi4mm.chat(question, images=[folder / row["image_filepath"]], audios=asked_in).text
        right = "right" if said == row["answer"] else f"not {row['answer']!r}"
        log.info("sample %s, %r: %r, %s", row["image_filepath"], row["question"], said, right)


def make_cards(recipe: Recipe) -> None:
    voices = sorted({clip.speaker for clip in recipe.split.train if clip.corpus in ("numbers", "sentences")})
    frozen = read_json(recipe.work / "decoder.json")["sha256"]
    found = [Figure(**row) for row in read_json(recipe.figures_file)]
    write_cards(recipe.out, recipe.config, found, voices, frozen, recipe.note)


STAGES: dict[str, Callable[[Recipe], None]] = {
    "voices": prepare_voices,
    "words": prepare_words,
    "features": prepare_features,
    "tokenizer": prepare_tokenizer,
    "decoder": make_decoder,
    "tower": make_tower,
    "speech": make_speech,
    "pictures": prepare_pictures,
    "vision": make_vision,
    "spoken": make_spoken,
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
