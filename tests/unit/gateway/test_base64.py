"""Files as base64 in JSON: read a piece at a time, as strictly as in one."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kleinbild.gateway.flow import pictures
from kleinbild.gateway.flow.pictures import decoded


@given(st.binary(max_size=100), st.sampled_from([4, 8, 64]))
def test_what_was_encoded_is_decoded_in_any_pieces(file: bytes, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "PIECE", piece)
        assert decoded(base64.b64encode(file).decode()) == file


@pytest.mark.parametrize(
    "text", ["A", "====", "AAA*", "AAAA=AAA", "QQ==AAAA", "QUJD\nQUJD", "QUJDQQ==QUJD", "QUJDQUI=QQ=="]
)
@pytest.mark.parametrize("piece", [4, 8, 4096])
def test_what_is_no_base64_is_refused_wherever_it_is(text: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "PIECE", piece)
    with pytest.raises(ValueError):
        decoded(text)
