"""Imports point down, in no circle, and the wheel has what they need."""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parent.parent

# From top to bottom. A module, or a package with all that is in it, imports from the lines below its own only; those on
# one line do not import each other.
LAYERS = (
    ("eval_asr", "phi4mm.train"),
    ("phi4mm.__main__", "phi4mm.asr", "phi4mm.bench", "phi4mm.finetune", "phi4mm.serve"),
    ("phi4mm.ask",),
    ("phi4mm.cli",),
    ("phi4mm",),  # its __init__
    ("phi4mm.workers",),
    ("phi4mm.worker_process",),
    ("phi4mm.api",),
    ("phi4mm.loading",),
    ("phi4mm.diarization", "phi4mm.transcription"),
    ("phi4mm.engine",),
    ("phi4mm.adapters",),
    ("phi4mm.checkpoint", "phi4mm.inputs"),
    ("phi4mm.devices",),
    ("phi4mm.model",),
    ("phi4mm.options",),
    ("phi4mm.types",),
    ("phi4mm.content", "phi4mm.output_format", "phi4mm.transcript"),
    ("phi4mm.validate",),
    ("phi4mm.environment", "phi4mm.errors", "phi4mm.files", "phi4mm.interrupts"),
)
LINE_OF = {part: line for line, parts in enumerate(LAYERS) for part in parts}

Graph = dict[str, set[str]]


@pytest.fixture(scope="module")
def graph() -> Graph:
    """Each module with those that it imports, wherever in it; imports for type checkers alone do not count."""
    found = grimp.build_graph("phi4mm", "eval_asr", exclude_type_checking_imports=True, cache_dir=None)
    return {module: found.find_modules_directly_imported_by(module) for module in found.modules}


def part_of(module: str) -> str | None:
    """The part in ``LAYERS`` that a module belongs to."""
    top = ".".join(module.split(".")[: 1 if module.startswith("eval_asr") else 2])
    return top if top in LINE_OF else None


def violations(graph: Graph) -> Iterator[str]:
    """What is wrong with a graph, a line each."""
    for module, imported in sorted(graph.items()):
        part = part_of(module)
        if part is None:
            yield f"{module} has no place in LAYERS"
            continue
        for other in sorted(imported):
            below = part_of(other)
            if below is not None and below != part and LINE_OF[below] <= LINE_OF[part]:
                yield f"{module} imports {other}"


def circle(graph: Graph) -> list[str]:
    """Modules that import each other in a circle, the first one again at the end; empty where there are none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_imports_point_down(graph: Graph) -> None:
    found = list(violations(graph))
    assert not found, "\n".join(found)


def test_no_circles(graph: Graph) -> None:
    found = circle(graph)
    assert not found, " -> ".join(reversed(found))


def test_the_mathematics_needs_types_and_errors_alone(graph: Graph) -> None:
    needed = {other for module in graph if part_of(module) == "phi4mm.model" for other in graph[module]}
    assert {part_of(other) for other in needed} <= {"phi4mm.model", "phi4mm.types", "phi4mm.errors"}


def test_what_is_wrong_is_found() -> None:
    graph = {
        "phi4mm.api": {"phi4mm.engine.engine", "phi4mm.errors"},
        "phi4mm.engine.engine": {"phi4mm.api", "phi4mm.engine.sampler"},
        "phi4mm.engine.sampler": {"phi4mm.model.phi4mm"},
        "phi4mm.inputs.audio": {"phi4mm.checkpoint.load"},
        "phi4mm.news": {"phi4mm.errors"},
        "eval_asr.run": {"phi4mm.train.loop", "eval_asr.score", "phi4mm"},
    }
    assert list(violations(graph)) == [
        "eval_asr.run imports phi4mm.train.loop",
        "phi4mm.engine.engine imports phi4mm.api",
        "phi4mm.inputs.audio imports phi4mm.checkpoint.load",
        "phi4mm.news has no place in LAYERS",
    ]
    assert set(circle(graph)) == {"phi4mm.api", "phi4mm.engine.engine"}
    assert circle({"phi4mm.api": {"phi4mm.errors"}}) == []


def test_the_wheel_has_every_module_but_those_of_train(graph: Graph) -> None:
    shipped = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    modules = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in shipped if path.endswith(".py")
    }
    assert modules == {module for module in graph if part_of(module) != "phi4mm.train"}
    for module in modules:
        assert graph[module] <= modules, module
    assert "phi4mm/_bundled/assets/tokenizer.json" in shipped
