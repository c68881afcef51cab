"""Previews look like the picture."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from kleinbild.engine.encode import encode_picture
from kleinbild.engine.preview import Previewer
from kleinbild.model.weights import load_model
from kleinbild.nano.scenes.render import Placed, Scene, render


def test_a_preview_shows_the_picture_small() -> None:
    model = load_model("nano")
    previewer = Previewer(model)
    for scene in (Scene("red", (Placed("1f98a", 2, 2),)), Scene("beach", ())):
        picture = Image.fromarray(render(scene))
        with torch.inference_mode():
            seen = previewer.image(encode_picture(model, picture))
        truth = picture.resize((16, 16), Image.Resampling.BOX)
        error = np.abs(np.asarray(seen, dtype=int) - np.asarray(truth, dtype=int)).mean()
        assert seen.size == (16, 16)
        assert error < 14, scene
