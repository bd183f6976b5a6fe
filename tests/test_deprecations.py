"""Names that earlier releases showed: they work for one more release, and warn."""

from __future__ import annotations

import pytest

from phi4mm import Phi4MM, Route


def test_fold_pack_and_unfold() -> None:
    with pytest.warns(DeprecationWarning, match="is deprecated; use") as caught:
        model = Phi4MM.from_pretrained(dtype="bfloat16", fold="speech", pack=True)
    assert [str(warning.message) for warning in caught] == [
        "fold= is deprecated; use merge=",
        "pack= is deprecated; use prepack=",
    ]
    assert {warning.filename for warning in caught} == {__file__}
    with model:
        assert model.device_info.prepacked
        with pytest.warns(DeprecationWarning, match="use unmerge"):
            model.unfold()
    with pytest.raises(TypeError, match="'flod'"):
        Phi4MM.from_pretrained(flod="speech")


def test_adapter_of_a_route() -> None:
    for route, name in ((Route(), None), (Route(("speech",)), "speech"), (Route(("speech", "mine")), "speech+mine")):
        with pytest.warns(DeprecationWarning, match=r"use Route\.adapters"):
            assert route.adapter == name
