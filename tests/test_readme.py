"""What the README and the pages under docs/ show is true: Python examples run as printed and print what the page says,
shell commands take the options that they show, links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUN = ("README.md", "docs/python.md")  # the others have tests of their own
CARDS = [ROOT / folder / "README.md" for folder in ("assets", "adapters/speech", "adapters/vision")]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *CARDS)
}
EXAMPLES = [
    code for name in RUN for code in re.findall(r"^```python\n(.*?)^```$", PAGES[name], re.DOTALL | re.MULTILINE)
]
SAID = re.compile(r"# -> (.+)$", re.MULTILINE)
PARSERS = {  # of the commands
    "phi4mm": "phi4mm.ask",
    "phi4mm.asr": "phi4mm.asr.parser",
    "phi4mm.bench": "phi4mm.bench.__main__",
    "phi4mm.serve": "phi4mm.serve.parser",
    "eval_asr": "eval_asr.parser",
}
COMMAND = re.compile(r"^ *(?:[A-Z_0-9]+=\S+ )*python -m (\S+) (.*)", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("code", EXAMPLES, ids=lambda code: code.strip().splitlines()[-1][:40])
def test_example(code: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PHI4MM_EXAMPLE", str(tmp_path))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "example", "exec"), {"__name__": "__main__"})
    expected = SAID.findall(code)
    assert printed.getvalue().split("\n")[: len(expected)] == expected


@pytest.mark.parametrize("page", PAGES)
def test_shell_commands_take_the_options_that_they_show(page: str) -> None:
    for program, rest in COMMAND.findall(PAGES[page].replace("\\\n", " ")):
        if program in PARSERS:
            words = shlex.split(rest, comments=True)
            until = next((at for at, word in enumerate(words) if word in (">", "|", "&", "&&")), len(words))
            if not {"--help", "--version"} & {*words}:
                import_module(PARSERS[program]).make_parser().parse_args(words[:until])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in (first or second for first, second in LINK.findall(PAGES[page])):
        name, _, anchor = link.partition("#")
        if "://" in name or name.startswith("mailto:"):
            continue
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target.read_text("utf-8")), link


def _anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_nothing_is_installed_from_a_registry_that_lacks_it() -> None:
    sources = {
        str(path.relative_to(ROOT)): path.read_text("utf-8")
        for folder in ("phi4mm", "eval_asr", "tests")
        for path in (ROOT / folder).rglob("*.py")
    }
    named = [name for name, text in {**sources, **PAGES}.items() if re.search(r"pip install [^\n]*phi4mm\[", text)]
    assert [name for name in named if name != "tests/test_readme.py"] == []
