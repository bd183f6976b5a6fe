"""Decoding in static shapes, so that it can be compiled; on a GPU a step is one launch of a CUDA graph.

One step serves rows of every length, so that it is compiled once for each number of rows (a power of two) and each set
of adapters. What is compiled is one layer of the decoder, which all layers share; a CUDA graph holds the whole step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from types import FunctionType
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phi4mm.engine.attention import additive
from phi4mm.engine.kv_cache import BLOCK, KVCache
from phi4mm.engine.merge import MergedLinear
from phi4mm.engine.runner import MakeRunner, ModelRunner, Token
from phi4mm.engine.varlen import VarlenAttention, has_varlen
from phi4mm.model.decoder import visible_keys
from phi4mm.model.lora import AdapterUse, LoRALinear, RowAdapters
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.model.rope import rotary_tables

LayerStep = Callable[..., Tensor]  # layer_step, or a compiled one
CompileFunction = Callable[[LayerStep], LayerStep]

_FEWEST_KEYS = 256  # that are gathered for a row
_VARLEN_KEYS = 1024  # the least for which a step in one call is made, then eight times as many, and so on
_MOST_KEYS = 1 << 17  # that are gathered for all rows of a step: 540 MB a layer at Phi-4-mini's sizes
_WARM_UP = 2  # runs of a step before it is captured: the first one compiles it


def compile_step(step: LayerStep) -> LayerStep:
    """Compile with inductor."""
    return torch.compile(step, fullgraph=True, dynamic=False)


def plain_step(step: LayerStep) -> LayerStep:
    """Compile nothing: what is captured in a CUDA graph are PyTorch's own kernels."""
    return step


class StepAttention(Protocol):
    """Attention of one token a row to its row's keys in the arena."""

    def attend(self, keys: Tensor, values: Tensor, query: Tensor) -> Tensor:
        """Keys and values [key/value heads, places, head], grouped queries [rows, key/value heads, group, head] -> the
        shape of ``query``."""
        ...


class StepVarlenAttention(NamedTuple):
    """Attention of ragged rows in one call, on a GPU (see ``varlen``)."""

    varlen: VarlenAttention

    @classmethod
    def of(cls, starts: Tensor, positions: Tensor, num_keys: int) -> StepVarlenAttention:
        rows = torch.arange(len(starts) + 1, device=starts.device, dtype=torch.int32)
        return cls(VarlenAttention(rows, F.pad(starts, (0, 1)).int(), (positions + 1).int(), 1, num_keys))

    def attend(self, keys: Tensor, values: Tensor, query: Tensor) -> Tensor:
        return self.varlen.attend(keys, values, query.flatten(1, 2)).view(query.shape)


class GatheredAttention(NamedTuple):
    """Attention over copies of as many keys of each row as the longest one has, up to a power of two: on a CPU, and in
    float32 on a GPU.

    Attributes:
        places: of the keys in the arena [rows, keys].
        mask: additive [rows, 1, 1, keys].
    """

    places: Tensor
    mask: Tensor

    @classmethod
    def of(cls, cache: KVCache, first: Tensor, last: Tensor, num_keys: int) -> GatheredAttention:
        places = first[:, None] + torch.arange(num_keys, device=first.device)
        visible = visible_keys((last - first)[:, None], num_keys, None)
        return cls(places.clamp_(max=cache.num_tokens - 1), additive(visible, cache.attention(0)[1].keys))

    def attend(self, keys: Tensor, values: Tensor, query: Tensor) -> Tensor:
        own_keys, own_values = (kept[:, self.places].transpose(0, 1) for kept in (keys, values))
        return F.scaled_dot_product_attention(query, own_keys, own_values, attn_mask=self.mask)


class _LayerCache(NamedTuple):
    """Of one layer: writes each row's key and value to its place, and attends. See ``decoder.CachedAttention``."""

    keys: Tensor
    values: Tensor
    places: Tensor
    attention: StepAttention

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        self.keys.index_copy_(1, self.places, keys[:, :, 0].transpose(0, 1))
        self.values.index_copy_(1, self.places, values[:, :, 0].transpose(0, 1))
        grouped = query.view(query.shape[0], keys.shape[1], -1, query.shape[3])
        return self.attention.attend(self.keys, self.values, grouped).reshape(query.shape)


def layer_step(
    layer: nn.Module,
    hidden: Tensor,
    rotary: tuple[Tensor, Tensor],
    names: tuple[str, ...],
    weights: tuple[Tensor, ...] | None,
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    attention: StepAttention,
) -> Tensor:
    """Run one layer on one token in each row: what is compiled.

    Args:
        layer: of the decoder.
        hidden: [rows, 1, hidden].
        rotary: cosines and sines [rows, 1, rotary size].
        names: the adapters of the batch.
        weights: of each one 0 or 1 for each row [rows, 1, 1]; ``None`` where every row takes them all.
        keys, values: of the layer, [key/value heads, places, head], written in place.
        places: where each row's key and value are written [rows].
        attention: of each row to the keys so far.

    Returns:
        [rows, 1, hidden].
    """
    if weights is None:
        uses = tuple(AdapterUse(name) for name in names)
    else:
        uses = tuple(AdapterUse(name, None, weight) for name, weight in zip(names, weights, strict=True))
    adapters = RowAdapters(uses) if uses else None
    output: Tensor = layer(hidden, rotary, adapters, _LayerCache(keys, values, places, attention), None)
    return output


@dataclass(frozen=True)
class Variant:
    """What a step is compiled for.

    Attributes:
        num_rows: of the step.
        names: the adapters that its rows take.
        mixed: whether only some rows take some of them.
        num_keys: of each row, or more.
    """

    num_rows: int
    names: tuple[str, ...]
    mixed: bool
    num_keys: int


@dataclass
class _Step:
    """A variant's inputs and code.

    Attributes:
        parts: the modules that it was made for; with others it is of no use.
        inputs: int64, on the device (see ``CompiledRunner._fill``).
        staged: the same on the host, in pinned memory where there is a GPU.
        run: computes the logits [rows, vocabulary].
    """

    parts: tuple[object, ...]
    inputs: Tensor
    staged: Tensor
    run: Callable[[], Tensor] = field(init=False)


class CompiledRunner(ModelRunner):
    """A ``ModelRunner`` that decodes with compiled steps.

    A step has a power of two of rows; those over the batch's write to a spare block of the cache, and their logits are
    left out. On a GPU each step is captured in a CUDA graph when its variant is first needed. Rows for which too many
    keys would have to be gathered (a long one among many) are decoded as ``ModelRunner`` does.

    Args:
        model: in evaluation mode; its weights are not quantised.
        num_tokens: that the KV cache holds.
        max_rows: the most rows that are decoded together.
        compile_function: makes a compiled layer of a plain one.
    """

    def __init__(
        self,
        model: Phi4MMModel,
        num_tokens: int,
        *,
        max_rows: int,
        compile_function: CompileFunction = compile_step,
    ) -> None:
        blocks = -(-num_tokens // BLOCK)
        super().__init__(model, (blocks + 1) * BLOCK)
        _prepare_compiler()
        self.num_tokens = num_tokens
        self._spare = blocks * BLOCK  # where the block begins that belongs to no row
        self._max_rows = max_rows
        self._compile = compile_function
        self._varlen = has_varlen(self.cache)
        window = self.cache.attention(0)[0].window
        self._window = None if window is None or window >= self._spare else window
        self._steps: dict[Variant, _Step] = {}
        self._pool = torch.cuda.graph_pool_handle() if model.device.type == "cuda" else None

    @property
    def variants(self) -> list[Variant]:
        """What was compiled until now."""
        return list(self._steps)

    def decode(self, tokens: Sequence[Token]) -> Tensor:
        """See ``Runner``. On a GPU the logits are to be read before the next call, which may overwrite them."""
        variant = self._variant(tokens)
        if not self._varlen and variant.num_keys * variant.num_rows > _MOST_KEYS:
            return super().decode(tokens)
        return self._step(variant, tokens).run()[: len(tokens)]

    def _variant(self, tokens: Sequence[Token]) -> Variant:
        names = tuple(sorted({name for token in tokens for name in token.adapters}))
        mixed = any(set(token.adapters) != set(names) for token in tokens)
        num_rows = max(min(_power_of_two(len(tokens)), self._max_rows), len(tokens))
        longest = max(token.position for token in tokens) + 1
        if self._window is not None:
            longest = min(longest, self._window)
        num_keys = max(_power_of_two(longest), _FEWEST_KEYS)
        if self._varlen:
            num_keys = _VARLEN_KEYS
            while num_keys < longest:
                num_keys *= 8
        return Variant(num_rows, names, mixed, num_keys)

    def _step(self, variant: Variant, tokens: Sequence[Token]) -> _Step:
        """The variant's step with its inputs filled in."""
        parts = self._parts(variant.names)
        step = self._steps.get(variant)
        if step is not None and all(one is other for one, other in zip(step.parts, parts, strict=True)):
            self._fill(step, variant, tokens)
            return step
        self._steps.pop(variant, None)  # made for weights that are not the model's any more
        staged = torch.empty(
            4 + (len(variant.names) if variant.mixed else 0),
            variant.num_rows,
            dtype=torch.long,
            pin_memory=self.model.device.type == "cuda",
        )
        step = _Step(parts, torch.empty_like(staged, device=self.model.device), staged)
        self._fill(step, variant, tokens)
        # A code object of its own: torch.compile keeps no more than eight graphs for one.
        own = FunctionType(layer_step.__code__.replace(), layer_step.__globals__)
        run = partial(self._run, self._compile(own), variant, step.inputs)
        step.run = run if self._pool is None else _captured(run, self.model.device, self._pool)
        self._steps[variant] = step
        return step

    def _parts(self, names: Sequence[str]) -> tuple[object, ...]:
        """Modules which are others once the weights of a step with these adapters are others."""
        linear = self.model.decoder.get_submodule("layers.0.attention.qkv_proj")
        frozen = linear.linear if isinstance(linear, MergedLinear) else linear
        assert isinstance(frozen, LoRALinear)
        return (linear, *(frozen.adapter(name) for name in names))

    def _fill(self, step: _Step, variant: Variant, tokens: Sequence[Token]) -> None:
        """Token id, position, start of the extent and whether long, of each row; then, if mixed, whether each adapter
        is the row's."""
        columns = [
            (
                token.token_id,
                token.position,
                token.extent.start,
                int(token.long),
                *((int(name in token.adapters) for name in variant.names) if variant.mixed else ()),
            )
            for token in tokens
        ]
        spare = (0, 0, self._spare, *(0 for _ in step.staged[3:]))
        columns += [spare] * (variant.num_rows - len(tokens))
        # The copy before has ended: its step's logits were read before these tokens could be known.
        step.staged.copy_(torch.tensor(columns).T)
        step.inputs.copy_(step.staged, non_blocking=True)

    def _run(self, run_layer: LayerStep, variant: Variant, inputs: Tensor) -> Tensor:
        """The logits after each row's token [rows, vocabulary]; nothing here waits for the device."""
        decoder = self.model.decoder
        token_ids, positions, starts, long_rows, *members = inputs.unbind()
        hidden = decoder.embed_tokens(token_ids[:, None])
        weights = tuple(member[:, None, None].to(hidden.dtype) for member in members) if variant.mixed else None
        cos, sin = rotary_tables(decoder.config, positions[:, None], long_rows.bool(), self._frequencies)
        rotary = (cos.to(hidden.dtype), sin.to(hidden.dtype))
        first, last = starts, starts + positions
        if self._window is not None:
            first = torch.maximum(starts, last + 1 - self._window)
        attention: StepAttention
        if self._varlen:
            attention = StepVarlenAttention.of(starts, positions, variant.num_keys)
        else:
            attention = GatheredAttention.of(self.cache, first, last, variant.num_keys)
        for number, layer in enumerate(decoder.layers):
            _, kept = self.cache.attention(number)
            hidden = run_layer(layer, hidden, rotary, variant.names, weights, kept.keys, kept.values, last, attention)
        return decoder.logits(decoder.norm(hidden)[:, 0])


def fastest_runner(device: torch.device, max_rows: int, *, compiled: bool, quantized: bool) -> MakeRunner:
    """What decodes a model on this device: compiled if asked for, otherwise in captured steps on a GPU.

    Args:
        device: of the model.
        max_rows: the most rows that are decoded together.
        compiled: whether steps are compiled.
        quantized: whether the decoder's weights are.
    """
    if compiled:
        return partial(CompiledRunner, max_rows=max_rows)
    if device.type == "cuda" and not quantized:
        return partial(CompiledRunner, max_rows=max_rows, compile_function=plain_step)
    return ModelRunner


@cache
def _prepare_compiler() -> None:
    """Where torch is built for CUDA and there is no GPU, torch 2.11 keeps a pointer to an object of the first thread
    that compiles, which dangles once that thread has ended, and follows it when another one compiles: let that first
    thread be one that lives as long as the program."""
    if torch.version.cuda is not None and not torch.cuda.is_available():
        started = threading.Event()

        def live() -> None:
            torch._C._ensureCUDADeviceGuardSet()
            started.set()
            threading.Event().wait()

        threading.Thread(target=live, name="phi4mm-compiler", daemon=True).start()
        started.wait()


def _captured(run: Callable[[], Tensor], device: torch.device, pool: Any) -> Callable[[], Tensor]:
    """A CUDA graph of what ``run`` computes; it may be run several times with the same inputs."""
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads, which read media, may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            output = run()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def _power_of_two(number: int) -> int:
    """The least one that is no smaller."""
    return 1 << (number - 1).bit_length()
