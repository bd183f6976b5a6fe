"""Each stage runs for two steps on random data and does what the next one relies on."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from phi4mm.api import Phi4MM
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.config import Phi4MMConfig
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.train.backbone import BackboneOptions, train_backbone
from phi4mm.train.export import assemble, export, ship
from phi4mm.train.fingerprint import backbone_tensors, fingerprint
from phi4mm.train.shards import Shard
from phi4mm.train.speech import SpeechOptions, name_the_words, train_speech
from phi4mm.train.text import Corpus, TextTasks
from phi4mm.train.tower import BLANK, TowerOptions, WordTower, train_tower, word_error_rate
from phi4mm.train.words import NUMBER_WORDS

SPEECH = SpeechOptions(naming_steps=2, steps=2, frames=400, log_every=2)


@pytest.fixture(scope="module")
def words(config: Phi4MMConfig, shard: Path) -> WordTower:
    assert config.speech is not None
    options = TowerOptions(steps=3, single_steps=1, number_steps=2, frames=200, log_every=3)
    return train_tower(config.speech, [shard], {"itself": shard}, NUMBER_WORDS, options)


@pytest.fixture(scope="module")
def backbone(config: Phi4MMConfig, tokenizer: Tokenizer, corpus: Corpus) -> dict[str, torch.Tensor]:
    options = BackboneOptions(steps=2, tokens=256, log_every=2)
    return backbone_tensors(train_backbone(config.backbone, TextTasks(tokenizer, corpus), options))


def test_tower_stage_sets_the_features_statistics(words: WordTower, shard: Path) -> None:
    frames = Shard(shard, NUMBER_WORDS).frames.float()
    torch.testing.assert_close(words.tower.mean, frames.mean(0))
    torch.testing.assert_close(words.tower.inverse_std, 1 / frames.std(0))


def test_word_error_rate_of_a_silent_tower_is_one(words: WordTower, shard: Path) -> None:
    silent = deepcopy(words)
    silent.head.bias.data[BLANK] = 1e4
    assert word_error_rate(silent, list(Shard(shard, NUMBER_WORDS))) == 1.0


def test_speech_stage_leaves_backbone_and_vision_alone(
    config: Phi4MMConfig, tokenizer: Tokenizer, backbone: dict[str, torch.Tensor], words: WordTower, shard: Path
) -> None:
    model = assemble(config, backbone, words.tower.state_dict())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = fingerprint(backbone_tensors(model.backbone))

    name_the_words(model, words, [shard], tokenizer, SPEECH)
    train_speech(model, [shard], NUMBER_WORDS, tokenizer, SPEECH, lambda _: "")

    assert fingerprint(backbone_tensors(model.backbone)) == frozen == fingerprint(backbone)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[-1] for name in changed if name.startswith("backbone")} == {"lora_a", "lora_b"}
    assert {name.split(".")[1] for name in changed if name.startswith("speech")} == {"tower", "projectors"}
    assert not any(name.startswith("speech.projectors.vision") for name in changed)
    assert not any(name.startswith("vision") for name in changed)
    vision_rank = config.adapters[0].rank
    for name in changed:
        if name.endswith("lora_a"):
            torch.testing.assert_close(model.state_dict()[name][:vision_rank], before[name][:vision_rank])


def test_export_ships_a_checkpoint_with_the_frozen_backbone(
    config: Phi4MMConfig, tokenizer_file: Path, backbone: dict[str, torch.Tensor], words: WordTower, tmp_path: Path
) -> None:
    model = assemble(config, backbone, words.tower.state_dict())
    export(model, tokenizer_file, tmp_path / "checkpoint", expected_backbone=fingerprint(backbone))
    ship(tmp_path / "checkpoint", tmp_path / "out")

    assert {path.name for path in (tmp_path / "out" / "adapters").iterdir()} == {"speech", "vision"}
    loaded = Phi4MM.from_pretrained(tmp_path / "checkpoint", device="cpu").model
    assert fingerprint(backbone_tensors(loaded.backbone)) == fingerprint(backbone)
    assert torch.equal(
        loaded.state_dict()["speech.projectors.vision.up_proj.weight"],
        loaded.state_dict()["speech.projectors.speech.up_proj.weight"],
    )


def test_export_refuses_a_changed_backbone(
    config: Phi4MMConfig, tokenizer_file: Path, backbone: dict[str, torch.Tensor], words: WordTower, tmp_path: Path
) -> None:
    model: Phi4MMModel = assemble(config, backbone, words.tower.state_dict())
    model.backbone.norm.weight.data[0] += 1
    with pytest.raises(ValueError, match="sha256"):
        export(model, tokenizer_file, tmp_path / "checkpoint", expected_backbone=fingerprint(backbone))
    assert not (tmp_path / "checkpoint").exists()
