"""`edgeopt prune` as users run it: what was cut and what was left whole is told, and how far it is from the source."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from board_folder import tree
from conftest import run_cli

from edgeopt.cli import tool_screens
from edgeopt.report import breakdown

if any(importlib.util.find_spec(name) is None for name in ("torch", "torch_pruning", "onnxruntime")):
    pytest.skip("needs edgeopt[torch,onnx]", allow_module_level=True)

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 1), nn.Conv2d(24, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, image):
        x = self.first(image).relu()
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        logits = self.head(self.third(self.second(x).relu()).relu().mean((2, 3)))
        return (logits, x) if self.training else logits


def load():
    return Net()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the factory net:load, whose channels are shuffled, and train.npz."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "net.py").write_text(NET)
    images = np.random.default_rng(1).normal(size=(32, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "train.npz", image=images, label=np.arange(32) % 4)
    return folder


def test_what_is_left_whole_is_told_with_its_reason(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run_cli(
        "prune", "net:load", "--inputs", "train.npz", "--labels", "label", "--metric", "top1", "--ratio", "0.7",
        "--epochs", "2", "--keep", "thi*", "--to", "onnxruntime", "--out", "small.onnx", "--json", cwd=project,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    cut = document["prune"]
    assert cut["widths"] == {"first": [16, 16], "second": [24, 8], "third": [16, 16], "head": [4, 4]}
    reasons = {own["layer"]: own["why"] for own in cut["whole"]}
    assert set(reasons) == {"first", "third", "head"}
    assert "shuffle" in reasons["first"]
    assert cut["keep"] == ["thi*"]
    assert cut["proof"]["sqnr_db"] is None or cut["proof"]["sqnr_db"] > 100
    assert [own["stage"] for own in cut["parity"]] == ["pruned", "recovered"]
    assert all(own["sqnr_db"] < 100 for own in cut["parity"])
    assert cut["accuracy"] | {"source": 0, "pruned": 0} == {"metric": "top1", "samples": 32, "source": 0, "pruned": 0}
    tool_screens.show(document)
    shown = capsys.readouterr().out
    for words in ("second 24 → 8", "first (16): ", "third (16): ", "from source", "top1"):
        assert words in shown
    assert "first 16" not in shown
    told = breakdown.cut_words(cut)
    assert "second 24 → 8" in told
    assert "first (without them" in told
    assert "head" not in told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--keep", "secnod"], ["--keep", "secnod", "did you mean second"]),
        (["--metric", "top1"], ["--metric", "--labels"]),
    ],
)
def test_what_cannot_be_meant_is_refused(project: Path, options: list[str], said: list[str]) -> None:
    before = tree(project, ())
    how = ["--inputs", "train.npz", *(["--labels", "label"] if "--keep" in options else []), "--ratio", "0.5"]
    done = run_cli("prune", "net:load", *how, "--to", "onnxruntime", "--out", "o.onnx", *options, cwd=project)
    assert done.returncode == 2, done.stdout + done.stderr
    assert all(words in done.stderr for words in said), done.stderr
    assert tree(project, ()) == before
