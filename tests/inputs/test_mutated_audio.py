"""Media files of which some bytes were changed: each is read or refused, in little memory.

Some hundred by default, in seconds; ``--fuzz 10000`` takes about a minute.
"""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import av
import pytest

from phi4mm.errors import AudioError
from phi4mm.inputs.audio import stream_audio
from phi4mm.inputs.audio_file import audio_seconds
from tests.inputs.test_file_layout import FILES

MOST_MEMORY = 300  # MB more than before
VALUES = (b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\1\0\0\0", b"\0\0\0\1")


def changed(content: bytes, chance: random.Random) -> bytes:
    """Bytes of it replaced, put in or taken out, most often near its start, and sometimes its end cut off."""
    made = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        place = chance.randrange(min(len(made), chance.choice((32, 64, 256, 2000, len(made)))))
        kind = chance.random()
        if kind < 0.5:
            made[place] = chance.randrange(256)
        elif kind < 0.75:
            made[place : place + 4] = chance.choice(VALUES)
        elif kind < 0.85:
            made[place:place] = chance.randbytes(chance.randrange(20))
        else:
            del made[place : place + chance.randrange(20)]
    return bytes(made[: chance.randrange(1, len(made) + 1)] if chance.random() < 0.2 else made)


def lengths(content: bytes) -> Iterator[float]:
    return (part.duration for part in stream_audio(content))


def test_mutated_files_are_read_or_refused(request: pytest.FixtureRequest) -> None:
    chance = random.Random(0)
    level = av.logging.get_level()
    av.logging.set_level(av.logging.PANIC)
    try:
        for number in range(request.config.getoption("--fuzz")):
            kind = chance.choice(list(FILES))
            content = changed(FILES[kind], chance)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for read in (partial(list, lengths(content)), partial(audio_seconds, content)):
                with suppress(AudioError):  # any other error fails
                    read()
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY << 10, (number, kind)
    finally:
        av.logging.set_level(level)
