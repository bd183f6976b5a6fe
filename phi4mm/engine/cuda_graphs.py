"""Decoding in static shapes, so that it can be compiled: on a GPU a step is one launch of a CUDA graph."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from types import FunctionType

import torch
import torch.nn.functional as F
from torch import Tensor

from phi4mm.engine.kv_cache import KeyValueCache, additive, capacity_for, power_of_two
from phi4mm.engine.runner import ModelRunner, Token
from phi4mm.model.decoder import visible_keys
from phi4mm.model.lora import Gate
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.model.rope import inverse_frequencies
from phi4mm.model.router import Route

DecodeStep = Callable[..., Tensor]  # decode_step, or a compiled one

_FIRST_CAPACITY = 1024  # tokens a slot; each doubling beyond it compiles anew


def compile_step(step: DecodeStep) -> DecodeStep:
    """Compile with inductor; on a GPU also into CUDA graphs."""
    return torch.compile(step, mode="reduce-overhead", fullgraph=True, dynamic=False)


class StaticAttention:
    """Attention of row i to the first tokens of slot i, as many as the mask is long; no key is gathered or copied.

    Args:
        keys, values: of each layer, [slots, key/value heads, tokens, head], written in place.
        slots, positions: where each row's key and value are written, [rows] each.
        mask: additive [rows, 1, 1, capacity].
    """

    def __init__(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], slots: Tensor, positions: Tensor, mask: Tensor
    ) -> None:
        self.keys, self.values, self.slots, self.positions, self.mask = keys, values, slots, positions, mask

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[rows, heads, 1, head], keys and values with their own number of heads -> the shape of ``query``."""
        kept_keys, kept_values = self.keys[layer], self.values[layer]
        kept_keys[self.slots, :, self.positions] = keys[:, :, 0]
        kept_values[self.slots, :, self.positions] = values[:, :, 0]
        num_rows, _, _, capacity = self.mask.shape
        # The heads that share a key see the same past: as tokens of one head they need no copy of the keys.
        grouped = query.view(num_rows, keys.shape[1], -1, query.shape[3])
        return F.scaled_dot_product_attention(
            grouped, kept_keys[:num_rows, :, :capacity], kept_values[:num_rows, :, :capacity], attn_mask=self.mask
        ).reshape(query.shape)


def decode_step(
    model: Phi4MMModel,
    frequencies: Tensor,
    gate: Gate | None,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    inputs: Tensor,
    capacity: int,
) -> Tensor:
    """Run one token in each of the first slots: what is compiled.

    Args:
        model: in evaluation mode.
        frequencies: the rope's; kept, because a CUDA graph takes no numbers from the host.
        gate: ``None``; that of all rows; or weights [adapters, 1, ranks], of which each row takes its adapter's.
        keys, values: of each layer, [slots, key/value heads, tokens, head], written in place.
        inputs: int64 [6, rows], see ``StaticDecoder``.
        capacity: how many tokens of each slot are attended to.

    Returns:
        The logits of the rows, in the order that the inputs ask for [rows, vocabulary].
    """
    token_ids, positions, slots, long_rows, adapters, order = inputs.unbind()
    if gate is not None and len(gate.weights) > 1:
        gate = Gate(gate.span, gate.weights[adapters])
    embeddings = model.decoder.embed_tokens(token_ids[:, None])
    visible = visible_keys(positions[:, None], capacity, model.config.decoder.sliding_window)
    attention = StaticAttention(keys, values, slots, positions, additive(visible, embeddings))
    hidden = model.decoder(
        embeddings, positions[:, None], long_rows.bool(), gate=gate, cache=attention, frequencies=frequencies
    )
    return model.decoder.logits(hidden[order, 0])


class StaticDecoder:
    """A cache, and a compiled step over it for each number of rows, capacity (powers of two) and kind of gate.

    Row i of a step is slot i. A slot whose row is not decoded now is run too, to no effect: what it writes goes to a
    spare slot, and what it logits is left out.

    Args:
        model: in evaluation mode.
        num_slots: the most rows at a time; rounded up to a power of two.
        compile_function: makes a compiled step of a plain one.
    """

    def __init__(
        self, model: Phi4MMModel, num_slots: int, compile_function: Callable[[DecodeStep], DecodeStep]
    ) -> None:
        self.model = model
        self.num_slots = power_of_two(num_slots)
        config = model.config.decoder
        self.cache = KeyValueCache(config, self.num_slots + 1, device=model.device, dtype=model.dtype)
        self.cache.reserve(min(_FIRST_CAPACITY, config.max_positions))
        self._compile = compile_function
        self._compiled_for = 0  # the cache's capacity
        self._steps: dict[tuple[int, int, int], DecodeStep] = {}
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}  # the inputs of so many rows, on the host and the device
        self._frequencies = _fixed(inverse_frequencies(config, model.device))
        routes = (Route(), *(Route(adapter.name) for adapter in model.config.adapters))
        self._adapters = {route.adapter: index for index, route in enumerate(routes)}
        self._gates = [model.gate((route,)) for route in routes] + [model.gate(routes)]  # the last for mixed rows
        for gate in self._gates:
            if gate is not None:
                _fixed(gate.weights)

    def __call__(self, tokens: Sequence[Token]) -> Tensor:
        """The logits after each token [rows, vocabulary]; to be read before the next call, which overwrites them."""
        end = max(token.position for token in tokens) + 1
        num_rows = power_of_two(max(token.slot for token in tokens) + 1)
        used = {self._adapters[token.route.adapter] for token in tokens}
        kind = used.pop() if len(used) == 1 else len(self._adapters)
        self.cache.reserve(end)
        capacity = capacity_for(end)
        step = self._step((num_rows, capacity, kind))
        inputs = self._fill(tokens, num_rows)
        torch.compiler.cudagraph_mark_step_begin()
        keys, values = self.cache.keys, self.cache.values
        logits = step(self.model, self._frequencies, self._gates[kind], keys, values, inputs, capacity)
        return logits[: len(tokens)]

    def _step(self, variant: tuple[int, int, int]) -> DecodeStep:
        if self._compiled_for != self.cache.capacity:  # the cache has grown: its tensors are new
            self._compiled_for = self.cache.capacity
            self._steps.clear()
            for tensor in (*self.cache.keys, *self.cache.values):
                _fixed(tensor)
        if variant not in self._steps:
            # A code object of its own: torch.compile keeps no more than eight graphs for one.
            own = FunctionType(decode_step.__code__.replace(), decode_step.__globals__)
            self._steps[variant] = self._compile(own)
        return self._steps[variant]

    def _fill(self, tokens: Sequence[Token], num_rows: int) -> Tensor:
        """Token, position, slot written to, whether long, adapter of each row, and the slots of ``tokens`` in order."""
        device = self.model.device
        if num_rows not in self._buffers:
            host = torch.empty(6, num_rows, dtype=torch.long, pin_memory=device.type == "cuda")
            self._buffers[num_rows] = (host, _fixed(torch.empty_like(host, device=device)))
        rows = [(0, 0, self.num_slots, 0, 0)] * num_rows
        for token in tokens:
            adapter = self._adapters[token.route.adapter]
            rows[token.slot] = (token.token_id, token.position, token.slot, int(token.long), adapter)
        order = [token.slot for token in tokens] + [0] * (num_rows - len(tokens))
        host, inputs = self._buffers[num_rows]
        # The last copy has ended: its step's logits were read before these tokens could be known.
        host.copy_(torch.tensor([*zip(*rows, strict=True), order]))
        return inputs.copy_(host, non_blocking=True)


class CompiledRunner(ModelRunner):
    """A ``ModelRunner`` that decodes with compiled steps."""

    def __init__(self, decoder: StaticDecoder, num_slots: int) -> None:
        super().__init__(decoder.model, num_slots, decoder.cache)
        self._decoder = decoder

    def decode(self, tokens: Sequence[Token]) -> Tensor:
        return self._decoder(tokens)


class CompiledRunners:
    """Makes runners, and lends each a decoder that no living runner has: what was compiled serves the next one.

    Args:
        compile_function: makes a compiled step of a plain one.
    """

    def __init__(self, compile_function: Callable[[DecodeStep], DecodeStep] = compile_step) -> None:
        self._compile = compile_function
        self._idle: list[StaticDecoder] = []

    def __call__(self, model: Phi4MMModel, num_slots: int) -> CompiledRunner:
        fitting = [idle for idle in self._idle if idle.model is model and idle.num_slots >= num_slots]
        if fitting:
            decoder = min(fitting, key=lambda idle: idle.num_slots)
            self._idle.remove(decoder)
        else:
            decoder = StaticDecoder(model, num_slots, self._compile)
        runner = CompiledRunner(decoder, num_slots)
        weakref.finalize(runner, self._idle.append, decoder)
        return runner


def _fixed(tensor: Tensor) -> Tensor:
    """Tell CUDA graphs that a tensor stays where it is, so that they use it in place."""
    torch._dynamo.mark_static_address(tensor)
    return tensor
