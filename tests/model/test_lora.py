"""LoRALinear: the right updates for each row, none at all for a row without adapter, and only those that are used."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phi4mm.errors import AdapterError, PromptError
from phi4mm.model.batch import Batch, ImageBatch
from phi4mm.model.cache import KeyValueSpec
from phi4mm.model.config import AdapterConfig
from phi4mm.model.decoder import Decoder, Wanted
from phi4mm.model.lora import (
    AdapterUse,
    LoRA,
    LoRALinear,
    RowAdapters,
    adapter_name,
    lora_linears,
    module_key,
    row_adapters,
)
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.types import Route
from tests.conftest import TINY, randomise

ADAPTERS = (AdapterConfig("vision", 3, 6.0), AdapterConfig("my.accent", 2, 1.0), AdapterConfig("speech", 4, 2.0))
NAMES = [adapter.name for adapter in ADAPTERS]


def make_linear() -> LoRALinear:
    linear = LoRALinear(5, 7)
    for config in ADAPTERS:
        linear.attach(config.name, LoRA.initial(5, 7, config))
    randomise(linear)
    return linear


def update(linear: LoRALinear, names: tuple[str, ...], hidden: torch.Tensor) -> torch.Tensor:
    """[tokens, in_size] -> the sum of the adapters' updates, as the formula says."""
    total = torch.zeros(len(hidden), 7)
    for config in ADAPTERS:
        if config.name in names:
            lora = linear.adapter(config.name)
            total += config.alpha / config.rank * (hidden @ lora.a.T @ lora.b.T)
    return total


@given(rows=st.lists(st.tuples(st.sets(st.sampled_from(NAMES)).map(tuple), st.integers(0, 3)), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
@torch.no_grad()
def test_each_row_gets_its_own_updates(rows: list[tuple[tuple[str, ...], int]]) -> None:
    linear = make_linear()
    names, counts = [name for name, _ in rows], [count for _, count in rows]
    hidden = torch.randn(sum(counts), 4, 5)
    output = linear(hidden, row_adapters(names, counts, device="cpu"))
    bare = linear.frozen(hidden)
    each = [entry for entry, count in rows for _ in range(count)]
    for row, entry in enumerate(each):
        if entry:
            torch.testing.assert_close(output[row], bare[row] + update(linear, entry, hidden[row]))
        else:
            assert torch.equal(output[row], bare[row])
    weights = {name: torch.tensor([float(name in entry) for entry in each])[:, None, None] for name in NAMES}
    masked = RowAdapters(tuple(AdapterUse(name, None, weight) for name, weight in sorted(weights.items())))
    torch.testing.assert_close(linear(hidden, masked), output)


def test_rows_are_named_as_briefly_as_they_can_be() -> None:
    both = ("speech", "vision")
    assert row_adapters([(), ()], device="cpu") is None
    assert row_adapters([("speech",)] * 3, device="cpu") == RowAdapters((AdapterUse("speech"),))
    found = row_adapters([(), ("speech",), both], [2, 3, 1], device="cpu")
    assert found == RowAdapters((AdapterUse("speech", slice(2, 6)), AdapterUse("vision", slice(5, 6))))
    found = row_adapters([both, (), ("vision",)], [1, 1, 2], device="cpu")
    assert found is not None
    assert found.uses[0] == AdapterUse("speech", slice(0, 1))
    assert isinstance(found.uses[1].rows, torch.Tensor)
    assert found.uses[1].rows.tolist() == [0, 2, 3]
    assert found.only is None


def test_the_order_of_a_sum_does_not_depend_on_the_batch() -> None:
    one = row_adapters([("a", "b")], device="cpu")
    beside = row_adapters([("b",), ("b", "a")], device="cpu")
    assert one is not None
    assert beside is not None
    assert [use.name for use in one.uses] == [use.name for use in beside.uses]


def test_gradients_reach_the_adapters_that_are_used() -> None:
    linear = make_linear()
    hidden = torch.randn(3, 2, 5, requires_grad=True)
    adapters = row_adapters([("speech",), ("vision", "speech"), ()], device="cpu")
    with torch.autograd.set_detect_anomaly(True):
        linear(hidden, adapters).square().sum().backward()
    total = torch.zeros(())
    for row, names in enumerate([("speech",), ("vision", "speech"), ()]):
        total = total + (linear.frozen(hidden[row]) + update(linear, names, hidden[row])).square().sum()
    expected = torch.autograd.grad(total, [hidden, linear.adapter("speech").a, linear.adapter("vision").b])
    found = [hidden.grad, linear.adapter("speech").a.grad, linear.adapter("vision").b.grad]
    for gradient, one in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, one)
    assert linear.adapter("my.accent").a.grad is None


def test_dropout_is_active_in_training_alone() -> None:
    lora = LoRA(torch.eye(64), torch.eye(64), scale=2.0, dropout=0.25)
    hidden = torch.ones(4, 8, 64)

    def update() -> torch.Tensor:
        output = torch.zeros_like(hidden)
        lora.add_to(output, hidden, AdapterUse("mine"))
        return output.detach()

    lora.requires_grad_(False)
    lora.eval()
    assert torch.equal(update(), 2 * hidden)
    lora.train()
    values = Counter(round(value, 4) for value in update().flatten().tolist())
    assert set(values) == {0.0, round(2 / 0.75, 4)}
    assert 0.15 < values[0.0] / hidden.numel() < 0.35


@given(st.text(min_size=1))
def test_any_name_is_a_modules_key(name: str) -> None:
    assert adapter_name(module_key(name)) == name


@pytest.mark.parametrize("name", ["my.accent", "keys", "xpop", "train", "a-b_c", "3", "..."])
def test_awkward_names(name: str) -> None:
    model = Phi4MMModel(TINY)
    model.add_adapter(AdapterConfig(name, 2, 2.0))
    Phi4MMModel(model.config).load_state_dict(model.state_dict())
    model.remove_adapter(name)
    assert tuple(model.adapters) == ("vision", "speech")


@pytest.mark.parametrize("name", ["", ".", "..", "auto", "../a", "a/b", "a\\b", "a b", "a+b", "é", "a\n", "a" * 101, 3])
def test_names_that_are_not_allowed(name: str) -> None:
    with pytest.raises(AdapterError, match="is not a name for an adapter"):
        AdapterConfig(name, 2, 2.0)


@torch.no_grad()
def test_text_rows_equal_the_bare_decoder_bit_for_bit(tiny_model: Phi4MMModel) -> None:
    bare = Decoder(TINY.decoder).eval()
    bare.load_state_dict({k: v for k, v in tiny_model.decoder.state_dict().items() if ".lora." not in k})
    embeddings = torch.randn(3, 11, TINY.decoder.hidden_size)
    positions = torch.arange(11).expand(3, -1)
    long_rows = torch.zeros(3, dtype=torch.bool)
    ours = tiny_model.decoder(embeddings, positions, long_rows)
    assert torch.equal(ours, bare(embeddings, positions, long_rows))
    adapters = row_adapters([(), ("speech",), ("vision",)], device="cpu")
    mixed = tiny_model.decoder(embeddings, positions, long_rows, adapters)
    assert torch.equal(mixed[0], ours[0])
    assert not torch.allclose(mixed[1], ours[1], atol=1e-2)


@torch.no_grad()
def test_the_wanted_rows_take_their_own_adapters(tiny_model: Phi4MMModel) -> None:
    embeddings = torch.randn(4, 5, TINY.decoder.hidden_size)
    positions, short = torch.arange(5).expand(4, -1), torch.zeros(4, dtype=torch.bool)
    names: list[tuple[str, ...]] = [("speech",), (), ("vision", "speech"), ("vision",)]
    adapters = row_adapters(names, device="cpu")
    everything = tiny_model.decoder(embeddings, positions, short, adapters)
    rows = [3, 1, 2]
    wanted = Wanted(torch.tensor(rows), row_adapters([names[row] for row in rows], device="cpu"))

    class Causal:
        def attend(self, layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            if len(query) != len(keys):
                keys, values = keys[wanted.rows], values[wanted.rows]
            return torch.nn.functional.scaled_dot_product_attention(
                query, keys, values, is_causal=True, enable_gqa=True
            )

    some = tiny_model.decoder(embeddings, positions, short, adapters, cache=Causal(), wanted=wanted)
    torch.testing.assert_close(some, everything[rows])


@torch.no_grad()
def test_adapters_are_added_and_removed_while_the_model_lives() -> None:
    model = Phi4MMModel(TINY).eval().requires_grad_(False)
    randomise(model)
    batch = Batch(torch.arange(6)[None], torch.tensor([6]), (Route(),))
    as_mine = Batch(batch.token_ids, batch.lengths, (Route(("mine",)),))
    before, state = model(batch), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mine = AdapterConfig("mine", rank=5, alpha=2.0)
    model.add_adapter(mine)
    assert model.adapters["mine"] is mine
    assert model.config.adapters == (*TINY.adapters, mine)
    assert torch.equal(model(as_mine), before)  # B is zero
    for linear in lora_linears(model.decoder).values():
        assert not linear.adapter("mine").training
        linear.adapter("mine").b.normal_()
    assert not torch.allclose(model(as_mine), before, atol=1e-2)
    assert torch.equal(model(batch), before)
    with pytest.raises(AdapterError, match="there is an adapter 'mine' already"):
        model.add_adapter(mine)
    model.remove_adapter("mine")
    assert model.config == TINY
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(AdapterError, match="'mine' is not loaded; the model has 'vision', 'speech'"):
        model.remove_adapter("mine")


@torch.no_grad()
def test_adapters_that_are_not_used_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Phi4MMModel(TINY).eval()
    for number in range(200):
        model.add_adapter(AdapterConfig(f"user-{number}", rank=1, alpha=1.0))
    called: list[LoRA] = []
    add_to = LoRA.add_to
    monkeypatch.setattr(LoRA, "add_to", lambda lora, *arguments: called.append(lora) or add_to(lora, *arguments))
    num_linears = len(lora_linears(model.decoder))

    def adapters_called(*routes: Route) -> int:
        called.clear()
        model(Batch(torch.zeros(len(routes), 3).long(), torch.tensor([3] * len(routes)), routes))
        return len(called)

    assert adapters_called(Route(), Route()) == 0
    assert adapters_called(Route(("user-7",)), Route(("user-7",)), Route()) == num_linears
    assert adapters_called(Route(("user-7", "speech")), Route(), Route(("user-7",))) == 2 * num_linears


def test_every_placeholder_needs_an_embedding(tiny_model: Phi4MMModel) -> None:
    config = TINY.vision
    assert config is not None
    side, size = config.patches_per_side, config.image_size
    images = ImageBatch(torch.zeros(2, 3, size, size), torch.ones(2, side, side, dtype=torch.bool), ((1, 1),))
    right = 2 * 2 * 3 + 1  # two views of 2 x 2 tokens with a separator after each row, and one between them

    def embed(num_places: int) -> torch.Tensor:
        token_ids = torch.full((1, num_places), config.image_token_id)
        return tiny_model.embed(Batch(token_ids, torch.tensor([num_places]), (Route(("vision",)),), images))

    assert embed(right).shape == (1, right, TINY.decoder.hidden_size)
    for wrong in (right - 1, right + 1):
        with pytest.raises(PromptError, match=rf"{wrong} image placeholder tokens.* give {right} embeddings"):
            embed(wrong)


def test_each_layer_says_what_it_keeps_of_a_row(tiny_model: Phi4MMModel) -> None:
    assert tiny_model.decoder.cache_specs() == (KeyValueSpec(2, 16, 262144),) * 2
