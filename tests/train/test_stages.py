"""Each stage runs for two steps on random data and does what the next one relies on."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from torch import nn

from phi4mm.checkpoint import load_checkpoint
from phi4mm.checkpoint.names import is_lora
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.config import Phi4MMConfig
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.model.speech import SpeechTower
from phi4mm.train import __main__ as command
from phi4mm.train import stages
from phi4mm.train.bank import PictureBank, write_bank
from phi4mm.train.batches import collate
from phi4mm.train.decoder import DecoderOptions, train_decoder
from phi4mm.train.drawing import draw_shape
from phi4mm.train.export import assemble, export, learnt, ship
from phi4mm.train.fingerprint import decoder_tensors, fingerprint
from phi4mm.train.loop import Pace, StageFolder, adamw, train
from phi4mm.train.picture_words import NamingOptions, name_the_pictures, train_picture_words
from phi4mm.train.shards import Shard, Utterance, write_shard
from phi4mm.train.speech import PROJECTOR, Naming, SpeechOptions, speech_batches, train_speech
from phi4mm.train.spoken import SpokenOptions, train_spoken
from phi4mm.train.text import COLOURS, SHAPES, Corpus, TextTasks
from phi4mm.train.tower import BLANK, TowerOptions, WordTower, train_tower, word_error_rate
from phi4mm.train.vision import VisionOptions, train_vision
from phi4mm.train.words import NUMBER_WORDS
from tests.train.conftest import DEVICE

TWO = Pace(steps=2, warmup=1, average=0.5, log_every=2)
SPEECH = SpeechOptions(naming=TWO, answering=TWO, frames=400)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def words(config: Phi4MMConfig, shard: Path, work: Path) -> WordTower:
    assert config.speech is not None
    options = TowerOptions(
        Pace(steps=3, warmup=1, average=0.5, log_every=3), single_steps=1, number_steps=2, frames=200
    )
    held_out = {"itself": shard}
    return train_tower(config.speech, [shard], held_out, NUMBER_WORDS, options, StageFolder(work, "tower"), DEVICE)


@pytest.fixture(scope="module")
def decoder(config: Phi4MMConfig, tokenizer: Tokenizer, corpus: Corpus, work: Path) -> dict[str, torch.Tensor]:
    options = DecoderOptions(TWO, tokens=256)
    tasks = TextTasks(tokenizer, corpus)
    return decoder_tensors(train_decoder(config.decoder, tasks, options, StageFolder(work, "decoder"), DEVICE))


def assembled(config: Phi4MMConfig, decoder: dict[str, torch.Tensor], words: WordTower) -> Phi4MMModel:
    tower = {f"speech.tower.{name}": tensor for name, tensor in words.tower.state_dict().items()}
    return assemble(config, decoder, tower).to(DEVICE)


def changed_in(model: Phi4MMModel, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def copy_of(model: Phi4MMModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_tower_stage_sets_the_features_statistics(words: WordTower, shard: Path) -> None:
    frames = Shard(shard, NUMBER_WORDS).frames.float()
    torch.testing.assert_close(words.tower.mean.cpu(), frames.mean(0))
    torch.testing.assert_close(words.tower.inverse_std.cpu(), 1 / frames.std(0))


def test_word_error_rate_of_a_silent_tower_is_one(words: WordTower, shard: Path) -> None:
    silent = deepcopy(words)
    silent.head.bias.data[BLANK] = 1e4
    assert word_error_rate(silent, list(Shard(shard, NUMBER_WORDS))) == 1.0


def test_speech_stage_changes_its_projector_and_adapter_alone(
    config: Phi4MMConfig,
    tokenizer: Tokenizer,
    decoder: dict[str, torch.Tensor],
    words: WordTower,
    shard: Path,
    tmp_path: Path,
) -> None:
    model = assembled(config, decoder, words)
    before = copy_of(model)

    words.requires_grad_(False)
    naming = Naming(model, words, tokenizer, PROJECTOR)
    clips = collate(list(Shard(shard, NUMBER_WORDS))).to(DEVICE)
    off = naming.loss(clips.features, clips.num_frames)
    naming.learn(
        lambda number, step: speech_batches([shard], NUMBER_WORDS, SPEECH, number, model.device),
        replace(TWO, steps=30, average=0.5),
        3e-3,
        StageFolder(tmp_path, "projector"),
    )
    assert naming.loss(clips.features, clips.num_frames) < off / 2
    train_speech(model, naming, [shard], tokenizer, SPEECH, StageFolder(tmp_path, "speech"), lambda _: {})

    changed = changed_in(model, before)
    assert all(is_lora(name, "speech") or name.startswith("speech.projectors.speech.") for name in changed)
    assert any(is_lora(name) for name in changed)
    assert fingerprint(decoder_tensors(model.decoder)) == fingerprint(decoder)


@pytest.fixture(scope="module")
def bank(config: Phi4MMConfig, work: Path) -> PictureBank:
    assert config.vision is not None
    random = Random(0)
    pictures = [draw_shape(random) for _ in range(6)]
    write_bank(work / "bank.safetensors", pictures, config.vision, total=6)
    return PictureBank(work / "bank.safetensors")


def test_vision_stage_changes_vision_and_its_adapter_alone(
    config: Phi4MMConfig,
    tokenizer: Tokenizer,
    corpus: Corpus,
    decoder: dict[str, torch.Tensor],
    words: WordTower,
    bank: PictureBank,
    tmp_path: Path,
) -> None:
    model = assembled(config, decoder, words)
    assert model.vision is not None
    before = copy_of(model)
    naming = NamingOptions(TWO, projector_pace=TWO, pictures=3)
    options = VisionOptions(TWO, pictures=2, questions=2)
    vocabulary = (*COLOURS, *SHAPES)

    seen = train_picture_words(
        model.vision, [bank], {"itself": bank}, vocabulary, naming, StageFolder(tmp_path, "picture words"), DEVICE
    )
    name_the_pictures(model, seen, [bank], tokenizer, naming, StageFolder(tmp_path, "image projector"))
    tasks = TextTasks(tokenizer, corpus)
    train_vision(model, [(bank, 4)], tasks, options, StageFolder(tmp_path, "vision"), lambda _: {})

    changed = changed_in(model, before)
    assert all(is_lora(name, "vision") or name.startswith("vision.") for name in changed)
    assert any(is_lora(name) for name in changed)
    assert any(name.startswith("vision.tower") for name in changed)
    assert fingerprint(decoder_tensors(model.decoder)) == fingerprint(decoder)


def test_spoken_stage_changes_the_vision_side_audio_projector_alone(
    config: Phi4MMConfig,
    tokenizer: Tokenizer,
    decoder: dict[str, torch.Tensor],
    bank: PictureBank,
    tmp_path: Path,
) -> None:
    vocabulary = sorted({word for one in bank.questions[0] for word in one.text.rstrip("?").split()})
    asked = [Utterance(torch.rand(80, 80).half(), tuple(one.text.rstrip("?").split())) for one in bank.questions[0]]
    write_shard(tmp_path / "asked.safetensors", asked, vocabulary)
    assert config.speech is not None
    # With these questions' words.
    words = WordTower(SpeechTower(config.speech), config.speech, vocabulary).requires_grad_(False).to(DEVICE)
    model = assembled(config, decoder, words)
    before = copy_of(model)

    options = SpokenOptions(naming=TWO, answering=TWO, frames=200)
    folders = StageFolder(tmp_path, "spoken projector"), StageFolder(tmp_path, "spoken")
    shards = [tmp_path / "asked.safetensors"]
    train_spoken(model, words, shards, [bank], tokenizer, options, folders, lambda _: {})

    assert {name.rsplit(".", 2)[0] for name in changed_in(model, before)} == {"speech.projectors.vision"}


def test_a_killed_stage_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi4mm.train.loop.SECONDS_BETWEEN_STATES", 0.0)
    pace = Pace(steps=9, warmup=2, average=0.9, log_every=3)

    def run(folder: Path, killed_at: int | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2))
        optimizers = [adamw([([module[1].weight], 1e-2), ([module[1].bias], 1e-1)])]

        def rounds(number: int, step: int) -> Iterator[torch.Tensor]:
            generator = torch.Generator().manual_seed(number)
            return (torch.rand(4, 3, generator=generator) for _ in range(2))

        def loss_of(batch: torch.Tensor, step: int) -> torch.Tensor:
            if step == killed_at:
                raise KeyboardInterrupt
            return module(batch).square().mean()

        train(module, optimizers, rounds, loss_of, pace, StageFolder(folder, "stage"), dict)
        return module.state_dict()

    whole = run(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", killed_at=5)
    again = run(tmp_path / "killed", None)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert list((tmp_path / "killed" / "tensorboard" / "stage").iterdir())


def test_export_ships_a_checkpoint_with_the_frozen_decoder(
    config: Phi4MMConfig, tokenizer_file: Path, decoder: dict[str, torch.Tensor], words: WordTower, tmp_path: Path
) -> None:
    model = assembled(config, decoder, words)
    export(model, tokenizer_file, tmp_path / "checkpoint", expected_decoder=fingerprint(decoder))
    ship(tmp_path / "checkpoint", tmp_path / "out")

    assert {path.name for path in (tmp_path / "out" / "adapters").iterdir()} == {"speech", "vision"}
    loaded = load_checkpoint(tmp_path / "checkpoint").model
    assert fingerprint(decoder_tensors(loaded.decoder)) == fingerprint(decoder)


def test_parts_are_put_together_by_adapter(
    config: Phi4MMConfig, decoder: dict[str, torch.Tensor], words: WordTower
) -> None:
    speech, vision = assembled(config, decoder, words), assembled(config, decoder, words)
    for model, value in ((speech, 1.0), (vision, 2.0)):
        for name, tensor in model.state_dict().items():
            if is_lora(name):
                tensor.fill_(value)
    both = assemble(config, decoder, learnt(speech, [], "speech"), learnt(vision, [], "vision"))
    for name, tensor in both.state_dict().items():
        if is_lora(name):
            assert (tensor == (1.0 if is_lora(name, "speech") else 2.0)).all()


def test_export_refuses_a_changed_decoder(
    config: Phi4MMConfig, tokenizer_file: Path, decoder: dict[str, torch.Tensor], words: WordTower, tmp_path: Path
) -> None:
    model = assembled(config, decoder, words)
    model.decoder.norm.weight.data[0] += 1
    with pytest.raises(ValueError, match="sha256"):
        export(model, tokenizer_file, tmp_path / "checkpoint", expected_decoder=fingerprint(decoder))
    assert not (tmp_path / "checkpoint").exists()


def test_the_command_knows_every_stage_and_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tuple(stages.STAGES) == command.STAGES
    work, gone = str(tmp_path / "work"), str(tmp_path / "gone")
    monkeypatch.setattr("sys.argv", ["train", "--data", gone, "--work", work, "--out", work])
    with pytest.raises(SystemExit) as caught:
        command.main()
    assert caught.value.code == 2
    assert "gone: has no folder fsdd, an4, mini_librispeech, easy_vqa" in capsys.readouterr().err
