"""--shape: random tensors for models whose sizes are free, in bench, compare, load and bundle."""

from __future__ import annotations

import json
from pathlib import Path

import model_files
import numpy as np
import pytest
from conftest import run_cli, run_quick

from edgeopt import bundle as bundles

pytest.importorskip("onnx")
FREE = ("n", 3, "h", "w")


def as_onnx(folder: Path) -> Path:
    pytest.importorskip("onnxruntime")
    return model_files.conv_onnx(folder / "free.onnx", shape=FREE)


def as_ir(folder: Path) -> Path:
    openvino = pytest.importorskip("openvino")
    made = openvino.convert_model(model_files.conv_onnx(folder / "source.onnx", shape=FREE))
    openvino.save_model(made, folder / "free.xml", compress_to_fp16=False)
    return folder / "free.xml"


@pytest.mark.parametrize("make", [as_onnx, as_ir])
def test_a_model_of_free_sizes_is_measured_in_the_shape_that_is_asked_for(tmp_path: Path, make) -> None:
    """The runtime tells how many multiply-accumulates it did: 8 filters of 3 x 3 x 3 at every place."""
    model, root = make(tmp_path), ["--root", tmp_path / "board", "--json"]
    for height, width in ((8, 8), (16, 24)):
        done = run_quick("bench", model, "--shape", f"1,3,{height},{width}", "--operators", "--no-repeat", *root)
        assert done.returncode == 0, done.stderr
        (result,) = json.loads(done.stdout)["results"]
        assert "random inputs" in result["marks"]
        done_macs = [own["macs"] for own in result["operators"] if own["op"].startswith("Conv")]
        assert done_macs == [8 * 27 * height * width]


def test_compare_and_load_take_it_too(tmp_path: Path) -> None:
    model, root = as_onnx(tmp_path), ["--root", tmp_path / "board", "--json"]
    shape = ["--shape", "1,3,16,16", "--no-repeat"]
    compared = run_quick("compare", model, as_ir(tmp_path), *shape, *root)
    assert compared.returncode == 0, compared.stderr
    assert ["random inputs" in one["marks"] for one in json.loads(compared.stdout)["results"]] == [True, True]
    loaded = run_quick("load", model, *shape, "--seconds", "1", "--streams", "1", "--rate", "5", *root)
    assert loaded.returncode == 0, loaded.stderr
    assert "random inputs" in json.loads(loaded.stdout)["marks"]


def test_a_bundle_of_such_a_model_is_checked_in_that_shape(tmp_path: Path) -> None:
    model, root = as_onnx(tmp_path), ["--root", tmp_path / "board"]
    out = tmp_path / "free.edgeopt"
    given = ["--profile", "generic-x86-64", "--device", "local", *root, "--shape", "1,3,16,16", "--out", out]
    done = run_cli("bundle", model, *given)
    assert done.returncode == 0, done.stderr
    opened = bundles.read(out)
    data = opened.blob(opened.manifest.files[opened.manifest.health.file])
    (tmp_path / "health.npz").write_bytes(data)
    assert np.load(tmp_path / "health.npz")["input0"].shape[1:] == (3, 16, 16)
    assert run_cli("flash", out, *root).returncode == 0


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ((), "fix them with --shape, once per input, or give real inputs with --inputs FILE.npz"),
        (("3,8,8",), "--shape 3,8,8: the first size is the sample's and must be 1"),
        (("1,3,8,8", "1,4"), "--shape is given 2 times, the model takes 1 inputs: 'image'"),
        (("1,4,8,8",), "input 'image' float32 [?, 3, ?, ?], but the samples are float32 [8, 4, 8, 8]"),
        (("1,3,8,x",), "'1,3,8,x' is not sizes with commas between"),
    ],
)
def test_shapes_that_cannot_be(tmp_path: Path, shapes: tuple[str, ...], said: str) -> None:
    model, root = as_onnx(tmp_path), tmp_path / "board"
    asked = [word for shape in shapes for word in ("--shape", shape)]
    done = run_cli("bench", model, "--random", *asked, "--root", root)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert not list(root.glob("store/*"))


def test_real_inputs_and_a_shape_contradict_each_other(tmp_path: Path) -> None:
    model = as_onnx(tmp_path)
    np.savez(tmp_path / "x.npz", image=np.zeros((4, 3, 8, 8), np.float32))
    asked = [model, "--inputs", tmp_path / "x.npz", "--shape", "1,3,8,8"]
    for command in (["bench"], ["bundle", "--profile", "generic-x86-64", "--out", tmp_path / "o.edgeopt"]):
        done = run_cli(*command, *asked)
        assert done.returncode == 2, done.stderr
        assert "--inputs and --shape contradict each other; give one" in done.stderr
    assert not (tmp_path / "o.edgeopt").exists()
