"""The Python examples of docs/structured.md run in order, and print what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

TEXT = (Path(__file__).parent.parent / "docs" / "structured.md").read_text("utf-8")


def test_examples() -> None:
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "structured.md", "exec", dont_inherit=True), {"__name__": "__main__"})
    expected = re.findall(r"# -> (.+)$", code, re.MULTILINE)
    assert len(expected) > 4
    assert printed.getvalue().splitlines() == expected
