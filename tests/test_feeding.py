"""bench, compare and bundle take the samples of the source model, by its names and in its layout, as quantize does."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import run_cli, run_quick

from edgeopt import bundle as bundles
from edgeopt import formats

for package in ("torch", "litert_torch", "onnxscript"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}", allow_module_level=True)

NET = """
import torch
from torch import nn
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    def forward(self, image, depth):
        return (torch.relu(self.a(image)) - 20 * torch.relu(self.b(depth))).mean((2, 3))
"""
TRANSPOSE = {"op": "transpose", "axes": [0, 2, 3, 1]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two inputs of one shape, the same in either layout; their samples the other way round beside other arrays; the
    model as TFLite and ONNX."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    image, depth = (rng.normal(size=(24, 8, 8, 8)).astype("f4") for _ in range(2))
    others = {"label": np.arange(24) % 8, "names": np.array(["a", "b"], dtype=object)}
    np.savez(folder / "x.npz", **others, depth=depth, image=image)
    for runtime, out in (("tflite", "net.tflite"), ("onnxruntime", "net.onnx")):
        given = ["--inputs", "x.npz", "--to", runtime, "--out", out]
        done = run_cli("convert", "net:Two", *given, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "← array image" in done.stdout
        assert "left alone: label, names" in done.stdout
    return folder


def source_outputs(project: Path) -> np.ndarray:
    from edgeopt import onnx_model
    from edgeopt.model import untold

    with np.load(project / "x.npz", allow_pickle=False) as arrays:
        return onnx_model.run(project / "net.onnx", (arrays["image"], arrays["depth"]), untold)[0]


def test_an_artifact_says_what_its_source_took(project: Path) -> None:
    contents = formats.read(project / "net.tflite")
    assert [(own.name, list(own.steps)) for own in contents.fed] == [("image", [TRANSPOSE]), ("depth", [TRANSPOSE])]
    assert contents.names == ("image", "depth")
    assert formats.read(project / "net.onnx").names == ("image", "depth")


def test_compare_adapts_what_a_conversion_changed(project: Path, tmp_path: Path) -> None:
    given = ["--inputs", project / "x.npz", "--root", tmp_path / "board", "--json"]
    done = run_quick("compare", project / "net.onnx", project / "net.tflite", *given)
    assert done.returncode == 0, done.stderr
    first, second = (result["inputs"] for result in json.loads(done.stdout)["results"])
    pairs = [{"input": name, "array": name} for name in ("image", "depth")]
    assert first == {"inputs": pairs, "by": "name", "left": ["label", "names"], "steps": [[], []]}
    assert second == {**first, "steps": [[TRANSPOSE], [TRANSPOSE]]}
    shown = run_quick("bench", project / "net.tflite", *given[:-1])
    assert shown.returncode == 0, shown.stderr
    assert "image ← array image, transpose; depth ← array depth, transpose" in " ".join(shown.stdout.split())
    assert "left alone: label, names" in shown.stdout


def test_a_bundle_runs_on_the_sources_samples(project: Path, tmp_path: Path) -> None:
    out, board = tmp_path / "net.edgeopt", ["--root", tmp_path / "board"]
    given = ["--inputs", project / "x.npz", "--labels", "label", "--metric", "top1", "--device", "local", *board]
    done = run_quick("bundle", project / "net.tflite", "--profile", "generic-x86-64", *given, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["preprocess"] == [[TRANSPOSE], [TRANSPOSE]]
    assert document["binding"]["left"] == ["names"]
    opened = bundles.read(out)
    assert opened.manifest.lineage["inputs"] == ["image", "depth"]
    health = np.load(__import__("io").BytesIO(opened.blob(opened.manifest.files["health.npz"])))
    found, order = health["expected0"], np.random.default_rng(0).permutation(24)
    np.testing.assert_allclose(found, source_outputs(project)[order], rtol=1e-3, atol=1e-3)
    again = run_quick("bench", out, "--inputs", project / "x.npz", *board, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["results"][0]["inputs"]["steps"] == [[TRANSPOSE], [TRANSPOSE]]


def test_samples_that_do_not_fit_or_cannot_be_told_apart(project: Path, tmp_path: Path) -> None:
    with np.load(project / "x.npz") as arrays:
        image, depth = arrays["image"], arrays["depth"]
    np.savez(tmp_path / "short.npz", image=image[..., :4], depth=depth)
    np.savez(tmp_path / "named.npz", left=image, right=depth)
    np.savez(tmp_path / "half.npz", image=image, right=depth)
    for name, words in {
        "short": ["'image' of the source", "[1, 8, 8, 4]", "transpose"],
        "named": ["cannot be told", "left, right", "image, depth"],
        "half": ["none is named 'depth'"],
    }.items():
        done = run_cli("bench", project / "net.tflite", "--inputs", tmp_path / f"{name}.npz", "--root", tmp_path / "b")
        assert done.returncode == 2, done.stderr
        assert all(word in done.stderr for word in words), done.stderr
    done = run_cli("bench", project / "net.tflite", "--random", "--labels", "y")
    assert done.returncode == 2
    assert "--labels y" in done.stderr


def test_models_that_take_their_inputs_in_other_orders(project: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(str(project / "net.onnx"))
    ports = list(model.graph.input)
    del model.graph.input[:]
    model.graph.input.extend(reversed(ports))
    onnx.save(model, str(tmp_path / "other.onnx"))
    given = ["--inputs", project / "x.npz", "--root", tmp_path / "board"]
    done = run_cli("compare", project / "net.onnx", tmp_path / "other.onnx", *given)
    assert done.returncode == 2
    assert "takes the arrays image, depth, and other takes depth, image" in done.stderr
