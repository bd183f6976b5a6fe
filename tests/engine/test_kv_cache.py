"""The arena of the KV cache: extents never overlap, and are little larger than rows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from phi4mm.engine.kv_cache import BLOCK, Arena, Extent, capacity_for


@given(st.lists(st.tuples(st.integers(1, 700), st.integers(0, 9)), max_size=60))
def test_extents_never_overlap(requests: list[tuple[int, int]]) -> None:
    arena = Arena(40 * BLOCK)
    extents: list[Extent] = []
    for size, what in requests:
        if what < 4 and extents:
            arena.release(extents.pop(what % len(extents)))
        elif what < 6 and extents:
            grown = arena.extend(extents[0], extents[0].capacity + size)
            extents[0] = grown or extents[0]
        elif what < 7 and extents:
            extents[0] = arena.shrink(extents[0], size)
        elif (extent := arena.allocate(size)) is not None:
            assert size <= extent.capacity <= max(capacity_for(size), size + BLOCK)
            extents.append(extent)
        places = [place for extent in extents for place in range(extent.start, extent.start + extent.capacity, BLOCK)]
        assert len(places) == len(set(places)) == arena.num_used // BLOCK
        assert all(place < arena.num_tokens for place in places)
    for extent in extents:
        arena.release(extent)
    assert arena.allocate(40 * BLOCK) == Extent(0, 40 * BLOCK)


@given(st.integers(1, 10**6))
def test_extents_are_little_larger_than_rows(num_tokens: int) -> None:
    capacity = capacity_for(num_tokens)
    assert num_tokens <= capacity <= max(1.25 * num_tokens + BLOCK, min(2 * num_tokens, 8 * BLOCK), BLOCK)
