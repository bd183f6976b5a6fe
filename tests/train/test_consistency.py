"""Two views of each clip: how they are made, how far apart they are, and a stage that trains on them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch

from phi4mm.model.config import Phi4MMConfig
from phi4mm.model.speech import SpeechTower
from phi4mm.train.batches import collate
from phi4mm.train.consistency import WEAK, ConsistencyShards, divergence, train_consistency, two_views
from phi4mm.train.loop import Pace, StageFolder
from phi4mm.train.shards import Shard
from phi4mm.train.tower import WordTower
from phi4mm.train.words import NUMBER_WORDS
from tests.train.conftest import DEVICE


def test_views_are_of_the_same_clips_and_differ(shard: Path) -> None:
    clips = collate(list(Shard(shard, NUMBER_WORDS))[:3])
    views = two_views(clips, torch.Generator().manual_seed(0), 1.0, 0.1)
    assert views.words == (*clips.words, *clips.words)
    assert views.num_frames.tolist() == [*clips.num_frames.tolist(), *clips.num_frames.tolist()]
    first, second = views.features.chunk(2)
    assert first.shape == clips.features.shape
    assert not torch.allclose(first, second)


def test_divergence_counts_valid_tokens_alone() -> None:
    scores = torch.randn(2, 5, 4, generator=torch.manual_seed(0)).log_softmax(-1)
    same, lengths = scores.repeat(2, 1, 1), torch.tensor([5, 3, 5, 3])
    assert divergence(same, lengths) == 0
    past_end, inside = same.clone(), same.clone()
    past_end[1, 3:] = scores[0, :2]
    inside[1, 2] = scores[0, 0]
    assert divergence(past_end, lengths) == 0
    one, other = inside[1, 2], inside[3, 2]
    expected = (one.exp() * (one - other)).sum() + (other.exp() * (other - one)).sum()
    torch.testing.assert_close(divergence(inside, lengths), expected)


def test_stage_changes_the_tower_and_leaves_its_statistics(config: Phi4MMConfig, shard: Path, tmp_path: Path) -> None:
    assert config.speech is not None
    torch.manual_seed(0)
    model = WordTower(SpeechTower(config.speech), config.speech, NUMBER_WORDS).to(DEVICE)
    reader = WordTower(model.tower, config.speech, NUMBER_WORDS).to(DEVICE)
    before, head = deepcopy(model.state_dict()), deepcopy(reader.head.state_dict())
    options = replace(WEAK, pace=Pace(steps=2, warmup=1, average=0.5, log_every=2), frames=200)
    stage = StageFolder(tmp_path, "two views")
    train_consistency(model, reader, ConsistencyShards([shard], [shard], [shard]), {"itself": shard}, options, stage)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in changed} == {"tower", "head"}
    assert not changed & {"tower.mean", "tower.inverse_std"}
    assert not torch.equal(reader.head.weight, head["weight"])
    assert reader.tower is model.tower
