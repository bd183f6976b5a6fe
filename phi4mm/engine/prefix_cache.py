"""Which beginnings of rows are in the KV cache, so that they are not computed again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from phi4mm.engine.kv_cache import Extent

PREFIX_BLOCK = 16  # tokens; shorter beginnings are not looked for

Key = int  # a token's id, or for a token of a medium a number made of the content's digest and its place in it
Root = tuple[tuple[str, ...], str | None, bool]  # adapters, audio projector, whether the long rope factors are used


def chain(root: Root, keys: Sequence[Key], known: list[int] | None = None) -> list[int]:
    """A hash for each whole block of a row, which depends on all tokens up to its end; continues ``known``."""
    hashes = known if known is not None else []
    last = hashes[-1] if hashes else hash(root)
    for start in range(len(hashes) * PREFIX_BLOCK, len(keys) - PREFIX_BLOCK + 1, PREFIX_BLOCK):
        last = hash((last, tuple(keys[start : start + PREFIX_BLOCK])))
        hashes.append(last)
    return hashes


@dataclass(eq=False)
class Entry:
    """The keys and values of a row's first ``num_tokens`` tokens, in ``extent``.

    Attributes:
        running: whether a row is using and extending it; otherwise it is kept for later rows.
        hashes: those under which it is found.
    """

    root: Root
    keys: list[Key]
    extent: Extent
    num_tokens: int = 0
    running: bool = True
    hashes: list[int] = field(default_factory=list)


class PrefixCache:
    """Finds the longest beginning of a row that is in the KV cache, in rows that run and rows that have ended."""

    def __init__(self) -> None:
        self._by_hash: dict[int, Entry] = {}
        self._kept: OrderedDict[Entry, None] = OrderedDict()  # the one used longest ago first

    @property
    def num_kept(self) -> int:
        """Places that ended rows hold, in tokens."""
        return sum(entry.extent.capacity for entry in self._kept)

    def find(self, root: Root, keys: Sequence[Key], hashes: Sequence[int], most: int) -> tuple[Entry | None, int]:
        """The entry that shares the longest beginning, and how many tokens of it, up to ``most``."""
        best: tuple[Entry | None, int] = (None, 0)
        for number, value in enumerate(hashes, 1):
            entry = self._by_hash.get(value)
            if entry is None:
                break
            best = (entry, number * PREFIX_BLOCK)
        entry, shared = best
        if entry is None or entry.root != root or entry.keys[:shared] != list(keys[:shared]):
            return None, 0
        limit = min(entry.num_tokens, len(keys), most)
        while shared < limit and entry.keys[shared] == keys[shared]:
            shared += 1
        shared = min(shared, limit)
        return (entry, shared) if shared else (None, 0)

    def add(self, entry: Entry, hashes: Sequence[int]) -> None:
        """Make an entry be found under the blocks that it holds by now."""
        for value in hashes[len(entry.hashes) : entry.num_tokens // PREFIX_BLOCK]:
            entry.hashes.append(value)
            self._by_hash[value] = entry

    def keep(self, entry: Entry) -> None:
        """Keep an entry whose row has ended."""
        entry.running = False
        self._kept[entry] = None

    def touch(self, entry: Entry) -> None:
        """It was of use: keep it for longer."""
        if entry in self._kept:
            self._kept.move_to_end(entry)

    def take(self, entry: Entry) -> None:
        """A row takes an entry over and goes on in its extent."""
        self._kept.pop(entry)
        self.forget(entry)

    def oldest(self) -> Entry | None:
        """The kept entry that was used longest ago."""
        return next(iter(self._kept), None)

    def forget(self, entry: Entry) -> None:
        """Let an entry be found no more; its extent is the caller's to release."""
        self._kept.pop(entry, None)
        for value in entry.hashes:
            if self._by_hash.get(value) is entry:
                del self._by_hash[value]
        entry.hashes.clear()

    def kept(self, adapter: str | None = None) -> list[Entry]:
        """The kept entries; or those that an adapter took part in."""
        return [entry for entry in self._kept if adapter is None or adapter in entry.root[0]]
