"""The report's tables: by class, by group, confusions, how artifacts ran; the schema of run.json."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_data
from conftest import run_cli
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from edgeopt import slices
from edgeopt.report import breakdown, conform, html, measured, schema, terminal, units
from edgeopt.report.rows import Rows

SCORED = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=200)


@given(SCORED)
def test_slices_add_up_to_the_whole(rows: list[tuple[int, int, int]]) -> None:
    labels, own, source = np.array(rows).T
    right = (own == labels).astype(float), (source == labels).astype(float)
    found = slices.by_label(*right, labels)
    assert sum(row["n"] for row in found) == len(rows)
    for row in found:
        mine = labels == row["label"]
        if mine.sum() < 20:
            assert row == {
                **{"label": row["label"], "n": int(mine.sum()), "value": None, "reference": None, "drop": None},
                "invalid": f"n={mine.sum()}, needs 20",
            }
        else:
            assert (row["value"], row["reference"]) == pytest.approx((right[0][mine].mean(), right[1][mine].mean()))
            assert row["drop"] == pytest.approx(row["reference"] - row["value"])
    pairs = slices.confusion(own, source, labels)["pairs"]
    assert sum(pair["n"] for pair in pairs) == sum(pair["reference"] for pair in pairs) == len(rows)
    for pair in pairs:
        assert pair["n"] == int(((labels == pair["label"]) & (own == pair["decided"])).sum())


def test_twenty_samples_are_enough_and_nineteen_are_not() -> None:
    labels = np.repeat([0, 1], [20, 19])
    enough, few = slices.by_label(np.ones(39), np.ones(39), labels, ["a", "b"])
    assert enough == {"label": "a", "n": 20, "value": 1.0, "reference": 1.0, "drop": 0.0, "invalid": None}
    assert (few["label"], few["value"], few["invalid"]) == ("b", None, "n=19, needs 20")


def test_rare_pairs_are_counted_where_they_are_left_out() -> None:
    labels = np.arange(3000)
    found = slices.confusion(np.where(labels < 5, 7000, labels), labels, labels)
    assert (len(found["pairs"]), found["left_out"]) == (slices.MOST_PAIRS, 1005)
    assert breakdown.matrix({"confusion": found}) is None


def test_a_slice_of_few_samples_is_not_called_worst() -> None:
    final = report_data.run()["final"]
    final["per_class"][6] |= {"value": 0.0}  # a figure that should not be there
    final["per_class"][6]["value"] = None
    by_class, by_group = breakdown.tables(final, "top1")
    assert [row["label"] for row in by_class["rows"] if row["worst"]] == ["rotator cuff raise"]
    assert (by_class["scored"], by_class["few"]) == (6, 1)
    assert (
        by_class["rows"][-1] | {"label": "row", "invalid": "n=7, needs 20", "score": "", "worst": False}
        == (by_class["rows"][-1])
    )
    assert by_group["rows"][-1]["invalid"] == "n=7, needs 20"
    alone = breakdown.tables({"per_group": final["per_group"][-1:]}, "top1")[0]
    assert (alone["scored"], alone["rows"][0]["worst"]) == (0, False)


def test_many_classes_of_few_samples_are_said_in_a_line(tmp_path: Path) -> None:
    run = report_data.run()
    labels = np.arange(700)
    decided = np.where(labels < 50, 699, labels)
    right = (decided == labels).astype(float)
    run["final"] |= {"per_class": slices.by_label(right, right, labels), "per_group": None}
    run["final"]["confusion"] = slices.confusion(decided, decided, labels)
    page = html.render(run, tmp_path)
    assert "Each of 700 has fewer than 20 samples, so none is called the worst. run.json has them." in page
    assert '<span class="worst">' not in page
    assert "Taken for one another" not in page, "what happened once is no habit"
    shown = report_data.screen(run, 100, True)
    assert "by class: each of 700 has fewer than 20 samples" in shown


def test_page_and_screen_show_classes_groups_and_confusions(tmp_path: Path) -> None:
    run = report_data.run()
    page = html.render(run, tmp_path)
    shown = {full: re.sub(r"\s+", " ", report_data.screen(run, 100, full)) for full in (False, True)}
    worst = run["final"]["per_class"][4]
    mistaken = next(p for p in run["final"]["confusion"]["pairs"] if p["label"] != p["decided"])
    assert mistaken["label"] == "rotator cuff raise"
    for said in (
        units.score(worst["value"], "top1"),
        units.score(worst["reference"], "top1"),
        f"{mistaken['n']} of 100",
    ):
        assert said in page
        assert said in shown[False]
        assert said in shown[True]
    assert units.drop(worst["drop"], "top1") in shown[True]
    assert page.count("n=7, needs 20") == 2
    row = page.partition('<table class="matrix">')[2].partition('rotator cuff raise</th><td class="other')[2]
    counts = re.findall(r">(\d*)</td>", "<td>" + row.partition("</tr>")[0])
    by_pair = {p["decided"]: p["n"] for p in run["final"]["confusion"]["pairs"] if p["label"] == "rotator cuff raise"}
    assert counts == [str(by_pair.get(name) or "") for name in report_data.CLASSES]


def test_how_an_artifact_was_made_and_run() -> None:
    trial = report_data.run()["trials"][1]
    said = breakdown.detail(trial)
    assert said["macs"] == "99.9 % int8, 0.1 % float32"
    assert said["precision"] == "not told"
    assert [stage["said"] for stage in said["parity"]] == [
        "128.3 dB, largest error 2.1e-06, n=8",
        "24.6 dB, largest error 0.41, n=8",
    ]
    trial["executed"] |= {"precision": "bf16", "macs": None}
    trial["artifact"]["options"] = {"precision": "f32"}
    assert breakdown.detail(trial)["precision"] == "bf16, though f32 was asked for"
    assert breakdown.detail(trial)["macs"] == "not told"
    trial["notes"]["int8_mac_share"] = 0.95
    assert breakdown.detail(trial)["macs"] == "95.0 % int8 in the file; what ran was not told"


def test_validate_and_bench_say_it_too() -> None:
    run = report_data.run()
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    found = {
        **{"verdict": "pass", "name": "watch", "release": "c0ffee" * 8, "device": "local", "reasons": []},
        **{"final": run["final"] | {"floor_drop": 0.01}, "latency": run["trials"][2]["latency"], "memory": None},
        "conditions": {"marks": []},
    }
    measured.render_validation(found, console)
    trial = run["trials"][1] | {"size_bytes": 88_000, "marks": []}
    trial["latency"]["copy_s"] = None
    measured.render_bench({"board": run["board"], "device": "local", "results": [trial]}, console)
    shown = re.sub(r"\s+", " ", console.file.getvalue())  # type: ignore[attr-defined]
    for said in ("class, worst rotator cuff raise: 73.0 %", "group, worst", "mistaken", "MACs 99.9 % int8, 0.1 %"):
        assert said in shown, said


# narrow screens


CELL = st.lists(st.text("abc19µ.", min_size=1, max_size=9), min_size=1, max_size=3).map(" ".join)


@given(st.lists(st.tuples(CELL, CELL, CELL, CELL), min_size=1, max_size=5), st.integers(24, 140))
def test_no_screen_is_too_narrow_for_a_table(cells: list[tuple[str, ...]], width: int) -> None:
    """A name and a figure stay in one piece, a word too, and everything is there in its order."""
    table = Rows(title="a title")
    for title, justify in (("name", "left"), ("p50 beside", "right"), ("× fp32", "right"), ("reason", "left")):
        table.add_column(title, justify="right" if justify == "right" else "left")
    for row in cells:
        table.add_row(*row)
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    for _, *figures, reason in cells:
        for figure in figures:
            if len(f"p50 beside {figure}") < width - 4:
                assert any(figure in line for line in lines), (figure, lines)
        for word in reason.split():
            assert any(word in line.split() for line in lines), (word, lines)


@pytest.mark.parametrize("width", [40, 60, 70, 80, 100, 140])
def test_a_run_on_a_narrow_screen(width: int) -> None:
    run = report_data.run()
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    terminal.render(run, console, full=True)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    for trial in run["trials"]:
        said = terminal.row(trial, False, "top1")
        for figure in (said["name"], said["size"], said["drop"].partition(" (")[0]):
            assert any(figure in line for line in lines), (figure, lines)


# run.json


SCHEMA = schema()


@pytest.mark.parametrize("name", ["full", "bare", "hostile"])
def test_made_up_runs_follow_the_schema(name: str) -> None:
    run = json.loads(json.dumps(report_data.RUNS[name]()))
    assert list(conform.problems(run, SCHEMA, SCHEMA)) == []


def test_real_runs_follow_the_schema(small_run: Path) -> None:
    done = run_cli("report", small_run, "--json")
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert list(conform.problems(run, SCHEMA, SCHEMA)) == []
    final = run["final"]
    assert sum(row["n"] for row in final["per_class"]) == sum(row["n"] for row in final["per_group"]) == final["n"]
    assert [row["label"] for row in final["per_group"]] == [8, 9, 10]
    assert final["worst_class"]["label"] in [row["label"] for row in final["per_class"]]
    right = sum(pair["n"] for pair in final["confusion"]["pairs"] if pair["label"] == pair["decided"])
    assert right / final["n"] == pytest.approx(final["value"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: run.pop("verdict"), "verdict is absent"),
        (lambda run: run.update(schema=2), "2 is not 1"),
        (lambda run: run.update(surprise=1), "run.surprise is not described"),
        (lambda run: run["trials"][0]["latency"]["p50_s"].update(value="fast"), "p50_s.value"),
        (lambda run: run["final"]["per_class"][0].pop("n"), "per_class[0]: n is absent"),
        (lambda run: run["trials"][1].update(verdict="good"), "'good' is none of"),
    ],
)
def test_the_schema_refuses_what_is_wrong(change: Any, said: str) -> None:
    run = json.loads(json.dumps(report_data.run()))
    change(run)
    assert any(said in problem for problem in conform.problems(run, SCHEMA, SCHEMA))


def test_report_prints_the_schema_and_refuses_runs_of_another(tmp_path: Path) -> None:
    assert json.loads(run_cli("report", "--schema").stdout) == SCHEMA
    done = run_cli("report")
    assert done.returncode == 2
    assert "runs/<name>" in done.stderr
    report_data.write(tmp_path, report_data.run() | {"schema": 7})
    done = run_cli("report", tmp_path)
    assert done.returncode == 2
    assert "found schema 7; this edgeopt reads schema 1" in done.stderr
