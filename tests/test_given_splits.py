"""Splits that are given by a column, or by files or folders of their own; a train split; samples for ranges."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import copy_example, run_cli, run_quick

from edgeopt import data, lower, plan, stages, task
from edgeopt.cache import Cache
from edgeopt.errors import ConfigError
from edgeopt.parts import PART, join_parts, split_of
from edgeopt.task import Samples, Split

RNG = np.random.default_rng(0)
NET = """import torch
def load():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
"""


def arrays(rows: int) -> dict[str, Any]:
    return {"x": RNG.normal(size=(rows, 12)).astype(np.float32), "y": np.arange(rows) % 3}


def of_parts(*names: str, groups: Any = None) -> Samples:
    rows = len(names)
    return Samples((np.arange(rows),), None, groups, np.array(names))


WANTED = {
    "calibration": Split(None, 3, ("train",)),
    "selection": Split(None, None, ("dev",)),
    "final": Split(None, None, ("test",)),
}


def test_given_splits_take_their_own_rows_and_no_others() -> None:
    parts = ["test", "train", "dev", "train", "unlabelled", "train", "test", "dev", "train", "train"]
    found = task.split(of_parts(*parts), WANTED | {"train": Split(None, None, ("train",))}, 0)
    assert list(found) == ["train", "calibration", "selection", "final"]
    assert [len(rows) for rows in found.values()] == [2, 3, 2, 2]
    for name, part in (("train", "train"), ("calibration", "train"), ("selection", "dev"), ("final", "test")):
        assert {parts[row] for row in found[name]} == {part}
    assert len(set(np.concatenate(list(found.values())).tolist())) == 9


def test_splits_of_one_part_share_it_by_count_and_by_group() -> None:
    groups = np.repeat(np.arange(10), 4)
    samples = of_parts(*["train"] * 28, *["test"] * 12, groups=groups)
    wanted = WANTED | {"calibration": Split(None, 8, ("train",)), "selection": Split(None, 6, ("train",))}
    found = task.split(samples, wanted | {"train": Split(None, None, ("train",))}, 3)
    held = {name: set(groups[rows].tolist()) for name, rows in found.items()}
    assert held["final"] == {7, 8, 9}
    assert sum(map(len, held.values())) == len(set.union(*held.values())) == 10


@pytest.mark.parametrize(
    ("parts", "changes", "groups", "words"),
    [
        (["train", "dev", "test"], {"final": Split(None, None, ("tset",))}, None, ["'tset'", "train", "dev", "test"]),
        (["train", "dev", "test"], {"calibration": Split(None, 5, ("train",))}, None, ["count = 5", "1 samples"]),
        (["train"] * 4 + ["dev", "test"], {"selection": Split(None, None, ("test",))}, None, ["selection and final"]),
        (["train"] * 3 + ["dev", "test"], {}, [1, 1, 1, 2, 1], ["group 1", "no group"]),
        ([0, 0, 0, 1, 2], {}, None, ["whole numbers"]),
    ],
)
def test_given_splits_that_cannot_be(parts: list[Any], changes: Any, groups: Any, words: list[str]) -> None:
    samples = Samples((np.arange(len(parts)),), None, None if groups is None else np.array(groups), np.array(parts))
    with pytest.raises(ConfigError) as refused:
        task.split(samples, WANTED | changes, 0)
    for word in ("[splits]", *words):
        assert word in str(refused.value)


@pytest.mark.parametrize("called", [("x", "y"), ("x_train", "y_train"), ("train_x", "train_y")])
def test_arrays_of_a_part_may_be_called_after_it(called: tuple[str, str]) -> None:
    one, other = arrays(4), arrays(3)
    parts = {"train": {called[0]: one["x"], called[1]: one["y"], "z": np.zeros(9)}, "test": other}
    found = join_parts(parts, ["x", "y"])
    assert found["x"].shape == (7, 12)
    assert found[PART].tolist() == ["train"] * 4 + ["test"] * 3
    with pytest.raises(ConfigError, match="part 'test': found no array 'w', 'w_test' or 'test_w'; it has: x, y"):
        join_parts({"train": {"w": one["x"]}, "test": other}, ["w"])
    with pytest.raises(ConfigError, match="'x' has other sizes in its parts"):
        join_parts({"train": one, "test": {"x": np.zeros((3, 5))}}, ["x"])


@pytest.mark.parametrize(
    ("word", "split"),
    [("train", "train"), ("Validation", "selection"), ("DEV", "selection"), ("test", "final"), ("cat", None)],
)
def test_words_for_splits(word: str, split: str | None) -> None:
    assert split_of(word) == split


# From files to a plan, and by init


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "project"
    made.mkdir()
    (made / "net.py").write_text(NET)
    return made


def part_arrays(folder: Path) -> Path:
    """An array of text that says it; it is no group, even where that is asked for."""
    np.savez(folder / "data.npz", **arrays(90), part=np.repeat(["train", "dev", "test"], [50, 15, 25]))
    return folder / "data.npz"


def part_files(folder: Path) -> Path:
    for name, rows in (("x_train", 65), ("test", 25)):
        np.savez(folder / f"{name}.npz", **arrays(rows))
    return folder / "x_train.npz"


def one_file(folder: Path) -> Path:
    own = {f"{name}_{part}": a for part, rows in (("train", 65), ("test", 25)) for name, a in arrays(rows).items()}
    np.savez(folder / "all.npz", **own)
    return folder / "all.npz"


def folders(folder: Path) -> Path:
    picture = pytest.importorskip("PIL.Image")
    for part, rows in (("train", 30), ("val", 10), ("test", 20)):
        for name in ("cat", "dog"):
            (folder / "data" / part / name).mkdir(parents=True)
            for number in range(rows // 2):
                picture.fromarray(np.full((4, 4, 3), number, np.uint8)).save(
                    folder / "data" / part / name / f"{number}.png"
                )
    return folder / "data"


def table(folder: Path) -> Path:
    picture = pytest.importorskip("PIL.Image")
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "label", "fold"))
        for number in range(60):
            picture.fromarray(np.full((4, 4, 3), number, np.uint8)).save(folder / f"{number}.png")
            writer.writerow((f"{number}.png", "ab"[number % 2], ["train", "valid", "test"][number % 3]))
    return folder / "labels.csv"


KINDS = {
    "array": (part_arrays, {"train": 40, "calibration": 10, "selection": 15, "final": 25}),
    "files": (part_files, {"train": 33, "calibration": 13, "selection": 19, "final": 25}),
    "one file": (one_file, {"train": 33, "calibration": 13, "selection": 19, "final": 25}),
    "folders": (folders, {"train": 24, "calibration": 6, "selection": 10, "final": 20}),
    "column": (table, {"train": 16, "calibration": 4, "selection": 20, "final": 20}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_init_takes_given_splits_as_they_are(folder: Path, kind: str) -> None:
    make, sizes = KINDS[kind]
    more = ["--groups", "part"] if kind == "array" else []
    command = ["init", folder, "--model", "net:load", "--data", make(folder), "--profile", "generic-linux", *more]
    done = run_cli(*command, "--json")
    assert done.returncode == 0, done.stderr
    made = plan.load(folder, lower.abilities())
    assert made.run_file.task.groups is None
    assert data.preview(made)[0] == sizes
    splits = data.opened(made, Cache(folder / "cache"), [].append)
    assert {name: len(own) for name, own in splits.items()} == sizes
    for name, own in splits.items():
        assert own.parts is not None
        assert {split_of(part) for part in own.parts.tolist()} <= {name, "train"}


def test_init_of_much_data_proposes_train_and_calibration(folder: Path) -> None:
    np.savez(folder / "data.npz", **arrays(9_000))
    command = ["init", folder, "--model", "net:load", "--data", folder / "data.npz", "--profile", "generic-linux"]
    assert run_cli(*command).returncode == 0
    sizes, _ = data.preview(plan.load(folder, lower.abilities()))
    assert sizes == {"train": 3_200, "calibration": 300, "selection": 1_000, "final": 4_500}


RUN_FILE = """
name = "given"
model.torch = "net:load"
device.profile = "generic-linux"
ladder = {{ floor_drop = {floor}, rungs = ["fp32"], runtime = "tflite" }}
[task]
arrays = "data.npz"
inputs = ["x"]
labels = "y"
metric = "top1"
{task}
[splits]
{splits}
"""


def planned(folder: Path, splits: str, floor: float = 0.5, task: str = "") -> plan.Plan:
    (folder / "edgeopt.toml").write_text(RUN_FILE.format(splits=splits, floor=floor, task=task))
    return plan.load(folder, lower.abilities())


GIVEN = 'calibration = {{ values = ["train"] }}\nselection = {{ {} }}\nfinal = {{ values = ["test"] }}'


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ('column = "part"\n' + GIVEN.format("count = 5"), ["splits.selection.values", "nothing"]),
        (GIVEN.format("count = 5"), ["splits.calibration.values", "[splits] column"]),
        ('column = "part"\n' + GIVEN.format('values = ["dev"], groups = [1]'), ["values", "groups", "both"]),
    ],
)
def test_run_files_that_half_give_their_splits(folder: Path, splits: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        planned(folder, splits)
    for word in words:
        assert word in str(refused.value)


def test_a_column_that_is_not_there_is_named(folder: Path) -> None:
    part_arrays(folder)
    made = planned(folder, 'column = "fold"\n' + GIVEN.format('values = ["dev"]'))
    with pytest.raises(ConfigError, match=r"\[splits\] column = 'fold': .* has no such array; it has: .*part"):
        data.opened(made, Cache(folder / "cache"), [].append)
    assert "fold" in run_cli("optimize", folder, "--show-plan").stdout


# What a plan can only end in


@pytest.mark.parametrize(
    ("floor", "groups", "words"),
    [
        (0.5, False, []),
        (0.01, False, ["will be undecided", "25 samples", "floor_drop is 0.01"]),
        (0.5, True, ["only be undecided", "one group", "'part'", "[splits] column"]),
    ],
)
def test_a_verdict_that_can_only_be_undecided_is_foretold(
    folder: Path, floor: float, groups: bool, words: list[str]
) -> None:
    part_arrays(folder)
    own = 'column = "part"\n' + GIVEN.format('values = ["dev"]')
    if groups:
        own = own.partition("\n")[2].replace("values", "groups")
    made = planned(folder, own, floor, 'groups = "part"' if groups else "")
    _, foreseen = data.preview(made)
    assert len(foreseen) == bool(words)
    said = run_cli("optimize", folder, "--show-plan")
    assert said.returncode == 0
    for word in words:
        assert word in foreseen[0]
        assert word in " ".join(said.stdout.split())
    assert data.foreseen(made, data.opened(made, Cache(folder / "cache"), [].append)["final"]) == foreseen


def test_a_run_file_that_mixes_given_splits_is_warned(folder: Path) -> None:
    part_arrays(folder)
    said: list[dict[str, Any]] = []
    counts = "calibration = { count = 9 }\nselection = { count = 9 }\nfinal = { count = 9 }"
    data.opened(planned(folder, counts), Cache(folder / "cache"), said.append)
    assert ["'part'" in event["what"] and "[splits] column" in event["what"] for event in said] == [True]


# Training and ranges have samples of their own


def bench_of(folder: Path, splits: str) -> stages.Workbench:
    made, cache = planned(folder, splits), Cache(folder / "cache")
    return stages.open_workbench(made, data.opened(made, cache, [].append), cache, [].append)


def test_ranges_take_at_most_500_samples_unless_told_otherwise(folder: Path) -> None:
    np.savez(folder / "data.npz", **arrays(2_000))
    counts = "calibration = { count = 1200 }\nselection = { count = 50 }\nfinal = { count = 50 }"
    bench = bench_of(folder, counts)
    assert (len(bench.splits["calibration"]), len(bench.range_samples), bench.training) == (1_200, 500, "calibration")
    rows = {row.tobytes() for row in bench.splits["calibration"].inputs[0]}
    assert all(row.tobytes() in rows for row in bench.range_samples.inputs[0])
    assert len(bench_of(folder, f"ranges = 900\n{counts}").range_samples) == 900
    bench = bench_of(folder, f"train = {{ count = 700 }}\n{counts.replace('1200', '40')}")
    assert (len(bench.range_samples), bench.training, len(bench.splits["train"])) == (40, "train", 700)


def test_pruned_models_train_on_train_and_int8_ranges_come_from_calibration(tmp_path: Path, watch_data: Path) -> None:
    """Another train split changes what was pruned, and nothing else."""
    changes: Mapping[str, str] = {
        "calibration": "{ groups = [1, 2], count = 32 }\ntrain = { groups = [3], count = 48 }\nranges = 20",
        "selection": "{ groups = [6, 7], count = 64 }",
        "final": "{ groups = [8, 9, 10], count = 64 }",
        "rungs": '["fp32", "int8", "prune"]',
        "ratios": "[0.3]",
        "floor_drop": "0.9",
        "epochs": "1",
    }
    project = copy_example(tmp_path / "p", watch_data, **changes)
    where = ["--root", tmp_path / "board", "--out", tmp_path / "run", "--cache", tmp_path / "cache"]
    done = run_quick("optimize", project, "--allow-undecided", *where, "--json")
    assert done.returncode in (0, 10), done.stderr
    run = json.loads(done.stdout)
    splits = run["plan"]["splits"]
    assert {name: own["n"] for name, own in splits.items()} == {
        **{"train": 48, "calibration": 32, "selection": 64, "final": 64}
    }
    assert splits["calibration"]["ranges_n"] == 20
    trials = {trial["name"]: trial for trial in run["trials"]}
    assert trials["int8"]["notes"]["calibration_samples"] == 20

    text = (project / "edgeopt.toml").read_text()
    (project / "edgeopt.toml").write_text(text.replace("groups = [3], count = 48", "groups = [4], count = 48"))
    done = run_quick("optimize", project, "--allow-undecided", *where, "--json")
    assert done.returncode in (0, 10), done.stderr
    again = {trial["name"]: trial for trial in json.loads(done.stdout)["trials"]}
    same = {name: again[name]["artifact"]["sha256"] == trials[name]["artifact"]["sha256"] for name in trials}
    assert same == {"fp32": True, "int8": True, "prune30-int8": False}
