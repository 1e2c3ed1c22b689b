"""Two runs side by side: on one screen, as one document, as one page in a real browser."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import report_data
from conftest import run_cli
from report_browser import NETWORK, PAINTED, WIDTHS, Addresses, Browser, browsing, own_text
from rich.console import Console

from edgeopt.report import against, against_page, html

MARKED = "marked: second half 7 % slower than the first"


def other_run() -> dict[str, Any]:
    """The same search, another time: without the last trial, with a smaller int8, on another board."""
    run = report_data.run()
    run["trials"].pop()
    run["trials"][1]["artifact"] |= {"size_bytes": 80_000, "sha256": "cd" * 32}
    run["board"]["kernel"] = "6.12.1"
    run["plan"] |= {"budgets": {"size_bytes": 60_000}}
    return run


def test_two_runs_differ_where_they_differ() -> None:
    found = against.differences(report_data.run(), other_run(), ("runs/a", "runs/b"))
    assert found["board"] == [{"key": "kernel", "first": "6.6.31+rpt-rpi-v8", "second": "6.12.1"}]
    assert [line["key"] for line in found["plan"]] == ["budgets.latency_p50_s", "budgets.latency_p95_s"]
    by_name = {line["name"]: line for line in found["candidates"]}
    assert list(by_name) == ["fp32", "int8", "prune30-int8", "prune50-int8"]
    assert by_name["prune50-int8"]["second"] is None
    assert [by_name["int8"][side]["size_bytes"] for side in ("first", "second")] == [88_000, 80_000]
    assert found["caution"] == against.CAUTION
    again = other_run()
    again["plan"]["run_file"] = {"model": {"torch": "other:load"}}
    assert (
        "their scores are of different things" in against.differences(report_data.run(), again, ("a", "b"))["caution"]
    )


@pytest.mark.parametrize("where", ["selection", "final"])
def test_data_that_changed_under_their_name_are_noticed(where: str) -> None:
    other = other_run()
    assert against.differences(report_data.run(), other, ("a", "b"))["caution"] == against.CAUTION
    for score in [other["final"]] if where == "final" else [trial["score"] for trial in other["trials"]]:
        score["reference"] -= 0.01
    caution = against.differences(report_data.run(), other, ("a", "b"))["caution"]
    assert caution == against.CAUTION + against.OTHER_SOURCE
    assert against.differences(report_data.run(), report_data.bare(), ("a", "b"))["caution"] == against.CAUTION


def test_two_runs_on_one_screen(tmp_path: Path) -> None:
    for name, run in (("a", report_data.run()), ("b", other_run())):
        report_data.write(tmp_path / name, run)
    done = run_cli("report", "a", "--against", "b", cwd=tmp_path, env={"COLUMNS": "120"})
    assert done.returncode == 0, done.stderr
    shown = re.sub(r"\s+", " ", done.stdout)
    assert shown.index("No verdict compares these two runs") < shown.index("prune30-int8 1 ")
    for said in (
        "88.0 kB",
        "80.0 kB",
        "other bytes",
        "the same bytes",
        "2 not tried",
        "kernel 6.6.31+rpt-rpi-v8 6.12.1",
    ):
        assert said in shown, said
    assert "marked: run 1 prune50-int8: second half 7 % slower than the first" in shown
    assert not re.search(r"faster than|slower than|better|worse\b", shown.replace("slower than the first", ""))
    assert not (tmp_path / "a" / "report.html").exists(), "a look at two runs writes nothing"
    told = json.loads(run_cli("report", "a", "--against", "b", "--json", cwd=tmp_path).stdout)
    assert told == against.differences(report_data.run(), other_run(), ("a", "b"))


def test_long_lists_are_cut() -> None:
    line = {"key": "run_file.task.classes", "first": [f"class {i}" for i in range(99)], "second": None}
    key, first, second = against.changed_words(line)
    assert (key, second) == ("run_file.task.classes", "absent")
    assert len(first) == 200
    assert first.endswith("…")


@pytest.mark.parametrize("name", ["bare", "hostile"])
def test_two_runs_of_any_kind_fit(name: str) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    against.render(report_data.RUNS[name](), report_data.run(), ("a", "b"), console)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, written.splitlines())) <= 80
    assert "\x1b" not in written


# the page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with the runs a, b, bare and hostile."""
    for name, run in (("a", report_data.run()), ("b", other_run()), ("bare", report_data.bare())):
        report_data.write(tmp_path / name, run)
    report_data.write(tmp_path / "hostile", report_data.hostile())
    return tmp_path


def page_of(runs: Path, first: str, second: str) -> str:
    done = run_cli("report", first, "--against", second, "--out", "two.html", cwd=runs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("report  two.html\n")
    return (runs / "two.html").read_text(encoding="utf-8")


def test_the_page_says_what_the_screen_says(runs: Path) -> None:
    page = page_of(runs, "a", "b")
    text = re.sub(r"<[^>]*>", " ", page.partition("<main>")[2].partition("</main>")[0])
    shown = re.sub(r"\s+", " ", text)
    assert shown.lstrip().startswith("No verdict compares these two runs"), "the caution comes before any figure"
    for said in (
        "kernel 6.6.31+rpt-rpi-v8 6.12.1",
        "budgets.latency_p50_s 0.800 ms absent",
        "int8 other bytes run 1 kept 0.50× 0.49 … 0.51 88.0 kB",
        "prune30-int8 the same bytes run 1 kept chosen 0.33×",
        MARKED,
        "run 2 not tried",
        "run 1 undecided top1 86.1 % 80.0 … 91.0 86.6 % 0.5 points",
    ):
        assert said in shown, said
    judged = shown.replace("Left is faster than the run's own", "").replace(MARKED, "")
    assert not re.search(r"faster than|slower than|better|worse\b", judged)
    assert not (runs / "a" / "report.html").exists()


def test_classes_and_groups_of_both_runs(runs: Path) -> None:
    """By hand: one class fell by 12 points, one is missing in run 2, one has too few samples."""
    other = other_run()
    by_class = {row["label"]: row for row in other["final"]["per_class"]}
    by_class["abduction"]["value"] -= 0.12
    other["final"]["per_class"].remove(by_class["pendulum"])
    report_data.write(runs / "b", other)
    told = json.loads(run_cli("report", "a", "--against", "b", "--json", cwd=runs).stdout)
    lines = told["per_class"]
    assert [line["label"] for line in lines] == [lines[0]["label"], *report_data.CLASSES[2:]]
    assert (lines[0]["label"], lines[0]["difference"]) == ("abduction", pytest.approx(-0.12))
    assert [line["difference"] for line in lines[1:]] == [0, 0, 0, 0, None]
    assert (lines[-1]["first"]["n"], lines[-1]["first"]["value"]) == (7, None)
    page = page_of(runs, "a", "b")
    table = page.partition("<h3>By class</h3>")[2].partition("</table>")[0]
    cells = re.findall(r">abduction</th><td>([\d.]+) %<.*?<td>([\d.]+) %<.*?<td>(−12.0 points)</td>", table)
    assert [(float(cells[0][0]) - float(cells[0][1]), cells[0][2])] == [(pytest.approx(12.0), "−12.0 points")]
    assert "n=7" in table
    assert "Left out: 1 that only one run has." in table
    assert "pendulum" not in table
    assert "<h3>By group</h3>" in page


def test_scores_of_two_metrics_are_not_subtracted(runs: Path) -> None:
    other = other_run()
    other["plan"]["metric"] = other["final"]["metric"] = "negative_mae"
    report_data.write(runs / "b", other)
    page = page_of(runs, "a", "b")
    assert "No plot: run 1 was judged by top1, run 2 by negative_mae." in page
    assert "Not shown by class or by group: run 1 was scored by top1, run 2 by negative_mae." in page
    assert "<canvas" not in page


def test_invalid_ratios_are_no_points_and_no_numbers() -> None:
    first = report_data.run()
    first["trials"][1]["ratios"]["latency_p50_s"]["invalid"] = "n=4 rounds, needs 6"
    plot = against_page.view(first, other_run(), ("a", "b"))["pareto"]
    assert plot["left_out"] == ["1: int8"]
    assert [point["name"] for point in plot["points"] if "int8" in point["name"]][:1] == ["1: prune30-int8"]
    found = against.differences(first, other_run(), ("a", "b"))["candidates"]
    assert found[1]["first"]["ratios"]["latency_p50_s"] is None
    assert found[1]["second"]["ratios"]["latency_p50_s"] == 0.497


def test_the_floor_is_drawn_where_both_runs_have_the_same() -> None:
    other = other_run()
    assert against_page.view(report_data.run(), other, ("a", "b"))["pareto"]["floor"]["y"] == pytest.approx(1.0)
    other["plan"]["floor_drop"] = 0.02
    assert against_page.view(report_data.run(), other, ("a", "b"))["pareto"]["floor"] is None


def test_what_the_plot_joins_and_marks() -> None:
    plot = against_page.view(report_data.run(), other_run(), ("a", "b"))["pareto"]
    assert [(point["name"], point["look"]) for point in plot["points"]] == [
        *((f"1: {name}", "run-1") for name in ("fp32", "int8", "prune30-int8", "prune50-int8")),
        *((f"2: {name}", "run-2") for name in ("fp32", "int8", "prune30-int8")),
    ]
    assert len(plot["paths"]) == 3
    low, high = plot["x_axis"]["min"], plot["x_axis"]["max"]
    assert low < min(point["x"] for point in plot["points"]) < 1 < high
    assert [1.0, "1×"] in plot["x_ticks"]


@pytest.mark.parametrize("name", ["b", "bare", "hostile"])
def test_page_of_two_runs_is_self_contained(runs: Path, name: str) -> None:
    page = page_of(runs, name, "a")
    found = Addresses.of(page)
    assert found.found == ["data:,"]
    assert found.handlers == []
    assert found.scripts == 3
    assert not re.search(NETWORK, own_text(page))
    assert "<script>window.hacked" not in page
    assert ("&lt;script&gt;window.hacked" in page) == (name == "hostile")


def test_empty_runs_have_a_page_too() -> None:
    page = html.page("against.html.j2", against_page.view({}, {}, ("a", "b")))
    assert "Neither run tried any." in page


def test_only_a_page_of_two_runs_is_replaced(runs: Path) -> None:
    assert page_of(runs, "a", "b") == page_of(runs, "a", "b"), "our own page is replaced"
    assert run_cli("report", "a", cwd=runs).returncode == 0
    (runs / "notes.html").write_text("mine")
    (runs / "link.html").symlink_to("nowhere")
    (runs / "folder.html").mkdir()
    own = (runs / "a" / "report.html").read_bytes()
    for out, said in (
        ("notes.html", "something else is there"),
        ("a/report.html", "something else is there"),
        ("link.html", "something else is there"),
        ("folder.html", "something else is there"),
        ("away/two.html", "there is no folder away"),
        ("two.txt", "ends in .html"),
    ):
        done = run_cli("report", "a", "--against", "b", "--out", out, cwd=runs)
        assert done.returncode == 2, done.stdout
        assert f"--out {out}: " in done.stderr
        assert said in done.stderr
        assert done.stdout == ""
    assert (runs / "notes.html").read_text() == "mine"
    assert (runs / "a" / "report.html").read_bytes() == own
    assert not (runs / "nowhere").exists()
    assert sorted(path.name for path in runs.iterdir() if path.name.startswith(".")) == []


def test_out_is_for_two_runs_and_json_names_the_page(runs: Path) -> None:
    for arguments in (["a", "--out", "two.html"], ["--schema", "--out", "two.html"]):
        done = run_cli("report", *arguments, cwd=runs)
        assert done.returncode == 2
        assert "--against" in done.stderr
        assert "runs/<name>/report.html" in done.stderr
    assert not (runs / "two.html").exists()
    done = run_cli("report", "a", "--against", "b", "--out", "two.html", "--json", cwd=runs)
    told = json.loads(done.stdout)
    assert told == against.differences(report_data.run(), other_run(), ("a", "b")) | {"report": "two.html"}
    assert (runs / "two.html").is_file()


def test_runs_of_another_schema_have_no_page(runs: Path) -> None:
    report_data.write(runs / "b", report_data.run() | {"schema": 7})
    for order in (("a", "b"), ("b", "a")):
        done = run_cli("report", order[0], "--against", order[1], "--out", "two.html", cwd=runs)
        assert done.returncode == 2
        assert "b/run.json: found schema 7; this edgeopt reads schema 1" in done.stderr
        assert not (runs / "two.html").exists()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (400, "light")])
@pytest.mark.parametrize("name", ["b", "bare", "hostile"])
def test_page_of_two_runs_in_a_browser(browser: Browser, runs: Path, name: str, scheme: str, width: int) -> None:
    page_of(runs, "a", name)
    browser.open(runs / "two.html", width, scheme)
    plots = browser.run(PAINTED)
    assert browser.log() == []
    assert [plot["id"] for plot in plots] == ["pareto"]
    assert plots[0]["inked"] > 0.02
    assert plots[0]["colours"] > 20
    assert 250 < plots[0]["width"] <= width
    scrolled, client, inner = browser.run(WIDTHS)
    assert inner == width
    assert scrolled <= client <= width
    assert browser.run("return window.hacked") is None
    assert browser.run("return document.images.length") == 0


def test_a_script_slipped_into_the_page_of_two_runs_would_not_run(browser: Browser, runs: Path) -> None:
    forged = page_of(runs, "a", "b").replace("</main>", "<script>window.hacked = 1</script></main>")
    (runs / "two.html").write_text(forged, encoding="utf-8")
    browser.open(runs / "two.html", 1280)
    assert browser.run("return window.hacked") is None
    assert any("Content Security Policy" in line for line in browser.log())
