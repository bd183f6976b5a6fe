"""LoRALinear and the router: the right update for each row, none at all for text."""

from __future__ import annotations

import pytest
import torch

from phi4mm.errors import PromptError
from phi4mm.model.config import AdapterConfig
from phi4mm.model.decoder import Decoder
from phi4mm.model.lora import LoRALinear, adapter_spans, make_gate
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.model.router import Modality, Route, Router
from tests.conftest import TINY, randomise

ADAPTERS = (AdapterConfig("vision", 3, 6.0), AdapterConfig("middle", 2, 1.0), AdapterConfig("speech", 4, 2.0))


@pytest.mark.parametrize(
    "names",
    [("speech", "speech"), ("vision", None), ("vision", "speech"), (None, "middle", "speech"), ("vision", "vision")],
)
def test_each_row_gets_its_own_update(names: tuple[str | None, ...]) -> None:
    linear = LoRALinear(5, 7, 9)
    randomise(linear)
    hidden = torch.randn(len(names), 6, 5)
    gate = make_gate(ADAPTERS, [Route(name) for name in names], device=hidden.device, dtype=hidden.dtype)
    output = linear(hidden, gate)
    spans = adapter_spans(ADAPTERS)
    for row, name in enumerate(names):
        expected = hidden[row] @ linear.weight.T
        if name is not None:
            adapter = next(adapter for adapter in ADAPTERS if adapter.name == name)
            low_rank = hidden[row] @ linear.lora_a[spans[name]].T
            expected = expected + low_rank @ linear.lora_b[:, spans[name]].T * adapter.alpha / adapter.rank
        torch.testing.assert_close(output[row], expected)


def test_rows_without_adapter_need_no_gate() -> None:
    routes = [Route(), Route()]
    assert make_gate(ADAPTERS, routes, device=torch.device("cpu"), dtype=torch.float32) is None


@torch.no_grad()
def test_text_rows_equal_the_bare_decoder_bit_for_bit(tiny_model: Phi4MMModel) -> None:
    bare = Decoder(TINY.decoder).eval()
    weights = {name: value for name, value in tiny_model.decoder.state_dict().items() if "lora_" not in name}
    missing = bare.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert all("lora_" in name for name in missing.missing_keys)
    embeddings = torch.randn(3, 11, TINY.decoder.hidden_size)
    positions = torch.arange(11).expand(3, -1)
    long_rows = torch.zeros(3, dtype=torch.bool)
    ours = tiny_model.decoder(embeddings, positions, long_rows, gate=tiny_model.gate((Route(),) * 3))
    assert torch.equal(ours, bare(embeddings, positions, long_rows))
    mixed = tiny_model.decoder(
        embeddings, positions, long_rows, gate=tiny_model.gate((Route(), Route("speech"), Route("vision")))
    )
    assert torch.equal(mixed[0], ours[0])
    assert not torch.allclose(mixed[1], ours[1], atol=1e-2)


def test_router() -> None:
    router = Router(("vision", "speech"))
    assert router.route(Modality.TEXT) == Route(None, None)
    assert router.route(Modality.IMAGE) == Route("vision", None)
    assert router.route(Modality.AUDIO) == Route("speech", "speech")
    assert router.route(Modality.IMAGE_AUDIO) == Route("vision", "vision")
    assert router.route(Modality.AUDIO, "vision") == Route("vision", "speech")
    assert router.route(Modality.IMAGE_AUDIO, None) == Route(None, "vision")
    with pytest.raises(PromptError, match=r"'music'.*'vision', 'speech'"):
        router.route(Modality.TEXT, "music")
