"""Which array is which input: by the names of forward, of an exported graph or an ONNX file, and never by a guess."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt import data, lower, model, origin, plan, signature, stages
from edgeopt.binding import Takes, bind
from edgeopt.cache import Cache
from edgeopt.errors import ConfigError, ModelError
from edgeopt.tools import lowering, source

if importlib.util.find_spec("torch") is None:
    pytest.skip("needs edgeopt[torch]", allow_module_level=True)

import torch
from torch import nn

TWO = Takes(("image", "depth"), ("image", "depth"))
MASKED = Takes(("x", "mask"), ("x",))


@pytest.mark.parametrize(
    ("takes", "given", "inputs", "arrays", "left", "by"),
    [
        (TWO, ["depth", "image"], ["image", "depth"], ["image", "depth"], [], "name"),
        (TWO, ["label", "depth", "image"], ["image", "depth"], ["image", "depth"], ["label"], "name"),
        (TWO, ["arr_0", "arr_1"], ["image", "depth"], ["arr_0", "arr_1"], [], "order"),
        (MASKED, ["x", "label"], ["x"], ["x"], ["label"], "name"),
        (MASKED, ["mask", "x"], ["x", "mask"], ["x", "mask"], [], "name"),
        (MASKED, ["picture"], ["x"], ["picture"], [], "order"),
        (Takes((), (), "keywords"), ["b", "a"], ["b", "a"], ["b", "a"], [], "name"),
        (Takes((), (), "positions"), ["arr_0", "arr_1"], ["input 0", "input 1"], ["arr_0", "arr_1"], [], "order"),
    ],
)
def test_names_decide(
    takes: Takes, given: list[str], inputs: list[str], arrays: list[str], left: list, by: str
) -> None:
    found = bind(takes, given, "--inputs x.npz")
    assert [list(found.inputs), list(found.arrays), list(found.left), found.by] == [inputs, arrays, left, by]


@pytest.mark.parametrize(
    ("takes", "given", "words"),
    [
        (TWO, ["left", "right"], "cannot be told"),
        (TWO, ["arr_1", "arr_0"], "cannot be told"),
        (TWO, ["image", "dpeth"], "none is named 'depth'.*did you mean dpeth"),
        (TWO, ["a", "b", "c"], "3 arrays .*takes 2"),
        (TWO, ["a"], "1 arrays .*takes 2"),
        (MASKED, ["mask"], "none is named 'x'"),
        (MASKED, ["x", "maks"], "optional input 'mask', and 'maks' nearly is"),
        (MASKED, ["a", "b"], "cannot be told"),
        (Takes((), (), "positions"), ["a", "b"], "cannot be told"),
    ],
)
def test_a_doubt_is_an_error(takes: Takes, given: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        bind(takes, given, "--inputs x.npz")


def test_a_run_files_order_is_meant_but_names_go_before_it() -> None:
    assert bind(TWO, ["left", "right"], "[task] inputs", is_ordered=True).by == "order"
    assert bind(TWO, ["depth", "image"], "[task] inputs", is_ordered=True).arrays == ("image", "depth")
    for given in (["image", "right"], ["image", "depth", "label"]):
        with pytest.raises(ConfigError, match=r"right|label"):
            bind(TWO, given, "[task] inputs", is_ordered=True)


class Plain(nn.Module):
    def forward(self, image: torch.Tensor, depth: torch.Tensor) -> Any:
        return {"scores": image.mean((1, 2, 3)) - 20 * depth.mean((1, 2, 3)), "boxes": image[:, 0]}


class Keywords(Plain):
    def forward(self, *, depth: torch.Tensor, image: torch.Tensor) -> Any:
        return super().forward(image, depth)


class Middle(Plain):
    def forward(self, image: torch.Tensor, info: torch.Tensor | None = None, depth: torch.Tensor | None = None) -> Any:
        assert info is None
        return super().forward(image, depth)


class Dictionary(Plain):
    def forward(self, batch: dict[str, torch.Tensor]) -> Any:
        return super().forward(batch["image"], batch["depth"])


class Anything(Plain):
    def forward(self, **batch: torch.Tensor) -> Any:
        return super().forward(**batch)


def pictures(n: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(n, 3, 8, 8)).astype("f4") for name in ("depth", "image")}


def exported() -> nn.Module:
    return torch.export.export(Plain(), (torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8))).module()


def loaded(module: nn.Module, tmp_path: Path, **arrays: np.ndarray) -> tuple[Any, source.Given]:
    """The module as a tool loads it, and the samples of a file as it binds them."""
    np.savez(tmp_path / "x.npz", **arrays)
    (tmp_path / "made.py").write_text(
        "module = None\ndef make():\n    from test_binding import CURRENT\n    return CURRENT\n"
    )
    global CURRENT
    CURRENT = module
    opened = source.open_source("made:make")
    given = source.read_samples(opened, tmp_path / "x.npz", (), None)
    return source.load(opened, given, tmp_path)


CURRENT: nn.Module | None = None


@pytest.mark.parametrize(
    "made", [Plain, Keywords, Middle, Dictionary, exported, lambda: nn.DataParallel(Plain()), lambda: Anything()]
)
def test_every_way_to_take_inputs(made: Any, tmp_path: Path) -> None:
    arrays = pictures()
    more = {} if made is not Anything and getattr(made, "__name__", "") == "<lambda>" else {"label": np.arange(6)}
    module, given = loaded(made(), tmp_path, **arrays, **more)
    assert given.binding is not None
    assert set(given.binding.inputs) == {"image", "depth"}
    assert set(given.binding.left) == set(more)
    scores, boxes = model.run_torch(module, given.arrays)
    expected = arrays["image"].mean((1, 2, 3)) - 20 * arrays["depth"].mean((1, 2, 3))
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(boxes, arrays["image"][:, 0])
    assert given.outputs == ("scores", "boxes")


def test_an_export_keeps_the_names_of_what_is_taken_by_name() -> None:
    module = signature.by_position(Keywords(), ("image", "depth"))
    program = torch.export.export(module, (torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)))
    assert program.graph_signature.user_inputs == ("image", "depth")


def test_arrays_of_objects_and_of_other_lengths_are_left_alone(tmp_path: Path) -> None:
    others = {"names": np.array(["a", None], dtype=object), "classes": np.arange(3), "text": np.array(["b"] * 6)}
    _, given = loaded(Plain(), tmp_path, **pictures(), **others)
    assert given.entry()["left"] == ["classes", "text", "names"]
    with pytest.raises(ConfigError, match="array 'image' has type"):
        loaded(Plain(), tmp_path, image=np.array(["b"] * 6), depth=np.array(["b"] * 6))
    with pytest.raises(ConfigError, match="image: 6, depth: 5"):
        loaded(Plain(), tmp_path, image=pictures()["image"], depth=pictures()["depth"][:5])


def test_a_dictionary_that_is_not_said_to_be_one(tmp_path: Path) -> None:
    class Bare(nn.Module):
        def forward(self, batch):  # type: ignore[no-untyped-def]
            return batch["image"] - batch["depth"]

    with pytest.raises(ConfigError, match=r"say so in forward: batch: dict\[str, torch.Tensor\]"):
        loaded(Bare(), tmp_path, **pictures())


RUN_FILE = """
name = "two"
[model]
{model}
[task]
arrays = "data.npz"
inputs = {inputs}
labels = "y"
metric = "top1"
[splits]
calibration = {{ count = 4 }}
selection = {{ count = 4 }}
final = {{ count = 4 }}
[device]
profile = "generic-x86-64"
[ladder]
rungs = ["fp32"]
floor_drop = 0.2
"""
FACTORY = """
import torch
from torch import nn
class Two(nn.Module):
    def forward(self, image, depth):
        return (image - 20 * depth).mean((2, 3))
load = Two
"""


def opened(folder: Path, inputs: list[str], of: str = 'torch = "net:load"', arrays: Any = None) -> stages.Workbench:
    folder.mkdir(exist_ok=True)
    arrays = arrays or pictures(12)
    (folder / "net.py").write_text(FACTORY)
    np.savez(folder / "data.npz", y=np.arange(12) % 3, **arrays)
    (folder / "edgeopt.toml").write_text(RUN_FILE.format(inputs=str(inputs).replace("'", '"'), model=of))
    made = plan.load(folder, lower.abilities())
    cache = Cache(folder / "cache")
    said: list[dict[str, Any]] = []
    return stages.open_workbench(made, data.opened(made, cache, said.append), cache, said.append)


def two_onnx(path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper, save

    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in ("image", "depth")]
    nodes = [
        helper.make_node("Mul", ["depth", "k"], ["d"]),
        helper.make_node("Sub", ["image", "d"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["g"]),
        helper.make_node("Flatten", ["g"], ["y"]),
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    constant = numpy_helper.from_array(np.array(20, "f4"), "k")
    graph = helper.make_graph(nodes, "g", ports, [out], [constant])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.mark.parametrize("of", ['torch = "net:load"', 'onnx = "two.onnx"'])
def test_a_run_files_inputs_are_bound_by_name(of: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    if "onnx" in of:
        pytest.importorskip("onnxruntime")
        two_onnx(folder / "two.onnx")
    bench = opened(folder, ["depth", "image"], of)
    assert bench.plan.run_file.task.inputs == ("image", "depth")
    assert any("image ← image, depth ← depth (by name)" in note for note in bench.plan.notes)
    (outputs,) = stages.reference(bench, "selection")
    image, depth = bench.splits["selection"].inputs
    np.testing.assert_allclose(outputs, (image - 20 * depth).mean((2, 3)), rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match=r"\[task\] inputs: .*'depth'"):
        opened(folder, ["image", "other"], of, {"image": pictures(12)["image"], "other": pictures(12)["depth"]})


def test_other_names_are_taken_in_the_run_files_order_and_told(tmp_path: Path) -> None:
    arrays = {"first": pictures(12)["image"], "second": pictures(12)["depth"]}
    bench = opened(tmp_path / "run", ["first", "second"], arrays=arrays)
    assert any("image ← first, depth ← second (by their order)" in note for note in bench.plan.notes)
    assert not isinstance(origin.load(bench.plan)[0], Path)


def test_a_tool_tells_the_mapping(tmp_path: Path) -> None:
    """Two inputs of one shape, saved the other way round: the artifact is the same, and so is its error."""
    pytest.importorskip("onnxscript")
    (tmp_path / "net.py").write_text(FACTORY)
    np.savez(tmp_path / "x.npz", label=np.arange(6), **pictures())
    opened_source = source.open_source("net:load")
    given = source.read_samples(opened_source, tmp_path / "x.npz", (), None)
    where = (tmp_path / "o.onnx", tmp_path)
    found = lowering.convert(opened_source, given, "onnxruntime", "fp32", *where, lambda _: None)
    pairs = [{"input": name, "array": name} for name in ("image", "depth")]
    assert found["binding"] == {"inputs": pairs, "by": "name", "left": ["label"]}
    assert [own["name"] for own in found["inputs"]] == ["image", "depth"]


def test_a_quantized_torch_model_is_recognized(tmp_path: Path) -> None:
    quantized = pytest.importorskip("torch.ao.nn.quantized")
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\nload = lambda: nn.Sequential(torch.ao.nn.quantized.Linear(4, 4))\n"
    )
    assert quantized.Linear
    with pytest.raises(ModelError, match="int8 already: layer '0'"):
        model.load_torch("net:load", tmp_path, {})
