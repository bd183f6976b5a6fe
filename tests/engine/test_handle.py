"""Handles: waited for, iterated, awaited and cancelled, from threads and event loops."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from phi4mm import AudioError, Phi4MM
from phi4mm.engine.handle import Handle
from tests.engine.brake import Brake, num_rows
from tests.media import picture, speech

ASK = {"text": "Hello", "max_new_tokens": 30}


async def pieces_of(handle: Handle) -> list[str]:
    return [piece async for piece in handle]


async def awaited(handle: Handle) -> Any:
    return await handle


def test_a_reply_can_be_waited_for_iterated_and_awaited_again_and_again(tiny: Phi4MM) -> None:
    expected = tiny.chat(**ASK)
    handle = tiny.submit(ASK)
    with ThreadPoolExecutor(6) as pool:
        iterated = [pool.submit(lambda: list(handle)) for _ in range(2)]
        in_loops = [pool.submit(asyncio.run, pieces_of(handle)) for _ in range(2)]
        replies = [pool.submit(asyncio.run, awaited(handle)) for _ in range(2)]
    assert handle.done
    assert handle.exception() is None
    assert {"".join(future.result()) for future in iterated + in_loops} == {expected.text}
    assert [future.result() for future in replies] == [expected, expected]
    assert "".join(handle) == handle.result().text
    assert len(list(handle)) > 10


def test_several_iterators_of_one_loop(tiny: Phi4MM) -> None:
    async def both() -> list[list[str]]:
        handle = tiny.submit(ASK)
        return await asyncio.gather(pieces_of(handle), pieces_of(handle))

    first, second = asyncio.run(both())
    assert "".join(first) == "".join(second) == tiny.chat(**ASK).text


def test_a_timeout_leaves_the_request_running(tiny: Phi4MM, caplog: pytest.LogCaptureFixture) -> None:
    async def impatient(handle: Handle) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(awaited(handle), 0.01)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pieces_of(handle), 0.01)

    with Brake() as brake, caplog.at_level(logging.WARNING):
        handle = tiny.submit({**ASK, "processors": [brake]})
        with pytest.raises(TimeoutError):
            handle.result(timeout=0.01)
        asyncio.run(impatient(handle))  # and its loop is closed before the reply comes
        assert not handle.done
    assert handle.result(20) == tiny.chat(**ASK)
    assert caplog.records == []


def test_cancelling_before_while_and_after(tiny: Phi4MM) -> None:
    full = tiny.chat(**ASK)
    with Brake(at=3) as brake:
        handle = tiny.submit({**ASK, "processors": [brake]})
        assert brake.reached.wait(20)
        queued = tiny.submit(ASK)
        unread = tiny.submit({**ASK, "images": [picture(30, 30)]})
        for one in (handle, queued, unread, handle):
            one.cancel()
        replies = [one.result(0) for one in (handle, queued, unread)]  # nobody waits for the engine
    assert [reply.finish_reason for reply in replies] == ["cancelled"] * 3
    assert replies[0].token_ids == full.token_ids[:3]
    assert full.text.startswith(replies[0].text)
    assert [reply.token_ids for reply in replies[1:]] == [(), ()]
    assert "".join(handle) == replies[0].text
    assert num_rows(tiny) == 0
    done = tiny.submit(ASK)
    assert done.result() == full
    done.cancel()
    assert done.result() == full


def test_the_pieces_of_a_cancelled_reply_are_its_text(tiny: Phi4MM) -> None:
    """Even where its end was held back, because a stop string might have begun."""
    full = tiny.chat(**ASK)
    with Brake(at=4) as brake:
        stop = full.text[2:4] + "never there"
        handle = tiny.submit({**ASK, "stop": [stop], "processors": [brake]})
        assert brake.reached.wait(20)
        handle.cancel()
        assert "".join(handle) == handle.result().text


def test_several_replies_to_one_request(tiny: Phi4MM) -> None:
    sampled = {**ASK, "temperature": 1.5, "seed": 5}
    handle = tiny.submit({**sampled, "n": 4})
    reply = handle.result()
    texts = [reply.text, *(other.text for other in reply.alternatives)]
    assert len(set(texts)) == 4
    assert texts[0] == tiny.chat(**sampled).text
    assert asyncio.run(awaited(handle)) == reply
    assert ["".join(one) for one in (handle, *handle.alternatives)] == texts
    # Their common prompt was computed once.
    assert all(other.usage.cached_tokens > 0 for other in reply.alternatives if reply.usage.prompt_tokens > 32)
    with Brake(at=2) as brake:
        handle = tiny.submit({**sampled, "n": 4, "processors": [brake]})
        assert brake.reached.wait(20)
        handle.cancel()
    assert {one.result().finish_reason for one in (handle, *handle.alternatives)} == {"cancelled"}
    assert num_rows(tiny) == 0


def test_an_async_iterator_that_is_cancelled_midway_leaves_the_request(tiny: Phi4MM) -> None:
    async def run(handle: Handle, brake: Brake) -> list[str]:
        seen: list[str] = []

        async def consume() -> None:
            async for piece in handle:
                seen.append(piece)

        task = asyncio.create_task(consume())
        while not brake.reached.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return seen

    full = tiny.chat(**ASK)
    with Brake(at=5) as brake:
        handle = tiny.submit({**ASK, "processors": [brake]})
        seen = asyncio.run(run(handle, brake))
        assert not handle.done
    assert full.text.startswith("".join(seen))
    assert handle.result(20) == full


@pytest.mark.parametrize(
    "wait",
    [Handle.result, list, lambda handle: asyncio.run(awaited(handle)), lambda handle: asyncio.run(pieces_of(handle))],
    ids=["result", "iterate", "await", "async for"],
)
def test_what_is_wrong_with_media_is_raised_by_the_handle(tiny: Phi4MM, wait: Callable[[Handle], Any]) -> None:
    handle = tiny.submit({"audios": [speech(0.3), b"not audio"], "n": 2})
    with pytest.raises(AudioError, match="audio 2"):
        wait(handle)
    with pytest.raises(AudioError, match="audio 2"):
        wait(handle.alternatives[0])
    assert isinstance(handle.exception(), AudioError)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, brake: model.chat(**ASK, processors=[brake]),
        lambda model, brake: model.chat_batch([{**ASK, "processors": [brake]}, ASK, {"audios": [speech(0.3)]}]),
        lambda model, brake: model.transcribe(speech(0.5), vad=False, processors=[brake]),
        lambda model, brake: model.transcribe_batch([speech(0.5)] * 3, processors=[brake]),
        lambda model, brake: list(model.stream(**ASK, processors=[brake])),
    ],
    ids=["chat", "chat_batch", "transcribe", "transcribe_batch", "stream"],
)
def test_an_interrupted_call_ends_its_rows(tiny: Phi4MM, call: Callable[[Phi4MM, Brake], Any]) -> None:
    def interrupt(brake: Brake) -> None:
        assert brake.reached.wait(20)
        time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with Brake(at=1) as brake:
        threading.Thread(target=interrupt, args=(brake,)).start()
        with pytest.raises(KeyboardInterrupt):
            call(tiny, brake)
    assert num_rows(tiny) == 0
