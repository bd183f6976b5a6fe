"""Which rows run next: admission by memory, sharing of prefixes, fairness between prompts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

from phi4mm.engine.kv_cache import BLOCK, Arena, Extent
from phi4mm.engine.options import EngineOptions
from phi4mm.engine.prefix_cache import PREFIX_BLOCK, Entry, PrefixCache
from phi4mm.engine.row import MediumState, Row

_LEAST = 256  # tokens of the smallest extent, where there is room: short rows are then read in one call
_LOOK_AHEAD = 64  # new tokens that a row is given room for beside its prompt
_WORTH_WAITING = 32  # tokens of a prefix that another row is just computing, from which a row waits for them
_MOST_PASSED = 64  # rows that may be admitted before an older one for which there is no memory yet
_READY = 4  # of ``max_rows``: one part in so many are encoded ahead, and so many times as many are looked at for that
_KEPT_SHARE = 2  # one part in so many of the cache may hold prefixes of ended rows

Copy = Callable[[Extent, Extent, int], None]


class Scheduler:
    """Holds all rows and gives them places in the KV cache.

    A row waits until its media are encoded and there is memory for it; then its prompt is prefilled; then it is
    decoded. A row that finds no place to grow makes the youngest row wait again.

    Args:
        options: the bounds.
        num_tokens: that the cache holds.
        copy: copies what is kept of a row from one extent to another.
        shares_prefixes: whether what is kept of a row's first tokens may be copied to another row.

    Attributes:
        waiting: rows without a place, the oldest first.
        running: rows with one, in the order in which they got it.
    """

    def __init__(self, options: EngineOptions, num_tokens: int, copy: Copy, *, shares_prefixes: bool = True) -> None:
        self._options = options
        self._copy = copy
        self._shares_prefixes = shares_prefixes
        plenty = num_tokens >= 2 * _LEAST * options.max_rows
        self.arena = Arena(num_tokens, _LEAST if plenty else BLOCK)
        self.prefixes = PrefixCache()
        self.waiting: deque[Row] = deque()
        self.running: list[Row] = []
        self._planned: dict[int, Row] = {}  # hashes of blocks that a running row is to compute

    @property
    def rows(self) -> list[Row]:
        return [*self.running, *self.waiting]

    def add(self, row: Row) -> None:
        self.waiting.append(row)

    def remove(self, row: Row) -> bool:
        """Take a row out; what it computed is kept for later rows. Returns whether it was here."""
        if row in self.running:
            self._leave(row)
            self._keep(row)
        elif row in self.waiting:
            self.waiting.remove(row)
        else:
            return False
        return True

    def turn_long(self, row: Row) -> None:
        """A row has outgrown the short rope factors: it is computed again from its start."""
        self._leave(row)
        self._keep(row)
        row.turn_long()
        self.waiting.appendleft(row)

    def admit(self) -> list[tuple[Row, Exception]]:
        """Give waiting rows a place, the oldest first, as far as there is room; returns those that failed."""
        failed: list[tuple[Row, Exception]] = []
        blocked: list[Row] = []
        for row in self._next_rows():
            if len(self.running) >= self._options.max_rows:
                break
            if self._shares_with_running(row) or row.group.full:
                continue
            entry, shared = self._find(row)
            if any(medium.embeddings is None and medium.end > shared for medium in row.media):
                continue
            try:
                placed = self._place(row, entry, shared)
            except Exception as error:  # copying failed
                failed.append((row, error))
                continue
            if not placed:
                blocked.append(row)
                if row.passed_over >= _MOST_PASSED:
                    break
                continue
            for older in blocked:
                older.passed_over += 1
            self.waiting.remove(row)
            self.running.append(row)
            row.sink.admitted()
            row.group.num_running += 1
            self._planned |= dict.fromkeys(row.hashes, row)
        return failed

    def media_to_encode(self) -> Iterator[tuple[Row, MediumState]]:
        """Media that waiting rows need: first those of rows that could be admitted now, then, if few rows are ready to
        follow, those of later ones, so that media of like length are encoded together; each the oldest row's first."""
        rows = list(islice(self.waiting, _READY * self._options.max_rows))
        missing = {row: [medium for medium in row.media if medium.embeddings is None] for row in rows}
        ready = sum(not media for media in missing.values())
        following = self.running and ready >= self._options.max_rows // _READY
        for later in (False, True):
            if later and following:
                return
            for row in rows:
                if row.group.full == later and missing[row] and not self._shares_with_running(row):
                    _, shared = self._find(row)
                    yield from ((row, medium) for medium in missing[row] if medium.end > shared)

    def chunks(self, budget: int) -> list[tuple[Row, int]]:
        """How many tokens of which rows' prompts to compute now: half the budget goes to the shortest ones that it
        completes, so that they do not wait for long ones; the rest to the oldest."""
        left = {row: row.num_left for row in self.running if not row.decoding}
        given: dict[Row, int] = {}
        room = budget // 2
        for row in sorted(left, key=lambda row: left[row]):
            if left[row] > room:
                break
            given[row] = left[row]
            room -= left[row]
        room += budget - budget // 2
        for row in sorted(left, key=lambda row: row.index):
            if not room:
                break
            if row not in given:
                given[row] = min(left[row], room)
                room -= given[row]
        return list(given.items())

    def computed(self, row: Row, num_tokens: int) -> None:
        """So many more tokens of a row are in the cache."""
        assert row.entry is not None
        row.entry.num_tokens += num_tokens
        if not row.decoding:
            self.prefixes.add(row.entry, row.hashes)
            if not row.num_left:
                self._forget_plan(row)

    def grow(self, row: Row) -> None:
        """See to it that a running row has a place for one more token; where there is none, the youngest rows have to
        wait, it may be this one."""
        while row.entry is not None and row.entry.num_tokens >= row.entry.extent.capacity:
            if self._enlarge(row.entry, row.entry.num_tokens + 1):
                return
            self.preempt(self.running[-1])

    def preempt(self, row: Row) -> None:
        """Take a row's place away; it is computed again when there is room."""
        assert row.entry is not None
        entry = row.entry
        self._leave(row)
        self.prefixes.forget(entry)
        self.arena.release(entry.extent)
        row.entry = None
        row.decoding = False
        self.waiting.appendleft(row)

    def drop_prefixes(self, adapter: str | None = None) -> None:
        """Forget the kept prefixes; or those that an adapter took part in."""
        for entry in self.prefixes.kept(adapter):
            self._release(entry)

    def _next_rows(self) -> list[Row]:
        """The waiting rows that come into question, the oldest first."""
        allowed = (row for row in self.waiting if not row.group.full)
        return list(islice(allowed, self._options.max_rows))

    def _find(self, row: Row) -> tuple[Entry | None, int]:
        if not self._shares_prefixes:
            return None, 0
        # The last token is computed in any case: its logits are wanted.
        return self.prefixes.find(row.root, row.keys, row.hashes, len(row.keys) - 1)

    def _shares_with_running(self, row: Row) -> bool:
        """Whether a row is just computing a longer beginning of this one than is in the cache."""
        if not self._shares_prefixes:
            return False
        count = 0
        for value in row.hashes:
            planned = self._planned.get(value)
            if planned is None or planned.root != row.root:
                break
            count += PREFIX_BLOCK
        return count > 0 and count - self._find(row)[1] >= _WORTH_WAITING

    def _place(self, row: Row, entry: Entry | None, shared: int) -> bool:
        """Give a row its extent, with the prefix that is there already; ``False`` where there is no memory."""
        wanted = len(row.token_ids) + min(row.prompt.sampling.max_new_tokens - row.num_new, _LOOK_AHEAD)
        wanted = min(wanted, self.arena.num_tokens)
        if entry is not None and not entry.running and shared >= entry.num_tokens:
            self.prefixes.take(entry)
            own = Entry(row.root, row.keys, entry.extent, shared)
            fits = own.extent.capacity >= len(row.token_ids)
            try:
                fits = fits or self._enlarge(own, wanted)
            finally:
                if not fits:
                    self.prefixes.keep(own)
                    self.prefixes.add(own, row.hashes)
            if not fits:
                return False
        else:
            if entry is not None:
                self.prefixes.touch(entry)
            extent = self._allocate(wanted, spare=entry)
            if extent is None and entry is not None and not entry.running:
                self._release(entry)  # there is no room for it and the row
                if any(medium.embeddings is None for medium in row.media):
                    return False  # what it held is to be encoded first
                entry, shared = None, 0
                extent = self._allocate(wanted)
            if extent is None:
                return False
            if entry is not None:
                self._copy_to(extent, entry, shared)
            own = Entry(row.root, row.keys, extent, shared)
        row.entry = own
        row.decoding = False
        if not row.num_new:
            row.num_cached = shared
        self.prefixes.add(own, row.hashes)
        return True

    def _allocate(self, num_tokens: int, spare: Entry | None = None) -> Extent | None:
        """An extent, for which kept prefixes are dropped, those used longest ago first, but for ``spare``."""
        while (extent := self.arena.allocate(num_tokens)) is None:
            oldest = self.prefixes.oldest()
            if oldest is None or oldest is spare:  # it was touched just now: all others are gone
                return None
            self._release(oldest)
        return extent

    def _enlarge(self, entry: Entry, num_tokens: int) -> bool:
        """Make an entry's extent hold ``num_tokens``, in its place or in another."""
        extent = self.arena.extend(entry.extent, num_tokens)
        if extent is None:
            extent = self._allocate(num_tokens)
            if extent is None:
                return False
            self._copy_to(extent, entry, entry.num_tokens)
            self.arena.release(entry.extent)
        entry.extent = extent
        return True

    def _copy_to(self, extent: Extent, entry: Entry, num_tokens: int) -> None:
        """Copy an entry's first tokens to a new extent, which is given back where that fails."""
        try:
            self._copy(entry.extent, extent, num_tokens)
        except BaseException:
            self.arena.release(extent)
            raise

    def _leave(self, row: Row) -> None:
        self.running.remove(row)
        row.group.num_running -= 1
        self._forget_plan(row)

    def _forget_plan(self, row: Row) -> None:
        for value in row.hashes:
            if self._planned.get(value) is row:
                del self._planned[value]

    def _keep(self, row: Row) -> None:
        """Keep what an ended row computed for later ones, as far as there is room for that."""
        entry, row.entry = row.entry, None
        assert entry is not None
        if entry.num_tokens < PREFIX_BLOCK or not self._shares_prefixes:
            self._release(entry)
            return
        entry.extent = self.arena.shrink(entry.extent, entry.num_tokens)
        entry.keys = entry.keys[: entry.num_tokens]
        self.prefixes.add(entry, row.hashes)
        self.prefixes.keep(entry)
        while self.prefixes.num_kept > self.arena.num_tokens // _KEPT_SHARE:
            oldest = self.prefixes.oldest()
            if oldest is None or oldest is entry:
                break
            self._release(oldest)

    def _release(self, entry: Entry) -> None:
        self.prefixes.forget(entry)
        self.arena.release(entry.extent)
