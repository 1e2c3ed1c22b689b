"""`edgeopt diagnose` names faults that are put into real models, boards and preparations; and nothing where nothing is.

Seeded, each by itself: wrong resize, swapped channels, wrong zero point, one layer's damaged weights, 16-bit overflow.
"""

from __future__ import annotations

import io
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import placement_models
import pytest
import task_project
from boards import dense_tflite
from bundle_variants import variant
from conftest import REPOSITORY, SshBoard, made_once, run_cli
from edgeopt_agent.facts import parse_cpuinfo
from model_files import conv_onnx

from edgeopt import bundle as bundles
from edgeopt import decode, lower, measure, plan, validate
from edgeopt.cache import Cache, sha256_bytes
from edgeopt.diagnose import compare, graph, prepared
from edgeopt.errors import IntegrityError
from edgeopt.formats.tflite import GRAPH_OPERATORS, GRAPH_TENSORS, MODEL_BUFFERS, MODEL_GRAPHS, Table
from edgeopt.task import Samples

Array = np.ndarray[Any, np.dtype[Any]]


def diagnose(bundle: Path, root: Path, *options: object, code: int = 0) -> dict[str, Any]:
    """The installed command's JSON."""
    where = [] if "--device" in options else ["--root", root]
    done = run_cli("diagnose", bundle, *where, *options, "--json")
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def faults(document: dict[str, Any]) -> list[str]:
    return [found["kind"] for found in document["findings"] if found["is_fault"]]


def states(document: dict[str, Any]) -> dict[str, str]:
    return {check["check"]: check["state"] for check in document["checks"]}


@pytest.fixture
def other_python(tmp_path: Path) -> Path:
    """This Python under another name: a board on this machine that is not this host."""
    return wrapper(tmp_path / "python")


def wrapper(path: Path, setting: str = "") -> Path:
    path.write_text(f'#!/bin/sh\n{setting} exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


# TFLite: the smartwatch model in int8, beside the fp32 candidate of its run.


@pytest.fixture(scope="module")
def float_model(small_run: Path) -> Path:
    return small_run / "candidates" / "fp32" / "model.tflite"


def test_a_good_bundle_has_no_fault(bundle_file: Path, float_model: Path, other_python: Path, tmp_path: Path) -> None:
    found = diagnose(bundle_file, tmp_path / "board", "--reference", float_model, "--board-python", other_python)
    assert found["verdict"] == "pass"
    assert faults(found) == []
    assert states(found) == {
        "files": "good",
        "preparation": "not compared",
        "answers": "good",
        "host and board": "good",
        "float and int8": "good",
    }
    weighted = [row for row in found["layers"] if row["operator"] in ("CONV_2D", "FULLY_CONNECTED")]
    assert len(weighted) == 6
    for row in weighted:
        assert row["host_board"]["sqnr_db"] is None  # the same runtime, so equal
        assert 5 < row["float_int8"]["sqnr_db"] < 60
    # The reference's layers are this host's, as those that they are compared with.
    (tmp_path / "copy").mkdir()
    (watched,) = graph.watched(float_model, graph.read(float_model, "tflite"), tmp_path / "copy")
    sent = [path.read_bytes() for path in (tmp_path / "board").rglob("model.tflite")]
    assert sent
    assert watched.read_bytes() not in sent


class Flatbuffer:
    """A TFLite model whose bytes are changed in place."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        root = int.from_bytes(self.content[:4], "little")
        model = Table(self.content, root, [len(content)])
        self.main = next(model.tables(MODEL_GRAPHS))
        self.buffers = list(model.tables(MODEL_BUFFERS))
        self.tensors = list(self.main.tables(GRAPH_TENSORS))

    def with_weights(self, number: int) -> tuple[Table, Table]:
        """(weights, result) of the operator with weights of that number."""
        operators = [own for own in self.main.tables(GRAPH_OPERATORS) if len(own.numbers(1)) == 3]
        chosen = operators[number]
        return self.tensors[chosen.numbers(1)[1]], self.tensors[chosen.numbers(2)[0]]

    def set_zero_point(self, tensor: Table, value: int) -> None:
        told = tensor.table(4)
        assert told is not None
        place, count = told.vector(3, 8)
        assert count == 1
        self.content[place : place + 8] = value.to_bytes(8, "little", signed=True)

    def damage(self, tensor: Table, first: int, count: int) -> None:
        place, size = self.buffers[tensor.number(2, "<I")].vector(0, 1)
        assert first + count <= size
        for at in range(place + first, place + first + count):
            self.content[at] ^= 0x55


def changed(bundle: Path, out: Path, change: Callable[[Flatbuffer], None]) -> tuple[Path, str]:
    """(the bundle with its model's bytes changed, the name of the tensor that the second layer gives)."""
    opened = bundles.read(bundle)
    own = Flatbuffer(opened.blob(opened.manifest.files["model.tflite"]))
    change(own)
    variant(bundle, out, {"model.tflite": bytes(own.content)})
    return out, own.with_weights(1)[1].text(3)


@pytest.mark.parametrize("with_reference", [True, False])
def test_a_wrong_zero_point_is_named(
    bundle_file: Path, float_model: Path, tmp_path: Path, with_reference: bool
) -> None:
    """Most of the range lies below zero, where no value is after a ReLU; what is large is cut off."""
    bad, tensor = changed(
        bundle_file, tmp_path / "bad.edgeopt", lambda own: own.set_zero_point(own.with_weights(1)[1], 100)
    )
    given = ["--reference", float_model] if with_reference else []
    found = diagnose(bad, tmp_path / "board", *given, code=10)
    assert faults(found) == ["zero-point"]
    (named,) = (one for one in found["findings"] if one["is_fault"])
    assert found["layers"][named["evidence"]["layer"]]["tensor"] == tensor
    assert named["evidence"]["fits"] == -128
    assert "-128 would fit" in named["says"]


def test_damaged_weights_are_named(bundle_file: Path, float_model: Path, tmp_path: Path) -> None:
    bad, tensor = changed(
        bundle_file, tmp_path / "bad.edgeopt", lambda own: own.damage(own.with_weights(1)[0], 100, 64)
    )
    found = diagnose(bad, tmp_path / "board", "--reference", float_model, code=10)
    assert faults(found)[0] == "weights"
    named = found["findings"][0]
    assert found["layers"][named["evidence"]["layer"]]["tensor"] == tensor
    assert 50 < named["evidence"]["wrong"] <= 64
    assert states(found)["float and int8"] == "fault"


def test_a_reference_that_is_another_model_is_refused(bundle_file: Path, float_model: Path, tmp_path: Path) -> None:
    own = Flatbuffer(float_model.read_bytes())
    for number in range(6):
        own.damage(own.with_weights(number)[0], 0, 400)
    (tmp_path / "other.tflite").write_bytes(own.content)
    (tmp_path / "dense.tflite").write_bytes(dense_tflite())
    conv_onnx(tmp_path / "net.onnx")
    for name, code, words in (
        ("other.tflite", 6, "another model"),
        ("dense.tflite", 6, "cannot be run with the bundle's samples"),
        ("net.onnx", 2, "a model for onnxruntime, the bundle's is for tflite"),
    ):
        done = run_cli("diagnose", bundle_file, "--root", tmp_path / "board", "--reference", tmp_path / name)
        assert done.returncode == code, done.stderr
        assert words in done.stderr


def test_a_damaged_release_is_named(bundle_file: Path, tmp_path: Path) -> None:
    root = tmp_path / "board"
    assert run_cli("flash", bundle_file, "--root", root).returncode == 0
    opened = bundles.read(bundle_file)
    (path,) = (root / "releases").rglob("model.tflite")
    path.chmod(0o644)
    path.write_bytes(opened.blob(opened.manifest.files["model.tflite"])[:-10])
    found = diagnose(bundle_file, root, code=10)
    assert faults(found) == ["damaged-release"]
    assert states(found)["files"] == "fault"


def test_a_board_over_ssh_is_compared_with_this_machine(bundle_file: Path, ssh_board: SshBoard, tmp_path: Path) -> None:
    found = diagnose(bundle_file, tmp_path, *ssh_board.options)
    assert found["device"].startswith("ssh://")
    assert states(found)["host and board"] == "good"


# Preparation.


def test_arrays_as_an_application_hands_them_over(bundle_file: Path, tmp_path: Path) -> None:
    """Samples that are arrays have no files: what the model is given is compared."""
    written = run_cli("diagnose", bundle_file, "--golden", tmp_path / "golden", "--json")
    assert written.returncode == 0, written.stderr
    assert len(json.loads(written.stdout)["files"]) == 4
    with np.load(tmp_path / "golden" / "expected.npz") as archive:
        model = archive["model0"]
    for name, array, code, named in (
        ("right", model, 0, []),
        ("late", np.roll(model, 3, axis=-1), 10, ["moved"]),
        ("scaled", model * 2, 10, ["normalization"]),
        ("nan", model * np.nan, 10, ["values"]),
        ("noise", np.random.default_rng(0).normal(size=model.shape), 10, ["preparation"]),
        ("short", model[..., :-1], 10, ["shape"]),
    ):
        np.savez(tmp_path / f"{name}.npz", anything=array.astype(np.float32))
        found = diagnose(bundle_file, tmp_path / "board", "--prepared", tmp_path / f"{name}.npz", code=code)
        assert faults(found) == named, name


def test_rows_that_are_not_the_golden_samples_are_refused(bundle_file: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", input0=np.zeros((3, 6, 128), np.float32))
    done = run_cli("diagnose", bundle_file, "--root", tmp_path / "board", "--prepared", tmp_path / "p.npz")
    assert done.returncode == 2
    assert "'input0' has 3 rows; the bundle has 4 golden samples" in done.stderr


SIZE = 48
PICTURES = f"""\
images = "pictures"
inputs = ["image"]
labels = "label"
metric = "top1"

[task.prepare]
resize = 56
crop = [{SIZE}, {SIZE}]
"""
STEPS: list[dict[str, Any]] = [
    {"op": "scale", "by": 1 / 127.5, "offset": -1.0},
    {"op": "transpose", "axes": [0, 3, 1, 2]},
]


@pytest.fixture(scope="module")
def pictures(shared_tmp: Path) -> Path:
    """A bundle with golden files: pictures of several sizes, with detail and colour."""
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed: pip install 'edgeopt[tasks]'")

    def build(folder: Path) -> None:
        for number in range(6):
            rng = np.random.default_rng(number)
            height, width = 150 + 20 * number, 260 - 30 * number
            rows, columns = np.mgrid[0:height, 0:width]
            waves = [np.sin(rows / rng.uniform(3, 40) + columns / rng.uniform(3, 40)) for _ in range(3)]
            pixels = 128 + 60 * np.stack(waves, axis=-1) + rng.normal(scale=20, size=(height, width, 3))
            path = folder / "project" / "pictures" / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
        task_project.write(folder / "project", PICTURES)
        made = plan.load(folder / "project", lower.abilities())
        golden = decode.golden(made, Cache(folder / "cache"), "images")
        _write_bundle(folder, golden)

    return made_once(shared_tmp / "diagnose-pictures", build) / "p.edgeopt"


def _write_bundle(folder: Path, golden: bytes) -> None:
    model = conv_onnx(folder / "net.onnx", shape=(1, 3, SIZE, SIZE)).read_bytes()
    with np.load(io.BytesIO(golden)) as archive:
        samples = Samples((archive["input0"],), np.zeros(len(archive["input0"]), np.int64), None)
    shards = validate.pack_shards(samples, [np.ones((len(samples), 8), np.float32)])
    health = measure.shard(samples)
    blobs = {sha256_bytes(data): data for data in (model, health, golden, *shards)}

    def entry(data: bytes) -> dict[str, Any]:
        return {"sha256": sha256_bytes(data), "size_bytes": len(data)}

    limits = dict.fromkeys(("metric", "least_correct", "greatest_median_latency_s", "greatest_output_error"))
    evaluation = {"metric": "top1", "n": len(samples), "floor_drop": 0.1, "classes": []}
    manifest = {
        "format": 1,
        "name": "pictures",
        "created_by": "test",
        "profile": "x",
        "root": "/",
        "python": "python3",
        "verdict": "undecided",
        "budgets": {},
        "artifact": {"file": "model.onnx", "runtime": "onnxruntime", "threads": 1, "preprocess": [STEPS]},
        "files": {"model.onnx": entry(model), "health.npz": entry(health)},
        "health": {"file": "health.npz", "of": len(samples), **limits},
        "policy": {},
        "evaluation": {"shards": [entry(shard) for shard in shards], "golden": entry(golden), **evaluation},
        "lineage": {},
    }
    bundles.write(folder / "p.edgeopt", bundles.Manifest.model_validate(manifest), blobs)


class Application:
    """What a careless application makes of the golden files; without `changes`, what the bundle says."""

    def __init__(self, folder: Path) -> None:
        from PIL import Image

        self.pictures = [Image.open(path).convert("RGB") for path in sorted(folder.glob("golden-*"))]
        self.filters = Image.Resampling

    def pixels(self, resample: str = "BICUBIC", stretch: bool = False, plain: bool = False) -> Array:
        rows = []
        for picture in self.pictures:
            if plain:
                rows.append(self.plain(np.asarray(picture, np.float32)))
                continue
            size = (SIZE, SIZE) if stretch else tuple(56 * side // min(picture.size) for side in picture.size)
            made = picture.resize(size, self.filters[resample])  # type: ignore[arg-type]
            left, top = round((made.width - SIZE) / 2), round((made.height - SIZE) / 2)
            rows.append(np.asarray(made.crop((left, top, left + SIZE, top + SIZE))))
        return np.stack(rows)

    @staticmethod
    def plain(pixels: Array) -> Array:
        """Stretched between the four nearest pixels, as cv2.resize does unless told otherwise."""
        for axis in (0, 1):
            old = pixels.shape[axis]
            place = np.clip((np.arange(SIZE) + 0.5) * old / SIZE - 0.5, 0, old - 1)
            low = place.astype(int)
            share = np.expand_dims(place - low, 1 if axis == 0 else 0)[..., None]
            pixels = pixels.take(low, axis) * (1 - share) + pixels.take(np.minimum(low + 1, old - 1), axis) * share
        return np.rint(pixels).astype(np.uint8)


def tensor(pixels: Array) -> Array:
    return (pixels / np.float32(127.5) - 1).transpose(0, 3, 1, 2).astype(np.float32)


PREPARED: dict[str, tuple[Callable[[Application], Array], list[str], str]] = {
    "right": (lambda app: tensor(app.pixels()), [], ""),
    "right, decoded": (lambda app: app.pixels(), [], ""),
    "nearest": (lambda app: tensor(app.pixels("NEAREST")), ["resize"], "nearest instead of bicubic"),
    "bilinear": (lambda app: tensor(app.pixels("BILINEAR")), ["resize"], "bilinear instead of bicubic"),
    "stretched": (lambda app: tensor(app.pixels(stretch=True)), ["resize"], "stretched instead of"),
    "as OpenCV": (lambda app: tensor(app.pixels(plain=True)), ["resize"], "without averaging"),
    "not resized": (lambda app: tensor(app.pixels().repeat(2, axis=1).repeat(2, axis=2)), ["resize"], "[3, 96, 96]"),
    "BGR": (lambda app: tensor(app.pixels()[..., ::-1]), ["channels"], "red and blue are swapped"),
    "BGR, stretched": (
        lambda app: tensor(app.pixels(stretch=True)[..., ::-1]),
        ["resize", "channels"],
        "stretched instead of",
    ),
    "not scaled": (
        lambda app: app.pixels().transpose(0, 3, 1, 2).astype(np.float32),
        ["normalization"],
        "values are 0 … 255, not scaled; expected −1 … 1 (divided by 127.5, less 1)",
    ),
    "0 … 1": (
        lambda app: (app.pixels().transpose(0, 3, 1, 2) / 255).astype(np.float32),
        ["normalization"],
        "values are 0 … 1 (divided by 255)",
    ),
    "ImageNet's": (
        lambda app: tensor(app.pixels()) * 0 + imagenet(app.pixels()),
        ["normalization"],
        "ImageNet's mean, divided by its deviation",
    ),
    "NHWC": (lambda app: tensor(app.pixels()).transpose(0, 2, 3, 1), ["layout"], "in the layout of before them"),
    "NHWC's numbers": (
        lambda app: tensor(app.pixels()).transpose(0, 2, 3, 1).reshape(-1, 3, SIZE, SIZE),
        ["layout"],
        "its numbers lie in the order of [48, 48, 3]",
    ),
    "noisy": (
        lambda app: tensor(app.pixels()) + 0.05 * np.random.default_rng(0).normal(size=(1, 3, SIZE, SIZE)),
        ["preparation"],
        "% of its spread is not explained",
    ),
    "rows shifted": (lambda app: np.roll(tensor(app.pixels()), 2, axis=2), ["moved"], "shifted by 2 rows"),
    "mirrored": (lambda app: tensor(app.pixels())[..., ::-1], ["moved"], "mirrored left to right"),
}


def imagenet(pixels: Array) -> Array:
    scaled = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return scaled.transpose(0, 3, 1, 2).astype(np.float32)


@pytest.fixture(scope="module")
def application(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Application:
    folder = tmp_path_factory.mktemp("application") / "golden"
    done = run_cli("diagnose", pictures, "--golden", folder)
    assert done.returncode == 0, done.stderr
    assert "4 golden files" in done.stdout
    return Application(folder)


@pytest.mark.parametrize("name", PREPARED)
def test_a_wrong_preparation_is_named(name: str, pictures: Path, application: Application, tmp_path: Path) -> None:
    make, kinds, words = PREPARED[name]
    np.savez(tmp_path / "made.npz", input0=make(application))
    (tmp_path / "artifact").mkdir()
    opened = bundles.read(pictures)
    found = prepared.explain(opened, opened.artifact(tmp_path / "artifact"), tmp_path / "made.npz")
    assert [one["kind"] for one in found.findings] == kinds
    assert any(words in one["says"] for one in found.findings) or not kinds


def test_what_is_not_explained_is_neither_right_nor_a_fault(
    pictures: Path, application: Application, tmp_path: Path
) -> None:
    np.savez(tmp_path / "made.npz", input0=PREPARED["noisy"][0](application))
    found = diagnose(pictures, tmp_path / "board", "--prepared", tmp_path / "made.npz")
    assert faults(found) == []
    assert states(found)["preparation"] == "not compared"
    assert "is not explained" in found["findings"][0]["says"]


def test_a_health_file_that_cannot_be_read_is_named(pictures: Path, tmp_path: Path) -> None:
    opened = variant(pictures, tmp_path / "bad.edgeopt", {"health.npz": b"no archive"})
    with pytest.raises(IntegrityError, match=r"bad\.edgeopt: health\.npz: not arrays of samples"):
        prepared.health_samples(opened, 4)


def dense_bundle(folder: Path) -> Path:
    (folder / "d.tflite").write_bytes(dense_tflite())
    np.savez(folder / "x.npz", x=np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32))
    given = ["--inputs", folder / "x.npz", "--profile", "generic-x86-64", "--out", folder / "cpu.edgeopt"]
    assert run_cli("bundle", folder / "d.tflite", *given).returncode == 0
    return folder / "cpu.edgeopt"


def test_a_damaged_model_in_a_bundle_is_named(tmp_path: Path) -> None:
    content = dense_tflite()
    (name,) = (name for name in bundles.read(dense_bundle(tmp_path)).manifest.files if name.endswith(".tflite"))
    for number, damaged in enumerate((content[:6], content[:8] + b"\xff" * (len(content) - 8))):
        bad = tmp_path / f"bad{number}.edgeopt"
        variant(tmp_path / "cpu.edgeopt", bad, {name: damaged})
        done = run_cli("diagnose", bad, "--root", tmp_path / "board")
        assert done.returncode == 6, done.stderr
        assert f"{name} is not a whole TFLite model" in done.stderr


def test_what_an_accelerator_runs_is_not_run_on_this_host(other_python: Path, tmp_path: Path) -> None:
    dense_bundle(tmp_path)
    delegate = placement_models.refusing_delegate(tmp_path)
    variant(tmp_path / "cpu.edgeopt", tmp_path / "npu.edgeopt", artifact={"options": {"delegate": str(delegate)}})
    own = tmp_path / "own.toml"
    source = 'source = "https://example.org"'
    own.write_text(
        (REPOSITORY / "device_profiles" / "generic-x86-64.toml").read_text()
        + f'\n[npu]\nmodel = {{ value = "none", {source} }}\ndelegate = {{ value = "{delegate}", {source} }}\n'
    )
    for name, state, words in (("cpu", "good", "layers agree"), ("npu", "not compared", f"'{delegate.name}'")):
        found = diagnose(
            tmp_path / f"{name}.edgeopt", tmp_path / name, "--board-python", other_python, "--profile", own
        )
        (check,) = (one for one in found["checks"] if one["check"] == "host and board")
        assert check["state"] == state
        assert words in check["says"]


@pytest.mark.parametrize("name", ["right", "as OpenCV", "BGR"])
def test_preparation_is_the_first_check(name: str, pictures: Path, application: Application, tmp_path: Path) -> None:
    make, kinds, words = PREPARED[name]
    np.savez(tmp_path / "made.npz", input0=make(application))
    given = ["--prepared", tmp_path / "made.npz"]
    found = diagnose(pictures, tmp_path / "board", *given, code=10 if kinds else 0)
    assert faults(found) == kinds
    assert states(found)["preparation"] == ("fault" if kinds else "good")
    assert not kinds or words in found["findings"][0]["says"]


# OpenVINO on a processor whose 8-bit products are added in 16 bits.


def overflowing(path: Path) -> Path:
    """Three convolutions of 32 channels whose weights and data are all positive and large, so that pairs of products do
    not fit 16 bits: image (n, 32, 8, 8) -> scores (n, 8, 1, 1)."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "image"
    for number, (given, made) in enumerate(((32, 32), (32, 32), (32, 8))):
        values = rng.uniform(0.5, 1, (made, given, 3, 3)).astype(np.float32) / (9 * given)
        weights.append(numpy_helper.from_array(values, f"w{number}"))
        nodes.append(helper.make_node("Conv", [last, f"w{number}"], [f"c{number}"], name=f"conv{number}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"], name=f"relu{number}"))
        last = f"r{number}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["scores"], name="pool"))
    ports = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 32, 8, 8]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 8, 1, 1]),
    ]
    made_graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    save(helper.make_model(made_graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.fixture(scope="module")
def openvino_bundle(shared_tmp: Path) -> Path:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")

    def build(folder: Path) -> None:
        overflowing(folder / "net.onnx")
        np.savez(folder / "x.npz", image=np.random.default_rng(1).uniform(0.5, 1, (32, 32, 8, 8)).astype(np.float32))
        for arguments in (
            ["quantize", "net.onnx", "--inputs", "x.npz", "--to", "openvino", "--out", "int8.xml"],
            ["convert", "net.onnx", "--inputs", "x.npz", "--to", "openvino", "--out", "fp32.xml"],
            ["bundle", "int8.xml", "--inputs", "x.npz", "--profile", "generic-x86-64", "--out", "int8.edgeopt"],
        ):
            done = run_cli(*arguments, cwd=folder)
            assert done.returncode == 0, done.stderr

    return made_once(shared_tmp / "diagnose-openvino", build) / "int8.edgeopt"


def adds_in_32_bits() -> bool:
    flags = parse_cpuinfo(Path("/proc/cpuinfo").read_text())["cpu_features"]
    return platform.machine() == "x86_64" and bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(flags))


@pytest.mark.skipif(not adds_in_32_bits(), reason="both sides would overflow: this processor has no VNNI")
def test_an_overflow_of_16_bits_is_named(openvino_bundle: Path, tmp_path: Path) -> None:
    """ONEDNN_MAX_CPU_ISA takes VNNI away from the board's runtime: a real kernel, a real overflow."""
    board = wrapper(tmp_path / "old-cpu", "ONEDNN_MAX_CPU_ISA=AVX2")
    found = diagnose(openvino_bundle, tmp_path / "board", "--board-python", board, code=10)
    assert faults(found) == ["int16-overflow"]
    named = found["findings"][0]
    assert found["layers"][named["evidence"]["layer"]]["operator"] == "Convolution"
    assert named["evidence"]["layer"] == 1  # 0 is the rounding of the input
    assert "int8-safe" in named["try"]
    assert states(found)["host and board"] == "fault"


def test_the_same_model_on_a_board_like_this_one_has_no_fault(
    openvino_bundle: Path, other_python: Path, tmp_path: Path
) -> None:
    reference = openvino_bundle.with_name("fp32.xml")
    found = diagnose(openvino_bundle, tmp_path / "board", "--board-python", other_python, "--reference", reference)
    assert faults(found) == []
    assert states(found)["host and board"] == "good"
    assert all(row["float_int8"] is not None for row in found["layers"])


# Watched copies of models, per runtime.


@pytest.fixture(scope="module")
def onnx_models(shared_tmp: Path) -> Path:
    """A folder with fp32.onnx, int8.onnx and x.npz."""
    pytest.importorskip("onnxruntime")

    def build(folder: Path) -> None:
        source = conv_onnx(folder / "net.onnx")
        np.savez(folder / "x.npz", image=np.random.default_rng(1).normal(size=(16, 3, 8, 8)).astype(np.float32))
        for verb, name in (("convert", "fp32.onnx"), ("quantize", "int8.onnx")):
            given = ["--inputs", folder / "x.npz", "--to", "onnxruntime", "--out", folder / name]
            done = run_cli(verb, source, *given)
            assert done.returncode == 0, done.stderr

    return made_once(shared_tmp / "diagnose-onnx", build)


@pytest.mark.parametrize(("fault", "kind"), [("zero point", "zero-point"), ("weights", "weights"), ("none", None)])
def test_faults_of_an_onnx_model_are_named(fault: str, kind: str | None, onnx_models: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(onnx_models / "int8.onnx"))
    for constant in model.graph.initializer:
        values = numpy_helper.to_array(constant).copy()
        if fault == "zero point" and constant.name == "r_zero_point":
            values[...] = 200
        if fault == "weights" and values.dtype == np.int8 and values.ndim == 4:
            values[3, 1] ^= 0x55
        constant.CopyFrom(numpy_helper.from_array(values, constant.name))
    onnx.save(model, str(tmp_path / "bad.onnx"))
    given = ["--inputs", onnx_models / "x.npz", "--profile", "generic-x86-64", "--out", tmp_path / "bad.edgeopt"]
    done = run_cli("bundle", tmp_path / "bad.onnx", *given)
    assert done.returncode == 0, done.stderr
    reference = ["--reference", onnx_models / "fp32.onnx"]
    found = diagnose(tmp_path / "bad.edgeopt", tmp_path / "board", *reference, code=10 if kind else 0)
    assert faults(found) == ([kind] if kind else [])
    if kind:
        assert found["findings"][0]["where"] == "stem"


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "tflite"])
def test_a_watched_copy_answers_as_its_model(runtime: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    from edgeopt_agent import runtimes

    fixture, pattern = {
        "tflite": ("float_model", "../../{}/model.tflite"),
        "openvino": ("openvino_bundle", "../{}.xml"),
        "onnxruntime": ("onnx_models", "{}.onnx"),
    }[runtime]
    place: Path = request.getfixturevalue(fixture)
    models = [Path(os.path.normpath(place / pattern.format(name))) for name in ("fp32", "int8")]
    for number, path in enumerate(models):
        own = graph.read(path, runtime)
        assert own.quantized == (number == 1)
        assert any(layer.weights is not None for layer in own.layers)
        (tmp_path / str(number)).mkdir()
        plain, watched = (
            _answers(runtimes.load(runtime).load(str(file), 1, {}))
            for file in (path, graph.watched(path, own, tmp_path / str(number))[0])
        )
        assert len(watched) > len(plain)
        for a, b in zip(plain, watched, strict=False):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        layers = graph.in_order(own, watched)
        for place_of, layer in enumerate(own.layers):  # a layer's values lie in the range that the file tells
            values, told = layer.values(layers[place_of]), layer.quantization
            if told is not None:
                assert told.range[0] - told.scale <= values.min()
                assert values.max() <= told.range[1] + told.scale


def _answers(session: Any) -> list[Array]:
    rng = np.random.default_rng(0)
    session.set_inputs(
        [rng.normal(size=[max(1, size) for size in told["shape"]]).astype(told["dtype"]) for told in session.inputs]
    )
    session.invoke()
    found: list[Array] = [np.array(array) for array in session.get_outputs()]
    return found


def test_a_layer_that_only_passes_an_error_on_is_not_blamed() -> None:
    plain = graph.Layer("t", "t", "n", "Conv", "t")
    chain = graph.Graph("tflite", tuple(graph.Layer("t", "t", "n", "Conv", "t", (n - 1,)) for n in range(4)), (3,))
    assert plain.sources == ()
    told = [{"max": 1.0, "mean": 0.1, "sqnr_db": decibels} for decibels in (None, 20.0, 18.0, 17.0)]
    assert compare.parted(chain, told, 60.0) == [1]
