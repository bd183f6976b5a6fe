"""Every layout there and back: the same tensors, the same logits."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Literal

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Phi3Config, Phi3ForCausalLM, Phi4MultimodalForCausalLM

from phi4mm.checkpoint import load_checkpoint, read_adapter, read_adapter_config, save_adapter, save_checkpoint
from phi4mm.checkpoint.configs import read_config
from phi4mm.checkpoint.names import is_lora, unused_vision_tensors
from phi4mm.model.config import AdapterConfig, Phi4MMConfig
from phi4mm.model.phi4mm import Phi4MMModel
from tests.checkpoint.microsoft import microsoft_config, save_as_microsoft
from tests.reference.transformers_port import (
    TARGET_MODULES,
    Pair,
    add_adapters,
    make_pair,
    port_config,
    port_inputs,
    random_batch,
    random_port,
    relative_error,
    small_config,
)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair()


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "source-tokenizer.json"
    path.write_text('{"version": "1.0"}')
    return path


def assert_same_weights(model: Phi4MMModel, expected: Phi4MMModel) -> None:
    state, expected_state = model.state_dict(), expected.state_dict()
    assert state.keys() == expected_state.keys()
    assert [name for name in state if not torch.equal(state[name], expected_state[name])] == []


@pytest.mark.parametrize("layout", ["phi4mm", "transformers"])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_saved_and_loaded(
    pair: Pair, tmp_path: Path, tokenizer: Path, layout: Literal["phi4mm", "transformers"], max_shard_bytes: int
) -> None:
    folder = save_checkpoint(
        pair.ours, tmp_path / "saved", tokenizer_file=tokenizer, layout=layout, max_shard_bytes=max_shard_bytes
    )
    assert (len(list(folder.glob("model*.safetensors"))) > 1) == (max_shard_bytes == 20_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved", "source-tokenizer.json"]

    checkpoint = load_checkpoint(folder)
    assert checkpoint.layout == layout
    assert checkpoint.tokenizer_file.read_text() == tokenizer.read_text()
    assert sorted(checkpoint.config.adapters, key=lambda adapter: -adapter.rank) == sorted(
        pair.ours.config.adapters, key=lambda adapter: -adapter.rank
    )
    assert dataclasses.replace(checkpoint.config, adapters=()) == dataclasses.replace(pair.ours.config, adapters=())
    assert_same_weights(checkpoint.model, pair.ours)
    for adapter in (None, "vision", "speech"):
        batch = random_batch(pair.ours.config, adapter, image=True, audio=True)
        assert relative_error(checkpoint.model(batch), pair.ours(batch)) < 1e-6


def test_loaded_model_is_frozen_and_in_eval_mode(pair: Pair, tmp_path: Path, tokenizer: Path) -> None:
    model = load_checkpoint(save_checkpoint(pair.ours, tmp_path / "saved", tokenizer_file=tokenizer)).model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_writing_to_a_loaded_model_does_not_reach_the_file(pair: Pair, tmp_path: Path, tokenizer: Path) -> None:
    folder = save_checkpoint(pair.ours, tmp_path / "saved", tokenizer_file=tokenizer)
    model = load_checkpoint(folder).model
    for tensor in model.state_dict().values():
        tensor.zero_()
    assert_same_weights(load_checkpoint(folder).model, pair.ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_the_one_asked_for(pair: Pair, tmp_path: Path, tokenizer: Path, dtype: torch.dtype) -> None:
    folder = save_checkpoint(pair.ours, tmp_path / "saved", tokenizer_file=tokenizer)
    model = load_checkpoint(folder, dtype=dtype).model
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}
    expected = pair.ours.state_dict()
    assert all(torch.equal(tensor, expected[name].to(dtype)) for name, tensor in model.state_dict().items())


def test_dtype_is_the_checkpoints_own_by_default(pair: Pair, tmp_path: Path, tokenizer: Path) -> None:
    folder = save_checkpoint(make_pair().ours.bfloat16(), tmp_path / "saved", tokenizer_file=tokenizer)
    assert load_checkpoint(folder).model.dtype == torch.bfloat16


def test_8_bit_floats_are_widened(tokenizer: Path, tmp_path: Path) -> None:
    model = make_pair().ours.bfloat16()
    assert model.speech is not None
    tower = model.speech.tower.state_dict()
    small = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tower.items()}
    model.speech.tower.load_state_dict(small, assign=True)
    loaded = load_checkpoint(save_checkpoint(model, tmp_path / "saved", tokenizer_file=tokenizer)).model
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.bfloat16}
    assert loaded.speech is not None
    for name, tensor in loaded.speech.tower.state_dict().items():
        assert torch.equal(tensor, small[name].bfloat16())


@pytest.mark.parametrize("small", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_8_bit_embeddings_are_widened(tokenizer: Path, tmp_path: Path, small: torch.dtype) -> None:
    model = make_pair().ours.bfloat16()
    weight = model.decoder.embed_tokens.weight.detach().to(small)
    model.decoder.embed_tokens.load_state_dict({"weight": weight}, assign=True)
    loaded = load_checkpoint(save_checkpoint(model, tmp_path / "saved", tokenizer_file=tokenizer)).model
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.bfloat16}
    assert torch.equal(loaded.decoder.embed_tokens.weight, weight.bfloat16())
    loaded(random_batch(loaded.config, None, image=True, audio=True))


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (["qkv_proj"], None),
        (["qkv_proj"], [1]),
        (["qkv_proj"], 0),
        (["layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"], None),
        (r"model\.layers\.1\.mlp\..*_proj", None),
        (TARGET_MODULES, None),
    ],
)
@torch.no_grad()
def test_adapter_of_some_linears(
    tmp_path: Path, tokenizer: Path, targets: list[str] | str, layers: list[int] | int | None
) -> None:
    """As peft trains and saves it; loaded with the checkpoint, and onto a model that runs."""
    config = dataclasses.replace(small_config(), adapters=())
    port = random_port(config)
    port.save_pretrained(tmp_path)
    shutil.copy(tokenizer, tmp_path / "tokenizer.json")
    peft_config = LoraConfig(r=3, lora_alpha=6, target_modules=targets, layers_to_transform=layers)
    theirs = get_peft_model(port, peft_config, adapter_name="mine")
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "mine").rename(tmp_path / "mine-lora")

    ours = load_checkpoint(tmp_path).model
    batch = random_batch(config, "mine", image=True, audio=True)
    expected = theirs.eval()(**port_inputs(batch, config)).logits
    assert relative_error(ours(batch), expected) < 1e-4
    adapter = read_adapter_config(tmp_path / "mine-lora", "again")
    ours.add_adapter(adapter, read_adapter(ours, adapter, tmp_path / "mine-lora"))
    assert relative_error(ours(random_batch(config, "again", image=True, audio=True)), expected) < 1e-4


def test_files_of_the_hubs_cache_are_links(pair: Pair, tmp_path: Path, tokenizer: Path) -> None:
    saved = save_checkpoint(pair.ours, tmp_path / "saved", tokenizer_file=tokenizer)
    snapshot, blobs = (tmp_path / "models--somebody--model" / name for name in ("snapshots/5f", "blobs"))
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in saved.rglob("*") if path.is_file())):
        path.rename(blobs / str(number))
        link = snapshot / path.relative_to(saved)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    (tmp_path / "link").symlink_to(snapshot)
    assert_same_weights(load_checkpoint(snapshot).model, pair.ours)
    assert_same_weights(load_checkpoint(tmp_path / "link").model, pair.ours)


def test_device_is_the_one_asked_for(pair: Pair, tmp_path: Path, tokenizer: Path) -> None:
    folder = save_checkpoint(pair.ours, tmp_path / "saved", tokenizer_file=tokenizer)
    model = load_checkpoint(folder, device="meta").model
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("tie", [True, False])
@torch.no_grad()
def test_transformers_and_peft_read_what_we_save(tmp_path: Path, tie: bool) -> None:
    config = small_config()
    pair = make_pair(dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, tie_embeddings=tie)))
    folder = save_checkpoint(pair.ours, tmp_path / "saved", tokenizer_file=None, layout="transformers")
    port, info = Phi4MultimodalForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert {kind: list(names) for kind, names in info.items() if names} == {}

    batch = random_batch(pair.ours.config, None, image=True, audio=True)
    inputs = port_inputs(batch, pair.ours.config)
    assert relative_error(pair.ours(batch), port(**inputs).logits) < 1e-4
    with_adapters = PeftModel.from_pretrained(port, folder / "vision-lora", adapter_name="vision")
    with_adapters.load_adapter(folder / "speech-lora", "speech")
    for adapter in ("vision", "speech"):
        with_adapters.set_adapter(adapter)
        batch = random_batch(pair.ours.config, adapter, image=True, audio=True)
        assert relative_error(pair.ours(batch), with_adapters(**inputs).logits) < 1e-4


@torch.no_grad()
def test_we_read_what_transformers_and_peft_save(tmp_path: Path) -> None:
    config = small_config()
    port = random_port(config)
    port.save_pretrained(tmp_path, max_shard_size="50KB")
    with_adapters = add_adapters(port, config)
    with_adapters.save_pretrained(tmp_path)
    for adapter in config.adapters:
        (tmp_path / adapter.name).rename(tmp_path / f"{adapter.name}-lora")
    (tmp_path / "tokenizer.json").write_text("{}")

    checkpoint = load_checkpoint(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert checkpoint.layout == "transformers"
    pair = Pair(checkpoint.model, with_adapters)
    for name in (None, "vision", "speech"):
        batch = random_batch(config, name, image=True, audio=True)
        with pair.adapter(name) as model:
            theirs = model(**port_inputs(batch, config)).logits
        assert relative_error(checkpoint.model(batch), theirs) < 1e-4


def test_transformers_layout_without_adapters(tmp_path: Path) -> None:
    random_port(small_config()).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.config == dataclasses.replace(small_config(), adapters=())


def test_microsoft_layout_gives_the_same_model(pair: Pair, tmp_path: Path) -> None:
    save_as_microsoft(pair, tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.layout == "microsoft"
    assert checkpoint.config == pair.ours.config
    assert_same_weights(checkpoint.model, pair.ours)


def phi3_variants() -> dict[str, dict[str, object]]:
    longrope = {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
        "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        "partial_rotary_factor": 0.75,
    }
    return {
        "plain": {"tie_word_embeddings": True},
        "untied": {"tie_word_embeddings": False},
        "longrope": {"tie_word_embeddings": True, "rope_parameters": longrope},
        "untied longrope in a window": {
            "tie_word_embeddings": False,
            "rope_parameters": longrope,
            "sliding_window": 16,
        },
    }


@pytest.mark.parametrize("variant", phi3_variants())
@pytest.mark.parametrize("old_style", [False, True])
@torch.no_grad()
def test_phi3_layout(tmp_path: Path, variant: str, old_style: bool) -> None:
    config = Phi3Config(
        vocab_size=120,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        original_max_position_embeddings=24,
        pad_token_id=0,
        eos_token_id=[3, 4],
        **phi3_variants()[variant],
    )
    torch.manual_seed(0)
    theirs = Phi3ForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    if old_style:
        path = tmp_path / "config.json"
        values = json.loads(path.read_text())
        rope = values.pop("rope_parameters")
        values |= {"rope_theta": rope["rope_theta"], "partial_rotary_factor": rope["partial_rotary_factor"]}
        values["rope_scaling"] = None
        if rope["rope_type"] == "longrope":
            values["rope_scaling"] = {"type": "longrope"} | {k: rope[k] for k in ("short_factor", "long_factor")}
        path.write_text(json.dumps(values))

    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.layout == "phi3"
    assert checkpoint.model.vision is None
    assert checkpoint.model.speech is None
    assert checkpoint.config.decoder.stop_token_ids == (3, 4)
    for num_tokens in (24, 40):  # short and long factors
        token_ids = torch.arange(num_tokens)[None] * 7 % 120
        hidden = checkpoint.model.decoder(
            checkpoint.model.decoder.embed_tokens(token_ids),
            torch.arange(num_tokens)[None],
            checkpoint.model.long_rows(torch.tensor([num_tokens])),
        )
        logits = theirs(input_ids=token_ids, use_cache=False).logits
        assert relative_error(checkpoint.model.decoder.logits(hidden), logits) < 1e-4


def test_one_adapter_saved_and_loaded(pair: Pair, tmp_path: Path) -> None:
    save_adapter(pair.ours, "speech", tmp_path / "speech")
    model = make_pair(seed=5).ours
    config = read_adapter_config(tmp_path / "speech", "mine")
    speech = pair.ours.adapters["speech"]
    assert config == dataclasses.replace(speech, name="mine")
    model.add_adapter(config, read_adapter(model, config, tmp_path / "speech"))
    for name, tensor in pair.ours.state_dict().items():
        if is_lora(name, "speech"):
            assert torch.equal(model.state_dict()[name.replace(".speech.", ".mine.")], tensor)


@pytest.mark.parametrize("layout", ["phi4mm", "transformers"])
@pytest.mark.parametrize("name", ["my.accent", "-lora", "..."])
def test_adapters_of_a_running_model_are_saved(
    tmp_path: Path, tokenizer: Path, layout: Literal["phi4mm", "transformers"], name: str
) -> None:
    model = make_pair(seed=5).ours
    model.remove_adapter("vision")
    model.add_adapter(AdapterConfig(name, rank=2, alpha=3.0, dropout=0.1))
    folder = save_checkpoint(model, tmp_path / "saved", tokenizer_file=tokenizer, layout=layout)
    assert {path.name for path in tmp_path.iterdir()} == {"saved", tokenizer.name}
    loaded = load_checkpoint(folder).model
    assert loaded.adapters == model.adapters
    assert_same_weights(loaded, model)


def test_full_size_parameter_count() -> None:
    """The model card's file holds 5,574,460,384 parameters; ours leaves out the vision tensors that nothing uses."""
    config = Phi4MMConfig()
    with torch.device("meta"):
        model = Phi4MMModel(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 5_543_980_064
    ours = sum(tensor.numel() for tensor in model.state_dict().values())  # with the feature statistics
    unused = sum(torch.Size(shape).numel() for shape in unused_vision_tensors(config).values())
    assert ours + unused == 5_574_460_384


def test_microsofts_own_config_is_our_default(tmp_path: Path) -> None:
    """Microsoft's config.json names neither the vision tower's sizes nor the media tokens nor <|end|>."""
    values = microsoft_config(Phi4MMConfig())
    del values["vision_config"], values["audio_processor"]["config"]["audio_token_id"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_config(tmp_path) == ("microsoft", Phi4MMConfig())


def test_defaults_that_transformers_leaves_out(tmp_path: Path) -> None:
    """A config.json of an older transformers holds only what differs from its defaults, where bias distance is 1000."""
    values = port_config(Phi4MMConfig()).to_dict()
    values |= {"vision_config": {}, "audio_config": {"bias_max_distance": 500}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_config(tmp_path)[1] == dataclasses.replace(Phi4MMConfig(), adapters=())
    values["audio_config"] = {}
    (tmp_path / "config.json").write_text(json.dumps(values))
    speech = read_config(tmp_path)[1].speech
    assert speech is not None
    assert speech.bias_max_distance == 1000
