"""What a graph of channels gets wrong: such layers are left whole and named, and the rest is still the source model."""

from __future__ import annotations

import copy
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.compress import prune as pruning
from edgeopt.compress import recover as recovery
from edgeopt.errors import ConfigError, ModelError

if any(importlib.util.find_spec(name) is None for name in ("torch", "torch_pruning")):
    pytest.skip("needs edgeopt[torch]", allow_module_level=True)

import torch
from channel_models import MODELS, Net, body, conv
from torch import nn
from torch.nn import functional

torch.set_num_threads(1)


@dataclass(frozen=True)
class Prune:
    ratio: float = 0.5
    round_to: int = 4


@dataclass(frozen=True)
class Recover:
    epochs: int = 2
    learning_rate: float = 3e-3
    batch: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Data:
    inputs: tuple[np.ndarray, ...]
    labels: np.ndarray | None = None


def silent(*_: Any) -> None:
    pass


def images(n: int = 8, shape: tuple[int, ...] = (3, 8, 8)) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, *shape)).astype(np.float32)


def leaves(outputs: Any) -> list[np.ndarray]:
    from torch.utils._pytree import tree_leaves

    return [leaf.detach().numpy() for leaf in tree_leaves(outputs)]


def zeroed(source: nn.Module, history: dict[str, Any]) -> nn.Module:
    """The source with the cut channels at 0 where they are made, by a hook on each layer and norm."""
    twin = copy.deepcopy(source).eval()
    for name, is_out, rows in history["cuts"]:
        layer = twin.get_submodule(name)
        if is_out:
            axis = -1 if isinstance(layer, nn.Linear) else 1
            at = torch.tensor(rows)
            layer.register_forward_hook(lambda _l, _i, out, axis=axis, at=at: out.index_fill(axis, at, 0.0))
    state = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
    with torch.no_grad():
        for name, axis, rows in history["parameter_cuts"]:
            state[name].index_fill_(axis, torch.tensor(rows), 0)
    return twin


@pytest.mark.parametrize("kind", MODELS)
def test_a_pruned_model_is_the_source_with_the_cut_channels_at_zero(kind: str, tmp_path: Path) -> None:
    make, shape, cut, whole = MODELS[kind]
    torch.manual_seed(0)
    source, data = make().eval(), images(shape=shape)
    module, history = pruning.prune(source, Prune(), (data,), silent)
    assert {name for name, (before, after) in history["widths"].items() if after < before} == cut
    told = {own["layer"]: own["why"] for own in history["whole"] if own["layer"] not in history["kept"]}
    assert set(told) == whole
    assert all(told.values())
    fresh = torch.from_numpy(np.random.default_rng(9).normal(size=(16, *shape)).astype(np.float32))
    with torch.no_grad():
        for ours, theirs in zip(leaves(module(fresh)), leaves(zeroed(source, history)(fresh)), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    pruning.save(module, history, tmp_path)
    with torch.no_grad():
        for ours, again in zip(leaves(module(fresh)), leaves(pruning.restore(source, tmp_path)(fresh)), strict=True):
            np.testing.assert_array_equal(ours, again)


@pytest.mark.parametrize(
    ("kind", "layer", "why"),
    [
        ("shuffle", "a.0", "answers otherwise"),
        ("gru", "a", "IndexError"),
        ("assertion", "a.0", r"AssertionError: 16 channels are wanted \(channel_models.py, line \d+\)"),
        ("constant of its width", "a.0", "RuntimeError: The size of tensor"),
        ("group norm", "a.0", r"'move' \(GroupNorm\)"),
        ("transformer", "a", r"'t\.(norm\d' \(LayerNorm\)|self_attn' \(MultiheadAttention\))"),
        ("one tensor in two layers", "c", "'b.weight' and 'c.weight' are one tensor"),
        ("weight norm", "a", "weight_norm"),
        ("differences", "a.0", "meet themselves at other places"),
        ("second order", "b.0", "meet themselves at other places"),
        ("the number of a channel", "b.0", "number of a channel"),
        ("no gradient below", "a.0", "no gradient"),
    ],
)
def test_the_reason_is_the_true_one(kind: str, layer: str, why: str) -> None:
    make, shape, _, _ = MODELS[kind]
    torch.manual_seed(0)
    _, history = pruning.prune(make().eval(), Prune(), (images(shape=shape),), silent)
    (told,) = [own["why"] for own in history["whole"] if own["layer"] == layer]
    assert re.search(why, told), told


@pytest.mark.parametrize("named", ["a.0", "a", "a*"])
def test_layers_are_kept_by_name_or_pattern(named: str) -> None:
    _, history = pruning.prune(body(lambda x: x), Prune(0.4), (images(),), silent, [named])
    assert history["widths"]["a.0"] == [16, 16]
    assert history["widths"]["b.0"] == [16, 8]


def test_a_kept_layer_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'haed'.*did you mean head"):
        pruning.prune(body(lambda x: x), Prune(), (images(),), silent, ["haed"])


def test_a_sample_that_shows_nothing_is_no_proof() -> None:
    net = body(lambda x: x.flip(1)).eval()
    for part in net.modules():
        if getattr(part, "bias", None) is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.zero_()
    _, history = pruning.prune(net, Prune(), (np.zeros((4, 3, 8, 8), np.float32),), silent)
    assert history["widths"]["a.0"] == [16, 16]


def test_channels_that_are_always_zero_go_first() -> None:
    """Half of every layer is dead, so half of every layer costs nothing."""
    make, shape, _, _ = MODELS["depthwise, excited, residual"]
    torch.manual_seed(0)
    source = make().eval()
    with torch.no_grad():
        for layer in (part for name, part in source.named_modules() if name != "head"):
            for tensor in (getattr(layer, "weight", None), getattr(layer, "bias", None)):
                if tensor is not None:
                    tensor[1::2] = 0
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.zero_()
    module, history = pruning.prune(source, Prune(), (images(shape=shape),), silent)
    fresh = torch.from_numpy(images(16, shape))
    assert history["macs"][1] < history["macs"][0] / 1.9
    with torch.no_grad():
        np.testing.assert_allclose(module(fresh), source(fresh), atol=1e-6)


def test_widths_that_round_to_leaves_alone_are_told() -> None:
    net = Net(
        lambda net, x: net.head(net.c(net.b(net.a(x))).mean((2, 3))),
        a=conv(3, 24), b=conv(24, 8), c=conv(8, 32), head=nn.Linear(32, 4),
    )  # fmt: skip
    _, history = pruning.prune(net, Prune(0.7, 8), (images(),), silent)
    assert history["widths"] == {"a.0": [24, 8], "b.0": [8, 8], "c.0": [32, 8], "head": [4, 4]}
    (why,) = [own["why"] for own in history["whole"] if own["layer"] == "b.0"]
    assert "round_to = 8" in why


def test_frozen_models_are_pruned_and_models_without_gradients_are_refused() -> None:
    frozen = body(lambda x: x).requires_grad_(False)
    assert pruning.prune(frozen, Prune(), (images(),), silent)[1]["widths"]["a.0"] == [16, 8]
    blind = Net(torch.no_grad()(lambda net, x: net.head(net.a(x).mean((2, 3)))), a=conv(3, 16), head=nn.Linear(16, 4))
    with pytest.raises(ModelError, match=r"torch\.no_grad"):
        pruning.prune(blind, Prune(), (images(),), silent)
    noisy = Net(
        lambda net, x: net.head(functional.dropout(net.a(x).mean((2, 3)))), a=conv(3, 16), head=nn.Linear(16, 4)
    )
    with pytest.raises(ModelError, match="other answers each time"):
        pruning.prune(noisy, Prune(), (images(),), silent)


class Trained(Net):
    """Answers otherwise in training mode; `training_answer` says how."""

    def __init__(self, training_answer: Any) -> None:
        torch.manual_seed(0)
        super().__init__(
            lambda net, x: net.head(net.drop(net.b(net.a(x)).mean((2, 3)))),
            a=conv(3, 16), b=conv(16, 16), head=nn.Linear(16, 4), aux=nn.Linear(16, 4), drop=nn.Dropout(0.1),
        )  # fmt: skip
        self.training_answer = training_answer

    def forward(self, x: torch.Tensor) -> Any:
        return self.training_answer(self, x) if self.training else super().forward(x)


def wants_targets(_net: Net, _x: torch.Tensor) -> Any:
    raise ValueError("In training mode, targets should be passed")


@pytest.mark.parametrize(
    "training_answer",
    [
        lambda net, x: (net.head(net.b(net.a(x)).mean((2, 3))), net.aux(net.a(x).mean((2, 3)))),
        lambda net, x: [net.a(x), net.b(net.a(x))],
        lambda net, x: {"loss": net.head(net.b(net.a(x)).mean((2, 3))).sum()},
        wants_targets,
    ],
    ids=["auxiliary head", "raw maps", "a loss", "targets"],
)
def test_recovery_learns_what_the_model_answers_not_what_it_trains_by(training_answer: Any, tmp_path: Path) -> None:
    source, data = Trained(training_answer).eval(), Data((images(64),))
    pruned, _ = pruning.prune(source, Prune(), (images(4),), silent)
    losses: list[float] = []
    module = recovery.recover(
        pruned, source, data, Recover(4), tmp_path / "c", lambda _done, _of, loss: losses.append(loss)
    )
    assert losses[-1] < losses[0] / 2
    assert not any(part.training for part in module.modules())
    assert not torch.equal(module.a[1].running_mean, pruned.a[1].running_mean)  # its norms were in training mode
    assert torch.equal(module.aux.weight, pruned.aux.weight)


def test_outputs_that_cannot_be_learned_are_left_out(tmp_path: Path) -> None:
    def answer(net: Net, x: torch.Tensor) -> Any:
        logits = net.head(net.b(net.a(x)).mean((2, 3)))
        return {"logits": logits, "class": logits.argmax(1), "anchors": torch.ones(7, 2), "scale": torch.tensor(2.0)}

    source = Net(answer, a=conv(3, 16), b=conv(16, 16), head=nn.Linear(16, 4)).eval()
    pruned, _ = pruning.prune(source, Prune(), (images(4),), silent)
    for labels in (None, np.arange(64) % 4):
        said: list[tuple[Any, ...]] = []
        recovery.recover(
            pruned,
            source,
            Data((images(64),), labels),
            Recover(4),
            tmp_path / "c",
            lambda *one, said=said: said.append(one),
        )
        assert said[-1][2] < said[0][2]


def test_what_cannot_learn_is_said_with_its_line(tmp_path: Path) -> None:
    def learn(answer: Any, of: Any = None) -> None:
        layers = {"a": conv(3, 16), "b": conv(16, 16), "head": nn.Linear(16, 4)}
        student, teacher = Net(answer, **layers).eval(), Net(of or answer, **layers).eval()
        recovery.recover(student, teacher, Data((images(32),)), Recover(), tmp_path / "c", silent)

    def logits(net: Net, x: torch.Tensor) -> torch.Tensor:
        return net.head(net.b(net.a(x)).mean((2, 3)))

    with pytest.raises(ModelError, match=r"batch of 32.*test_pruning_proof.py, line.*recovery trains on batches"):
        learn(lambda net, x: logits(net, x).view(1, 4))
    with pytest.raises(ModelError, match="none is of floating-point numbers"):
        learn(lambda net, x: logits(net, x).argmax(1))
    with pytest.raises(ModelError, match=r"torch\.no_grad"):
        learn(torch.no_grad()(logits), logits)
