"""Pruning and recovery with real torch-pruning, on models that train in a second."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.compress import prune as pruning
from edgeopt.compress import recover as recovery
from edgeopt.errors import MissingDependency, ModelError, PlanError

if any(importlib.util.find_spec(name) is None for name in ("torch", "torch_pruning")):
    pytest.skip("needs edgeopt[torch]", allow_module_level=True)

import torch
from torch import nn

torch.set_num_threads(1)


@dataclass(frozen=True)
class Prune:
    ratio: float
    round_to: int = 8


@dataclass(frozen=True)
class Recover:
    epochs: int
    learning_rate: float = 3e-3
    batch: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Data:
    inputs: tuple[np.ndarray, ...]
    labels: np.ndarray | None = None


class Residual(nn.Module):
    """A stem, a depthwise-separable residual block and a dense head: (n, 3, 12, 12) -> (n, classes)."""

    def __init__(self, classes: int = 3, dropout: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.deep = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.wide = nn.Conv2d(32, 32, 1)
        self.hidden = nn.Linear(32, 24)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(24, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        x = (x + self.wide(self.deep(x))).relu()
        x = torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
        return self.head(self.dropout(self.hidden(x).relu()))


def silent(*_: Any) -> None:
    pass


def samples(n: int = 96) -> Data:
    """Three classes by which colour is brightest."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, n)
    images = random.normal(size=(n, 3, 12, 12)).astype(np.float32)
    images[np.arange(n), labels] += 1.0
    return Data((images,), labels)


def outputs(module: nn.Module, data: Data) -> np.ndarray:
    with torch.no_grad():
        result: np.ndarray = module.eval()(*(torch.from_numpy(array) for array in data.inputs)).numpy()
    return result


def same_state(first: nn.Module, second: nn.Module) -> bool:
    left, right = first.state_dict(), second.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def source() -> nn.Module:
    """Residual, trained until it is right nearly always."""
    model, data = Residual(), samples()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(torch.from_numpy(data.inputs[0])), torch.from_numpy(data.labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def pruned(source: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    return pruning.prune(source, Prune(0.4), samples().inputs, silent)


def test_widths_are_aligned_and_the_output_keeps_its_own(
    source: nn.Module, pruned: tuple[nn.Module, dict[str, Any]]
) -> None:
    module, history = pruned
    assert history["widths"] == {
        "stem.0": [32, 16],
        "deep": [32, 16],
        "wide": [32, 16],
        "hidden": [24, 8],
        "head": [3, 3],
    }
    assert history["kept"] == ["head"]
    assert module.deep.groups == 16
    assert outputs(module, samples()).shape == (96, 3)
    assert source.stem[0].out_channels == 32


def test_macs_and_parameters_are_counted(source: nn.Module, pruned: tuple[nn.Module, dict[str, Any]]) -> None:
    history = pruned[1]
    pixels = 12 * 12
    before = pixels * (32 * 27 + 32 * 9 + 32 * 32) + 32 * 24 + 24 * 3
    after = pixels * (16 * 27 + 16 * 9 + 16 * 16) + 16 * 8 + 8 * 3
    assert history["macs"] == [before, after]
    assert history["parameters"][1] == sum(p.numel() for p in pruned[0].parameters())
    assert pruning.expected_gain(source, Prune(0.4), samples().inputs) == pytest.approx(1 - after / before)


def test_restore_gives_the_same_outputs_without_pickle(
    source: nn.Module, pruned: tuple[nn.Module, dict[str, Any]], tmp_path: Path
) -> None:
    module, history = pruned
    pruning.save(module, history, tmp_path)
    again = pruning.restore(source, tmp_path)
    np.testing.assert_array_equal(outputs(again, samples()), outputs(module, samples()))
    assert json.loads((tmp_path / "history.json").read_text()) == history
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.json", "state.npz"]


def test_pruning_twice_cuts_the_same(source: nn.Module, pruned: tuple[nn.Module, dict[str, Any]]) -> None:
    module, history = pruning.prune(source, Prune(0.4), samples().inputs, silent)
    assert history == pruned[1]
    assert same_state(module, pruned[0])


def test_restore_refuses_another_source(pruned: tuple[nn.Module, dict[str, Any]], tmp_path: Path) -> None:
    pruning.save(*pruned, tmp_path)
    with pytest.raises(ModelError, match="delete the folder and prune again"):
        pruning.restore(Residual(classes=5), tmp_path)


def test_every_output_keeps_its_layers() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.left, self.right = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 16, 1), nn.Conv2d(32, 16, 1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            x = self.body(x).relu_()
            return {"sum": (self.left(x) + self.right(x)).sigmoid(), "left": self.left(x)}

    image = torch.zeros(1, 3, 8, 8)
    assert sorted(pruning.output_layers(Two(), (image,))) == ["left", "right"]
    module, history = pruning.prune(Two(), Prune(0.5), (image.numpy(),), silent)
    assert history["widths"] == {"body": [32, 16], "left": [16, 16], "right": [16, 16]}
    assert module(image)["sum"].shape == (1, 16, 6, 6)


@pytest.mark.parametrize(
    ("module", "shape", "why"),
    [
        (nn.Linear(16, 4), (1, 16), "its only such layers yield the outputs"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), (1, 16), "it has no convolution and no dense layer"),
        (nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), (1, 16), r"'0' \(8 channels\).*multiple of 8"),
    ],
)
def test_nothing_to_prune_says_why(module: nn.Module, shape: tuple[int, ...], why: str) -> None:
    with pytest.raises(ModelError, match=rf"nothing to prune: .*{why}"):
        pruning.prune(module, Prune(0.3), (np.zeros(shape, np.float32),), silent)


def test_a_shape_fixed_in_forward_is_named() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 32, 3, padding=1), nn.Linear(32 * 16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x).relu().view(-1, 32 * 16))

    with pytest.raises(ModelError, match=r"flatten\(1\) or -1"):
        pruning.prune(Fixed(), Prune(0.5), (np.zeros((1, 3, 4, 4), np.float32),), silent)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingDependency, match=r"pip install 'edgeopt\[torch\]'"):
        pruning.prune(Residual(), Prune(0.5), samples().inputs, silent)


def test_recovery_repairs(source: nn.Module, pruned: tuple[nn.Module, dict[str, Any]], tmp_path: Path) -> None:
    data, seen = samples(), []
    wanted = outputs(source, data)
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    result = recovery.recover(pruned[0], source, data, Recover(12), tmp_path / "c", lambda *line: seen.append(line))
    agreement = (outputs(result, data).argmax(1) == wanted.argmax(1)).mean()
    assert agreement > 0.95
    assert [line[:2] for line in seen] == [(epoch + 1, 12) for epoch in range(12)]
    assert seen[-1][2] < seen[0][2]
    assert all(torch.equal(before[name], tensor) for name, tensor in source.state_dict().items())
    assert not same_state(result, pruned[0])
    assert not result.training


@pytest.mark.parametrize("labels", [None, "numbers"])
def test_other_tasks_learn_the_outputs(labels: str | None, source: nn.Module, tmp_path: Path) -> None:
    data = Data(samples().inputs, None if labels is None else np.zeros((96, 3), np.float32))
    module, _ = pruning.prune(source, Prune(0.4), data.inputs, silent)
    result = recovery.recover(module, source, data, Recover(12), tmp_path / "c", silent)
    wanted = outputs(source, data)
    error = ((outputs(result, data) - wanted) ** 2).mean() / wanted.var()
    assert error < 0.2
    assert error < ((outputs(module, data) - wanted) ** 2).mean() / wanted.var() / 2


@pytest.mark.parametrize("where", ["between epochs", "inside an epoch"])
def test_an_interrupted_recovery_ends_the_same(
    where: str, source: nn.Module, pruned: tuple[nn.Module, dict[str, Any]], tmp_path: Path
) -> None:
    whole = recovery.recover(pruned[0], source, samples(), Recover(4), tmp_path / "whole", silent)
    interrupted, calls = [True], [0]

    def stop(epoch: int, *_: Any) -> None:
        if where == "between epochs" and epoch == 2:
            raise KeyboardInterrupt

    def stop_inside(_module: Any, _inputs: Any) -> None:
        calls[0] += 1
        if where == "inside an epoch" and interrupted[0] and calls[0] == 6 * 2 + 3:
            raise KeyboardInterrupt

    hook = pruned[0].head.register_forward_pre_hook(stop_inside)
    with pytest.raises(KeyboardInterrupt):
        recovery.recover(pruned[0], source, samples(), Recover(4), tmp_path / "c", stop)
    interrupted[0] = False
    torch.manual_seed(99)
    rest: list[int] = []
    again = recovery.recover(
        pruned[0], source, samples(), Recover(4), tmp_path / "c", lambda epoch, *_: rest.append(epoch)
    )
    hook.remove()
    assert rest == [3, 4]
    assert same_state(whole, again)


def test_only_its_own_checkpoint_is_used(
    source: nn.Module, pruned: tuple[nn.Module, dict[str, Any]], tmp_path: Path
) -> None:
    def train(step: Recover) -> tuple[nn.Module, list[int]]:
        epochs: list[int] = []
        module = recovery.recover(pruned[0], source, samples(), step, tmp_path / "c", lambda e, *_: epochs.append(e))
        return module, epochs

    first, _ = train(Recover(2))
    finished, epochs = train(Recover(2))
    assert epochs == []
    assert same_state(first, finished)
    other, epochs = train(Recover(2, seed=1))
    assert epochs == [1, 2]
    assert not same_state(first, other)
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:1000])
    again, epochs = train(Recover(2))
    assert epochs == [1, 2]
    assert same_state(first, again)


def test_the_callers_random_numbers_are_left_alone(
    source: nn.Module, pruned: tuple[nn.Module, dict[str, Any]], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    recovery.recover(pruned[0], source, samples(), Recover(1), tmp_path / "c", silent)
    assert torch.equal(torch.rand(1), expected)


def test_what_cannot_be_recovered_is_named(
    source: nn.Module, pruned: tuple[nn.Module, dict[str, Any]], tmp_path: Path
) -> None:
    def train(data: Data, step: Recover) -> None:
        recovery.recover(pruned[0], source, data, step, tmp_path / "c", silent)

    with pytest.raises(PlanError, match="needs calibration samples to train on, there are 0"):
        train(Data((samples().inputs[0][:0],)), Recover(1))
    with pytest.raises(ModelError, match="labels go from 0 to 7, but the model has 3 classes"):
        train(Data(samples().inputs, np.arange(96) % 8), Recover(1))
    with pytest.raises(ModelError, match=r"diverged in epoch 1: the loss is .*; lower its learning_rate"):
        train(samples(), Recover(1, learning_rate=1e30))
    assert not (tmp_path / "c").exists()
