"""Each fault of a checkpoint gives one CheckpointError, on one line, that names the file and what is wrong with it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from phi4mm.checkpoint import load_checkpoint, read_adapter, read_adapter_config, save_checkpoint
from phi4mm.errors import CheckpointError, Phi4MMError
from tests.checkpoint.microsoft import save_as_microsoft
from tests.reference.transformers_port import Pair, make_pair

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair()


@pytest.fixture(scope="module")
def saved(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good folder of each layout, the own and transformers' in shards."""
    root = tmp_path_factory.mktemp("saved")
    tokenizer = root / "tokenizer.json"
    tokenizer.write_text("{}")
    save_checkpoint(pair.ours, root / "phi4mm", tokenizer_file=tokenizer, max_shard_bytes=200_000)
    save_checkpoint(pair.ours, root / "transformers", tokenizer_file=tokenizer, layout="transformers")
    save_as_microsoft(pair, root / "microsoft")
    return root


def fails(folder: Path | str, *parts: str) -> None:
    """Loading fails with a message of one line that holds every one of ``parts``."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def change_tensors(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the shard that holds the tensor ``name``."""
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            tensors = {key: tensor.clone() for key, tensor in tensors.items()}
            change(tensors)
            save_file(tensors, path)
            return
    raise AssertionError(name)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved / "phi4mm", tmp_path / "phi4mm")


@pytest.fixture
def transformers_folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved / "transformers", tmp_path / "transformers")


@pytest.fixture
def microsoft_folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved / "microsoft", tmp_path / "microsoft")


def test_missing_shard(folder: Path) -> None:
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    fails(folder, shard.name, "missing")


def test_missing_tensor(folder: Path) -> None:
    change_tensors(folder, "backbone.norm.weight", lambda tensors: tensors.pop("backbone.norm.weight"))
    fails(folder, "1 missing tensor: backbone.norm.weight")


def test_misshapen_tensor(folder: Path) -> None:
    name = "speech.tower.blocks.1.convolution.gate_bias"
    change_tensors(folder, name, lambda tensors: tensors.update({name: torch.zeros(1, 32)}))
    fails(folder, f"1 misshapen tensor: {name} (expected [32], found [1, 32])")


def test_unknown_tensors_are_counted(folder: Path) -> None:
    extra = {f"extra.{index}": torch.zeros(1) for index in range(12)}
    change_tensors(folder, "backbone.norm.weight", lambda tensors: tensors.update(extra))
    fails(folder, "12 unknown tensors: extra.0, ", "and 2 more")


@pytest.mark.parametrize("level", [0.0, -0.3, 1.5])
def test_peak_level_out_of_range(folder: Path, level: float) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["speech"]["peak_level"] = level
    (folder / "config.json").write_text(json.dumps(config))
    fails(folder, f"peak_level {level} must be over 0")


def test_several_problems_at_once(transformers_folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.stray"] = tensors.pop("model.norm.weight")
        tensors["model.embed_tokens.weight"] = torch.zeros(4, 64)

    change_tensors(transformers_folder, "model.norm.weight", change)
    fails(
        transformers_folder,
        "1 missing tensor: model.norm.weight",
        "model.embed_tokens.weight (expected [300, 64], found [4, 64])",
        "1 unknown tensor: model.stray",
    )


def test_integer_tensor(folder: Path) -> None:
    name = "backbone.norm.weight"
    change_tensors(folder, name, lambda tensors: tensors.update({name: torch.zeros(64, dtype=torch.int8)}))
    fails(folder, f"1 not floating point tensor: {name} (I8)")


@pytest.mark.parametrize("keep", [0, 4, 1000])
def test_truncated_file(transformers_folder: Path, keep: int) -> None:
    path = transformers_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    fails(transformers_folder, "model.safetensors", "not a whole safetensors file")


def test_file_without_its_tail(transformers_folder: Path) -> None:
    path = transformers_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    fails(transformers_folder, "model.safetensors", "not a whole safetensors file")


def test_no_weights(transformers_folder: Path) -> None:
    (transformers_folder / "model.safetensors").unlink()
    fails(transformers_folder, "neither model.safetensors nor model.safetensors.index.json")


def test_only_pickled_weights(transformers_folder: Path) -> None:
    (transformers_folder / "model.safetensors").rename(transformers_folder / "pytorch_model.bin")
    fails(transformers_folder, "only pickled weights", "safetensors")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/../../b.safetensors", "..\\x", "C:\\x"])
def test_index_that_points_outside_the_folder(folder: Path, name: str) -> None:
    index = folder / "model.safetensors.index.json"
    change_json(index, lambda values: values["weight_map"].update({"backbone.norm.weight": name}))
    fails(folder, "model.safetensors.index.json", repr(name), "outside the folder")


def test_index_that_names_a_pickle(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    change_json(index, lambda values: values["weight_map"].update({"backbone.norm.weight": "pytorch_model.bin"}))
    fails(folder, "names 'pytorch_model.bin'; only safetensors files are read")


@pytest.mark.parametrize("suffix", ["bin", "pt", "pkl"])
def test_adapter_that_is_pickled(transformers_folder: Path, suffix: str) -> None:
    weights = transformers_folder / "speech-lora" / "adapter_model.safetensors"
    weights.rename(weights.with_suffix(f".{suffix}"))
    fails(transformers_folder, "speech-lora: only pickled weights")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "adapters/speech", "adapters"])
def test_link_that_leads_outside_the_folder(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")
    fails(folder, name.split("/")[-1], "outside the folder")


def test_shard_that_is_a_link_outside_the_folder(transformers_folder: Path) -> None:
    weights = transformers_folder / "model.safetensors"
    weights.rename(transformers_folder.parent / "elsewhere.safetensors")
    weights.symlink_to(transformers_folder.parent / "elsewhere.safetensors")
    fails(transformers_folder, "model.safetensors", "elsewhere.safetensors, outside the folder")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "preprocessor_config.json"])
def test_named_pipe(transformers_folder: Path, name: str) -> None:
    (transformers_folder / name).unlink()
    os.mkfifo(transformers_folder / name)
    fails(transformers_folder, name, "not a regular file")


def test_nested_too_deeply(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": ' + "[" * 100_000)
    fails(folder, "config.json", "not readable as JSON")


@pytest.mark.parametrize("name", ["../speech", "..", "a/b", "", "a b", "auto"])
def test_adapter_with_a_name_that_is_a_path(folder: Path, name: str) -> None:
    change_json(folder / "config.json", lambda values: values["adapters"][0].update(name=name))
    fails(folder, "adapters[0].name", f"{name!r} is not a name for an adapter")


def test_two_adapters_of_one_name(folder: Path) -> None:
    change_json(folder / "config.json", lambda values: values["adapters"].append(values["adapters"][0]))
    fails(folder, "the name 'vision' occurs twice")


def test_adapter_folder_with_a_name_that_is_not_allowed(transformers_folder: Path) -> None:
    (transformers_folder / "speech-lora").rename(transformers_folder / "my voice-lora")
    fails(transformers_folder, "'my voice' is not a name", "rename the folder")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (
            lambda values: values["vision"].update(image_token_id=300),
            "image_token_id is 300, but the vocabulary has",
        ),
        (lambda values: values["speech"].update(audio_token_id=10**6), "audio_token_id is 1000000"),
        (lambda values: values["speech"].update(audio_token_id=290), "image_token_id and audio_token_id are both 290"),
        (lambda values: values["backbone"].update(stop_token_ids=[1, 301]), "a stop token's id is 301"),
        (lambda values: values["backbone"].update(num_layers=1_000_000), "backbone.num_layers is 1000000"),
        (lambda values: values["backbone"].update(norm_eps=float("nan")), "backbone.norm_eps is nan"),
        (lambda values: values["backbone"].update(rope_theta=10**400), "backbone.rope_theta is 1000"),
        (lambda values: values["backbone"].update(partial_rotary_factor=0.01), "rotates 0 dimensions"),
    ],
)
def test_settings_out_of_bounds(folder: Path, change: Callable[[dict[str, Any]], object], part: str) -> None:
    change_json(folder / "config.json", change)
    fails(folder, "config.json", part)


@pytest.mark.parametrize(
    ("tokenizer", "part"),
    [
        ({"added_tokens": [{"id": 300, "content": "<|x|>"}]}, "the id of '<|x|>' is 300, but the vocabulary has 300"),
        ({"model": {"vocab": {"a": 0, "b": 999}}}, "the id of 'b' is 999"),
        ({"added_tokens": [{"id": -1, "content": "<|x|>"}]}, "added_tokens[0].id is -1"),
    ],
)
def test_tokenizer_beyond_the_vocabulary(folder: Path, tokenizer: dict[str, Any], part: str) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    fails(folder, "tokenizer.json", part)


def test_generation_config_is_checked(microsoft_folder: Path) -> None:
    (microsoft_folder / "generation_config.json").write_text('{"eos_token_id": ["x"]}')
    fails(microsoft_folder, "generation_config.json: eos_token_id")


def test_index_without_a_map(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")
    fails(folder, "model.safetensors.index.json", "weight_map")


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\xff"])
def test_broken_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    fails(folder, "config.json")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    fails(folder, name, "missing")


def test_tokenizer_in_the_old_format(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    fails(folder, "tokenizer.json", "vocab.json")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda values: values.update(format_version=2), ["format_version is 2"]),
        (lambda values: values["backbone"].pop("norm_eps"), ["backbone.norm_eps is missing"]),
        (lambda values: values["speech"].update(chunk_size=4), ["speech.chunk_size is unknown"]),
        (lambda values: values["backbone"].update(num_heads=7), ["hidden_size 64"]),
        (lambda values: values["backbone"].update(num_heads=0), ["config.json"]),
        (lambda values: values["backbone"].update(hidden_size="big"), ["config.json"]),
        (lambda values: values.pop("adapters"), ["adapters is missing"]),
        (lambda values: values.update(adapters=[3]), ["adapters[0] is 3, expected an object"]),
        (lambda values: values["adapters"][0].update(rank=4), ["adapter_config.json", "r is 3", "expected 4"]),
        (lambda values: values["adapters"][0].update(name="medical"), ["medical", "adapter_config.json"]),
    ],
)
def test_own_config(folder: Path, change: Callable[[dict[str, Any]], object], parts: list[str]) -> None:
    change_json(folder / "config.json", change)
    fails(folder, *parts)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"model_type": "llama"}, ["model_type is 'llama'", "phi3"]),
        ({"model_type": None}, ["model_type is absent"]),
        ({"hidden_act": "gelu"}, ["hidden_act is 'gelu'", "'silu'"]),
        ({"attention_bias": True}, ["attention_bias"]),
        ({"head_dim": 8}, ["head_dim"]),
        ({"hidden_size": None, "vocab_size": None}, ["vocab_size is missing; hidden_size is missing"]),
        ({"hidden_size": -64}, ["hidden_size is -64"]),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, ["rope_type is 'linear'", "longrope"]),
        ({"rope_parameters": {"rope_type": "longrope"}}, ["short_factor and long_factor"]),
        (
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            ["config.json", "short_factor has 1 values"],
        ),
        ({"audio_config": {"chunk_size": 18}}, ["audio_config", "chunk_size is 18"]),
        ({"audio_config": {"activation": "relu"}}, ["activation is 'relu'"]),
        ({"audio_config": {"hidden_size": 64, "ext_pw_out_channel": 32}}, ["ext_pw_out_channel is 32"]),
        ({"audio_config": {"depthwise_multiplier": 2}}, ["depthwise_multiplier"]),
        ({"audio_config": {"downsample_rate": 2}}, ["downsample_rate"]),
        ({"audio_config": {"time_reduction": 6}}, ["time_reduction 6"]),
        ({"vision_config": {"crop_size": 336}}, ["crop_size is 336"]),
        ({"vision_config": {"feature_layer": 40}}, ["feature_layer is 40"]),
        ({"vision_config": {"image_size": [448, 448]}}, ["image_size is [448, 448]"]),
    ],
)
def test_transformers_config(transformers_folder: Path, change: dict[str, Any], parts: list[str]) -> None:
    change_json(transformers_folder / "config.json", lambda values: values.update(change))
    fails(transformers_folder, "config.json", *parts)


def test_attention_factor_of_its_own(transformers_folder: Path) -> None:
    change_json(
        transformers_folder / "config.json", lambda values: values["rope_parameters"].update(attention_factor=1.0)
    )
    fails(transformers_folder, "attention_factor is 1.0")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda values: values.pop("speech_lora"), ["speech_lora is missing"]),
        (lambda values: values["audio_processor"].update(name="other"), ["audio_processor", "'cascades'"]),
        (lambda values: values["audio_processor"]["config"].update(input_layer="conv2d"), ["'nemo_conv'"]),
        (lambda values: values["audio_processor"]["config"].pop("attention_dim"), ["config.attention_dim is missing"]),
        (lambda values: values["embd_layer"]["audio_embd_layer"].update(downsample_rate=2), ["downsample_rate is 2"]),
        (lambda values: values["embd_layer"]["image_embd_layer"].update(use_hd_transform=False), ["use_hd_transform"]),
        (lambda values: values["vision_lora"].update(r=4), ["lora_A.vision", "expected [4, 64], found [3, 64]"]),
    ],
)
def test_microsoft_config(microsoft_folder: Path, change: Callable[[dict[str, Any]], object], parts: list[str]) -> None:
    change_json(microsoft_folder / "config.json", change)
    fails(microsoft_folder, *parts)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"r": 4}, "expected [4, 64], found [3, 64]"),
        ({"use_dora": True}, "use_dora is True"),
        ({"use_rslora": True}, "use_rslora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"rank_pattern": {"o_proj": 4}}, "rank_pattern"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"lora_alpha": None}, "lora_alpha is missing"),
    ],
)
def test_adapter_config(transformers_folder: Path, change: dict[str, Any], part: str) -> None:
    change_json(transformers_folder / "vision-lora" / "adapter_config.json", lambda values: values.update(change))
    fails(transformers_folder, "vision-lora", part)


def test_adapter_without_a_tensor(folder: Path) -> None:
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    change_tensors(folder / "adapters" / "speech", name, lambda tensors: tensors.pop(name))
    fails(folder, "speech", f"1 missing tensor: {name}")


def test_adapter_of_another_rank_than_the_configuration_says(folder: Path) -> None:
    change_json(folder / "adapters" / "vision" / "adapter_config.json", lambda values: values.update(r=5, lora_alpha=7))
    fails(folder, "adapters/vision", "r is 5 and lora_alpha 7, expected 3 and 6")


def test_adapter_that_does_not_fit_the_model(pair: Pair, folder: Path) -> None:
    file = folder / "adapters" / "speech"
    config = read_adapter_config(file, "mine")
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    change_tensors(file, name, lambda tensors: tensors.update({name: torch.zeros(3, 5), "other": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"1 misshapen tensor: .*found \[3, 5\].*1 unknown tensor: other"):
        read_adapter(pair.ours, config, file)


def test_save_over_something(pair: Pair, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(CheckpointError, match="not an empty folder"):
        save_checkpoint(pair.ours, folder, tokenizer_file=None)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("layout", ["foo", "", None, "microsoft"])
def test_save_in_a_layout_that_there_is_not(pair: Pair, tmp_path: Path, layout: Any) -> None:
    with pytest.raises(Phi4MMError, match=r"layout is .*; expected one of phi4mm, transformers"):
        save_checkpoint(pair.ours, tmp_path / "saved", tokenizer_file=None, layout=layout)
    assert list(tmp_path.iterdir()) == []


def test_save_that_fails_leaves_nothing(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("phi4mm.checkpoint.peft_folder.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(pair.ours, tmp_path / "saved", tokenizer_file=None)
    assert list(tmp_path.iterdir()) == []
