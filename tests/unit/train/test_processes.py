"""Two processes with half of the batch each make the weights that one makes with all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kleinbild.core.errors import RequestError
from kleinbild.train.processes import join_processes
from tests.unit.train.made import pictures


@pytest.mark.parametrize("way", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_sharding_is_refused_in_words(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(f"ACCELERATE_USE_{way}", "true")
    with pytest.raises(RequestError, match=f"{way}: a run is not sharded") as refused:
        join_processes()
    assert "accelerate launch --multi_gpu" in refused.value.hint


def test_no_gradient_goes_through_cudnns_attention() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        join_processes("cpu")
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_two_processes_make_the_weights_of_one(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", num=3)
    values = {"data": str(data), "steps": 3, "batch_size": 4, "accumulation": 2, "rank": 4, "ema": 0.9}
    values |= {"validate_every": 3, "preview_every": 0, "sweep": False}  # the first judges once, while the other waits
    values |= {"prior_pictures": 0}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KLEINBILD_HOME": str(tmp_path / "home")}
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
    launch += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", "-m"]
    made, ends = [], []
    for name, launcher in (("one", []), ("two", launch)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "recipe.toml").write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in values.items()), "utf-8")
        command = [sys.executable, "-m", *launcher, "kleinbild.train.worker", str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count('"event": "started"') == 1  # the first process alone speaks
        made.append(load_file(folder / "adapter.safetensors"))
        ends.append(json.loads(done.stdout.splitlines()[-1]))
    one, two = made
    assert [end["metrics"]["tokens"] for end in ends] == [3 * 4 * 2 * (64 + 28)] * 2
    for key, tensor in one.items():
        assert float((tensor - two[key]).norm()) <= 1e-4 * float(tensor.norm()), key
