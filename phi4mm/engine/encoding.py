"""Media are encoded in bounded pieces of work, beside the decoder where there are cores for both."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any, Protocol

import torch
from torch import Tensor

from phi4mm.model.media import MediaItem

Encoded = dict[bytes, Tensor | Exception]  # by the digest of the medium


class Encoder(Protocol):
    """What the engine needs of the model's towers (see ``engine.encoders``)."""

    def next_group(self, items: Sequence[MediaItem]) -> list[int]:
        """Which media to encode together in one bounded piece of work, the first among them."""
        ...

    def encode(self, items: Sequence[MediaItem]) -> list[Tensor]:
        """The embeddings of each [tokens, hidden]."""
        ...

    def is_long(self, item: MediaItem) -> bool:
        """Whether an item alone is more work than a group may be."""
        ...

    def encode_in_parts(self, item: MediaItem) -> Iterator[Tensor]:
        """The embeddings of one item in bounded pieces of work; all parts together are [tokens, hidden]."""
        ...


class Embeddings:
    """Encoded media, kept within a number of bytes, those used longest ago dropped first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._kept

    def get(self, digest: bytes) -> Tensor | None:
        if digest in self._kept:
            self._kept.move_to_end(digest)
        return self._kept.get(digest)

    def put(self, digest: bytes, values: Tensor) -> None:
        self._num_bytes += values.nbytes - (self._kept[digest].nbytes if digest in self._kept else 0)
        self._kept[digest] = values
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= self._kept.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        self._kept.clear()
        self._num_bytes = 0


class Inline(Executor):
    """Runs what is submitted at once, in the calling thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Encoding:
    """One piece of encoding work at a time.

    Args:
        encoder: the towers.
        executor: where a piece of work runs: inline between two decode steps, or in a thread beside them.
        attempt: encodes a group in the calling thread, and what is left of it where memory runs out.
    """

    def __init__(
        self,
        encoder: Encoder,
        executor: Executor,
        attempt: Callable[[Sequence[MediaItem]], Encoded],
    ) -> None:
        self._encoder = encoder
        self._executor = executor
        self._attempt = attempt
        self._group: list[MediaItem] = []  # what is being encoded
        self._future: Future[Any] | None = None
        self._parts: Iterator[Tensor] | None = None  # of a long medium, the only one in the group
        self._done: list[Tensor] = []

    @property
    def busy(self) -> bool:
        """Whether a piece of work is under way."""
        return self._future is not None and not self._future.done()

    def step(self, needed: Mapping[bytes, MediaItem], *, wait: bool) -> Encoded:
        """Begin a piece of work if none is under way, and return the results of one that has ended.

        Args:
            needed: by their digests, the most urgent first.
            wait: whether there is nothing else to do until the piece has ended; if there are other media, a group of
                them is then encoded in the calling thread.
        """
        if self._parts is not None and self._future is None and self._group[0].digest not in needed:
            self._parts, self._group, self._done = None, [], []  # nobody wants it any more
        if self._future is None and needed:
            self._begin(list(needed.values()))
        if self._future is None:
            return {}
        if not self._future.done():
            if not wait:
                return {}
            under_way = {item.digest for item in self._group}
            others = [item for digest, item in needed.items() if digest not in under_way]
            if others and not self._encoder.is_long(others[0]):  # this thread has nothing else to do
                return self._attempt([others[index] for index in self._encoder.next_group(others)])
        future, self._future = self._future, None
        return self._ended_part(future) if self._parts is not None else self._ended_group(future)

    def _begin(self, items: list[MediaItem]) -> None:
        if self._parts is None and self._encoder.is_long(items[0]):
            self._group = [items[0]]
            self._parts = self._encoder.encode_in_parts(items[0])
        if self._parts is not None:
            self._future = self._executor.submit(next, self._parts, None)
        else:
            self._group = [items[index] for index in self._encoder.next_group(items)]
            self._future = self._executor.submit(self._encoder.encode, self._group)

    def _ended_group(self, future: Future[list[Tensor]]) -> Encoded:
        group, self._group = self._group, []
        try:
            return {item.digest: values for item, values in zip(group, future.result(), strict=True)}
        except Exception as error:
            if is_out_of_memory(error):
                return self._attempt(group)
            return {item.digest: error for item in group}

    def _ended_part(self, future: Future[Tensor | None]) -> Encoded:
        [item] = self._group
        try:
            part = future.result()
        except Exception as error:
            self._parts, self._group, self._done = None, [], []
            return {item.digest: error}
        if part is not None:
            self._done.append(part)
            return {}
        values = torch.cat(self._done)
        self._parts, self._group, self._done = None, [], []
        return {item.digest: values}


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception means that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)
