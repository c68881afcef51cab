"""Stands in for the trainer: it speaks its lines and keeps its state, in a fraction of the time and without torch.

    python -m kleinbild.providers.tethered tests.trainer FOLDER

A recipe's `steps` are how many it takes, of a tenth of a second; with `rank` 13 it fails, with 17 it dies.
"""

from __future__ import annotations

import array
import json
import os
import signal
import sys
import time
import tomllib
from pathlib import Path

from kleinbild.core.adapters import Card
from kleinbild.core.training import (
    Checkpointed,
    Failed,
    Finished,
    Paused,
    Previewed,
    Progressed,
    Started,
    TrainingEvent,
    Validated,
    Warned,
    to_line,
)
from kleinbild.model.adapters import registry
from kleinbild.model.adapters.families import specs

STEP_SECONDS = 0.1
FAILING, DYING = 13, 17  # ranks
_stopped: list[int] = []


def write_lora(path: Path, rank: int = 2, value: float = 0.01) -> Path:
    """A LoRA of one layer of nano, in the spelling of diffusers."""
    width = specs()["nano"].hidden_size
    tensors = {"lora_A": (rank, width), "lora_B": (width, rank)}
    header, data = {}, b""
    for name, shape in tensors.items():
        values = array.array("f", [value] * shape[0] * shape[1]).tobytes()
        place = [len(data), len(data) + len(values)]
        key = f"transformer.transformer_blocks.0.attn.to_q.{name}.weight"
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": place}
        data += values
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def main(folder: Path) -> int:
    signal.signal(signal.SIGTERM, lambda number, _: _stopped.append(number))
    recipe = tomllib.loads((folder / "recipe.toml").read_text("utf-8"))
    state, num_steps = folder / "state.json", recipe.get("steps", 4)
    step = json.loads(state.read_text()) if state.exists() else 0
    with (folder / "starts").open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    if recipe.get("rank") == DYING:
        return 1

    def tell(event: TrainingEvent) -> None:
        with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(to_line(event, time.time()) + "\n")

    tell(Started(step, num_steps, recipe["model"], 3, recipe["seed"]))
    if recipe.get("rank") == FAILING:
        tell(Failed("RequestError", "a picture is damaged", "leave it out"))
        return 2
    while step < num_steps:
        if _stopped:
            state.write_text(json.dumps(step))
            tell(Paused(step))
            return 0
        time.sleep(STEP_SECONDS)
        step += 1
        tell(Progressed(step, num_steps, 1 / step, 1e-4, (num_steps - step) * STEP_SECONDS))
        if step % 2 == 0:
            write_lora(folder / "checkpoints" / f"step-{step}.safetensors")
            tell(Validated(step, 2 / step, {"0.5": 2 / step}))
            tell(Previewed(step, "nano", f"previews/step-{step}.png"))
            tell(Checkpointed(step, f"checkpoints/step-{step}.safetensors"))
    tell(Warned("few pictures were given", step))
    file = write_lora(folder / "adapter.safetensors")
    sha256 = registry.digest(file)
    registry.register(
        file, Card(recipe["name"], "nano", sha256, file.stat().st_size, time.time(), base=recipe["model"])
    )
    tell(Finished(step, recipe["name"], file.name, sha256, {"tokens": 100 * step}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
