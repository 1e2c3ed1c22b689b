"""The contract of every lowering, with the real converters: from torch and from ONNX, what the board's adapter runs is
what was checked here."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgeopt_agent import runtimes
from edgeopt_agent.preprocess import apply

from edgeopt import onnx_model, parity
from edgeopt.errors import ModelError, PlanError
from edgeopt.lower import Lowered, abilities, quiet

if importlib.util.find_spec("torch") is None:
    pytest.skip("needs edgeopt[torch]", allow_module_level=True)

import torch
from torch import nn

torch.set_num_threads(1)
ABILITIES = abilities()
EVERY = [
    (runtime, source, scheme)
    for runtime, ability in ABILITIES.items()
    for source in ability.sources
    for schemes in ability.schemes.values()
    for scheme in schemes
]


class Small(nn.Module):
    """(n, 3, 8, 12) -> (n, 4)"""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.head = nn.Linear(16, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(self.features(image).relu(), 1), 1))


def images(n: int = 32) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, 3, 8, 12)).astype(np.float32)


def silent(_what: str, _done: int = 0, _total: int = 0) -> None:
    pass


@pytest.fixture(scope="session")
def small_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a file, with a free batch."""
    if importlib.util.find_spec("onnxscript") is None:
        pytest.skip("needs edgeopt[onnx]")
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    image = torch.from_numpy(images(2))
    free = {"image": {0: torch.export.Dim("n")}}
    with quiet():
        torch.onnx.export(Small().eval(), (image,), str(path), dynamo=True, external_data=False, dynamic_shapes=free)
    return path


def lowered(runtime: str, source: str, scheme: str, folder: Path, request: pytest.FixtureRequest) -> Lowered:
    missing = [name for name in ABILITIES[runtime].modules if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    model: Any = Small().eval() if source == "torch" else request.getfixturevalue("small_onnx")
    lowering = importlib.import_module(f"edgeopt.lower.{runtime}")
    made: Lowered = lowering.lower(model, scheme, (images(),), (images(),), folder, silent)
    return made


@pytest.mark.parametrize(("runtime", "source", "scheme"), EVERY)
def test_a_lowering_keeps_the_contract(
    runtime: str, source: str, scheme: str, tmp_path: Path, request: pytest.FixtureRequest, capfd: Any
) -> None:
    made = lowered(runtime, source, scheme, tmp_path, request)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert sorted(tmp_path.iterdir()) == sorted(made.paths)
    assert [spec.shape for spec in made.outputs] == [(1, 4)]
    with torch.no_grad():
        expected = Small().eval()(torch.from_numpy(images())).numpy()
    session = runtimes.load(runtime).load(str(made.paths[0]), 1, made.options)
    assert [tuple(tensor["shape"]) for tensor in session.inputs] == [spec.shape for spec in made.inputs]
    assert [tensor["dtype"] for tensor in session.inputs] == [spec.dtype for spec in made.inputs]
    rows = []
    for image in images():
        session.set_inputs([np.ascontiguousarray(apply(made.adapters[0], image[None]))])
        session.invoke()
        rows.append(session.get_outputs()[0][0])
    error = np.abs(np.stack(rows) - expected).max() / np.abs(expected).max()
    assert error < (0.1 if scheme.startswith("int8") else 0.03 if scheme.startswith("fp16") else 1e-3)
    stages = made.notes["parity"]
    assert stages[0]["stage"].startswith("conversion to")
    assert all(stage["samples"] == parity.SAMPLES for stage in stages)
    between = ["pre-processing"] if (runtime, scheme) == ("onnxruntime", "int8") else []
    assert [stage["stage"] for stage in stages[1:-1]] == between
    assert len(stages) == (1 if scheme == "fp32" else 2 + len(between))
    executed = session.executed()
    if scheme.startswith("int8") and executed["macs"] is not None:
        assert executed["macs"]["int8"] / sum(executed["macs"].values()) > 0.95
    if scheme in ("fp32", "fp16") and executed["macs"] is not None:  # stored as float16 is not computed in it
        assert set(executed["macs"]) <= {"f32", "float32"}
    if scheme == "fp16-compute":
        assert set(executed["macs"]) == {executed["precision"]}


@pytest.mark.parametrize("runtime", ABILITIES)
def test_a_scheme_that_does_not_exist_is_refused(runtime: str, tmp_path: Path) -> None:
    lowering = importlib.import_module(f"edgeopt.lower.{runtime}")
    with pytest.raises(PlanError, match=f"runtime '{runtime}' has no scheme 'int4'; allowed: fp32"):
        lowering.lower(Small(), "int4", (images(),), (), tmp_path, silent)
    with pytest.raises(PlanError, match="scheme 'int8' needs calibration samples and there are none"):
        lowering.lower(Small(), "int8", (images(),), (images()[:0],), tmp_path, silent)


@pytest.mark.parametrize("runtime", [name for name, ability in ABILITIES.items() if "onnx" in ability.sources])
def test_an_operator_that_does_not_exist_is_named(runtime: str, tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    node = helper.make_node("Teleport", ["x"], ["y"], name="beam_up", domain="starfleet")
    graph = helper.make_graph([node], "g", ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("starfleet", 1)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    lowering = importlib.import_module(f"edgeopt.lower.{runtime}")
    with pytest.raises(ModelError, match="Teleport"):
        lowering.lower(tmp_path / "m.onnx", "fp32", (np.ones((2, 4), np.float32),), (), tmp_path, silent)


def test_an_onnx_source_is_run_in_batches_or_one_by_one(small_onnx: Path, tmp_path: Path) -> None:
    from onnx import load, save

    told: list[tuple[int, int]] = []
    whole = onnx_model.run(small_onnx, (images(),), lambda done, total: told.append((done, total)))
    assert told == [(32, 32)]
    fixed = load(small_onnx)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    save(fixed, tmp_path / "fixed.onnx")
    single = onnx_model.run(tmp_path / "fixed.onnx", (images(),), lambda done, total: told.append((done, total)))
    assert told[-1] == (32, 32)
    assert len(told) == 33
    np.testing.assert_allclose(whole[0], single[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (images().astype(np.float64), r"takes float32, the prepared samples are float64; add \{ op = \"cast\""),
        (images()[:, :2], r"takes \['.*', 3, 8, 12\], the prepared samples are \[32, 2, 8, 12\]"),
    ],
)
def test_samples_that_an_onnx_source_does_not_take(small_onnx: Path, array: np.ndarray, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        onnx_model.run(small_onnx, (array,), silent)  # type: ignore[arg-type]


def test_a_file_cut_in_half_is_no_model(small_onnx: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.onnx"
    half.write_bytes(small_onnx.read_bytes()[: small_onnx.stat().st_size // 2])
    with pytest.raises(ModelError, match=r"half\.onnx is not a whole ONNX model"):
        onnx_model.graph_hash(half)
