"""Costs by the user's prices and the share of outputs for human review: by hand, and through the installed commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import EXAMPLE, SMALL, copy_example, run_cli, run_quick
from report_data import run, write

from edgeopt import cost, profile
from edgeopt.cost import Prices
from edgeopt.evidence import Scored
from edgeopt.report import accounts

PRICES = Prices(hardware=60.0, life_years=5.0, energy_per_kwh=0.30, currency="EUR")
LATENCY: dict[str, Any] = {"mean_s": {"value": 0.010}, "n": 1024}
ENERGY: dict[str, Any] = {"gross_j": {"value": 0.05, "interval": [0.04, 0.06], "n": 5, "how": "measured"}}


def test_cost_by_hand() -> None:
    found = cost.per_1000_runs(LATENCY, ENERGY, PRICES)
    # 1,000 runs: 50 J = 50 / 3.6e6 kWh; and 10 s of a board that is worth 60 EUR and serves 5 years
    assert found["energy"]["value"] == pytest.approx(50 / 3.6e6 * 0.30)
    assert found["energy"]["interval"] == pytest.approx([40 / 3.6e6 * 0.30, 60 / 3.6e6 * 0.30])
    assert found["hardware"]["value"] == pytest.approx(60 * 10 / (5 * 365.25 * 24 * 3600))
    assert found["total"]["value"] == pytest.approx(found["energy"]["value"] + found["hardware"]["value"])
    assert found["total"]["interval"][1] == pytest.approx(found["energy"]["interval"][1] + found["hardware"]["value"])
    assert found["per_throughput"]["value"] == pytest.approx(60 / 100)  # 100 inferences a second
    assert (found["currency"], found["total"]["how"]) == ("EUR", "measured")


def test_cost_of_a_board_that_waits() -> None:
    found = cost.per_1000_runs(LATENCY, ENERGY, Prices.of({"hardware": 60, "life_years": 5}, {"runs_per_day": 500.0}))
    assert found["hardware"]["value"] == pytest.approx(1000 * 60 / (5 * 365.25 * 500))
    assert found["basis"] == "500 runs a day"
    assert found["hardware"]["how"] == "estimated"


@pytest.mark.parametrize(
    ("latency", "energy", "prices", "part", "why"),
    [
        (LATENCY, None, PRICES, "energy", "energy was not measured"),
        (LATENCY, {"gross_j": {"value": None, "invalid": "2 valid windows"}}, PRICES, "energy", "2 valid windows"),
        (LATENCY, ENERGY, Prices(hardware=60, life_years=5), "energy", "no energy price"),
        (LATENCY, ENERGY, Prices(energy_per_kwh=0.3), "hardware", "no hardware price"),
        (LATENCY, ENERGY, Prices(hardware=60), "hardware", "no life of the hardware"),
        (None, ENERGY, PRICES, "hardware", "latency was not measured"),
        (LATENCY, ENERGY, Prices(), "per_throughput", "no hardware price"),
    ],
)
def test_what_is_absent_is_none_and_named(latency: Any, energy: Any, prices: Prices, part: str, why: str) -> None:
    found = cost.per_1000_runs(latency, energy, prices)
    assert found[part]["value"] is None
    assert why in found[part]["invalid"]
    if part != "per_throughput":
        assert found["total"]["value"] is None
        assert why in found["total"]["invalid"]


def test_an_estimated_energy_makes_an_estimated_cost() -> None:
    guessed = {"gross_j": ENERGY["gross_j"] | {"how": "estimated"}}
    assert cost.per_1000_runs(LATENCY, guessed, PRICES)["total"]["how"] == "estimated"


def test_money_is_written_as_every_number_is() -> None:
    dear = cost.per_1000_runs(LATENCY, ENERGY, Prices(hardware=123_456.0, currency="EUR"))
    assert accounts.cost(dear)[1][1] == "1,235 EUR"


def test_no_price_is_built_in() -> None:
    assert not Prices().known()
    for name in profile.names():
        assert not Prices.of(profile.load(name).cost.model_dump()).known()


def test_options_win_over_the_profile() -> None:
    found = Prices.of({"hardware": 60, "life_years": 5, "currency": None}, {"hardware": 80, "life_years": None})
    assert (found.hardware, found.life_years, found.currency) == (80, 5, None)


def test_review_is_paired() -> None:
    before = np.array([0.9] * 80 + [0.5] * 20)
    after = np.array([0.9] * 70 + [0.5] * 30)
    found = cost.review(after, before, 0.8)
    assert (found["before"]["value"], found["after"]["value"]) == (0.2, 0.3)
    assert found["difference"] == pytest.approx(0.1)
    low, high = found["difference_interval"]
    assert 0 < low < 0.1 < high  # ten that are new and none that went: McNemar's exact test rejects
    assert found["before"]["interval"][0] < 0.2 < found["before"]["interval"][1]
    assert cost.review(after, after, 0.8)["difference"] == 0
    grouped = cost.review(after, before, 0.8, np.repeat(np.arange(5), 20))
    assert grouped["test"] == "group jackknife, 5 groups"
    assert grouped["difference_interval"][0] <= low


def test_confidence_of_logits_and_of_shares_is_the_same() -> None:
    from edgeopt.task import Samples

    logits = np.random.default_rng(0).normal(0, 2, (50, 4)).astype(np.float32)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    samples = Samples((logits,), logits.argmax(axis=1), None)
    made = [
        Scored.of([one], [one], samples, lambda outputs, labels: (outputs[0].argmax(axis=1) == labels) * 1.0, True)
        for one in (logits, shares)
    ]
    assert made[0].confidence == pytest.approx(made[1].confidence, abs=1e-5)
    assert made[0].source_confidence == pytest.approx(shares.max(axis=1), abs=1e-5)


OPTIONS = ["--hardware-price", "60", "--life-years", "5", "--energy-price", "0.3", "--currency", "EUR"]


def test_report_tells_costs_only_with_prices(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", run())
    assert json.loads(run_cli("report", folder, "--json").stdout)["cost"] is None
    assert "cost of 1,000 runs" not in run_cli("report", folder).stdout
    found = json.loads(run_cli("report", folder, *OPTIONS, "--json").stdout)["cost"]
    mean = run()["trials"][1]["latency"]["mean_s"]["value"]
    assert found["int8"]["hardware"]["value"] == pytest.approx(1000 * 60 * mean / (5 * cost.YEAR_S))
    assert found["int8"]["total"]["invalid"] == "energy was not measured"
    shown = run_cli("report", folder, *OPTIONS).stdout
    assert "int8: cost of 1,000 runs" in shown
    assert "energy was not measured" in shown
    refused = run_cli("report", folder, "--hardware-price", "-1")
    assert refused.returncode == 2


def test_a_threshold_needs_classes(tmp_path: Path, watch_data: Path) -> None:
    project = copy_example(tmp_path / "p", watch_data, metric='"negative_mae"\nconfidence_threshold = 0.8')
    done = run_cli("optimize", project, "--show-plan")
    assert done.returncode == 2
    assert "confidence_threshold" in done.stderr
    assert "top1, top5" in done.stderr


def test_review_and_cost_from_run_file_to_board(tmp_path: Path, watch_data: Path, shared_tmp: Path) -> None:
    """The run file's threshold and the profile's prices reach run.json, the page, the bundle and `validate`."""
    text = (EXAMPLE.parents[1] / "device_profiles" / "generic-x86-64.toml").read_text()
    prices = "\n[cost]\nhardware = 60.0\nlife_years = 5.0\nenergy_per_kwh = 0.3\n"
    (tmp_path / "mine.toml").write_text(text + prices)
    project = copy_example(tmp_path / "p", watch_data, **SMALL, metric='"top1"\nconfidence_threshold = 0.8')
    where = ["--root", tmp_path / "board", "--out", tmp_path / "run", "--cache", shared_tmp / "cache"]
    done = run_quick("optimize", project, "--allow-undecided", "--profile", tmp_path / "mine.toml", *where, "--json")
    assert done.returncode == 0, done.stderr
    review = json.loads(done.stdout)["final"]["review"]
    scored = Scored.read(tmp_path / "run" / "samples" / "final.npz")
    assert scored.confidence is not None
    assert review["after"]["value"] == pytest.approx((scored.confidence < 0.8).mean())
    assert 0 < review["before"]["value"] < 1
    assert "by the source model" in run_cli("report", tmp_path / "run").stdout
    page = (tmp_path / "run" / "report.html").read_text()
    assert "for human review" in page
    assert "cost of 1,000 runs" in page
    assert run_cli("report", tmp_path / "run", "--recompute").returncode == 0

    bundle = tmp_path / "run" / "smartwatch-activity.edgeopt"
    assert run_cli("flash", bundle, "--root", tmp_path / "board").returncode == 0
    judged = run_quick("validate", bundle, "--root", tmp_path / "board", "--allow-undecided", *OPTIONS, "--json")
    found = json.loads(judged.stdout)
    assert found["final"]["review"] == review
    assert found["final"]["output_error"] == json.loads(done.stdout)["final"]["output_error"]
    assert found["cost"]["hardware"]["value"] > 0
    assert found["cost"]["energy"]["invalid"] == "energy was not measured"
