"""The report as text, and as a page in a real browser that has no network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import report_data
from hypothesis import given
from hypothesis import strategies as st
from report_browser import NETWORK, PAINTED, WIDTHS, Addresses, Browser, browsing, own_text

from edgeopt.report import html, terminal, timing, units
from edgeopt.stats import Figure


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.00831, "s", "8.31 ms"),
        (0.000601, "s", "0.601 ms"),
        (0.0000601, "s", "60.1 µs"),
        (2.5e-8, "s", "25.0 ns"),
        (75.04, "s", "75.0 s"),
        (0.9999, "s", "1.00 s"),
        (0, "s", "0 s"),
        (52_000, "bytes", "52.0 kB"),
        (999, "bytes", "999 B"),
        (3_980_000_000, "bytes", "3.98 GB"),
        (0.0123, "j", "12.3 mJ"),
        (1.5e9, "hz", "1.50 GHz"),
        (None, "s", "not measured"),
        (float("nan"), "s", "not measured"),
    ],
)
def test_quantities(value: float | None, unit: str, shown: str) -> None:
    assert units.quantity(value, unit) == shown


def test_figures_say_what_they_rest_on() -> None:
    assert units.figure(Figure(0.00831, (0.00825, 0.0084), 700), "s") == "8.31 ms (8.25 … 8.40)"
    assert units.figure(Figure(0.5, None, 3, how="estimated"), "j") == "500 mJ (estimated)"
    assert units.figure(Figure(None, None, 40, invalid="n=40, needs 64"), "s") == "invalid (n=40, needs 64)"
    assert units.figure(None, "s") == "not measured"
    assert units.ratio({"value": 0.46, "interval": [0.45, 0.48], "against": "fp32"}) == "0.46× (0.45 … 0.48)"
    assert units.gain({"value": 0.46, "how": "simulated"}, "faster", "slower") == "2.17× faster (simulated)"
    assert units.gain({"value": 1.5}, "faster", "slower") == "1.50× slower"
    assert units.drop(-0.0012, "top1", (-0.009, 0.019)) == "−0.1 points (−0.9 … 1.9)"
    assert units.drop(0.0121, "mae") == "0.0121"


def test_plain_values_take_their_unit_from_their_key() -> None:
    assert units.by_key("frequency_max_hz", {"value": 1.5e9, "source": "https://x"}) == "1.50 GHz"
    assert units.by_key("energy_j", {"value": None, "how": "measured", "invalid": "window too short"}) == (
        "invalid (window too short)"
    )
    assert units.by_key("energy", {"gross_j": 0.012, "net_j": None}) == "gross 12.0 mJ, net not measured"
    assert units.by_key("temperature_c", [50.0 + i for i in range(10)]) == "50.0 °C to 59.0 °C in 10 readings"
    assert units.by_key("delegates", []) == "none"
    assert units.by_key("throttled", False) == "no"
    assert units.label("peak_memory_bytes") == "peak memory above the runtime"
    assert units.when("2026-11-22T10:00:00Z") == "22 November 2026, 10:00 UTC"
    assert units.when("yesterday") == "yesterday"


@given(st.floats(allow_nan=True), st.text(min_size=1), st.sampled_from(["s", "bytes", "j"]))
def test_an_invalid_figure_is_never_a_number(value: float, reason: str, unit: str) -> None:
    invalid = {"value": value, "interval": [value, value], "n": 3, "how": "measured", "invalid": reason}
    for shown in (units.figure(invalid, unit), units.ratio(invalid), units.gain(invalid, "faster", "slower")):
        assert shown == f"invalid ({units.text(reason)})"


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12))
def test_any_number_has_a_unit_and_three_digits(value: float) -> None:
    number, unit = units.quantity(value, "s").split(" ")
    read = float(number.replace(",", "").replace("−", "-")) * {"s": 1, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}[unit]
    assert read == pytest.approx(value, rel=0.006, abs=1e-11)


@given(st.text())
def test_foreign_text_carries_no_control_characters(given_text: str) -> None:
    assert units.text(given_text).isprintable()


@pytest.mark.parametrize("width", [80, 100, 160])
def test_terminal_gives_verdict_ladder_reasons_and_files(width: int) -> None:
    run = report_data.run()
    shown = re.sub(r"\s+", " ", report_data.screen(run, width))
    assert shown.startswith(" UNDECIDED prune30-int8 runs 3.0 times")
    if width < terminal.WIDE:
        for trial in run["trials"]:
            assert f"{trial['name']} {trial['reason']}" in shown
    for said in ("▸ prune30-int8", "0.601 ms", "0.33×", "needs about 8 groups", "top1 86.1 % (80.0 … 91.0)"):
        assert said in shown
    assert "runs/x/report.html" in shown
    assert "runs/x/smartwatch-activity.edgeopt" in shown


@pytest.mark.parametrize("name", sorted(report_data.RUNS))
def test_terminal_fits_and_survives(name: str) -> None:
    for full in (False, True):
        shown = report_data.screen(report_data.RUNS[name](), 80, full)
        assert max(map(len, shown.splitlines())) <= 80
        assert "\x1b" not in shown
        assert full or len(shown.splitlines()) < (70 if name == "hostile" else 60)


def test_terminal_never_counts_a_budget_that_was_not_measured_as_met() -> None:
    run = report_data.run()
    run["trials"][2]["latency"]["p95_s"] = {"value": None, "interval": None, "n": 70, "invalid": "n=70, needs 130"}
    found = terminal.demands(run, terminal.chosen_trial(run), "top1")
    assert found[1] == {
        "what": "95th-percentile latency",
        "limit": "1.00 ms",
        "reached": "invalid (n=70, needs 130)",
        "state": "not measured",
    }
    run["plan"]["budgets"] = {"latency_p50_s": 0.0001, "energy_j": 0.1}
    states = [demand["state"] for demand in terminal.demands(run, terminal.chosen_trial(run), "top1")]
    assert states == ["missed", "not measured", "undecided"]


@pytest.mark.parametrize("name", sorted(report_data.RUNS))
def test_page_is_self_contained(name: str, tmp_path: Path) -> None:
    run = report_data.RUNS[name]()
    folder = report_data.write(tmp_path, run) if run else tmp_path
    page = html.write(run, folder).read_text(encoding="utf-8")
    found = Addresses.of(page)
    assert found.found == ["data:,"]
    assert found.handlers == []
    assert found.scripts == 3
    assert not re.search(NETWORK, own_text(page))


def test_page_holds_every_number_beside_its_plot(tmp_path: Path) -> None:
    run = report_data.run()
    page = html.render(run, report_data.write(tmp_path, run))
    for trial in run["trials"]:
        assert trial["reason"] in page
        assert units.figure(trial["latency"]["p50_s"], "s").split(" (")[0] in page
    for said in ("prune 30 %", "recover 3 epochs", "second half 7 % slower", "rotator cuff raise", "Cortex-A72"):
        assert said in page


def test_page_draws_only_samples_of_its_own_run(tmp_path: Path) -> None:
    run = report_data.run()
    folder = report_data.write(tmp_path / "run", run)
    (folder / "samples" / "int8.npz").write_bytes(b"not a zip")
    (folder / "samples" / "fp32.npz").rename(tmp_path / "outside.npz")
    run["trials"][0]["samples"] = "../outside.npz"
    run["trials"][2]["samples"] = None
    curves = html.view(run, folder)["curves"]
    assert [one["name"] for one in curves["series"]] == ["prune50-int8"]
    assert curves["missing"] == ["fp32", "int8", "prune30-int8"]


def test_where_the_time_went_and_what_shortens_it() -> None:
    stages = {"pruned": 480.0, "measured fp32, int8": 61.0, "lowered to int8": 3.0}
    run = report_data.run() | {"seconds": {"total": 600.0, "stages": stages, "stored": ["task"]}}
    shown = " ".join(report_data.screen(run).split())
    assert "10 min 0 s in all; longest: pruned 8 min 0 s (shorter with fewer [prune] epochs or ratios)" in shown
    assert "lowered" not in timing.line(run)
    alike = {"measured a": 300.0, "pruned b": 200.0, "measured c": 100.0}
    assert timing.line({"seconds": {"total": 600.0, "stages": alike}}).endswith(
        "measured a 5 min 0 s, pruned b 3 min 20 s (shorter with fewer [prune] epochs or ratios), "
        "measured c 1 min 40 s (shorter with [ladder] mode quick or rapid, fewer rungs)"
    )
    assert [name for name, _, _ in timing.rows(run)] == list(stages)
    assert timing.line(report_data.run()) == ""


def test_where_nothing_fits_the_nearest_is_told() -> None:
    misses = [
        {"what": "latency_p50_s", "value": 0.012, "allowed": 0.01, "over": 1.2},
        {"what": "floor_drop", "value": 0.03, "allowed": 0.02, "over": 1.5},
    ]
    run = report_data.run() | {"nearest": {"name": "int8", "misses": misses, "final": None}, "chosen": None}
    shown = " ".join(report_data.screen(run).split())
    assert "nearest int8: median latency 12.0 ms where 10.0 ms is allowed, 1.20 times as much" in shown
    assert "drop 3.0 points where 2.0 points is allowed" in shown


@pytest.mark.parametrize(
    ("value", "of", "said"),
    [(6.71e-9, -0.4, "none"), (0.0, -0.4, "none"), (0.0123, -0.4, "0.0123"), (6.71e-9, None, "671")],
)
def test_a_drop_in_the_rounding_of_a_score_is_none(value: float, of: float | None, said: str) -> None:
    assert said in units.drop(value, "negative_mae", of=of).replace("0.0000000", "")


def test_page_leaves_invalid_ratios_out_of_the_plot(tmp_path: Path) -> None:
    run = report_data.run()
    run["trials"][1]["ratios"]["latency_p50_s"]["invalid"] = "n=4 rounds, needs 6"
    view = html.view(run, tmp_path)
    assert view["pareto"]["left_out"] == ["int8"]
    assert "invalid (n=4 rounds, needs 6)" in html.render(run, tmp_path)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["full", "bare", "hostile"])
def test_page_in_a_browser(browser: Browser, tmp_path: Path, name: str, scheme: str, width: int) -> None:
    run = report_data.RUNS[name]()
    browser.open(html.write(run, report_data.write(tmp_path, run)), width, scheme)
    plots = browser.run(PAINTED)
    assert browser.log() == []
    assert [plot["id"] for plot in plots] == ([] if name == "bare" else ["pareto", "curves"])
    for plot in plots:
        assert plot["inked"] > 0.02
        assert plot["colours"] > 20
        assert 250 < plot["width"] <= width
    scrolled, client, inner = browser.run(WIDTHS)
    assert inner == width
    assert scrolled <= client <= width
    assert browser.run("return window.hacked") is None
    assert browser.run("return document.images.length") == 0


def test_plots_follow_scheme_and_paper(browser: Browser, tmp_path: Path) -> None:
    run = report_data.run()
    browser.open(html.write(run, report_data.write(tmp_path, run)), 1280, "dark")
    sample = "return document.getElementById('pareto').toDataURL()"
    dark = browser.run(sample)
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    paper = browser.run(sample)
    browser.run("window.dispatchEvent(new Event('afterprint'))")
    assert dark != paper
    assert browser.run(sample) == dark
    assert browser.cdp("Page.printToPDF", printBackground=True)["data"]
    assert browser.log() == []


def test_script_slipped_past_escaping_would_not_run(browser: Browser, tmp_path: Path) -> None:
    """The second wall: only the page's own scripts have the hashes that its policy names."""
    run = report_data.run()
    page = html.write(run, report_data.write(tmp_path, run))
    forged = page.read_text(encoding="utf-8").replace("</main>", "<script>window.hacked = 1</script></main>")
    page.write_text(forged, encoding="utf-8")
    browser.open(page, 1280)
    assert browser.run("return window.hacked") is None
    assert any("Content Security Policy" in line for line in browser.log())
