"""What bench and compare show: which of two is slower, in words, and no row of which nothing is known."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from edgeopt import ladder
from edgeopt.report import measured


def figure(value: float | None, interval: list[float] | None = None, invalid: str | None = None) -> dict[str, Any]:
    return {"value": value, "interval": interval, "n": 64, "how": "measured", "invalid": invalid}


def result(name: str, mode: str = "rapid", **executed: Any) -> dict[str, Any]:
    late = figure(None, invalid="not given in rapid mode") if mode == "rapid" else figure(0.03)
    latency = {"mode": mode, "n": 64, "mean_s": figure(0.02), "min_s": figure(0.0123)}
    latency |= {"pre_s": figure(0.002), "copy_s": figure(0.000456), "post_s": figure(1.2e-6)}
    latency |= {"p50_s": figure(0.02, [0.019, 0.021]), "p90_s": figure(0.025), "p95_s": late, "p99_s": late}
    own = {"name": name, "runtime": "tflite", "size_bytes": 1000, "latency": latency, "memory": None, "marks": []}
    return own | {"load_s": 0.1, "first_inference_s": 0.2, "executed": {"threads": 1, **executed}}


def shown(results: list[dict[str, Any]], ratio: dict[str, Any] | None = None) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    board = {"model": "Pi", "hostname": "pi", "cpu_model": "A72"}
    document = {"device": "local", "board": board, "results": results, **({"ratio": ratio} if ratio else {})}
    measured.render_bench(document, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "interval", "said"),
    [
        (2.19, [2.01, 2.29], "b takes 2.19× (2.01 … 2.29) as long as a: slower"),
        (0.46, [0.45, 0.48], "b takes 0.46× (0.45 … 0.48) as long as a: faster"),
        (1.10, [0.98, 1.20], "b takes 1.10× (0.98 … 1.20) as long as a: no difference shown"),
        (0.985, [0.98, 0.99], "b takes 0.98× (0.98 … 0.99) as long as a: no difference shown"),
        (0.97, [0.96, 0.99], "b takes 0.97× (0.96 … 0.99) as long as a: faster"),
    ],
)
def test_which_is_slower_is_said_in_words(value: float, interval: list[float], said: str) -> None:
    assert shown([result("a"), result("b")], figure(value, interval)).splitlines()[-1] == said


def test_what_cannot_be_judged_and_what_is_called_alike() -> None:
    short = shown([result("a"), result("b")], figure(2.0, None, "n=3 rounds, needs 6")).splitlines()[-1]
    assert short == "b compared with a: invalid (n=3 rounds, needs 6)"
    alike = shown([result("net"), result("net")], figure(2.0, [1.9, 2.1])).splitlines()[-1]
    assert alike == "the second net takes 2.00× (1.90 … 2.10) as long as the first net: slower"


def test_the_margin_is_the_ladders() -> None:
    assert measured.MARGIN == ladder.MARGIN


def test_rows_that_say_nothing_are_left_out() -> None:
    bare = shown([result("a"), result("b")])
    assert "runtime" in bare
    assert "tflite" in bare
    for words in ("latency p95", "latency p99", "not told", "MACs", "float parts"):
        assert words not in bare
    assert bare.count("p95 and p99 need --mode quick or normal") == 1
    told = shown([result("a", "quick"), result("b", "quick", precision="bf16", macs={"int8": 3, "f32": 1})])
    for words in ("latency p95", "latency p99", "float parts computed in", "bf16", "75.0 % int8", "not told"):
        assert words in told
    assert "need --mode" not in told


def test_the_quickest_query_and_what_a_query_costs_beside_its_invoke() -> None:
    lines = [" ".join(line.split()) for line in shown([result("a"), result("b")]).splitlines()]
    assert "min 12.3 ms 12.3 ms" in lines
    apart = "preparing 2.00 ms, copying in 0.456 ms, fetching outputs 1.20 µs"
    assert [line for line in lines if "beside" in line] == [
        f"medians beside invoke of {name}: {apart}" for name in "ab"
    ]
    alone = shown([result("a")]).splitlines()
    assert f"medians beside invoke: {apart}" in alone
    assert max(map(len, alone)) <= 100
