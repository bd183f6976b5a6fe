"""Requests to rows: where media stand, what identifies them, and which adapters a row may take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from phi4mm.errors import PromptError
from phi4mm.inputs.processor import Processor
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.config import FrontEndConfig
from phi4mm.types import Request, Route
from tests.conftest import TINY

CLIP = (np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32), 16000)
LOUDER = (2 * CLIP[0], 16000)
RED, BLUE = (Image.new("RGB", (100, 40), colour) for colour in ("red", "blue"))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer(tokenizer_file)


@pytest.fixture(scope="module")
def processor(tokenizer: Tokenizer) -> Processor:
    return Processor(TINY, tokenizer)


def test_media_stand_where_their_tokens_are(processor: Processor) -> None:
    request = Request("<|audio_1|> and <|image_2|> then <|image_1|>", images=[RED, BLUE], audios=[CLIP])
    row = processor.row(request)
    assert [item.kind for item in row.media] == ["audio", "image", "image"]
    assert [item.projector for item in row.media] == ["vision", "image", "image"]
    assert TINY.speech is not None
    assert TINY.vision is not None
    ids = {"audio": TINY.speech.audio_token_id, "image": TINY.vision.image_token_id}
    places = [place for item in row.media for place in range(item.start, item.start + item.num_tokens)]
    assert all(
        row.token_ids[place] == ids[item.kind]
        for item in row.media
        for place in range(item.start, item.start + item.num_tokens)
    )
    assert places == [place for place, token in enumerate(row.token_ids) if token in ids.values()]
    assert row.route == Route(("vision",), "vision")
    assert [len(image.crops) for image in row.images] == [3, 3]
    assert [item.cost for item in row.media] == [98, 3, 3]
    assert row.images[0].crops[0, 2].mean() > 0.9  # the blue one
    assert [clip.shape for clip in row.clips] == [(98, 80)]
    assert row.media[0].nbytes == 98 * 80 * 4


def test_digests_are_of_content_and_projector(processor: Processor) -> None:
    def digests(**media: object) -> list[bytes]:
        return [item.digest for item in processor.row(Request("Question", **media)).media]  # type: ignore[arg-type]

    [clip, again, louder] = digests(audios=[CLIP, CLIP, LOUDER])
    [red, blue, clip_beside_images] = digests(images=[RED, BLUE], audios=[CLIP])
    assert clip == again
    assert digests(images=[RED.copy()]) == [red]
    assert len({clip, louder, red, blue, clip_beside_images}) == 5
    assert {len(digest) for digest in (clip, red)} == {16}


def test_adapters_are_those_loaded_now(tokenizer: Tokenizer) -> None:
    loaded = ["speech"]
    processor = Processor(TINY, tokenizer, lambda: loaded)
    request = Request("Question", audios=[CLIP], adapter="auto+accent")
    with pytest.raises(PromptError, match="adapter 'accent' is not in this model, which has 'speech'"):
        processor.row(request)
    loaded.append("accent")
    assert processor.row(request).route == Route(("speech", "accent"), "speech")
    loaded.remove("speech")
    with pytest.raises(PromptError, match="adapter 'speech'"):
        processor.row(request)


def test_front_end_levels_audio(tokenizer: Tokenizer, processor: Processor) -> None:
    levelled = Processor(replace(TINY, front_end=FrontEndConfig(peak_level=0.3)), tokenizer)
    request, louder = (Request("Question", audios=[audio]) for audio in (CLIP, LOUDER))
    torch.testing.assert_close(levelled.row(request).clips[0], levelled.row(louder).clips[0])
    assert not torch.allclose(processor.row(request).clips[0], processor.row(louder).clips[0], atol=0.1)


def test_collate_pads_rows_of_any_modality(processor: Processor) -> None:
    requests = [Request("Text"), Request(" ", audios=[CLIP]), Request("Both", images=[RED], audios=[LOUDER])]
    batch = processor(requests)
    assert batch.token_ids.shape == (3, int(batch.lengths.max()))
    assert batch.images is not None
    assert batch.audios is not None
    assert batch.images.grids == ((1, 2),)
    assert batch.audios.rows == (1, 2)
    assert batch.routes == (Route(), Route(("speech",), "speech"), Route(("vision",), "vision"))
