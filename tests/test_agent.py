"""The agent on real Pythons: its archive, its workers, and what they say when something is wrong."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import (
    artifact_entry,
    bench_request,
    board_python,
    dense_tflite,
    fake_model,
    in_background,
    kill,
    local_session,
    long_bench,
    npz,
    progress_of,
    pyenv_python,
    samples,
    until,
    workers_of,
)
from edgeopt_agent import bench, wire

from edgeopt.device.archive import agent_archive, lean
from edgeopt.device.local import LocalTransport
from edgeopt.device.session import Placement, Session
from edgeopt.errors import AgentFailure

MAX_ARCHIVE_BYTES = 128 * 1024
OLD_PYTHONS = ("3.8", "3.9")


# The archive


def test_the_archive_is_the_same_bytes_everywhere_and_small(tmp_path: Path) -> None:
    data, sha256 = agent_archive()
    assert len(data) <= MAX_ARCHIVE_BYTES, f"the agent has {len(data)} bytes"
    elsewhere = "import sys; from edgeopt.device.archive import agent_archive as a; sys.stdout.buffer.write(a()[0])"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    again = subprocess.run(
        [sys.executable, "-c", elsewhere], cwd=tmp_path, env=environment, check=True, capture_output=True
    ).stdout
    assert again == data
    assert wire.is_sha256(sha256)


def test_the_archive_holds_the_agent_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "agent.pyz"
    path.write_bytes(agent_archive()[0])
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    source = Path(wire.__file__).parent
    expected = {f"edgeopt_agent/{file.relative_to(source).as_posix()}" for file in source.rglob("*.py")}
    assert set(names) == expected | {"__main__.py"}


class Plain(ast.NodeTransformer):
    """What a source does: without docstrings, annotations and what is imported for these."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.without_docstring(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        assert node.value is not None
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        fields = [statement for statement in node.body if isinstance(statement, ast.AnnAssign)]
        assert not fields or "NamedTuple" in ast.unparse(node.bases[0])  # fields must stay
        node.body = [statement for statement in node.body if statement not in fields] or [
            ast.copy_location(ast.Pass(), node)
        ]
        return self.without_docstring(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if node.module in ("typing", "__future__") else node

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self.without_docstring(node)

    def without_docstring(self, node: ast.Module | ast.FunctionDef | ast.ClassDef) -> ast.AST:
        if ast.get_docstring(node, clean=False) is not None:
            node.body[0] = ast.copy_location(ast.Pass(), node.body[0])
        return self.generic_visit(node)


@pytest.mark.parametrize("path", sorted(Path(wire.__file__).parent.rglob("*.py")), ids=lambda path: path.stem)
def test_what_is_sent_does_the_same_and_every_line_keeps_its_number(path: Path) -> None:
    source = path.read_text()
    sent = lean(source)
    trees = [Plain().visit(ast.parse(text)) for text in (source, sent)]
    assert ast.dump(trees[0]) == ast.dump(trees[1])
    lines = [[node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)] for tree in trees]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("path", sorted(Path(wire.__file__).parent.rglob("*.py")), ids=lambda path: path.stem)
def test_what_does_nothing_on_a_board_is_not_sent(path: Path) -> None:
    sent = lean(path.read_text())
    assert "# " not in sent
    assert '"""' not in sent
    for node in ast.walk(ast.parse(sent)):
        assert not isinstance(node, ast.FunctionDef) or (node.returns is None and ast.get_docstring(node) in ("", None))
        assert not isinstance(node, ast.arg) or node.annotation is None
        if isinstance(node, ast.ImportFrom) and node.module == "typing":
            assert {alias.name for alias in node.names} <= {"NamedTuple", "Any", "Callable"}  # what is more than a word


def test_names_that_are_still_needed_are_still_imported() -> None:
    source = '''\
"""Words."""
from __future__ import annotations
from typing import (
    Any,
    NamedTuple, TYPE_CHECKING,
)
if TYPE_CHECKING:
    from x import Y

class Pair(NamedTuple):
    a: Any
    ä: str = "→"  # why

def f(a: Any, *b: "Y", c: str = "é: int") -> Pair:  # why
    d: Any = Pair(a, c)
    return d
'''
    assert lean(source).splitlines() == [
        '""',
        "from __future__ import annotations",
        "from typing import Any, NamedTuple",
        *[""] * 6,
        "class Pair(NamedTuple):",
        "    a: Any",
        '    ä: str = "→"',
        "",
        'def f(a, *b, c = "é: int"):',
        "    d = Pair(a, c)",
        "    return d",
    ]


# Old Pythons


@pytest.fixture(params=OLD_PYTHONS)
def bare_python(request: pytest.FixtureRequest) -> str:
    """An old Python without any package."""
    return pyenv_python(request.param)


@pytest.fixture(params=OLD_PYTHONS)
def old_python(request: pytest.FixtureRequest) -> str:
    """An old Python with numpy<2 and tflite-runtime."""
    return board_python(request.param)


def test_serve_facts_and_status_need_no_package(tmp_path: Path, bare_python: str) -> None:
    with local_session(tmp_path, bare_python) as session:
        assert session.facts()["runtimes"]["tflite"] is None
        assert session.facts()["memory_bytes"] > 0
        assert session.status() == {
            "root": str(tmp_path),
            "current": None,
            "previous": None,
            "recovered": None,
            "jobs": [],
        }


def test_a_job_without_numpy_says_what_to_install(tmp_path: Path, bare_python: str) -> None:
    with local_session(tmp_path, bare_python) as session:
        request = bench_request([session.send(fake_model())], [session.send(samples())])
        with pytest.raises(AgentFailure, match=r"numpy cannot be imported by .*install it for this Python") as caught:
            session.run(request)
    assert caught.value.kind == "missing-runtime"


def test_an_old_python_benches_the_fake_runtime(tmp_path: Path, old_python: str) -> None:
    with local_session(tmp_path, old_python) as session:
        assert session.hello["python"].startswith(OLD_PYTHONS)
        request = bench_request([session.send(fake_model())], [session.send(samples())])
        job, result = session.run(request)
        entry = result["artifacts"][0]["samples"]
        pairs = np.frombuffer(session.fetch(job, entry)).reshape(-1, 2)
    assert len(pairs) == sum(block["n"] for block in result["blocks"]) >= 12
    assert (pairs[:, 1] >= 0.0005).all()


def test_an_old_python_runs_a_tflite_model_with_tflite_runtime(tmp_path: Path, old_python: str) -> None:
    inputs = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]], dtype=np.float32)
    with local_session(tmp_path, old_python) as session:
        assert session.facts()["runtimes"]["tflite"]["package"] == "tflite-runtime"
        artifact = artifact_entry(session.send(dense_tflite()), "tflite")
        job, result = session.run({"kind": "infer", "artifact": artifact, "shards": [session.send(npz(inputs))]})
        answer = session.fetch(job, result["outputs"][0])
    (tmp_path / "outputs.npz").write_bytes(answer)
    weights = (np.arange(12) % 7 - 3).reshape(3, 4)
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npz")["output0"], inputs @ weights.T)


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.7"])
def test_a_python_that_is_too_old_is_told_apart(tmp_path: Path, version: str) -> None:
    with pytest.raises(AgentFailure) as caught:
        local_session(tmp_path, pyenv_python(version))
    message = str(caught.value)
    assert f"edgeopt-agent needs Python 3.8 or later; {pyenv_python(version)} is Python {version}" in message
    assert "--board-python" in message
    assert "SyntaxError" not in message
    assert caught.value.exit_code == 4


def test_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AgentFailure, match=r"'/no/such/python'.*not found.*--board-python"):
        local_session(tmp_path, "/no/such/python")


# Workers


def test_what_a_runtime_prints_from_c_never_reaches_the_protocol(session: Session, root: Path) -> None:
    noise = '{"result": {"n": 0}}\n{"id": 1, "ok": true, "result": {}}\nedgeopt-wire-1\n'
    request = bench_request([session.send(fake_model(prints=noise))], [session.send(samples())])
    job, result = session.run(request)
    assert all(block["n"] >= 3 for block in result["blocks"])
    assert noise in (root / "jobs" / job / "log").read_text()
    assert session.facts()["cores"]


def test_random_tensors_fit_the_artifact_and_are_always_the_same(session: Session) -> None:
    blob = session.send(fake_model(shape=[1, 3, 2]))
    _, result = session.run(bench_request([blob], []))
    assert result["artifacts"][0]["inputs"][0]["shape"] == [1, 3, 2]
    assert sum(block["n"] for block in result["blocks"]) >= 12


def test_a_slow_model_ends_at_the_cap_and_is_marked(session: Session) -> None:
    blob = session.send(fake_model(invoke_s=0.05))
    _, result = session.run(bench_request([blob], [], min_queries=400, cap_seconds=0.2))
    assert result["capped"]
    assert all(1 <= block["n"] <= 3 for block in result["blocks"])


@pytest.mark.parametrize(
    ("artifact", "shard", "words"),
    [
        ({}, samples(width=5), r"input 'x' takes float32 \[1, 4\]; preprocessing gave float32 \[1, 5\]"),
        ({}, npz(np.zeros((2, 4), np.uint8)), "preprocessing gave uint8"),
        ({}, npz(np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32)), "takes 1 inputs; the samples have 2"),
        ({"preprocess": [[], []]}, samples(), "preprocessing has 2"),
        (
            {"preprocess": [[{"op": "expand", "axis": 9}]]},
            samples(),
            r"step 0 \(expand\) does not fit float32 \[1, 4\]",
        ),
        ({"runtime": "nonsense"}, samples(), "unknown runtime 'nonsense'; this agent has: .*tflite"),
        ({"runtime": "../fake"}, samples(), "must be a plain name"),
        ({"runtime": "tflite"}, samples(), "tflite cannot load the model"),
    ],
)
def test_an_artifact_that_does_not_fit_its_samples_is_named(
    session: Session, artifact: dict[str, Any], shard: bytes, words: str
) -> None:
    request = bench_request([session.send(fake_model())], [session.send(shard)])
    request["artifacts"][0].update(artifact)
    with pytest.raises(AgentFailure, match=words):
        session.run(request)


def test_pickles_in_a_shard_are_refused(session: Session) -> None:
    shard = npz(np.array([[{"a": 1}]], dtype=object))
    with pytest.raises(AgentFailure, match="says it is object"):
        session.run(bench_request([session.send(fake_model())], [session.send(shard)]))


def test_a_worker_that_dies_is_told_with_its_signal(session: Session, root: Path) -> None:
    thread, outcome = in_background(session, long_bench(session))
    job = until(lambda: progress_of(root), "the middle of the job")
    kill(until(lambda: workers_of(job), "a worker")[0])
    thread.join(60)
    assert isinstance(outcome[0], AgentFailure)
    assert "the worker died during 'block': killed by signal 9" in str(outcome[0])


@pytest.mark.parametrize(("renew", "at_least"), [(1, 6), (0, 2)])
def test_a_comparison_begins_every_round_with_new_processes(
    session: Session, root: Path, renew: int, at_least: int
) -> None:
    shard = session.send(samples())
    blobs = [session.send(fake_model(invoke_s=delay)) for delay in (0.001, 0.002)]
    request = bench_request(blobs, [shard], rounds=3, renew=renew, min_seconds=3.0)
    thread, outcome = in_background(session, request)
    job = until(lambda: progress_of(root), "the middle of the job")
    seen: set[int] = set()
    while thread.is_alive():
        seen |= set(workers_of(job))
        time.sleep(0.05)
    _, result = outcome[0]
    assert result["renew"] == renew
    assert [block["artifact"] for block in result["blocks"]] == [0, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0]
    assert at_least - 2 <= len(seen) <= at_least  # the first two may have ended before the first look


def test_a_round_has_short_turns_on_processors_that_both_artifacts_share(session: Session, root: Path) -> None:
    shard = session.send(samples())
    blobs = [session.send(fake_model(invoke_s=delay)) for delay in (0.005, 0.01)]
    request = bench_request(blobs, [shard], rounds=4, renew=1, min_seconds=4.0, min_queries=64, block_seconds=0.1)
    thread, outcome = in_background(session, request)
    job = until(lambda: progress_of(root), "the middle of the job")
    seen: dict[int, str] = {}
    while thread.is_alive():
        for worker in workers_of(job):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{worker}/status").read_text()
                seen[worker] = re.findall(r"^Cpus_allowed_list:\s*(\S+)", status, re.MULTILINE)[0]
        time.sleep(0.05)
    _, result = outcome[0]
    assert result["turns"] == 5
    order = [block["artifact"] for block in result["blocks"]]
    assert order == ([0, 1, 1, 0] * 5 + [1, 0, 0, 1] * 5) * 2
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        assert result["shared_cpus"] == []
    else:
        assert all(len(cpus) == 1 for cpus in result["shared_cpus"])
        pinned = {where for where in seen.values() if where.isdigit()}  # others: before they had their processor
        assert pinned == {str(cpus[0]) for cpus in result["shared_cpus"]}


@pytest.mark.parametrize(
    ("renew", "once_s", "measuring_s", "every"),
    [(1, 1.0, 6.0, 1), (1, 8.0, 6.0, 2), (1, 20.0, 6.0, 0), (1, 20.0, 300.0, 1), (0, 0.1, 6.0, 0)],
)
def test_new_processes_that_cost_more_than_measuring_are_fewer_or_none(
    renew: int, once_s: float, measuring_s: float, every: int
) -> None:
    assert bench.affordable(renew, 12, once_s, measuring_s) == every


CGROUP = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def small_memory() -> Iterator[str]:
    """A shell word that puts what follows into a cgroup of 96 MiB."""
    if os.getuid() != 0 or not (CGROUP / "memory.limit_in_bytes").exists():
        pytest.skip("needs root and cgroup v1 to limit memory")
    group = CGROUP / f"edgeopt-test-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(96 << 20))
    yield f"echo $$ > {group}/cgroup.procs && "
    until(lambda: not (group / "cgroup.procs").read_text(), "the end of the group's processes")
    group.rmdir()


class LimitedTransport(LocalTransport):
    def __init__(self, before: str) -> None:
        self._before = before

    def open(self, command: str) -> Any:
        return super().open(self._before + command)


def test_a_worker_killed_because_memory_ran_out_says_so(root: Path, small_memory: str) -> None:
    with Session(LimitedTransport(small_memory), Placement(str(root), sys.executable)) as session:
        shard = session.send(samples())
        with pytest.raises(AgentFailure, match="the kernel killed it because memory ran out") as caught:
            session.run(bench_request([session.send(fake_model(allocate_bytes=300 << 20))], [shard]))
        assert caught.value.kind == "runtime"
        session.run(bench_request([session.send(fake_model(allocate_bytes=1 << 20))], [shard]))


def test_where_memory_runs_out_the_model_goes_first(session: Session, root: Path) -> None:
    thread, _ = in_background(session, long_bench(session))
    job = until(lambda: progress_of(root), "the middle of the job")
    (worker,) = workers_of(job)
    own = [
        Path(f"/proc/{pid}/oom_score_adj").read_text().strip()
        for pid in (worker, json.loads((job / "process.json").read_text())["pid"])
    ]
    assert own == ["1000", Path("/proc/self/oom_score_adj").read_text().strip()]
    thread.join(60)


def test_a_model_that_would_not_fit_is_refused_before_it_is_tried(root: Path, small_memory: str) -> None:
    with Session(LimitedTransport(small_memory), Placement(str(root), sys.executable)) as session:
        shard, large = session.send(samples()), session.send(fake_model() + b" " * (120 << 20))
        with pytest.raises(
            AgentFailure, match=r"files have 125\.8 MB and this board has [\d.]+ MB of memory free"
        ) as caught:
            session.run(bench_request([large], [shard]))
        assert caught.value.kind == "runtime"
    assert "was not tried" in str(caught.value)


def test_the_first_load_is_from_the_disk_and_the_timed_one_is_not(session: Session) -> None:
    shard, model = session.send(samples()), session.send(fake_model() + b" " * (32 << 20))
    _, result = session.run(bench_request([model], [shard], rounds=1))
    (found,) = result["artifacts"]
    assert found["load_cold_s"] > 0
    assert found["load_s"] > 0


def test_an_allocation_that_fails_says_that_memory_ran_out(root: Path) -> None:
    limited = LimitedTransport("ulimit -v 4000000; export OPENBLAS_NUM_THREADS=1; ")
    with Session(limited, Placement(str(root), sys.executable)) as session:
        request = bench_request([session.send(fake_model(allocate_bytes=5 << 30))], [session.send(samples())])
        with pytest.raises(AgentFailure, match="memory ran out during 'load'"):
            session.run(request)


def test_memory_above_the_runtime_is_the_models_and_not_the_samples(session: Session) -> None:
    model, width = 24 << 20, 1 << 16
    many = session.send(npz(np.zeros((64, width), np.float32)))
    blobs = [session.send(fake_model(shape=[1, width], allocate_bytes=size)) for size in (0, model)]
    _, result = session.run(bench_request(blobs, [many], rounds=1))
    above = [artifact["memory"]["above_runtime_bytes"] for artifact in result["artifacts"]]
    assert above[0] < 4 << 20
    assert model <= above[1] < model + (4 << 20)
