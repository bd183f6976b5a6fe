"""Which model ran on which set, and the name of the file that holds it: the leaderboard's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from eval_asr.errors import ResultsError


@dataclass(frozen=True)
class SetName:
    """Which model ran on which set: a data set's path (repository or folder), its configuration and its split."""

    model: str
    path: str
    name: str
    split: str

    @property
    def dataset(self) -> str:
        """The set alone, for people: ``path name split`` without what is empty."""
        return " ".join(part for part in (self.path, self.name, self.split) if part)

    @property
    def file_name(self) -> str:
        return manifest_name(self.model, self.path, self.name, self.split)


def manifest_name(model: str, path: str, name: str, split: str) -> str:
    """The leaderboard's file name of a set's results; slashes become dashes, as there."""
    model, path, name, split = (part.replace("/", "-") for part in (model, path, name, split))
    return f"MODEL_{model}_DATASET_{path}_{name}_{split}.jsonl"


def parse_manifest_name(name: str) -> SetName:
    """The parts of a results file's name.

    The name does not show where one part ends and the next begins when parts hold underscores. A set without a
    configuration leaves two underscores in a row, between its path and its split; otherwise the path and the split
    are taken to have none. ``set_name`` knows better where the settings are at hand.

    Raises:
        ResultsError: the name is not of this form.
    """
    stem = Path(name).name.removesuffix(".jsonl")
    model, found, dataset = stem.removeprefix("MODEL_").partition("_DATASET_")
    if "__" in dataset:
        path, _, split = dataset.partition("__")
        config = ""
    else:
        rest, _, split = dataset.rpartition("_")
        path, _, config = rest.partition("_")
    if not (stem.startswith("MODEL_") and found and model and path and split):
        raise ResultsError(f"{name}: is not named MODEL_..._DATASET_..._..._....jsonl; give it the leaderboard's name")
    return SetName(model, path, config, split)


@dataclass(frozen=True)
class Run:
    """A model's results in one folder, which belong together; those in another folder are of another run."""

    model: str
    folder: Path


def run_names(runs: Iterable[Run]) -> dict[Run, str]:
    """What to call each run: its model, with its folder where a model has several.

    >>> list(run_names([Run("m", Path("out/a")), Run("m", Path("out/b")), Run("n", Path("out/b"))]).values())
    ['m (a)', 'm (b)', 'n']
    """
    runs = list(dict.fromkeys(runs))
    folders = {run: Path(os.path.abspath(run.folder)) for run in runs}
    common = os.path.commonpath(folders.values()) if folders else ""
    several = {run.model for run in runs if sum(other.model == run.model for other in runs) > 1}

    def name(run: Run) -> str:
        if run.model not in several:
            return run.model
        below = folders[run].relative_to(common).as_posix()
        return f"{run.model} ({folders[run].name if below == '.' else below})"

    return {run: name(run) for run in runs}
