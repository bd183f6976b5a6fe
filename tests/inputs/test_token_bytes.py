"""The bytes of tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from phi4mm.api import Phi4MM


@given(text=st.text())
def test_the_bytes_of_tokens_make_up_the_text(bundled: Phi4MM, text: str) -> None:
    tokenizer = bundled.processor.tokenizer
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()


def test_control_tokens_have_the_bytes_of_their_names(bundled: Phi4MM) -> None:
    tokenizer = bundled.processor.tokenizer
    assert tokenizer.token_bytes(tokenizer.control("<|end|>")) == b"<|end|>"
