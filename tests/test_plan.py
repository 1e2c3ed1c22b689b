"""The plan: what a run file and a profile settle together, and what --show-plan and --explain print of it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import EXAMPLE, run_cli
from test_bad_input import PROFILE, RUN_FILE, edit

from edgeopt import config, onboard, plan
from edgeopt.errors import MissingDependency, PlanError
from edgeopt.lower import abilities
from edgeopt.plan import Prune, Recover
from edgeopt.runfile import RunFile

BUDGETS = {"latency_p50_s": 0.01, "latency_p95_s": 0.02, "size_bytes": 50_000, "peak_memory_bytes": 1_000_000}


def made(folder: Path, run_file: str = "", profile: str = "") -> plan.Plan:
    """The plan of the tests' run file and profile with these lines added at their ends."""
    (folder / "edgeopt.toml").write_text(f"{RUN_FILE}\n{run_file}")
    (folder / "bench.toml").write_text(f"{PROFILE}\n{profile}")
    edit(folder / "edgeopt.toml", '"generic-x86-64"', '"bench.toml"')
    edit(folder / "edgeopt.toml", "[ladder]", '[ladder]\nmode = "quick"')
    return plan.load(folder, abilities())


def budget(**budgets: float) -> str:
    return "[budget]\n" + "\n".join(f"{name} = {value}" for name, value in budgets.items())


def test_defaults_and_what_is_given(tmp_path: Path) -> None:
    bare = made(tmp_path)
    assert (bare.name, bare.folder, bare.profile.id, bare.runtime) == ("tiny", tmp_path, "bench", "tflite")
    assert (bare.budgets, bare.objective, bare.rungs) == ({}, "latency_p50_s", ("fp32",))
    assert (bare.mode, bare.threads, bare.seed, bare.floor_drop, bare.min_gain) == ("quick", 1, 0, 0.02, 0.05)
    assert bare.splits["calibration"].groups == (0, 1)
    assert bare.preprocess == [[]]
    assert [prune.ratio for prune, _ in bare.prunes] == [0.3, 0.5, 0.7]
    lines = "[prune]\nratios = [0.25, 0.5]\nround_to = 4\nepochs = 3\nlearning_rate = 1.0\nbatch = 7\n"
    assert made(tmp_path, lines + 'keep = ["stem", "block1.*"]\n').prunes == (
        (Prune(0.25, 4, keep=("stem", "block1.*")), Recover(3, 1.0, 7, 0)),
        (Prune(0.5, 4, keep=("stem", "block1.*")), Recover(3, 1.0, 7, 0)),
    )


def test_rungs_keep_their_order_and_come_once(tmp_path: Path) -> None:
    made(tmp_path)
    edit(tmp_path / "edgeopt.toml", '["fp32"]', '["prune", "int8", "fp32", "threads", "int8", "fp16"]')
    assert plan.load(tmp_path, abilities()).rungs == ("fp32", "fp16", "int8", "threads", "prune")


@pytest.mark.parametrize("name", BUDGETS)
def test_budgets_of_the_run_file_replace_the_profiles(tmp_path: Path, name: str) -> None:
    assert made(tmp_path, profile=budget(**BUDGETS)).budgets == BUDGETS
    other = {name: BUDGETS[name] * 2 if name != "latency_p50_s" else 0.005}
    assert made(tmp_path, budget(**other), budget(**BUDGETS)).budgets == BUDGETS | other
    assert made(tmp_path, budget(**other)).budgets == other


@pytest.mark.parametrize(
    ("given", "objective"),
    [
        (["latency_p50_s", "size_bytes"], "latency_p50_s"),
        (["latency_p95_s", "peak_memory_bytes"], "latency_p50_s"),
        (["peak_memory_bytes", "size_bytes"], "size_bytes"),
        (["peak_memory_bytes"], "peak_memory_bytes"),
        ([], "latency_p50_s"),
    ],
)
def test_the_first_budget_is_the_objective(tmp_path: Path, given: list[str], objective: str) -> None:
    demands = budget(**{name: BUDGETS[name] for name in given})
    assert made(tmp_path, demands).objective == objective
    assert made(tmp_path, profile=demands).objective == objective


def test_a_profile_named_on_the_command_line_replaces_the_run_files(tmp_path: Path, monkeypatch: Any) -> None:
    made(tmp_path)
    assert plan.load(tmp_path, abilities(), "raspberry-pi-4").profile.id == "raspberry-pi-4"
    boards = tmp_path / "boards"
    boards.mkdir()
    (boards / "mine.toml").write_text(PROFILE)
    monkeypatch.chdir(boards)
    assert plan.load(tmp_path, abilities(), "mine.toml").profile.id == "mine"


def test_only_runtimes_that_artifacts_are_made_for(tmp_path: Path) -> None:
    made(tmp_path)
    edit(tmp_path / "bench.toml", '["tflite"]', '["openvino", "tflite"]')
    assert plan.load(tmp_path, abilities()).runtime == "openvino"
    only = {"tflite": abilities()["tflite"]}
    assert plan.load(tmp_path, only).runtime == "tflite"
    edit(tmp_path / "edgeopt.toml", "[ladder]", '[ladder]\nruntime = "tflite"')
    assert plan.load(tmp_path, abilities()).runtime == "tflite"
    edit(tmp_path / "edgeopt.toml", 'runtime = "tflite"', 'runtime = "onnxruntime"')
    with pytest.raises(PlanError, match="runtime = 'onnxruntime', but profile 'bench' runs openvino, tflite"):
        plan.load(tmp_path, abilities())
    edit(tmp_path / "edgeopt.toml", 'runtime = "onnxruntime"', "")
    edit(tmp_path / "bench.toml", '["openvino", "tflite"]', '["openvino", "onnxruntime"]')
    with pytest.raises(PlanError, match=r"runs openvino, onnxruntime, but of \[model\] torch .* for tflite only"):
        plan.load(tmp_path, only)


def test_an_onnx_model_goes_where_it_can(tmp_path: Path) -> None:
    made(tmp_path)
    edit(tmp_path / "bench.toml", '["tflite"]', '["tflite", "openvino"]')
    edit(tmp_path / "edgeopt.toml", 'torch = "net:load"', 'onnx = "model.onnx"')
    assert plan.load(tmp_path, abilities()).runtime == "openvino"
    edit(tmp_path / "edgeopt.toml", '["fp32"]', '["fp32", "prune"]')
    with pytest.raises(PlanError, match=r"'prune', which retrains .* \[model\] onnx gives no model"):
        plan.load(tmp_path, abilities())
    edit(tmp_path / "edgeopt.toml", 'rungs = ["fp32", "prune"]', "")
    assert plan.load(tmp_path, abilities()).rungs == ("fp32", "fp16", "int8", "threads")


def test_more_threads_are_the_fast_cores_then_all(tmp_path: Path) -> None:
    made(tmp_path)
    source = 'source = "https://example.org"'
    cores = "\n".join(
        f"cores{name} = {{ value = {count}, {source} }}" for name, count in (("", 8), ("_big", 4), ("_little", 4))
    )
    edit(tmp_path / "bench.toml", '"x86_64"', f'"x86_64"\n{cores}')
    chosen = plan.load(tmp_path, abilities())
    assert chosen.more_threads == (4, 8)
    assert onboard.settle(chosen, {"cores_allowed": 6}, "ssh://pi").more_threads == (4,)


def test_threads_within_the_cores_of_profile_and_board(tmp_path: Path) -> None:
    made(tmp_path)
    edit(tmp_path / "bench.toml", '"x86_64"', '"x86_64"\ncores = { value = 4, source = "https://example.org" }')
    edit(tmp_path / "edgeopt.toml", "[ladder]", "[ladder]\nthreads = 4")
    four = plan.load(tmp_path, abilities())
    assert onboard.settle(four, {"cores_allowed": 4}, "ssh://pi").more_threads == ()
    with pytest.raises(PlanError, match="threads = 4, but ssh://pi has 3 cores; lower threads"):
        onboard.settle(four, {"cores_allowed": 3}, "ssh://pi")
    edit(tmp_path / "edgeopt.toml", "threads = 4", "threads = 5")
    with pytest.raises(PlanError, match="threads = 5, but profile 'bench' has 4 cores"):
        plan.load(tmp_path, abilities())


@pytest.mark.parametrize(
    ("rung", "module", "extra"),
    [("int8", "torch", "torch"), ("prune", "torch_pruning", "torch"), ("int8", "litert_torch", "tflite")],
)
def test_missing_packages_name_their_extra(
    tmp_path: Path, monkeypatch: Any, rung: str, module: str, extra: str
) -> None:
    made(tmp_path)
    edit(tmp_path / "edgeopt.toml", '["fp32"]', f'["fp32", "{rung}"]')
    chosen = plan.load(tmp_path, abilities())
    plan.require_packages(chosen, abilities())
    find = plan.util.find_spec
    monkeypatch.setattr(plan.util, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(MissingDependency, match=rf"'{module}'.* pip install 'edgeopt\[{extra}\]'"):
        plan.require_packages(chosen, abilities())


def test_pruning_packages_are_needed_for_pruning_only(tmp_path: Path, monkeypatch: Any) -> None:
    find = plan.util.find_spec
    monkeypatch.setattr(plan.util, "find_spec", lambda name: None if name == "torch_pruning" else find(name))
    plan.require_packages(made(tmp_path), abilities())


def holds(whole: Any, part: Any) -> bool:
    """Every key of `part` stands in `whole` with the same value."""
    if isinstance(part, dict):
        return all(name in whole and holds(whole[name], value) for name, value in part.items())
    return bool(whole == part)


def test_show_plan_prints_all_that_is_settled_and_does_nothing(tmp_path: Path) -> None:
    chosen = made(tmp_path, budget(size_bytes=50_000))
    before = sorted(tmp_path.rglob("*"))
    done = run_cli("optimize", tmp_path, "--show-plan", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    look = {name: shown.pop(name) for name in ("samples", "foreseen")}
    assert shown == json.loads(json.dumps(chosen.to_json()))
    assert look["samples"] == {}
    assert "data.npz" in look["foreseen"][0]  # which is not there
    assert (shown["objective"], shown["budgets"]) == ("size_bytes", {"size_bytes": 50_000})
    assert shown["profile"]["id"] == "bench"
    assert holds(shown["run_file"], tomllib.loads((tmp_path / "edgeopt.toml").read_text()))
    screen = run_cli("optimize", tmp_path, "--show-plan", cwd=tmp_path)
    assert screen.returncode == 0, screen.stderr
    assert "file size at most 50.0 kB" in screen.stdout
    assert "neither data, model nor board" in " ".join(screen.stdout.split())
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_of_the_example_loads_no_heavy_module() -> None:
    script = (
        "import sys; from pathlib import Path; from edgeopt import lower, plan;"
        "plan.load(Path(sys.argv[1]), lower.abilities());"
        "print([name for name in ('torch', 'litert_torch', 'ai_edge_litert', 'paramiko') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, EXAMPLE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_key_of_a_run_file_is_explained() -> None:
    known = list(config.keys(RunFile))
    assert {key.key for key in known} >= {
        "name",
        "task.preprocess",
        "splits.final.groups",
        "budget.size_bytes",
        "prune.batch",
    }
    for key in known:
        assert key.description, f"{key.key} has no description"
        assert key.allowed, f"{key.key} does not say what is allowed"
        assert "Any" not in key.allowed, f"{key.key} may hold {key.allowed}"
    shown = run_cli("optimize", "--explain", EXAMPLE)
    assert shown.returncode == 0
    for key in known:
        assert f"{key.key}   [" in shown.stdout
        assert key.description in shown.stdout
        assert key.allowed in shown.stdout


def test_every_key_of_the_example_is_one_of_the_explained() -> None:
    known = {key.key for key in config.keys(RunFile)}
    loaded = tomllib.loads((EXAMPLE / "edgeopt.toml").read_text())
    for section, content in loaded.items():
        for key in content if isinstance(content, dict) else ():
            assert f"{section}.{key}" in known
