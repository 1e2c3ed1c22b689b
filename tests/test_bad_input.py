"""What a user gets wrong, made for real and put through the installed CLI: exit code, the thing by name, the mend, and
a tree that is as it was."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.resources
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import EDGEOPT, made_once, run_cli
from packaging.requirements import Requirement

RUN_FILE = """\
name = "tiny"

[model]
torch = "net:load"

[task]
arrays = "data.npz"
inputs = ["x"]
labels = "y"
groups = "who"
metric = "top1"

[splits]
calibration = { groups = [0, 1] }
selection = { groups = [2] }
final = { groups = [3] }

[device]
profile = "generic-x86-64"

[ladder]
rungs = ["fp32"]
floor_drop = 0.02
"""
PROFILE = """\
schema = 1
name = "Bench board"
description = "A board of the tests."
runtimes = ["tflite"]

[cpu]
architecture = "x86_64"

[board]
root = "/var/lib/edgeopt"
python = "python3"
"""
NET = """\
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x)


def load(width=4):
    return Net()
"""
Arrays = dict[str, np.ndarray[Any, Any]]
JSON_CASES = 3  # of every table, so many are asked for --json too


def arrays(**others: Any) -> Arrays:
    """40 samples of four people, three classes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 4)).astype(np.float32)
    return {"x": x, "y": np.arange(40) % 3, "who": np.arange(40) // 10, **others}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A small valid project, to be spoiled by one test."""
    folder = tmp_path / "project"
    folder.mkdir()
    (tmp_path / "runs").mkdir()
    (folder / "edgeopt.toml").write_text(RUN_FILE)
    (folder / "net.py").write_text(NET)
    np.savez(folder / "data.npz", **arrays())
    return folder


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, f"'{old}' stands {text.count(old)} times in {file}"
    file.write_text(text.replace(old, new))


def snapshot(folder: Path) -> dict[str, tuple[str, int, str]]:
    """Kind, size and hash (of a link: its target) of everything under a folder."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        if path.is_symlink():
            found[str(path)] = "link", 0, os.readlink(path)
        elif path.is_file():
            found[str(path)] = "file", path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path)] = ("folder" if path.exists() else "absent"), 0, ""
    return found


def refused(
    tree: Path,
    code: int,
    said: Iterable[str],
    *arguments: object,
    cwd: Path | None = None,
    command: list[str] | None = None,
) -> str:
    """Runs edgeopt, which must refuse with this exit code and words, leave `tree` as it was, and print no traceback."""
    before = snapshot(tree)
    words = [*(command or [str(EDGEOPT)]), *map(str, arguments)]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    *_, message = re.split(r"^(?=edgeopt: )", done.stderr, flags=re.MULTILINE)
    for words in said:
        assert words in message
    assert snapshot(tree) == before
    if "--json" in arguments:
        document = json.loads(done.stdout)
        assert document["exit_code"] == code
        assert f"edgeopt: {document['error']['message']}\n" == message
    else:
        assert done.stdout == ""
    return message


def optimize(tree: Path, project: Path, code: int, said: Iterable[str], *more: object, **how: Any) -> str:
    """`optimize` is refused; `tree` holds project, runs and board, and the cache lies outside it."""
    cache = tree.with_name(f"{tree.name}-cache")
    where = ["--root", tree / "board", "--cache", cache]
    return refused(tree, code, said, "optimize", project, *where, *more, cwd=tree, **how)


def some_as_json(cases: list[Any]) -> list[Any]:
    """Every case as text, and the first few as --json too."""
    named = [pytest.param(*case, [], id=f"{index}") for index, case in enumerate(cases)]
    return named + [pytest.param(*case, ["--json"], id=f"{i}-json") for i, case in enumerate(cases[:JSON_CASES])]


RUN_FILE_CASES = [
    ("floor_drop = 0.02", "flor_drop = 0.02", 2, ["line 23: ladder.flor_drop", "did you mean floor_drop?"]),
    (
        "floor_drop = 0.02",
        'floor_drop = "0.02"',
        2,
        ["line 23: ladder.floor_drop", '"0.02"', "number", "without quotes"],
    ),
    (
        "floor_drop = 0.02\n",
        "",
        2,
        ["ladder.floor_drop: found nothing", "number, at least 0", "add ladder.floor_drop ="],
    ),
    ("floor_drop = 0.02", "floor_drop = 2", 2, ["found 2", "below 1: 'top1' is a share", "write 0.02 for 2 points"]),
    (
        '["fp32"]',
        '["fp32", "int"]',
        2,
        ["line 22: ladder.rungs", 'found "int"', "fp32, fp16, int8, npu, threads, prune", "mean int8?"],
    ),
    ('["fp32"]', '["int8"]', 6, ["[ladder] rungs", '["int8"]', "must hold 'fp32'", "add it"]),
    ('"net:load"', '"net.load"', 2, ["model.torch", '"net.load"', '"package.module:factory"']),
    ('"net:load"', '"net:load"\narguments = { day = 2024-01-01 }', 2, ["arguments.day", "2024-01-01", "text, finite"]),
    ('"data.npz"', '"data.npz"\nobject = "net:task"', 2, ["task.arrays and task.object: found both", "exactly one"]),
    ('labels = "y"\n', "", 2, ["task.labels: found nothing", "metric 'top1' needs labels"]),
    ('metric = "top1"', 'metric = "top2"', 2, ["task.metric", '"top2"', "top1, top5, negative_mae", "did you mean"]),
    ('metric = "top1"\n', "", 2, ["task.metric: found nothing", "top1, top5, negative_mae"]),
    ("[splits]", "[splits]\nseed = -1", 2, ["line 14: splits.seed", "found -1", "at least 0"]),
    ("{ groups = [3] }", "{ }", 2, ["splits.final", "found neither", "one of the two, or both"]),
    ("{ groups = [3] }", "{ groups = [] }", 2, ["splits.final.groups", "list of at least 1"]),
    ("{ groups = [0, 1] }", "{ count = 0 }", 2, ["splits.calibration.count", "found 0", "at least 1"]),
    ('name = "tiny"', 'name = "a/b"', 2, ["line 1: name", '"a/b"', "letters, digits and . _ -"]),
    ('name = "tiny"', f'name = "{"a" * 101}"', 2, ["line 1: name", "at most 100"]),
    ("[ladder]", "[ladder", 2, ["line 21", "syntax error"]),
    (
        "[ladder]",
        "[prune]\nratios = [0.5, 0.3]\n[ladder]",
        2,
        ["prune.ratios: found [0.5, 0.3]", "above the one before"],
    ),
    ('torch = "net:load"', "", 2, ["model.torch and model.onnx: found neither", "exactly one of the two"]),
    ("[ladder]", "[ladder]\nthreads = 0", 2, ["ladder.threads", "found 0", "at least 1"]),
    ("[ladder]", "[budget]\nlatency_p95_s = 0.1\n[ladder]", 6, ["[budget] latency_p95_s", "run file", "'quick' or"]),
    ("[ladder]", "[task.preprocess]\ny = []\n[ladder]", 2, ["task.preprocess: found steps for 'y'", "allowed: x"]),
    (
        "[ladder]",
        '[[task.preprocess.x]]\nop = "normalise"\n[ladder]',
        2,
        ["line 21: task.preprocess.x: found step 0: unknown op 'normalise'", "normalize, scale"],
    ),
]


@pytest.mark.parametrize(("old", "new", "code", "said", "more"), some_as_json(RUN_FILE_CASES))
def test_run_file(tiny: Path, tmp_path: Path, old: str, new: str, code: int, said: list[str], more: list[str]) -> None:
    edit(tiny / "edgeopt.toml", old, new)
    message = optimize(tmp_path, tiny, code, said, *more)
    assert code == 6 or str(tiny / "edgeopt.toml") in message


def test_a_runtime_that_the_profile_does_not_run(tiny: Path, tmp_path: Path) -> None:
    edit(tiny / "edgeopt.toml", '"generic-x86-64"', '"imx93-evk"')
    edit(tiny / "edgeopt.toml", "[ladder]", '[ladder]\nruntime = "openvino"')
    said = ["[ladder] runtime = 'openvino'", "profile 'imx93-evk' runs tflite", "or another profile"]
    optimize(tmp_path, tiny, 6, said)


def test_an_onnx_file_that_is_not_there_or_not_whole(tiny: Path, tmp_path: Path) -> None:
    edit(tiny / "edgeopt.toml", 'torch = "net:load"', 'onnx = "net.onnx"')
    optimize(tmp_path, tiny, 2, [f"[model] onnx = '{tiny / 'net.onnx'}': no such file"])
    (tiny / "net.onnx").write_bytes(b"\x08\x08\x12\x07pytorch:")
    optimize(tmp_path, tiny, 6, [f"{tiny / 'net.onnx'} is not a whole ONNX model", "get it again"])


def test_missing_run_file(tiny: Path, tmp_path: Path) -> None:
    said = [str(tiny / "edgeopt.tml"), "no such file", "did you mean edgeopt.toml?"]
    optimize(tmp_path, tiny / "edgeopt.tml", 2, said)
    (tiny / "edgeopt.toml").rename(tiny / "watch.toml")
    optimize(tmp_path, tiny, 2, [str(tiny), "no edgeopt.toml in this folder", "name one of watch.toml", "--explain"])
    optimize(tmp_path, tmp_path / "nowhere", 2, [str(tmp_path / "nowhere"), "no such file", "check the path"], "--json")


PROFILE_CASES = [
    ("architecture", "architektur", 2, ["cpu.architektur", "did you mean architecture?"]),
    ('python = "python3"', "python = 3", 2, ["line 11: board.python", "found 3", "a program"]),
    ('python = "python3"\n', "", 2, ["board.python: found nothing", "add board.python ="]),
    ("schema = 1", "schema = 2", 2, ["line 1: schema", "found 2", "one of 1"]),
    (
        '"x86_64"',
        '"x86_64"\ncores = { value = 4, source = "https://example.org" }',
        6,
        ["[ladder] threads = 8", "profile 'bench' has 4 cores", "lower threads"],
    ),
    ("[board]", "[budget]\nlatency_p95_s = 0.1\n[board]", 6, ["latency_p95_s", "profile 'bench'", "mode = 'quick'"]),
]


@pytest.mark.parametrize(("old", "new", "code", "said", "more"), some_as_json(PROFILE_CASES))
def test_profile(tiny: Path, tmp_path: Path, old: str, new: str, code: int, said: list[str], more: list[str]) -> None:
    profile = tmp_path / "bench.toml"
    profile.write_text(PROFILE)
    edit(profile, old, new)
    edit(tiny / "edgeopt.toml", "[ladder]", "[ladder]\nthreads = 8")
    message = optimize(tmp_path, tiny, code, said, "--profile", profile, *more)
    assert code == 6 or str(profile) in message


def test_budgets_of_both_files_that_contradict(tiny: Path, tmp_path: Path) -> None:
    profile = tmp_path / "bench.toml"
    profile.write_text(f"{PROFILE}\n[budget]\nlatency_p50_s = 0.02\n")
    edit(tiny / "edgeopt.toml", "[ladder]", '[budget]\nlatency_p95_s = 0.01\n[ladder]\nmode = "quick"')
    said = ["latency_p95_s = 0.01", "below latency_p50_s = 0.02", "profile 'bench'", "state both"]
    optimize(tmp_path, tiny, 6, said, "--profile", profile)


def test_unknown_profile(tiny: Path, tmp_path: Path) -> None:
    optimize(tmp_path, tiny, 2, ["'raspberry-pi-6'", "imx93-evk", "mean raspberry-pi-"], "--profile", "raspberry-pi-6")
    edit(tiny / "edgeopt.toml", '"generic-x86-64"', '"boards/mine.toml"')
    optimize(tmp_path, tiny, 2, [str(tiny / "boards" / "mine.toml"), "no such file"], "--json")


DATA_CASES = [
    ({"y": np.arange(40) % 3 + 1}, "", [], 2, ["labels run from 1 to 3", "0 to 2", "counted from 1"]),
    ({"y": np.arange(40) % 3 + 0.0}, "", [], 2, ["float64", "one whole number", 'astype("int64")']),
    ({"y": np.arange(39) % 3}, "", [], 2, ["x: 40, y: 39, who: 40", "one row per sample"]),
    ({"y": np.arange(40) % 3 - 1}, "", [], 2, ["labels run from -1 to 1", "0 to 2"]),
    ({"y": np.eye(3)[np.arange(40) % 3]}, "", [], 2, ["float64 (20, 3)", "argmax(axis=1)"]),
    ({"x": np.full((40, 4), np.nan)}, "", [], 2, ["inputs = 'x'", "NaN or infinity in 40 of 40", "sample 0", "clean"]),
    ({"x": np.array([["a"] * 4] * 40)}, "", [], 2, ["inputs = 'x'", "type <U1", "whole numbers or floats"]),
    ({"who": np.arange(40) / 10}, "", [], 2, ["groups = 'who'", "float64", "whole number or text"]),
    ({"who": np.arange(40).astype(str)}, "", [], 2, ["no group 0", "text: write it in quotes", "'0'"]),
    ({"x": np.zeros((0, 4)), "y": np.zeros(0, int), "who": np.zeros(0, int)}, "", [], 2, ["hold no sample"]),
    ({}, "groups = [2]", ["groups = [1, 2]"], 2, ["group 1 is in calibration and in selection", "share no group"]),
    ({}, "groups = [2]", ["groups = [7]"], 2, ["selection.groups", "no group 7", "0, 1, 2, 3"]),
    ({}, "groups = [2]", ['groups = ["2"]'], 2, ["no group '2'", "whole numbers: write it without quotes"]),
    ({}, "groups = [0, 1]", ["groups = [0, 1], count = 21"], 2, ["calibration.count = 21", "hold 20 samples", "lower"]),
    ({}, "groups = [0, 1]", ["count = 30"], 2, ["calibration.count = 30", "leave 20 samples"]),
    (
        {},
        "{ groups = [3] }",
        ["{ count = 5 }", "groups = [2]", "groups = [2, 3]"],
        2,
        ["final is empty", "all 4 groups"],
    ),
    ({}, "{ groups = [0, 1] }", ["{ count = 1 }", "groups = [2]", "groups = [0, 1, 2]"], 2, ["calibration is empty"]),
    ({}, 'groups = "who"\n', [""], 2, ["[splits] calibration.groups is given", "[task] groups names no array"]),
    ({}, '"x"', ['"X"'], 2, ["inputs = 'X'", "no such array", "it has: x, y, who"]),
    ({}, "metric", ['classes = ["a", "b"]\nmetric'], 2, ["labels run from 0 to 2", "2 classes", "0 to 1"]),
    (
        {},
        "[splits]",
        ['[[task.preprocess.x]]\nop = "normalize"\nmean = [0, 0]\nstd = [1, 1]\naxis = 1\n[splits]'],
        2,
        ["[task.preprocess] of input 0", "step 0 (normalize) does not fit float32 [2, 4]"],
    ),
    (
        {},
        "[splits]",
        ['[[task.preprocess.x]]\nop = "expand"\naxis = 0\n[splits]'],
        2,
        ["[task.preprocess] of input 0 turns (2, 4) into (1, 2, 4)", "axis 0 is the sample"],
    ),
]


@pytest.mark.parametrize(("other", "old", "new", "code", "said", "more"), some_as_json(DATA_CASES))
def test_data(
    tiny: Path, tmp_path: Path, other: Arrays, old: str, new: list[str], code: int, said: list[str], more: list[str]
) -> None:
    """None of these asks the board or imports torch: the tree, which is to hold the board's root, stays as it was."""
    np.savez(tiny / "data.npz", **arrays(**other))
    edit(tiny / "edgeopt.toml", "metric", 'classes = ["a", "b", "c"]\nmetric') if other else None
    for before, after in zip([old, *new[1::2]], [*new[:1], *new[2::2]], strict=True) if new else []:
        edit(tiny / "edgeopt.toml", before, after)
    (tiny / "net.py").write_text("raise AssertionError('imported')\n")
    optimize(tmp_path, tiny, code, said, *more)


class Marker:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def test_arrays_file(tiny: Path, tmp_path: Path) -> None:
    data = tiny / "data.npz"
    whole = data.read_bytes()
    named = ["[task] arrays", str(data)]
    data.unlink()
    optimize(tmp_path, tiny, 2, [*named, "no such file", "give the path of an .npz"])
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        data.write_bytes(whole[:size])
        optimize(tmp_path, tiny, 2, [*named, "cannot be read", "numpy.savez"])
    damaged = bytearray(whole)
    damaged[200] ^= 0xFF
    data.write_bytes(damaged)
    optimize(tmp_path, tiny, 2, [*named, "cannot be read", "array 'x'", "numpy.savez"], "--json")
    with data.open("wb") as file:
        np.save(file, arrays()["x"])
    optimize(tmp_path, tiny, 2, [*named, "single .npy array", "numpy.savez"])


def test_pickles_are_never_opened(tiny: Path, tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    objects = np.array([Marker(opened)], dtype=object)
    np.savez(tiny / "data.npz", **arrays(x=objects))
    optimize(tmp_path, tiny, 2, ["data.npz", "array 'x'", "without object arrays"])
    objects.dump(tiny / "data.npz")
    optimize(tmp_path, tiny, 2, ["data.npz", "without object arrays"])
    assert not opened.exists()
    np.load(tiny / "data.npz", allow_pickle=True)
    assert opened.exists(), "the pickle would have done nothing in any case"


TASK = """\
import numpy as np


class Task:
    def arrays(self):
        n = np.arange(40)
        return {"x": np.ones((40, 4), np.float32), "y": n % 3, "who": n // 10}

    def score(self, outputs, labels):
        return (outputs[0].argmax(axis=1) == labels).astype(float)


def task():
    return Task()
"""
TASK_CASES = [
    ("def arrays", "def array", 2, ["[task] object = 'my_task:task' returned Task", "no arrays() method"]),
    ("def score", "def skore", 2, ["[task] object = 'my_task:task' has no score() method", "metric is absent"]),
    (
        "return {",
        "return 1 / 0\n        return {",
        6,
        ["arrays() of [task] object = 'my_task:task' failed", "ZeroDivisionError", "my_task.py, line 7"],
    ),
    ("return {", "return [n]\n        return {", 2, ["arrays() returned list", "mapping of names to arrays"]),
    ("np.ones((40, 4), np.float32)", "[[1], [1, 2]]", 2, ["arrays() gave 'x'", "no regular array"]),
    ("np.ones((40, 4), np.float32)", "np.array([{}] * 40)", 2, ["arrays() gave 'x' as objects", "numbers or text"]),
    (
        "return Task()",
        "raise SystemExit('no recordings')",
        6,
        ["my_task:task'", "SystemExit: no recordings", "line 14"],
    ),
    ("import numpy as np", "import no_such_package", 6, ["importing 'my_task' needs 'no_such_package'", "install it"]),
    ("def task():", "def task(path):", 2, ["missing a required argument: 'path'", "it takes (path)"]),
]


@pytest.mark.parametrize(("old", "new", "code", "said", "more"), some_as_json(TASK_CASES))
def test_task_object(
    tiny: Path, tmp_path: Path, old: str, new: str, code: int, said: list[str], more: list[str]
) -> None:
    with_task_object(tiny)
    edit(tiny / "my_task.py", old, new)
    optimize(tmp_path, tiny, code, said, *more)


def with_task_object(project: Path) -> None:
    (project / "my_task.py").write_text(TASK)
    edit(project / "edgeopt.toml", 'arrays = "data.npz"', 'object = "my_task:task"')
    edit(project / "edgeopt.toml", 'metric = "top1"\n', "")


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """This machine as a board that was spoken to before, so that a refusal leaves no trace on it."""
    done = run_cli("status", "--root", tmp_path / "board")
    assert done.returncode == 0, done.stderr
    return tmp_path / "board"


NET_CASES = [
    ('"net:load"', '"nett:load"', 2, ["[model] torch = 'nett:load'", "no module 'nett'", "did you mean net?"]),
    ('"net:load"', '"net:laod"', 2, ["'net' has no function 'laod'", "did you mean load?"]),
    ('"net:load"', '"net:load"\narguments = { wdith = 4 }', 2, ["'wdith'", "it takes (width=4)"]),
    (
        "return Net()",
        "raise OSError('weights.pt is missing')",
        6,
        ["OSError: weights.pt is missing", "net.py, line 15"],
    ),
    ("return Net()", "return Net", 6, ["[model] torch = 'net:load' returned type", "must return a torch.nn.Module"]),
    ("import torch\n", "import no_such_package\n", 6, ["importing 'net' needs 'no_such_package'", sys.executable]),
    ("import torch\n", "import torch\nx = = 1\n", 6, ["importing 'net' failed", "SyntaxError", "net.py, line 2"]),
    ("return Net()", "import no_such; return Net()", 6, ["'net:load': the function needs 'no_such'", "line 15"]),
    (
        "return Net()",
        "net = Net(); net.head.weight.data[1, 2] = float('nan'); return net",
        6,
        ["1 of 2 weights hold NaN", "'head.weight'", "train the model again"],
    ),
    (
        "self.head(x)",
        "torch.log(self.head(x) - 100)",
        6,
        ["output 0 of the source model is NaN or infinite for 4 of 4 samples", "first for sample 0"],
    ),
    (
        "Linear(4, 3)",
        "Linear(5, 3)",
        6,
        ["running the source model on samples 0 to 3, (4, 4) float32", "4x4 and 5x3", "net.py, line 11"],
    ),
    (
        "Linear(4, 3)",
        "Linear(4, 3).double()",
        6,
        ["samples 0 to 3, (4, 4) float32", "dtype", '{ op = "cast", dtype = "float32" }'],
    ),
    ("self.head(x)", "self.head(x).sum()", 6, ["output 0", "shape () for 4 samples", "first axis"]),
    ("self.head(x)", "self.head(x), 3", 6, ["output 1 of the source model is int", "must be a tensor"]),
    ("Linear(4, 3)", "Linear(4, 2)", 2, ["labels run from 0 to 2", "2 classes", "0 to 1"]),
    (
        "self.head(x)",
        "torch.linalg.svdvals(x.reshape(-1, 2, 2)) @ torch.ones(2, 3)",
        6,
        ["operator 'aten._linalg_svd.default'", "net.py"],
    ),
]


@pytest.mark.parametrize(("old", "new", "code", "said", "more"), some_as_json(NET_CASES))
def test_model(
    tiny: Path, tmp_path: Path, board: Path, old: str, new: str, code: int, said: list[str], more: list[str]
) -> None:
    assert board.is_dir()
    edit(tiny / ("edgeopt.toml" if old.startswith('"') else "net.py"), old, new)
    optimize(tmp_path, tiny, code, said, *more)


@pytest.mark.parametrize(
    ("old", "new", "code", "said"),
    [
        ('"top1"', '"top5"', 2, ["metric = 'top5'", "3 outputs", "use top1"]),
        ('"top1"', '"negative_mae"', 2, ["labels: (10,)", "output (10, 3)", "reshape the labels"]),
        ('"top1"', '"top1"\nclasses = ["a", "b", "c", "d"]', 2, ["classes names 4", "has 3 outputs"]),
        ("[ladder]", "[ladder]\nthreads = 4096", 6, ["threads = 4096", "local has", "cores; lower threads"]),
    ],
)
def test_what_contradicts_model_or_board(
    tiny: Path, tmp_path: Path, board: Path, old: str, new: str, code: int, said: list[str]
) -> None:
    assert board.is_dir()
    edit(tiny / "edgeopt.toml", old, new)
    optimize(tmp_path, tiny, code, said)


def test_score_is_tried_before_anything_is_converted(tiny: Path, tmp_path: Path, board: Path) -> None:
    assert board.is_dir()
    with_task_object(tiny)
    edit(tiny / "my_task.py", ".astype(float)", ".mean()")
    message = optimize(tmp_path, tiny, 6, ["score() of [task] object gave shape ()", "each of the 10 samples"])
    assert "onvert" not in message
    edit(tiny / "my_task.py", "argmax(axis=1)", "argmax(axis=7)")
    optimize(
        tmp_path, tiny, 6, ["score() of [task] object = 'my_task:task' failed", "AxisError", "my_task.py, line 10"]
    )


def test_out_is_never_a_folder_of_something_else(tiny: Path, tmp_path: Path) -> None:
    for out in (tiny, tiny / "net.py", tmp_path):
        optimize(tmp_path, tiny, 2, [f"--out {out}: something else is there", "name a new folder"], "--out", out)


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def flipped(path: Path, data: bytes, name: str) -> bytes:
    """One bit of the entry's content is another one."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    damaged = bytearray(data)
    damaged[info.header_offset + 30 + len(name) + info.file_size // 2] ^= 1
    return bytes(damaged)


def renamed(data: bytes) -> bytes:
    """The manifest has another name of the same length."""
    return data.replace(b"manifest.json", b"manifesd.json")


def test_bundle_that_is_not_whole(bundle_file: Path, tmp_path: Path, board: Path) -> None:
    data = bundle_file.read_bytes()
    manifest = json.loads(zipfile.ZipFile(bundle_file).read("manifest.json"))
    model = f"blobs/{manifest['files']['model.tflite']['sha256']}"
    shard = f"blobs/{manifest['evaluation']['shards'][0]['sha256']}"
    spoiled = {
        "cut short": (
            cut(data, 0.5),
            ["not a whole bundle", "cut short", "get it again"],
            ("flash", "validate", "bench"),
        ),
        "end missing": (data[:-1], ["not a whole bundle", "get it again"], ("flash",)),
        "empty": (b"", ["not a whole bundle", "get it again"], ("validate",)),
        "no zip": (b"\0" * 5000, ["not a whole bundle", "get it again"], ("bench",)),
        "another zip": (renamed(data), ["without manifest.json", "not a whole bundle"], ("flash",)),
        "manifest": (flipped(bundle_file, data, "manifest.json"), ["not a whole bundle", "Bad CRC-32"], ("flash",)),
        "model": (
            flipped(bundle_file, data, model),
            [model[6:18], "get it again"],
            ("flash", "validate", "bench"),
        ),
        "shard": (flipped(bundle_file, data, shard), [shard[6:18], "get it again"], ("flash", "validate")),
    }
    for name, (content, said, commands) in spoiled.items():
        file = tmp_path / f"{name.replace(' ', '-')}.edgeopt"
        file.write_bytes(content)
        for command in commands:
            refused(tmp_path, 5, [str(file), *said], command, file, "--root", board, "--json")


def test_missing_and_foreign_files(tmp_path: Path, board: Path) -> None:
    missing = tmp_path / "missing.edgeopt"
    for command in ("flash", "validate", "bench"):
        refused(tmp_path, 2, [str(missing), "no such bundle", "`edgeopt optimize` writes one"], command, missing)
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07")
    refused(tmp_path, 6, ["model.onnx is not a whole ONNX model"], "bench", tmp_path / "model.onnx")
    (tmp_path / "model.pt").write_bytes(b"PK")
    refused(tmp_path, 2, ["model.pt", "bundle (.edgeopt)", ".tflite"], "bench", tmp_path / "model.pt")
    refused(tmp_path, 2, ["model.tflite", "no such file"], "bench", tmp_path / "model.tflite", "--random")
    torn = tmp_path / "torn.tflite"
    torn.write_bytes(b"\x1c\0\0\0TFL3" + b"\xff" * 200)
    refused(tmp_path, 6, ["torn.tflite is not a whole TFLite model"], "bench", torn, "--random", "--root", board)


def test_bench_inputs(bundle_file: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.tflite"
    with zipfile.ZipFile(bundle_file) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        model.write_bytes(archive.read(f"blobs/{manifest['files']['model.tflite']['sha256']}"))
    given = ["bench", model, "--root", tmp_path / "board"]
    refused(tmp_path, 2, ["model.tflite", "--inputs", "--random"], *given)
    refused(tmp_path, 2, ["--inputs", "--random", "give one"], *given, "--random", "--inputs", "x.npz")
    inputs = tmp_path / "x.npz"
    refused(tmp_path, 2, [f"--inputs = '{inputs}'", "no such file"], *given, "--inputs", inputs)
    np.savez(inputs, a=np.zeros((3, 2)), b=np.zeros((2, 2)))
    refused(tmp_path, 2, [f"--inputs {inputs}", "2 arrays (a, b)", "--labels"], *given, "--inputs", inputs)
    labelled = [*given, "--inputs", inputs, "--labels", "b"]
    refused(tmp_path, 2, [f"--inputs {inputs}", "the same number of samples"], *labelled)


@pytest.mark.parametrize(
    "address", ["lokal", "ssh:/pi@host", "ssh://pi:secret@host", "ssh://host:99999", "ssh://-oProxyCommand=x", "ssh://"]
)
def test_addresses(address: str, tiny: Path, tmp_path: Path) -> None:
    said = [f"device '{address}' is not an address", "'local' and 'ssh://[user@]host[:port]'"]
    refused(tmp_path, 2, said, "status", "--device", address, "--root", "/r", "--json")
    optimize(tmp_path, tiny, 2, said, "--device", address)


def test_a_board_needs_a_root(tmp_path: Path) -> None:
    refused(tmp_path, 2, ["--profile", "--root"], "status", "--device", "ssh://host")
    refused(tmp_path, 2, ["--root here", "absolute path"], "status", "--device", "ssh://host", "--root", "here")


@pytest.fixture(scope="session")
def bare_python(shared_tmp: Path) -> Path:
    """The Python of an environment that holds what `pip install edgeopt` brings and no extra, by links."""

    def build(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        (site,) = folder.glob("lib/python*/site-packages")
        for name in distributions("edgeopt") - {"edgeopt"}:
            distribution = importlib.metadata.distribution(name)
            for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
                (site / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
        for name in ("edgeopt", "edgeopt_agent", "edgeopt_profiles"):
            (site / name).symlink_to(str(importlib.resources.files(name)))
        (site / "edgeopt-0.dist-info").mkdir()
        (site / "edgeopt-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: edgeopt\nVersion: 0\n")

    return made_once(shared_tmp / "bare-python", build) / "bin" / "python"


def distributions(name: str) -> set[str]:
    """The distribution and all that it requires without extras."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            wanted = map(Requirement, importlib.metadata.requires(name) or ())
            waiting += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def test_extras_that_are_missing_here(bare_python: Path, tiny: Path, tmp_path: Path) -> None:
    command = [str(bare_python), str(EDGEOPT)]
    said = ["'torch'", "not installed", "pip install 'edgeopt[torch]'"]
    for more in ([], ["--json"]):
        optimize(tmp_path, tiny, 6, said, *more, command=command)


def test_runtime_missing_on_the_board(bare_python: Path, tiny: Path, tmp_path: Path, bundle_file: Path) -> None:
    where = ["--root", tmp_path / "board", "--board-python", bare_python]
    assert run_cli("status", *where).returncode == 0
    said = ["local: runtime 'tflite' is not installed", str(bare_python), "install ai-edge-litert", "--board-python"]
    optimize(tmp_path, tiny, 4, said, "--board-python", bare_python)
    refused(tmp_path, 4, said, "flash", bundle_file, *where, "--json")
    refused(tmp_path, 4, said, "bench", bundle_file, *where)


@pytest.mark.parametrize("program", ["/nowhere/python3", "python2.99", "/bin/false", "/etc/passwd"])
def test_python_missing_on_the_board(program: str, tiny: Path, tmp_path: Path, bundle_file: Path) -> None:
    where = ["--root", tmp_path / "board", "--board-python", program]
    if Path(program).exists():  # only running it tells, so the agent is there by then
        run_cli("status", *where)
    said = [f"the agent does not start with '{program}'", "Python 3.8 or later", "--board-python"]
    refused(tmp_path, 4, said, "flash", bundle_file, *where)
    optimize(tmp_path, tiny, 4, said, "--board-python", program, "--json")


def test_root_that_cannot_be_written(tmp_path: Path, bundle_file: Path) -> None:
    file, locked = tmp_path / "file", tmp_path / "locked"
    file.write_text("")
    locked.mkdir(mode=0o555)
    roots = [file / "root", Path("/proc/edgeopt"), *([] if os.getuid() == 0 else [locked / "root"])]
    for root in roots:
        said = ["local: ", str(root), "make it writable", "--root"]
        refused(tmp_path, 4, said, "flash", bundle_file, "--root", root, "--json")
        refused(tmp_path, 4, said, "status", "--root", root)


def test_no_message_names_a_stage_file(tiny: Path, tmp_path: Path) -> None:
    """Arrays of a task object pass through the cache; its paths mean nothing to the reader."""
    with_task_object(tiny)
    edit(tiny / "my_task.py", '"who": n // 10', '"whom": n // 10')
    message = optimize(tmp_path, tiny, 2, ["groups = 'who'", "'my_task:task' has no such array", "x, y, whom"])
    assert not re.search(r"-cache|stages", message)
