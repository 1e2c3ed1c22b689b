"""convert, quantize, prune and bundle as users run them; what they refuse, and that they leave nothing behind then."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import model_files
import numpy as np
import pytest
from board_folder import tree
from conftest import run_cli, run_quick

from edgeopt import artifact, lower, parity, profile, stats
from edgeopt import bundle as bundles
from edgeopt.errors import ConfigError, ModelError, PlanError
from edgeopt.tools import lowering, reference

needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs edgeopt[onnx]")
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs edgeopt[openvino]")
pytest.importorskip("onnx")

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.head = nn.Linear(16, 4)

    def forward(self, image):
        return self.head(self.features(image).relu().mean((2, 3)))


def load():
    return Net()
"""


def images(n: int = 32) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with net.onnx, a factory in net.py, and image.npz."""
    folder = tmp_path / "project"
    folder.mkdir()
    model_files.conv_onnx(folder / "net.onnx")
    (folder / "net.py").write_text(NET)
    np.savez(folder / "image.npz", image=images())
    return folder


def refused(project: Path, code: int, said: list[str], *arguments: object) -> str:
    """The command fails with these words in its message, and the folder is as it was."""
    before = tree(project, ())
    done = run_cli(*arguments, cwd=project)
    assert done.returncode == code, done.stdout + done.stderr
    for words in said:
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert tree(project, ()) == before
    return done.stderr


@needs_onnx
def test_an_onnx_file_becomes_int8(project: Path) -> None:
    done = run_cli(
        "quantize", "net.onnx", "--inputs", "image.npz", "--to", "onnxruntime", "--out", "q.onnx", "--json", cwd=project
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert sorted(path.name for path in project.iterdir()) == ["image.npz", "net.onnx", "net.py", "q.onnx"]
    assert [file["file"] for file in document["files"]] == ["q.onnx"]
    assert document["size_bytes"] == (project / "q.onnx").stat().st_size
    assert document["source_inputs"] == ["'image' float32 [?, 3, 8, 8]"]
    assert document["inputs"] == [{"name": "image", "shape": [1, 3, 8, 8], "dtype": "float32"}]
    assert document["samples"] == {"n": 32, "random": False}
    stages = ["conversion to ONNX", "pre-processing", "int8 quantization"]
    assert [stage["stage"] for stage in document["parity"]] == stages
    assert (
        document["parity"][-1]["sqnr_db"] < document["parity"][0]["sqnr_db"] if document["parity"][0]["sqnr_db"] else 1
    )
    spent = {part["what"].split(" ")[0]: part["seconds"] for part in document["seconds"]}
    assert {"importing", "running", "converting", "quantizing"} <= set(spent)
    assert document["total_s"] == pytest.approx(sum(part["seconds"] for part in document["seconds"]), abs=0.01)
    import onnx

    operators = [node.op_type for node in onnx.load(str(project / "q.onnx")).graph.node]
    assert "DequantizeLinear" in operators


@needs_onnx
def test_an_old_opset_is_raised_for_int8(project: Path) -> None:
    """Before opset 13 ONNX has no scale per channel; files of that age are what vendors ship."""
    model_files.conv_onnx(project / "old.onnx", opset=11, ir=7)
    done = run_cli(
        "quantize", "old.onnx", "--inputs", "image.npz", "--to", "onnxruntime", "--out", "q.onnx", cwd=project
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy was not judged" in done.stdout
    assert "int8 quantization: off by" in done.stdout
    assert "--reference old.onnx" in done.stdout
    assert "large error" not in done.stdout


@needs_onnx
def test_an_artifact_below_the_floor_is_not_written(project: Path) -> None:
    """One calibration sample a thousand times the others takes nearly all of int8's range."""
    arrays = images()
    arrays[-1] *= 1000
    np.savez(project / "outlier.npz", image=arrays)
    given = ["quantize", "net.onnx", "--inputs", "outlier.npz", "--to", "onnxruntime", "--out", "q.onnx"]
    before = tree(project, ())
    done = run_cli(*given, cwd=project)
    assert done.returncode == 10, done.stderr
    assert tree(project, ()) == before
    assert re.search(r"^large error: .* dB.*another runtime \(openvino\).*fp32", done.stdout, re.MULTILINE)
    assert "\nnothing was written: the floor is 10 dB" in done.stdout
    assert "--accept-error" in done.stdout
    document = json.loads(run_cli(*given, "--json", cwd=project).stdout)
    assert (document["files"], "the floor is 10 dB" in document["refused"]) == ([], True)
    done = run_cli(*given, "--accept-error", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "large error" in done.stdout
    assert "nothing was written" not in done.stdout
    assert (project / "q.onnx").is_file()


def stage_of(*decibels: float | None) -> dict[str, Any]:
    """A stage of a comparison with an output of one number for each."""
    signal = np.full((8, 1), 100.0)
    found = [signal if own is None else signal * (1 + 10 ** (-own / 20)) for own in decibels]
    return parity.compare(found, [signal] * len(decibels), "made up", None)


def test_what_is_offered_against_a_large_error_is_there() -> None:
    found = lowering.large_error([stage_of(90.0), stage_of(90.0, 6.1)], "openvino", "int8", "onnx")
    assert found is not None
    assert (found["where"], found["sqnr_db"]) == ("output 1", pytest.approx(6.1))
    assert found["schemes"] == ["int8-mixed", "int8-safe"]
    assert found["runtimes"] == ["onnxruntime"]
    assert found["float"] == ["fp16", "fp32"]
    assert lowering.large_error([stage_of(6.1), stage_of(90.0)], "openvino", "int8", "onnx") is None
    assert lowering.large_error([stage_of(None)], "openvino", "int8", "onnx") is None
    for runtime, ability in lower.abilities().items():
        for schemes in ability.schemes.values():
            offered = lowering.large_error([stage_of(6.1)], runtime, schemes[0], "torch")
            assert offered is not None
            assert sorted(offered["schemes"]) == sorted(schemes[1:])
            assert runtime not in offered["runtimes"]


@needs_openvino
def test_a_torch_model_becomes_openvino_beside_its_weights(project: Path) -> None:
    given = ["quantize", "net:load", "--inputs", "image.npz", "--profile", "generic-x86-64", "--scheme", "int8-mixed"]
    done = run_cli(*given, "--out", "net.int8.xml", "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    made = {"net.int8.xml", "net.int8.bin"}
    assert {path.name for path in project.iterdir()} == {"image.npz", "net.onnx", "net.py", *made}
    document = json.loads(done.stdout)
    assert {file["file"] for file in document["files"]} == made
    assert document["int8_mac_share"] == 1.0
    assert document["options"] == {"precision": "f32"}
    refused(project, 2, ["net.int8.xml exists", "--overwrite"], *given, "--out", "net.int8.xml")


@needs_onnx
def test_random_samples_are_told_to_be_random(project: Path) -> None:
    model_files.conv_onnx(project / "fixed.onnx", shape=(1, 3, 8, 8))
    done = run_cli("convert", "fixed.onnx", "--to", "onnxruntime", "--out", "o.onnx", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "8, random: ranges and errors of real ones may differ" in done.stdout
    assert "conversion to ONNX: off by" in done.stdout
    assert "importing onnx" in done.stdout


def with_middle(project: Path, kind: str, domain: str, name: str) -> None:
    from onnx import helper

    node = helper.make_node(kind, ["c"], ["m"], name=name, domain=domain)
    model_files.conv_onnx(project / "net.onnx", middle=[node], domains=[domain])


@needs_onnx
@needs_openvino
def test_quantize_refuses_what_the_route_cannot_take(project: Path) -> None:
    given = ["quantize", "net.onnx", "--inputs", "image.npz", "--out", "q.xml"]
    with_middle(project, "Teleport", "starfleet", "beam")
    refused(project, 6, ["'Teleport' of domain 'starfleet' (node 'beam')", "replace it by operators of ONNX"], *given)
    with_middle(project, "Inverse", "com.microsoft", "odd")
    said = ["com.microsoft.Inverse", "Inverse is node 'odd'", "leave runtime 'openvino' out", "or change that part"]
    assert ".edgeopt-" not in refused(project, 6, said, *given)
    model_files.conv_onnx(project / "net.onnx", opset=99)
    refused(project, 6, ["it has opset 99, that release takes ", "export it with opset_version="], *given)
    refused(project, 6, ["runtime 'tflite' takes torch models", "choose "], *given[:-2], "--out", "q.tflite")
    model_files.conv_onnx(project / "net.onnx", external=True)
    (project / "net.weights").unlink()
    refused(project, 6, ["tensor 'w' is in 'net.weights', which is not beside it; put that file there"], *given)


@needs_onnx
def test_shapes_that_do_not_fit(project: Path) -> None:
    out = ["--to", "onnxruntime", "--out", "o.onnx"]
    said = ["input 'image' float32 [?, 3, ?, 8] has sizes that are free; fix them with --inputs", "or with --shape"]
    model_files.conv_onnx(project / "free.onnx", shape=("n", 3, "h", 8))
    refused(project, 6, said, "convert", "free.onnx", *out)
    model_files.conv_onnx(project / "four.onnx", shape=(4, 3, 8, 8))
    refused(project, 6, ["a batch that is fixed at 4", "a free one"], "convert", "four.onnx", *out)
    np.savez(project / "other.npz", image=images()[:, :2])
    words = ["input 'image' float32 [?, 3, 8, 8], but the samples are float32 [32, 2, 8, 8]"]
    refused(project, 6, words, "quantize", "net.onnx", "--inputs", "other.npz", *out)
    np.savez(project / "other.npz", image=images().astype(np.float64))
    refused(project, 6, ["array.astype('float32')"], "quantize", "net.onnx", "--inputs", "other.npz", *out)
    np.savez(project / "other.npz", a=images(), b=images())
    words = ["2 arrays (a, b), none of which is named like an input", "takes 1: image", "--labels"]
    refused(project, 2, words, "quantize", "net.onnx", "--inputs", "other.npz", *out)
    refused(project, 2, ["needs real samples"], "quantize", "net.onnx", *out)
    refused(project, 2, ["needs real samples"], "convert", "net.onnx", "--scheme", "int8", *out)


def test_a_file_of_two_gigabytes_cut_in_half(project: Path) -> None:
    """Its graph says that it has 2 GB; the half that is there is told from the length alone, without reading it."""
    path = project / "big.onnx"
    length = 2_000_000_000
    varint = bytes(
        [length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14 & 0x7F | 0x80, length >> 21 & 0x7F | 0x80]
    )
    with path.open("wb") as file:
        file.write(b"\x08\x08\x3a" + varint + bytes([length >> 28]))
        file.truncate(1_000_000_000)
    script = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_DATA, (400 << 20, 400 << 20))\n"
        "from edgeopt.cli import main\nsys.argv = ['edgeopt', 'quantize', 'big.onnx', *sys.argv[1:]]\nmain()"
    )
    given = ["--inputs", "image.npz", "--to", "onnxruntime", "--out", "q.onnx"]
    done = subprocess.run(
        [sys.executable, "-c", script, *given], cwd=project, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 6, done.stderr
    assert "big.onnx is not a whole ONNX model" in done.stderr
    assert "cut short" in done.stderr
    assert not (project / "q.onnx").exists()


def test_what_is_no_model_and_no_samples(project: Path) -> None:
    out = ["--out", "o.onnx"]
    refused(project, 2, ["missing.onnx: no such file"], "convert", "missing.onnx", *out)
    refused(project, 2, ["neither an .onnx file nor package.module:factory"], "convert", "net.pt", *out)
    refused(project, 2, ["it is an artifact already"], "convert", "net.tflite", *out)
    refused(project, 2, ["contradict", "give one"], "convert", "net.onnx", *out, "--inputs", "a.npz", "--shape", "1,2")
    refused(project, 2, ["'1x3' is not sizes"], "convert", "net.onnx", *out, "--shape", "1x3")
    said = refused(project, 2, ["'net.onnx' cannot be read: it is not an .npz"], "quantize", "net.onnx", "--inputs",
                   "net.onnx", *out)  # fmt: skip
    assert "pickle" not in said
    refused(project, 2, ["there is no folder nowhere"], "convert", "net.onnx", "--out", "nowhere/o.onnx")
    refused(project, 2, ["no such array", "image"], "prune", "net:load", "--inputs",
            "image.npz", "--labels", "y", "--ratio", "0.3", *out)  # fmt: skip
    refused(project, 2, ["which an .onnx file does not allow"], "prune", "net.onnx", "--inputs", "image.npz", "--ratio",
            "0.3", *out)  # fmt: skip


@needs_onnx
def test_factories_that_fail_are_named_as_given(project: Path) -> None:
    pytest.importorskip("torch")
    given = ["--shape", "1,3,8,8", "--to", "onnxruntime", "--out", "o.onnx"]
    said = refused(project, 2, ["MODEL 'net:lood'", "did you mean load?"], "convert", "net:lood", *given)
    assert "[model]" not in said
    wrong = [
        "running the source model on samples 0 to 3, (4, 2) float32, failed",
        "net.py, line",
        "--inputs, or --shape",
    ]
    refused(project, 6, wrong, "convert", "net:load", "--shape", "1,2", *given[2:])


def test_which_runtime_is_meant(tmp_path: Path) -> None:
    def chosen(kind: str, scheme: str, out: str, to: str | None = None, board: str | None = None) -> tuple[str, str]:
        runtime, path = lowering.target(kind, scheme, tmp_path / out, to, profile.load(board) if board else None, False)
        return runtime, path.name

    assert chosen("onnx", "fp32", "a.xml") == ("openvino", "a.xml")
    assert chosen("onnx", "int8", "a.b.onnx") == ("onnxruntime", "a.b.onnx")
    assert chosen("torch", "int8", "a", to="tflite") == ("tflite", "a.tflite")
    assert chosen("torch", "fp32", "a", board="generic-x86-64") == ("tflite", "a.tflite")
    assert chosen("torch", "int8-safe", "v1.2", board="generic-x86-64") == ("openvino", "v1.2.xml")
    assert chosen("torch", "fp32", "a.onnx", board="generic-x86-64") == ("onnxruntime", "a.onnx")
    with pytest.raises(ConfigError, match=r"an artifact for openvino ends in \.xml"):
        chosen("torch", "int8-safe", "a.tflite", board="generic-x86-64")
    with pytest.raises(PlanError, match="runtime 'tflite' has no scheme 'int8-safe'; it has: fp32, fp16, int8"):
        chosen("torch", "int8-safe", "a.tflite")
    with pytest.raises(ConfigError, match="name a runtime with --to"):
        chosen("torch", "fp32", "a")
    (tmp_path / "w.bin").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"w\.bin exists"):
        chosen("onnx", "fp32", "w.xml")


@needs_onnx
@needs_openvino
def test_a_conversion_that_fails_leaves_the_files_that_were_there(project: Path) -> None:
    (project / "o.xml").write_text("mine")
    (project / "o.bin").write_text("mine too")
    with_middle(project, "Inverse", "com.microsoft", "odd")
    refused(project, 6, ["Inverse"], "convert", "net.onnx", "--shape", "1,3,8,8", "--out", "o.xml", "--overwrite")


@needs_onnx
def test_prune_says_what_is_left_and_what_was_not_judged(project: Path) -> None:
    pytest.importorskip("torch_pruning")
    np.savez(project / "train.npz", image=images(), label=np.arange(32) % 4)
    out = ["--to", "onnxruntime", "--out", "small.onnx"]
    done = run_cli(
        "prune", "net:load", "--inputs", "train.npz", "--labels", "label", "--ratio", "0.5", "--epochs", "2", *out,
        "--json", cwd=project,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cut = json.loads(done.stdout)["prune"]
    assert cut["macs"][1] < cut["macs"][0]
    assert cut["parameters"][1] < cut["parameters"][0]
    assert cut["accuracy"] is None
    assert cut["labels"]
    assert cut["epochs"] == 2
    assert json.loads(done.stdout)["parity"][0]["max_abs_error"] < 1e-3


FORMATS: dict[str, Any] = {".onnx": model_files.conv_onnx, ".tflite": model_files.tflite, ".xml": model_files.ir}


@needs_onnx
def test_external_data_travels_with_its_model(tmp_path: Path) -> None:
    model_files.conv_onnx(tmp_path / "net.onnx", shape=(1, 3, 8, 8), external=True)
    out = tmp_path / "net.edgeopt"
    made = run_cli("bundle", tmp_path / "net.onnx", "--profile", "generic-x86-64", "--out", out)
    assert made.returncode == 0, made.stderr
    assert set(bundles.read(out).manifest.files) == {"model.onnx", "net.weights", "health.npz"}
    flashed = run_cli("flash", out, "--root", tmp_path / "board")
    assert flashed.returncode == 0, flashed.stderr
    assert artifact.of_model(tmp_path / "net.onnx", 1).paths == (tmp_path / "net.onnx", tmp_path / "net.weights")


@pytest.mark.parametrize("suffix", FORMATS)
def test_any_model_becomes_a_bundle_that_can_be_flashed(tmp_path: Path, suffix: str) -> None:
    model = FORMATS[suffix](tmp_path / f"Vendor's net{suffix}")
    out = tmp_path / "vendor.edgeopt"
    given = ["bundle", model, "--profile", "generic-x86-64", "--out", out]
    assert run_cli(*given).returncode == 2  # its name is not one that a board's folder can have
    if suffix == ".onnx":
        np.savez(tmp_path / "x.npz", image=images(4))
        given += ["--inputs", tmp_path / "x.npz"]
    done = run_cli(*given, "--name", "vendor", "--threads", "2")
    assert done.returncode == 0, done.stderr
    made = bundles.read(out)
    made.check()
    assert made.manifest.verdict == "not judged"
    assert made.manifest.artifact.file == f"model{suffix}"
    assert made.manifest.artifact.threads == 2
    files = {f"model{suffix}", "health.npz", *({"model.bin"} if suffix == ".xml" else ())}
    assert set(made.manifest.files) == files
    health = made.manifest.health
    assert (health.least_correct, health.greatest_median_latency_s, health.greatest_output_error) == (None, None, None)
    assert made.manifest.lineage["accuracy"] == "not judged"
    pytest.importorskip({".onnx": "onnxruntime", ".xml": "openvino", ".tflite": "ai_edge_litert"}[suffix])
    flashed = run_cli("flash", out, "--root", tmp_path / "board")
    assert flashed.returncode == 0, flashed.stderr
    assert "marked: not judged" in flashed.stdout
    assert "undecided" not in flashed.stdout


@needs_onnx
def test_a_bundle_that_was_tried_on_a_board_is_validated_and_rolled_back(project: Path, tmp_path: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(project / "net.onnx"), providers=["CPUExecutionProvider"])
    samples = images(200)
    raw = ((samples + 4) * 16).clip(0, 255).astype(np.uint8)
    (scores,) = session.run(None, {"image": raw.astype(np.float32) / np.float32(16) - np.float32(4)})
    labels = scores.reshape(200, -1).argmax(axis=1)
    labels[:20] = (labels[:20] + 1) % 8
    np.savez(project / "test.npz", picture=raw, y=labels)
    (project / "steps.toml").write_text('[[preprocess]]\nop = "scale"\nby = 0.0625\noffset = -4.0\n')
    board = ["--root", tmp_path / "board"]
    given = ["bundle", "net.onnx", "--profile", "generic-x86-64", "--inputs", "test.npz", "--labels", "y"]
    how = [*given, "--metric", "top1", "--preprocess", "steps.toml"]
    refused(
        project,
        2,
        ["say how they are compared, with --metric"],
        *given,
        "--preprocess",
        "steps.toml",
        "--out",
        "a.edgeopt",
    )
    refused(project, 2, ["counted on the board; name it with --device"], *how, "--out", "a.edgeopt")
    absent = ["--device", "ssh://nobody@127.0.0.1:1", "--out", "a.edgeopt"]  # asking it would be another exit code
    refused(project, 2, ["with --metric"], *given, "--preprocess", "steps.toml", *absent)
    refused(project, 2, ["but a sample is uint8", "--preprocess"], *given, "--metric", "top1", "--out", "a.edgeopt")
    done = run_cli(*how, "--device", "local", *board, "--out", "net.edgeopt", "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    health = json.loads(done.stdout)["health"]
    assert health["of"] == 64
    assert 40 <= health["least_correct"] <= 60
    assert health["greatest_median_latency_s"] > json.loads(done.stdout)["latency_p50_s"]
    assert health["greatest_output_error"] is not None
    made = bundles.read(project / "net.edgeopt")
    assert made.manifest.evaluation is not None
    assert made.manifest.evaluation.n == 200
    assert made.manifest.lineage["reference"] == "its own outputs"
    older = run_cli("bundle", "net.onnx", "--profile", "generic-x86-64", "--out", "older.edgeopt", cwd=project)
    assert older.returncode == 0, older.stderr
    for name in ("older.edgeopt", "net.edgeopt"):
        flashed = run_cli("flash", project / name, *board)
        assert flashed.returncode == 0, flashed.stderr
    judged = run_quick("validate", project / "net.edgeopt", *board, "--allow-undecided")
    assert judged.returncode == 0, judged.stderr
    assert re.search(r"recorded when it was bundled +90\.0 %", judged.stdout)
    assert re.search(r"same answer as recorded then +100\.0 %", judged.stdout)
    assert "source model" not in judged.stdout
    back = run_cli("rollback", *board)
    assert back.returncode == 0, back.stderr


@needs_onnx
def test_validate_tells_the_loss_against_the_model_that_it_was_made_from(project: Path, tmp_path: Path) -> None:
    """The bundled model's weights are noisy; of the labels, the source model's own answers, it misses some."""
    import onnxruntime
    from onnx import load, numpy_helper, save

    session = onnxruntime.InferenceSession(str(project / "net.onnx"), providers=["CPUExecutionProvider"])
    samples = images(120)
    (scores,) = session.run(None, {"image": samples})
    np.savez(project / "test.npz", image=samples, y=scores.reshape(120, -1).argmax(axis=1))
    noisy = load(str(project / "net.onnx"))
    weights = numpy_helper.to_array(noisy.graph.initializer[0])
    moved = weights + np.random.default_rng(2).normal(size=weights.shape).astype(np.float32) / 2
    noisy.graph.initializer[0].CopyFrom(numpy_helper.from_array(moved, "w"))
    save(noisy, str(project / "q.onnx"))
    board = ["--root", tmp_path / "board"]
    given = ["bundle", "q.onnx", "--profile", "generic-x86-64", "--inputs", "test.npz", "--labels", "y", "--metric"]
    how = [*given, "top1", "--device", "local", *board, "--reference", "net.onnx", "--out", "q.edgeopt"]
    made = run_cli(*how, cwd=project)
    assert made.returncode == 0, made.stderr
    assert "reference: net.onnx, 100.0 % here" in made.stdout
    assert "a drop within 1.0 points needs at least n=381 to be shown" in made.stdout
    assert re.search(r"at least \d+ of 64 right", made.stdout)
    assert "undecided" not in made.stdout
    noisy.graph.initializer[0].CopyFrom(numpy_helper.from_array(0 * weights, "w"))
    save(noisy, str(project / "zero.onnx"))
    none = run_cli(*("zero.onnx" if word == "q.onnx" else word for word in how[:-1]), "zero.edgeopt", cwd=project)
    assert none.returncode == 10, none.stderr
    assert "signal to noise 0.0 dB" in none.stdout
    assert "--accept-error" in none.stdout
    assert not (project / "zero.edgeopt").exists()
    lineage = bundles.read(project / "q.edgeopt").manifest.lineage["reference"]
    assert (lineage["file"], lineage["samples"]) == ("net.onnx", "as given")
    assert lineage["sha256"] == hashlib.sha256((project / "net.onnx").read_bytes()).hexdigest()
    flashed = run_cli("flash", project / "q.edgeopt", *board)
    assert flashed.returncode == 0, flashed.stderr
    judged = run_quick("validate", project / "q.edgeopt", *board, "--json")
    assert judged.returncode == 10, judged.stderr
    found = json.loads(judged.stdout)
    assert found["reference"] == {"kind": "source", "file": "net.onnx"}
    assert found["final"]["reference"] == 1
    assert found["final"]["drop"] == pytest.approx(1 - found["final"]["value"])
    assert found["final"]["drop"] > 0.05


@needs_onnx
def test_references_that_cannot_be_compared(project: Path) -> None:
    np.savez(project / "test.npz", image=images(), y=np.zeros(32, np.int64))
    absent = ["--device", "ssh://nobody@127.0.0.1:1", "--out", "o.edgeopt"]  # asking it would be another exit code
    given = ["bundle", "net.onnx", "--profile", "generic-x86-64", "--inputs", "test.npz", *absent]
    judged = [*given, "--labels", "y", "--metric", "top1", "--reference"]
    model_files.conv_onnx(project / "wide.onnx", shape=("n", 3, 16, 16))
    words = ["--reference wide.onnx: input 'image' float32 [?, 3, 16, 16], but the samples are float32 [32, 3, 8, 8]"]
    refused(project, 6, words, *judged, "wide.onnx")
    refused(project, 2, ["--reference net.tflite: an .onnx file is needed"], *judged, "net.tflite")
    refused(project, 2, ["missing.onnx: no such file"], *judged, "missing.onnx")
    np.savez(project / "test.npz", image=images())
    refused(project, 2, ["name their array with --labels"], *given, "--reference", "net.onnx")
    source = reference.Reference(Path("net.onnx"), (np.zeros((5, 8, 1, 1)),), False)
    assert source.matching(Path("q.tflite"), [np.zeros((5, 8))])[0].shape == (5, 8)
    with pytest.raises(ModelError, match=r"net\.onnx gives outputs \[5, 8, 1, 1\], and q\.tflite gives \[5, 7\]"):
        source.matching(Path("q.tflite"), [np.zeros((5, 7))])
    with pytest.raises(ModelError, match=r"gives \[5, 8\], \[5, 8\]"):
        source.matching(Path("q.tflite"), [np.zeros((5, 8)), np.zeros((5, 8))])


@needs_onnx
def test_a_reference_takes_samples_as_they_are_or_else_prepared(project: Path) -> None:
    from edgeopt.tools.source import Given

    steps: list[list[dict[str, Any]]] = [[{"op": "scale", "by": 0.5, "offset": 0.0}]]
    plain = reference.run(project / "net.onnx", Given((images(4),), None, False), ["x"], steps)
    assert not plain.steps_done
    raw = np.random.default_rng(0).integers(0, 255, (4, 3, 8, 8)).astype(np.uint8)
    prepared = reference.run(project / "net.onnx", Given((raw,), None, False), ["x"], steps)
    assert prepared.steps_done
    expected = reference.run(project / "net.onnx", Given((raw.astype(np.float32) / 2,), None, False), ["x"], [[]])
    np.testing.assert_array_equal(prepared.outputs[0], expected.outputs[0])


@pytest.mark.parametrize("scores", [np.tile([0.0, 1.0], 20), -np.linspace(0.1, 0.9, 40)])
def test_fewer_samples_than_needed_would_show_nothing(scores: np.ndarray) -> None:
    needed = reference.needed_samples(scores, 0.01)
    assert needed is not None

    def verdict(count: int) -> str:
        repeated = np.resize(scores, count)
        drop = stats.paired_drop(repeated, repeated)
        return stats.verdict(drop["drop"], drop["drop_interval"], 0.01, count)[0]

    assert (verdict(needed), verdict(needed - 1)) == ("pass", "undecided")
    assert reference.needed_samples(np.ones(4), 0.0) is None


def test_what_a_boards_runtime_cannot_take_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    model = model_files.tflite(tmp_path / "flex.tflite", custom="FlexErf")
    root = tmp_path / "board"
    done = run_quick("bench", model, "--random", "--root", root)
    assert done.returncode == 6, done.stderr
    assert "operator 'FlexErf'" in done.stderr
    assert f"{model}: ai-edge-litert" in done.stderr
    assert run_cli("bundle", model, "--profile", "generic-x86-64", "--out", tmp_path / "f.edgeopt").returncode == 0
    done = run_cli("flash", tmp_path / "f.edgeopt", "--root", root)
    assert done.returncode == 6, done.stderr
    assert f"{tmp_path}/f.edgeopt/model.tflite: ai-edge-litert" in done.stderr
    done = run_cli("bundle", model, "--profile", "generic-x86-64", "--out", tmp_path / "g.edgeopt", "--device", "local",
                   "--root", root)  # fmt: skip
    assert done.returncode == 6, done.stderr
    assert not (tmp_path / "g.edgeopt").exists()
    free = model_files.conv_onnx(tmp_path / "free.onnx", shape=(1, 3, "h", 8))
    done = run_quick("bench", free, "--random", "--root", root)
    assert done.returncode == 2, done.stderr
    assert "input 'image' float32 [1, 3, ?, 8] has sizes that are free" in done.stderr
    assert not list((root / "store").glob("*"))


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_base_install_bundles_every_format(tmp_path: Path, suffix: str) -> None:
    model = FORMATS[suffix](tmp_path / f"net{suffix}", **({"shape": (1, 3, 8, 8)} if suffix == ".onnx" else {}))
    script = (
        "import sys\n"
        "absent = ['torch', 'onnx', 'onnxruntime', 'openvino', 'ai_edge_litert', 'flatbuffers', 'google.protobuf']\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        "from edgeopt.cli import main\nmain()"
    )
    given = ["bundle", model, "--profile", "generic-x86-64", "--out", tmp_path / "net.edgeopt"]
    command = [sys.executable, "-c", script, *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert bundles.read(tmp_path / "net.edgeopt").manifest.artifact.file == f"model{suffix}"


def test_random_samples_have_a_batch_of_one_where_it_is_free() -> None:
    from edgeopt_agent import samples
    from edgeopt_agent.wire import RemoteError

    free = [{"name": "x", "shape": [-1, 3, 8], "dtype": "float32"}]
    assert [sample[0].shape for sample in samples.random_samples(free, 2)] == [(1, 3, 8)] * 2
    with pytest.raises(RemoteError, match="'x' has sizes that are free"):
        samples.random_samples([{"name": "x", "shape": [1, -1], "dtype": "float32"}], 1)


def test_bundles_that_nobody_could_use(tmp_path: Path) -> None:
    model_files.tflite(tmp_path / "net.tflite")
    model_files.ir(tmp_path / "net.xml")
    out = ["--out", "o.edgeopt"]
    refused(tmp_path, 2, ["name it with --profile"], "bundle", "net.tflite", *out)
    (tmp_path / "torn.tflite").write_bytes((tmp_path / "net.tflite").read_bytes()[:200])
    profiled = ["--profile", "raspberry-pi-4", *out]
    refused(tmp_path, 6, ["torn.tflite is not a whole TFLite model"], "bundle", "torn.tflite", *profiled)
    narrow = profile.load("raspberry-pi-2").runtimes
    assert "openvino" not in narrow
    words = ["a model for openvino; profile 'raspberry-pi-2' runs tflite"]
    refused(tmp_path, 6, words, "bundle", "net.xml", "--profile", "raspberry-pi-2", *out)
    (tmp_path / "steps.json").write_text('{"preprocess": {"y": []}}')
    steps = ["--preprocess", "steps.json", *profiled]
    refused(tmp_path, 2, ["there is no input 'y'; there are: x"], "bundle", "net.tflite", *steps)
    (tmp_path / "steps.json").write_text('{"preprocess": {"x": [{"op": "blur"}]}}')
    refused(tmp_path, 2, ["input 'x': step 0: unknown op 'blur'"], "bundle", "net.tflite", *steps)
    (tmp_path / "steps.json").write_text('[[{"op": "blur"}]]')
    refused(tmp_path, 2, ["unknown op 'blur'"], "bundle", "net.tflite", *steps)
    (tmp_path / "steps.json").write_text('[[{"op": "expand", "axis": 1}]]')
    refused(tmp_path, 2, ["after its preprocess steps is float32 [1, 1, 4]"], "bundle", "net.tflite", *steps)
    (tmp_path / "steps.json").write_text('{"preprocess": [[]], "options": {"precision": "f16"}, "seconds": []}')
    whole = ["bundle", "net.xml", "--profile", "generic-x86-64", "--preprocess", "steps.json", "--out", "x.edgeopt"]
    assert run_cli(*whole, cwd=tmp_path).returncode == 0
    assert bundles.read(tmp_path / "x.edgeopt").manifest.artifact.options == {"precision": "f16"}
    (tmp_path / "o.edgeopt").write_text("mine")
    refused(tmp_path, 2, ["o.edgeopt exists", "--overwrite"], "bundle", "net.tflite", *profiled)
