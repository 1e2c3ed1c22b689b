"""`edgeopt load`: streams, Poisson arrivals and slow inputs, on this machine as the board."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import dense_tflite
from conftest import Run

from edgeopt import load as job
from edgeopt import measure
from edgeopt.task import Samples


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(dense_tflite(512, 512))
    return path


def load(cli: Run, model: Path, *options: str, code: int = 0) -> dict[str, Any]:
    root = model.parent / "root"
    done = cli("load", str(model), "--seconds", "1", "--no-repeat", "--root", str(root), "--json", *options)
    assert done.returncode == code, done.stderr
    return dict(json.loads(done.stdout)) if code == 0 else {"errors": done.stderr}


def test_streams_arrivals_and_slow_inputs(cli: Run, model: Path) -> None:
    np.savez(model.parent / "inputs.npz", x=np.random.default_rng(0).normal(size=(120, 512)).astype(np.float32))
    inputs = ("--inputs", str(model.parent / "inputs.npz"))
    found = load(cli, model, *inputs, "--streams", "2", "--batch", "32", "--rate", "50")
    assert [(row["streams"], row["batch"]) for row in found["streams"]] == [(1, 1), (2, 1)]
    assert all(row["per_second"] > 50 for row in found["streams"])
    (batch,) = found["batches"]
    assert (batch["streams"], batch["batch"], batch["invalid"]) == (1, 32, None)
    assert batch["per_second"] * batch["latency"]["p50_s"]["value"] < 1.1 * 32  # of 32 samples, not of a query
    assert batch["per_second"] * batch["latency"]["p50_s"]["value"] > 1.1
    (arrivals,) = found["arrivals"]
    assert 20 < arrivals["offered"] < 100  # Poisson with mean 50: outside 8 standard deviations
    assert arrivals["served"] == arrivals["offered"]
    assert arrivals["latency"]["p50_s"]["value"] >= arrivals["waiting"]["p50_s"]["value"] >= 0
    assert 0 < arrivals["busy_share"] < 1
    slow = found["slow_inputs"]
    assert (slow["n"], len(slow["inputs"]), slow["invalid"]) == (120, 1, None)
    assert list(found["corner_inputs"]) == ["zeros", "least", "greatest", "subnormal"]
    assert found["executed"]["threads"] == 1
    assert found["conditions"]["power_mode"].keys() >= {"governor", "frequency_max_hz"}


def test_corner_inputs_are_made_of_the_tasks_own() -> None:
    images = np.array([[[3, 9]], [[5, 200]]], np.uint8)
    scales = np.array([[0.5], [-4.0]], np.float32)
    names, made, real = job.corner_inputs([measure.shard(Samples((images, scales), None, None))], plain=True)
    assert real == 2
    assert names == ["zeros", "least", "greatest", "subnormal"]
    assert made.inputs[0].tolist() == [[[0, 0]], [[3, 3]], [[200, 200]], [[3, 9]]]
    assert made.inputs[1][:3].tolist() == [[0.0], [-4.0], [0.5]]
    assert 0 < made.inputs[1][3, 0] < np.finfo(np.float32).tiny
    assert job.corner_inputs([measure.shard(Samples((images,), None, None))], plain=True)[0] == names[:3]
    assert job.corner_inputs([measure.shard(Samples((scales,), None, None))], plain=False)[0] == names[:3]


def test_equal_inputs_have_no_slow_ones() -> None:
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(200):
        rounds = [np.stack([order := rng.permutation(100), rng.normal(1.0, 0.03, 100)], axis=1) for _ in range(10)]
        assert sorted(order) == list(range(100))
        ratios.append(job._slow(np.concatenate(rounds), 100, 10)["ratio"])
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.005)


def test_a_slow_input_is_found_and_measured() -> None:
    rng = np.random.default_rng(1)
    numbers = np.concatenate([rng.permutation(100) for _ in range(10)])
    seconds = np.where(numbers == 42, 2.0, 1.0) * rng.normal(1.0, 0.03, 1000)
    found = job._slow(np.stack([numbers, seconds], axis=1), 100, 10)
    assert found["inputs"] == [42]
    assert found["ratio"] == pytest.approx(2.0, abs=0.1)


def test_more_than_the_board_can_do_is_said(cli: Run, tmp_path: Path) -> None:
    model = tmp_path / "model.tflite"
    model.write_bytes(dense_tflite(4096, 4096))  # some milliseconds
    found = load(cli, model, "--random", "--rate", "20000")
    (arrivals,) = found["arrivals"]
    assert arrivals["served"] < arrivals["offered"]
    assert "cannot keep up" in arrivals["invalid"]
    assert arrivals["latency"]["p50_s"]["value"] is None
    assert found["slow_inputs"] is None
    assert "random inputs" in found["marks"]


def test_the_same_seed_gives_the_same_arrivals(cli: Run, model: Path) -> None:
    offered = [
        load(cli, model, "--random", "--rate", "200", "--seed", seed)["arrivals"][0]["offered"] for seed in "334"
    ]
    assert offered[0] == offered[1]
    assert offered[2] != offered[0]


def test_the_rates_are_shares_of_one_stream_where_none_are_named(cli: Run, model: Path) -> None:
    found = load(cli, model, "--random", "--streams", "1")
    one = found["streams"][0]["per_second"]
    assert [row["rate_per_s"] / one for row in found["arrivals"]] == pytest.approx([0.5, 0.8])


def test_few_inputs_have_no_slowest_hundredth(cli: Run, model: Path) -> None:
    np.savez(model.parent / "few.npz", x=np.zeros((5, 512), np.float32))
    found = load(cli, model, "--inputs", str(model.parent / "few.npz"), "--rate", "20")
    assert found["slow_inputs"]["invalid"] == "n=5 inputs, needs 100"


def test_a_value_given_twice_is_refused(cli: Run, model: Path) -> None:
    assert "each value once" in load(cli, model, "--random", "--rate", "5", "--rate", "5", code=2)["errors"]


def test_the_screen_shows_every_table(cli: Run, model: Path) -> None:
    root = str(model.parent / "root")
    done = cli("load", str(model), "--random", "--seconds", "1", "--no-repeat", "--rate", "20", "--root", root)
    assert done.returncode == 0, done.stderr
    for words in ("a second", "arriving", "20.0/s", "random inputs"):
        assert words in done.stdout


def test_a_batch_whose_rows_depend_on_each_other_is_refused(cli: Run, tmp_path: Path) -> None:
    """What such a model does with several samples is not what it does with one; its throughput would mean nothing."""
    from onnx import TensorProto, helper

    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    asked = ["--random", "--batch", "3", "--streams", "1", "--rate", "20", "--seconds", "1", "--no-repeat"]
    done = cli("load", tmp_path / "model.onnx", *asked, "--root", tmp_path / "root")
    assert done.returncode == 0, done.stderr
    assert "3 samples a query: output 'y' [3, 4] of 3 samples a query is not one row for each" in " ".join(
        done.stdout.split()
    )
