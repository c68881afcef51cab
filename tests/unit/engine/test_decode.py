"""Which pictures are decoded in strips, and that it does not show."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kleinbild.core.requests import PictureRequest
from kleinbild.core.sizes import Size
from kleinbild.engine import decode
from kleinbild.engine.runtime import Engine
from tests import tiny


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(1024, 1024, "whole"), (1040, 1024, "strips"), (2048, 512, "whole"), (528, 2048, "strips"), (128, 128, "whole")],
)
def test_pictures_of_more_than_a_megapixel(
    monkeypatch: pytest.MonkeyPatch, width: int, height: int, expected: str
) -> None:
    made = {"whole": torch.zeros(1), "strips": torch.ones(1)}
    monkeypatch.setattr(decode, "decode_in_strips", lambda autoencoder, latent: made["strips"])
    model = SimpleNamespace(
        dtype=torch.float32,
        precision="float32",
        spec=tiny.SPEC,
        autoencoder=SimpleNamespace(decode=lambda latent: made["whole"]),
    )
    sequence = SimpleNamespace(grid=torch.zeros(1, 128, height // 16, width // 16))
    assert torch.equal(decode.decode(model, sequence), made[expected])


def test_strips_do_not_show(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    request = PictureRequest("a red cat", engine.name, seed=1, size=Size(80, 208))
    whole = np.asarray(engine.generate(request).pil, dtype=int)
    monkeypatch.setattr(decode, "LARGE_PICTURE", 0)
    assert np.abs(np.asarray(engine.generate(request).pil, dtype=int) - whole).max() <= 1
