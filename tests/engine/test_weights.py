"""Merged, prepacked and quantised weights: what they compute, what they leave alone, and how they are undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from phi4mm import AdapterError, Phi4MM, Phi4MMError
from phi4mm.engine.merge import MergedLinear, merge, unmerge
from phi4mm.engine.prepack import PrepackedLinear, can_prepack, prepack_decoder
from phi4mm.engine.quantize import Int4Linear, Int8Linear, QuantizedLinear, quantize_decoder
from phi4mm.model.config import AdapterConfig
from phi4mm.model.decoder import Decoder
from phi4mm.model.lora import LoRA, LoRALinear, lora_linears, row_adapters
from phi4mm.model.phi4mm import Phi4MMModel
from tests.conftest import TINY, randomise
from tests.test_api import REQUESTS

CAN_PREPACK = can_prepack(torch.device("cpu"), torch.bfloat16)
needs_prepacking = pytest.mark.skipif(not CAN_PREPACK, reason="oneDNN has no bfloat16 kernels for this processor")
SPEECH, VISION, BOTH = ("speech",), ("vision",), ("speech", "vision")
ROWS = [((), ()), (SPEECH, SPEECH), (VISION, VISION), (SPEECH, ()), (VISION, SPEECH), (BOTH, BOTH), (BOTH, SPEECH)]


def make_model() -> Phi4MMModel:
    model = Phi4MMModel(TINY).eval().requires_grad_(False)
    randomise(model, seed=4)
    return model


@torch.no_grad()
def hidden_states(model: Phi4MMModel, names: tuple[tuple[str, ...], ...]) -> torch.Tensor:
    embeddings = torch.randn(len(names), 9, TINY.decoder.hidden_size, generator=torch.manual_seed(0))
    positions = torch.arange(9).expand(len(names), -1)
    long_rows = torch.zeros(len(names), dtype=torch.bool)
    result: torch.Tensor = model.decoder(embeddings, positions, long_rows, row_adapters(names, device="cpu"))
    return result


@pytest.mark.parametrize("names", ROWS)
def test_merged_rows_equal_those_with_the_adapter(names: tuple[tuple[str, ...], ...]) -> None:
    model = make_model()
    expected = hidden_states(model, names)
    merged = hidden_states(merge(model, "speech"), names)
    assert (merged - expected).norm() / expected.norm() < 1e-5
    if names != (SPEECH, SPEECH):
        assert torch.equal(merged, expected)


def test_unmerging_restores_the_frozen_weights_bit_for_bit() -> None:
    model = make_model()
    frozen = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict().items()}
    merge(merge(model, "speech"), "vision")
    assert any(isinstance(module, MergedLinear) for module in model.modules())
    unmerge(unmerge(model))
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == frozen[name][0].data_ptr()
        assert torch.equal(tensor, frozen[name][1])
    assert model.state_dict().keys() == frozen.keys()


def test_a_merged_run_says_the_same(tokenizer_file: Path) -> None:
    with Phi4MM(make_model(), tokenizer_file) as model:
        expected = model.chat_batch(REQUESTS)
        merge(model.model, "speech")
        assert model.chat_batch(REQUESTS) == expected
        model.unmerge()
        assert model.chat_batch(REQUESTS) == expected
        with pytest.warns(DeprecationWarning, match="unmerge"):
            model.unfold()


def test_a_merged_adapter_is_not_removed() -> None:
    model = merge(make_model(), "speech")
    with pytest.raises(AdapterError, match="'speech' is merged into the weights; unmerge it first"):
        model.remove_adapter("speech")
    model.add_adapter(AdapterConfig("mine", rank=2, alpha=2.0))
    mine = [linear.adapter("mine") for linear in lora_linears(model.decoder).values()]
    assert len(mine) == 4 * TINY.decoder.num_layers
    model.remove_adapter("vision")
    unmerge(model).remove_adapter("speech")
    assert tuple(model.adapters) == ("mine",)


def make_linear(in_size: int = 192, out_size: int = 96) -> LoRALinear:
    linear = LoRALinear(in_size, out_size)
    for config in TINY.adapters:
        linear.attach(config.name, LoRA.initial(in_size, out_size, config))
    randomise(linear, seed=5)
    return linear.requires_grad_(False)


@pytest.mark.parametrize("num_tokens", [1, 5, 300])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_kernels_agree_with_dequantized_weights(kind: str, num_tokens: int) -> None:
    linear = make_linear()
    quantized = Int8Linear(linear) if kind == "int8" else Int4Linear(linear, 64)
    weight = quantized.dequantized()
    step = {"int8": 2 * 4 / 255, "int4": 8 / 15}[kind] * 0.2  # of weights within some 4 standard deviations
    assert (weight - linear.weight).abs().max() < step
    hidden = torch.randn(num_tokens, 1, 192)
    expected = hidden.bfloat16().float() @ weight.T
    assert (quantized(hidden, None) - expected).norm() / expected.norm() < 4e-3
    adapters = row_adapters([SPEECH] * num_tokens, device="cpu")
    update = linear(hidden, adapters) - linear(hidden, None)
    assert torch.allclose(quantized(hidden, adapters) - quantized(hidden, None), update, atol=1e-4)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_only_the_decoders_linears_are_quantized(kind: str) -> None:
    model, plain = make_model(), make_model().state_dict()
    quantize_decoder(model, kind)
    linears = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    assert len(linears) == 4 * TINY.decoder.num_layers
    state = model.state_dict()
    left = {name for name in plain if name in state}
    assert {name.rpartition(".")[0] for name in plain.keys() - left} == {
        name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)
    }
    assert all(torch.equal(state[name], plain[name]) for name in left)
    assert all(name.endswith(".weight") for name in plain.keys() - left)


@pytest.mark.parametrize(("kind", "least"), [("int8", 3.5), ("int4", 5.5)])
def test_fewer_bytes(kind: str, least: float) -> None:
    linear = make_linear(512, 512)
    quantized = Int8Linear(linear) if kind == "int8" else Int4Linear(linear, 64)
    assert linear.weight.nbytes / sum(buffer.nbytes for buffer in quantized.buffers()) > least


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_rows_of_a_quantized_model_do_not_depend_on_the_batch(kind: str, tokenizer_file: Path) -> None:
    with Phi4MM(quantize_decoder(make_model(), kind), tokenizer_file) as model:
        assert model.chat_batch(REQUESTS) == [model.chat_batch([request])[0] for request in REQUESTS]


@needs_prepacking
def test_prepacked_weights_compute_the_same_bits() -> None:
    model = make_model().bfloat16()
    embeddings = torch.randn(2, 9, TINY.decoder.hidden_size, generator=torch.manual_seed(0)).bfloat16()
    positions, short = torch.arange(9).expand(2, -1), torch.zeros(2, dtype=torch.bool)

    def hidden(*names: tuple[str, ...]) -> torch.Tensor:
        with torch.no_grad():
            result: torch.Tensor = model.decoder(embeddings, positions, short, row_adapters(names, device="cpu"))
        return result

    weights = [module.weight for module in model.decoder.modules() if type(module) is LoRALinear]
    before = hidden(SPEECH, ())
    merge(model, "speech")
    merged = hidden(SPEECH, SPEECH)
    unmerge(model)
    prepack_decoder(model)
    linears = [module for module in model.decoder.modules() if isinstance(module, PrepackedLinear)]
    assert len(linears) == len(weights) > 0
    assert all(torch.equal(linear.plain(), weight) for linear, weight in zip(linears, weights, strict=True))
    assert torch.equal(hidden(SPEECH, ()), before)
    merge(model, "speech")
    assert torch.equal(hidden(SPEECH, SPEECH), merged)
    unmerge(model)
    assert torch.equal(hidden(SPEECH, ()), before)


def test_what_cannot_be_done_is_refused(tokenizer_file: Path, tmp_path: Path) -> None:
    with pytest.raises(Phi4MMError, match=r"'music'.*'vision', 'speech'"):
        merge(make_model(), "music")
    quantized = quantize_decoder(make_model(), "int8")
    with pytest.raises(Phi4MMError, match="quantize=None"):
        merge(quantized, "speech")
    with pytest.raises(Phi4MMError, match="only plain weights can be saved"):
        Phi4MM(quantized, tokenizer_file).save_pretrained(tmp_path / "saved")
    with pytest.raises(Phi4MMError, match="not available in float32 on cpu"):
        prepack_decoder(make_model())
    for options in ({"quantize": "int8", "prepack": True}, {"compile": True, "prepack": True}):
        with pytest.raises(Phi4MMError, match="do not go together"):
            Phi4MM.from_pretrained(**options)  # type: ignore[arg-type]
    odd = make_model()
    odd.decoder.layers[0].mlp.down_proj = make_linear(48, 64)
    with pytest.raises(Phi4MMError, match="down_proj is 64 x 48"):
        quantize_decoder(odd, "int4")


@pytest.mark.parametrize(
    "options",
    [
        {"quantize": "int8"},
        {"quantize": "int4"},
        {"merge": "speech"},
        pytest.param({"merge": "speech", "prepack": True, "dtype": "bfloat16"}, marks=needs_prepacking),
    ],
)
def test_the_bundled_checkpoint(options: dict[str, Any]) -> None:
    clip = Path(__file__).parents[2] / "assets" / "samples" / "telephone.flac"
    with Phi4MM.from_pretrained(**options) as model:
        assert isinstance(model.model.decoder, Decoder)
        assert model.transcribe(clip, max_new_tokens=20).text == "five five two eight oh one four"
