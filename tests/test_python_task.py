"""A task in Python with its own score, and an image model whose artifact takes channels last."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import run_quick

from edgeopt import bundle as bundles

MODEL = """
import torch
from torch import nn


def load(width):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4),
    )
"""
TASK = """
import numpy as np


class Pictures:
    def arrays(self):
        pictures = np.random.default_rng(0).integers(0, 255, size=(300, 3, 16, 16)).astype(np.uint8)
        return {"picture": pictures, "target": np.zeros((300, 4), np.float32)}

    def score(self, outputs, labels):
        return -np.abs(outputs[0] - labels).mean(axis=1)


def task():
    return Pictures()
"""
RUN_FILE = """
name = "pictures"
model = { torch = "picture_model:load", arguments = { width = 16 } }
[task]
object = "picture_task:task"
inputs = ["picture"]
labels = "target"
[[task.preprocess.picture]]
op = "scale"
by = 0.0078125
offset = -1.0
[splits]
calibration = { count = 50 }
selection = { count = 100 }
final = { count = 150 }
[device]
profile = "generic-x86-64"
[ladder]
rungs = ["fp32", "int8"]
floor_drop = 0.2
"""


def test_a_task_that_scores_in_python(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name, text in (("picture_model.py", MODEL), ("picture_task.py", TASK), ("edgeopt.toml", RUN_FILE)):
        (project / name).write_text(text)
    root = ["--root", tmp_path / "board"]
    done = run_quick("optimize", project, *root, "--out", tmp_path / "run", "--cache", tmp_path / "cache", "--json")
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    fp32, _int8 = run["trials"]
    assert abs(fp32["score"]["drop"]) < 1e-5
    assert fp32["score"]["agreement"] is None  # outputs are no classes
    assert run["final"]["test"] == "paired bootstrap"
    assert run["final"]["metric"] == "picture_task:task"

    bundle = tmp_path / "run" / "pictures.edgeopt"
    manifest = bundles.read(bundle).manifest
    assert [step["op"] for step in manifest.artifact.preprocess[0]] == ["scale", "transpose"]
    assert manifest.health.least_correct is None
    assert run_quick("flash", bundle, *root).returncode == 0
    refused = run_quick("validate", bundle, *root)
    assert refused.returncode == 2
    assert "--run-file" in refused.stderr
    validated = run_quick("validate", bundle, *root, "--run-file", project, "--json")
    assert validated.returncode == 0, validated.stderr
    found = json.loads(validated.stdout)
    assert found["final"]["value"] == run["final"]["value"]
