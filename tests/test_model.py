"""The source model: made by a user's factory, known by its graph and weights, run in batches as the reference."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeopt import model
from edgeopt.errors import ConfigError, EdgeoptError, MissingDependency, ModelError

EXAMPLE_INPUT = (np.ones((3, 4), np.float32),)


def factory(folder: Path, text: str, name: str = "users_net") -> str:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return f"{name}:load"


def load(folder: Path, text: str, **arguments: Any) -> Any:
    return model.load_torch(factory(folder, text), folder, arguments)


NET = """
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.head = torch.nn.Linear(4, 3)
            self.register_buffer("shift", torch.zeros(3), persistent=False)

        def forward(self, x):
            return self.head(x) * 2.0 + self.shift

    def load():
        return Net()
"""


def test_graph_hash_is_the_same_for_the_same_model(tmp_path: Path) -> None:
    first = model.graph_hash(load(tmp_path, NET), EXAMPLE_INPUT)
    assert len(first) == 64
    assert model.graph_hash(load(tmp_path, NET), EXAMPLE_INPUT) == first
    commented = NET.replace("            return self.head", "            # twice\n            return self.head")
    assert commented != NET
    assert model.graph_hash(load(tmp_path, commented), EXAMPLE_INPUT) == first
    moved = tmp_path / "elsewhere"
    assert model.graph_hash(load(moved, NET), EXAMPLE_INPUT) == first
    assert model.graph_hash(load(tmp_path, NET), (np.zeros((9, 4), np.float32),)) == first, "values are no part of it"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("manual_seed(0)", "manual_seed(1)"),
        ("* 2.0", "* 3.0"),
        ("* 2.0", "/ 2.0"),
        ("self.head(x)", "self.head(x).relu()"),
        ("torch.zeros(3)", "torch.full((3,), 1e-6)"),
        ("Linear(4, 3)", "Linear(4, 3, bias=False)"),
        ("return Net()", "net = Net(); net.head.weight.data[2, 3] += 1e-6; return net"),
        ("return Net()", "return Net().bfloat16().float()"),
    ],
)
def test_graph_hash_tells_models_apart(tmp_path: Path, old: str, new: str) -> None:
    first = model.graph_hash(load(tmp_path, NET), EXAMPLE_INPUT)
    assert model.graph_hash(load(tmp_path, NET.replace(old, new)), EXAMPLE_INPUT) != first


def test_graph_hash_knows_the_input_and_every_weight_type(tmp_path: Path) -> None:
    net = load(tmp_path, NET)
    wide = load(tmp_path, NET.replace("self.head(x)", "self.head(x[..., :4])"))
    assert model.graph_hash(wide, EXAMPLE_INPUT) != model.graph_hash(wide, (np.ones((1, 5), np.float32),))
    assert len(model.graph_hash(net.half(), (np.ones((1, 4), np.float16),))) == 64
    odd = load(tmp_path, NET.replace("torch.zeros(3)", "torch.zeros((), dtype=torch.bfloat16)"))
    assert len(model.graph_hash(odd, EXAMPLE_INPUT)) == 64


@pytest.mark.parametrize("count", [1, 63, 64, 65, 130])
def test_batches_answer_as_single_samples(tmp_path: Path, count: int) -> None:
    net = load(tmp_path, NET.replace("+ self.shift", "+ self.shift, {'a': 1}['a'] * x[:, :2]"))
    inputs = np.random.default_rng(count).normal(size=(count, 4)).astype(np.float32)
    together = model.run_torch(net, (inputs,))
    assert [output.shape for output in together] == [(count, 3), (count, 2)]
    with torch.no_grad():
        for row in range(count):
            for output, single in zip(together, net(torch.from_numpy(inputs[row : row + 1])), strict=True):
                np.testing.assert_allclose(output[row], single[0].numpy(), rtol=1e-5, atol=1e-6)


def returning(function: Callable[[torch.Tensor], Any]) -> torch.nn.Module:
    class Returning(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return function(x)

    return Returning().eval()


def test_outputs_of_every_shape_of_answer() -> None:
    inputs = (np.ones((70, 4), np.float32),)
    for function in (lambda x: (x, x), lambda x: [x, x], lambda x: {"a": x, "b": x}):
        assert [output.shape for output in model.run_torch(returning(function), inputs)] == [(70, 4), (70, 4)]
    (half,) = model.run_torch(returning(lambda x: x.bfloat16()), inputs)
    assert half.dtype == np.float32


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda _: None, "output 0 of the source model is NoneType; every output must be a tensor"),
        (lambda x: (x, 1), "output 1 of the source model is int"),
        (lambda _: (), "returned no output"),
        (lambda x: x.sum(), r"output 0 .* has shape \(\) for 64 samples; the first axis"),
        (lambda x: x.reshape(-1), r"has shape \(256,\) for 64 samples"),
        (lambda x: x[:, : len(x) // 16], "change their number or shape between batches"),
        (lambda x: x / 0, r"output 0 of the source model is NaN or infinite for 70 of 70 samples, first for sample 0"),
        (lambda x: x @ torch.ones(5, 2), r"samples 0 to 63, \(64, 4\) float32, failed: RuntimeError: .*test_model.py"),
    ],
)
def test_answers_that_cannot_be_used(function: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        model.run_torch(returning(function), (np.ones((70, 4), np.float32),))


def test_check_finite_counts_samples_and_names_the_first() -> None:
    whole = np.zeros((5, 2, 2), np.float32)
    broken = whole.copy()
    broken[3, 0, 1], broken[4] = np.nan, -np.inf
    model.check_finite([whole, np.arange(5)], "it")
    with pytest.raises(ModelError, match="output 1 of it is NaN or infinite for 2 of 5 samples, first for sample 3;"):
        model.check_finite([whole, broken], "it")


def test_nan_weights_are_named_and_masks_are_allowed(tmp_path: Path) -> None:
    spoiled = "net = Net(); net.head.bias.data[0] = float('nan'); return net"
    with pytest.raises(ModelError, match=r"1 of 2 weights hold NaN, first 'head\.bias'"):
        load(tmp_path, NET.replace("return Net()", spoiled))
    mask = "net = Net(); net.register_buffer('mask', torch.full((3,), float('-inf'))); return net"
    assert load(tmp_path, NET.replace("return Net()", mask)).mask.isinf().all()


def test_factories_get_their_arguments_and_models_are_in_eval_mode(tmp_path: Path) -> None:
    net = load(
        tmp_path, "import torch\ndef load(width, *, bias=True):\n    return torch.nn.Linear(width, 2, bias)", width=3
    )
    assert (net.in_features, net.training) == (3, False)


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("def lode(): ...", ConfigError, "'users_net' has no function 'load'; did you mean lode?"),
        ("load = 3", ConfigError, "has no function 'load'; functions there: none"),
        ("from os.path import join\ndef make(): ...", ConfigError, "functions there: make"),
        (
            "def load(width, depth=2): ...",
            ConfigError,
            r"missing a required argument: 'width'; it takes \(width, depth=2\)",
        ),
        ("def load(): return 3", ModelError, "returned int; it must return a torch.nn.Module"),
        (
            "def load():\n    raise KeyError('head.weight')",
            ModelError,
            r"KeyError: 'head.weight' \(users_net.py, line 2\)",
        ),
        ("def load():\n    raise SystemExit('run train.py')", ModelError, r"SystemExit: run train.py \(users_net.py"),
        ("import json\ndef load(): json.loads('{')", ModelError, r"JSONDecodeError: .* \(users_net.py, line 2\)"),
        ("def load(:", ModelError, r"importing 'users_net' failed: SyntaxError: .*users_net.py, line 1"),
        (
            "1 / 0",
            ModelError,
            r"importing 'users_net' failed: ZeroDivisionError: division by zero \(users_net.py, line 1\)",
        ),
        (
            "import no_such",
            MissingDependency,
            r"needs 'no_such', which is not installed for .*python.*users_net.py, line 1",
        ),
        ("def load():\n    import no_such.part", MissingDependency, r"the function needs 'no_such'.*line 2"),
    ],
)
def test_factories_that_fail(tmp_path: Path, text: str, kind: type[EdgeoptError], said: str) -> None:
    with pytest.raises(kind, match=said) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith("[model] torch = 'users_net:load'")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("users_nett:load", "no module 'users_nett' in .*; did you mean users_net?"),
        ("users_net.py:load", "no module 'users_net.py' in .*; did you mean users_net?"),
        ("zzz.part:load", "no module 'zzz' in .*; modules there: users_net"),
    ],
)
def test_modules_that_are_not_there(tmp_path: Path, spec: str, said: str) -> None:
    factory(tmp_path, NET)
    with pytest.raises(ConfigError, match=said):
        model.call_factory(spec, tmp_path, {}, "[model] torch")


def test_a_folder_named_as_the_project_does_not_hide_the_line(tmp_path: Path) -> None:
    folder = tmp_path / "edgeopt" / "examples"
    folder.mkdir(parents=True)
    with pytest.raises(ModelError, match=r"ValueError: no \(users_net.py, line 2\)"):
        load(folder, "def load():\n    raise ValueError('no')")


def test_equal_names_in_two_folders_do_not_mix(tmp_path: Path) -> None:
    for number in (1, 2):
        folder = tmp_path / f"project{number}"
        factory(
            folder, "from users_parts import width\nfrom users_parts.deep import depth\ndef load(): return width, depth"
        )
        (folder / "users_parts").mkdir()
        (folder / "users_parts" / "__init__.py").write_text(f"width = {number}")
        (folder / "users_parts" / "deep.py").write_text(f"depth = {10 * number}")
    for number in (1, 2, 1):
        found = model.call_factory("users_net:load", tmp_path / f"project{number}", {}, "key")
        assert found == (number, 10 * number)
    assert not [path for path in sys.path if str(tmp_path) in path]


def test_a_module_that_was_edited_is_read_again(tmp_path: Path) -> None:
    for number in range(3):  # same size, and perhaps the same second
        spec = factory(tmp_path, f"def load(): return {number}")
        assert model.call_factory(spec, tmp_path, {}, "key") == number


def test_nothing_is_written_beside_the_users_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    load(tmp_path, NET)
    assert [path.name for path in tmp_path.iterdir()] == ["users_net.py"]
    assert not sys.dont_write_bytecode


def test_installed_packages_stay_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many of them cannot be imported twice."""
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    packages = tmp_path / "dist-packages"
    packages.mkdir()
    (packages / "installed_here.py").write_text("")
    monkeypatch.syspath_prepend(packages)
    spec = factory(tmp_path / "project", "import colorsys, installed_here\ndef load(): return colorsys, installed_here")
    first = model.call_factory(spec, tmp_path / "project", {}, "key")
    assert model.call_factory(spec, tmp_path / "project", {}, "key") == first


def test_a_failed_factory_leaves_the_import_path_as_it_was(tmp_path: Path) -> None:
    before = list(sys.path)
    with pytest.raises(ModelError):
        load(tmp_path, "1 / 0")
    assert sys.path == before
