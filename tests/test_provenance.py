"""Which board was measured: by its own facts; a board that is not the profile's is refused, or marked everywhere."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from board_folder import Board
from boards import dense_bundle, dense_tflite
from bundle_variants import variant
from conftest import SMALL, copy_example, run_cli, run_quick
from edgeopt_agent import facts

from edgeopt import bundle as bundles
from edgeopt import profile, provenance
from edgeopt.errors import ConfigError

RECORDED = Path(__file__).parent / "recorded"
GIB = 1 << 30
PI_4 = {
    **{"model": "Raspberry Pi 4 Model B Rev 1.4", "machine": "aarch64", "userland": "aarch64"},
    **{"cpu_model": "Cortex-A72", "cpu_features": ["asimd"], "cores": 4, "cores_present": 4, "cores_allowed": 4},
    **{"memory_bytes": 3_978_678_272, "system": "Debian GNU/Linux 12 (bookworm)"},
}
ZERO = PI_4 | {"model": "Raspberry Pi Zero 2 W Rev 1.0", "cpu_model": "Cortex-A53", "memory_bytes": 436_000_000}
N100 = {
    **{"model": "NucBox G3", "machine": "x86_64", "userland": "x86_64", "cpu_model": "Intel(R) N100"},
    **{"cpu_features": ["avx2", "avx_vnni"], "cores": 4, "cores_present": 4, "memory_bytes": 16 * GIB},
}
XEON = N100 | {"model": None, "cpu_model": "Intel(R) Xeon(R) CPU @ 2.20GHz", "cpu_features": ["avx2", "avx_vnni"]}
ROCK = PI_4 | {
    **{"model": "Radxa ROCK 5B", "cpu_model": "Cortex-A55 + Cortex-A76", "cpu_features": ["asimd", "asimddp"]},
    **{"cores": 8, "cores_present": 8},
}
ORIN = PI_4 | {
    **{"model": "NVIDIA Jetson Orin Nano Developer Kit Super", "cpu_model": "Cortex-A78AE", "cores": 6},
    **{"cores_present": 6, "cpu_features": ["asimd", "asimddp"], "memory_bytes": 6_795_000_000},
}


@pytest.mark.parametrize(
    ("name", "board"),
    [
        ("raspberry-pi-4", PI_4),
        ("raspberry-pi-4", PI_4 | {"memory_bytes": 7_900_000_000}),  # sold with several sizes
        ("raspberry-pi-4", PI_4 | {"userland": "armv7l"}),  # a 32-bit system under a 64-bit kernel
        ("raspberry-pi-4", PI_4 | {"cores": 3, "cores_allowed": 3}),  # one is switched off
        ("raspberry-pi-4", PI_4 | {"cores_allowed": 2}),  # a cpuset
        ("raspberry-pi-4", PI_4 | {"model": None}),  # a container hides the device tree
        ("raspberry-pi-zero-2-w", ZERO),
        ("jetson-orin-nano", ORIN),
        ("rock-5b", ROCK),
        ("rock-5b", ROCK | {"model": "Radxa ROCK 5 Model B"}),
        ("intel-n100", N100),
        *(("generic-arm64", board) for board in (PI_4, ZERO, ROCK, ORIN)),
        *(("generic-x86-64", board) for board in (N100, XEON)),
        *(("generic-linux", board) for board in (PI_4, ROCK, XEON, {"machine": "riscv64"}, {})),
    ],
)
def test_a_board_is_its_profiles(name: str, board: dict[str, Any]) -> None:
    assert provenance.checked(profile.load(name), board, "there", stand_in=False) is None


@pytest.mark.parametrize(
    ("architecture", "machine", "userland", "fits"),
    [
        ("aarch64", "arm64", "arm64", True),
        ("armv7l", "aarch64", "armv7l", True),
        ("armv7l", "armv8l", "armv8l", True),
        ("x86_64", "x86_64", "i686", True),
        ("aarch64", "armv7l", "armv7l", False),
        ("armv7l", "aarch64", "aarch64", False),
        ("x86_64", "aarch64", "aarch64", False),
    ],
)
def test_names_of_architectures_are_compared_by_what_they_mean(
    architecture: str, machine: str, userland: str, fits: bool
) -> None:
    own = profile.load("generic-linux")
    own = own.model_copy(update={"cpu": own.cpu.model_copy(update={"architecture": architecture})})
    assert (provenance.differences(own, {"machine": machine, "userland": userland}) == []) is fits


@pytest.mark.parametrize(
    ("name", "board", "different"),
    [
        ("raspberry-pi-4", XEON, {"architecture", "processor"}),
        ("raspberry-pi-4", PI_4 | {"model": "Raspberry Pi 400 Rev 1.0"}, {"model"}),
        ("raspberry-pi-4", PI_4 | {"model": None, "cpu_model": "Cortex-A76", "cores": 8, "cores_present": 8},
         {"processor", "cores"}),
        ("raspberry-pi-5", PI_4, {"model", "processor", "instructions for int8"}),
        ("raspberry-pi-zero-2-w", ZERO | {"memory_bytes": GIB}, {"memory"}),
        ("raspberry-pi-zero-2-w", ZERO | {"memory_bytes": 250_000_000}, {"memory"}),
        ("raspberry-pi-2", PI_4, {"architecture", "model", "processor", "memory"}),
        ("generic-x86-64", PI_4, {"architecture"}),
        ("generic-arm64", N100, {"architecture"}),
        ("intel-n100", XEON, {"processor"}),
        ("intel-n100", N100 | {"cpu_model": "Intel(R) N97"}, {"processor"}),
        ("core-ultra-npu", N100, {"processor", "cores", "memory"}),
        ("rock-5b", ROCK | {"model": "Radxa ROCK 5B+"}, {"model"}),
        ("rock-5b", ROCK | {"cpu_model": "Cortex-A76"}, {"processor"}),
        ("jetson-orin-nano", ORIN | {"model": "NVIDIA Jetson AGX Orin Developer Kit", "memory_bytes": 32 * GIB},
         {"model", "memory"}),
    ],
)  # fmt: skip
def test_another_board_is_refused_with_every_difference_or_noted(
    name: str, board: dict[str, Any], different: set[str]
) -> None:
    own = profile.load(name)
    with pytest.raises(ConfigError) as refused:
        provenance.checked(own, board, "ssh://there", stand_in=False)
    assert {one.what for one in provenance.differences(own, board)} == different
    for words in (f"'{name}'", "ssh://there", board["cpu_model"], "--stand-in", *different):
        assert words in str(refused.value)
    noted = provenance.checked(own, board, "ssh://there", stand_in=True)
    assert noted is not None
    assert (noted["profile"], {one["what"] for one in noted["differences"]}) == (name, different)
    mark = provenance.mark(board | {"stand_in": noted})
    assert mark is not None
    assert mark.startswith("on a stand-in (")
    assert board["cpu_model"] in mark
    assert mark.endswith(f"for {own.name}")


def test_a_profile_that_probe_wrote_is_its_boards(tmp_path: Path) -> None:
    done = run_cli("device", "probe", "local", "--out", tmp_path / "mine.toml")
    assert done.returncode == 0, done.stderr
    own = profile.load(tmp_path / "mine.toml")
    assert provenance.differences(own, {**facts.identity(), **facts.hardware()}) == []


def test_a_big_little_processor_is_named_by_all_its_cores() -> None:
    part = (RECORDED / "cpuinfo-raspberry-pi-4-64bit.txt").read_text()
    both = part.replace("0xd08", "0xd05") + "\n" + part.replace("0xd08", "0xd0b")
    assert facts.parse_cpuinfo(both)["cpu_model"] == "Cortex-A55 + Cortex-A76"
    other = part.replace("0xd08", "0x802").replace("0x41", "0x51")
    assert facts.parse_cpuinfo(other)["cpu_model"] == "Arm implementer 0x51 part 0x802"


@pytest.mark.parametrize(("text", "count"), [("0-3", 4), ("0", 1), ("0-3,6-7\n", 6), ("", None)])
def test_lists_of_processors(text: str, count: int | None) -> None:
    assert facts.parse_cpu_list(text) == count


def test_the_system_is_named_by_its_os_release() -> None:
    assert facts.parse_os_release('NAME="x"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n') == (
        "Debian GNU/Linux 12 (bookworm)"
    )
    assert facts.parse_os_release("PRETTY_NAME=Buildroot\n") == "Buildroot"
    assert facts.parse_os_release("") is None


# By the commands, on this machine, which is no Raspberry Pi 4


@pytest.fixture
def elsewhere() -> None:
    if not provenance.differences(profile.load("raspberry-pi-4"), {**facts.identity(), **facts.hardware()}):
        pytest.skip("this machine is a Raspberry Pi 4")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(dense_tflite())
    return path


def told(done: subprocess.CompletedProcess[str], code: int = 0) -> str:
    assert done.returncode == code, done.stdout + done.stderr
    return " ".join((done.stdout + done.stderr).split())


OTHER = ("--profile", "raspberry-pi-4")
MARK = "on a stand-in ("


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("command", ["bench", "compare", "load", "power", "bundle"])
def test_a_command_that_measures_refuses_another_board(model: Path, command: str) -> None:
    root = ("--root", model.parent / "root")
    given = {
        "bench": ["bench", model, "--random", *root],
        "compare": ["compare", model, model, "--random", *root],
        "load": ["load", model, "--random", *root],
        "power": ["power", model, "--random", "--estimate", *root],
        "bundle": ["bundle", model, "--out", model.parent / "b.edgeopt", "--device", "local", *root],
    }[command]
    said = told(run_quick(*given, *OTHER), 2)
    assert "profile 'raspberry-pi-4'" in said
    assert facts.hardware()["cpu_model"] in said
    assert "--stand-in" in said
    assert not (model.parent / "b.edgeopt").exists()


@pytest.mark.usefixtures("elsewhere")
def test_figures_of_a_stand_in_are_marked(model: Path) -> None:
    root = ("--root", model.parent / "root")
    kept = model.parent / "kept"
    said = told(run_quick("bench", model, "--random", "--no-repeat", *root, *OTHER, "--stand-in", "--keep", kept))
    cpu = facts.hardware()["cpu_model"]
    assert said.startswith(cpu) or f" {cpu}" in said
    assert said.count(MARK) >= 2, "above the table and under it"
    document = json.loads((kept / "document.json").read_text())
    assert document["board"]["stand_in"]["profile"] == "raspberry-pi-4"
    assert document["board"]["cpu_model"] == cpu
    assert told(run_quick("report", kept)).count(MARK) >= 2
    plain = told(run_quick("bench", model, "--random", "--no-repeat", *root, "--profile", "generic-linux"))
    assert MARK not in plain
    assert cpu in plain


@pytest.mark.usefixtures("elsewhere")
def test_a_bundle_of_a_stand_in_says_so_wherever_it_goes(model: Path) -> None:
    """Its milliseconds are no limit for the board that it is meant for."""
    out, board = model.parent / "b.edgeopt", Board(model.parent / "board")
    root = ("--root", model.parent / "root")
    made = told(run_quick("bundle", model, "--out", out, "--device", "local", *root, *OTHER, "--stand-in"))
    assert MARK in made
    manifest = bundles.read(out).manifest
    assert manifest.measured_on is not None
    assert manifest.measured_on.cpu_model == facts.hardware()["cpu_model"]
    assert manifest.measured_on.stand_in is not None
    assert manifest.measured_on.stand_in.profile == "raspberry-pi-4"
    assert manifest.health.greatest_median_latency_s is None
    assert MARK in board.run("flash", out).stdout
    assert MARK in " ".join(board.run("status").stdout.split())
    refused = board.run("flash", out, *OTHER, code=2)
    assert "--stand-in" in refused.stderr
    other = bundles.read(out).manifest.model_dump(mode="json")["measured_on"] | {"cpu_model": "Cortex-A72"}
    theirs = variant(out, model.parent / "theirs.edgeopt", measured_on=other | {"stand_in": None})
    assert "its figures are of another board (Cortex-A72," in board.run("flash", theirs.path).stdout
    assert "marked: checked on a stand-in" in board.run("flash", out, *OTHER, "--stand-in").stdout


@pytest.mark.usefixtures("elsewhere")
def test_what_measures_nothing_works_on_any_board(tmp_path: Path) -> None:
    """A rollback must not fail for the sake of a profile's name."""
    board = Board(tmp_path / "board")
    for outputs in (2, 3):
        dense_bundle(tmp_path / f"{outputs}.edgeopt", 4, outputs)
        board.run("flash", tmp_path / f"{outputs}.edgeopt")
    board.run("status", *OTHER)
    assert "is current again" in board.run("rollback", *OTHER).stdout


@pytest.mark.usefixtures("elsewhere")
def test_a_run_is_headed_by_the_board_that_was_measured(tmp_path: Path, watch_data: Path, shared_tmp: Path) -> None:
    project = copy_example(tmp_path / "p", watch_data, **(SMALL | {"rungs": '["fp32"]'}))
    text = (project / "edgeopt.toml").read_text()
    (project / "edgeopt.toml").write_text(re.sub(r'(?m)^profile = ".*"', 'profile = "raspberry-pi-4"', text))
    where = ["--root", tmp_path / "board", "--out", tmp_path / "run", "--cache", shared_tmp / "cache"]
    assert "--stand-in" in told(run_quick("optimize", project, "--allow-undecided", *where), 2)
    assert not (tmp_path / "run").exists()
    text = (project / "edgeopt.toml").read_text()
    (project / "edgeopt.toml").write_text(text.replace("[device]\n", "[device]\nstand_in = true\n"))
    screen = told(run_quick("optimize", project, "--allow-undecided", *where))
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    cpu = facts.hardware()["cpu_model"]
    assert run["board"]["cpu_model"] == cpu
    assert run["board"]["stand_in"]["profile"] == "raspberry-pi-4"
    assert run["sentence"].startswith("On a stand-in (")
    assert run["manifest"]["measured_on"]["stand_in"]["name"] == "Raspberry Pi 4 Model B"
    assert screen.count(MARK) >= 3
    page = (tmp_path / "run" / "report.html").read_text()
    sections = re.findall(r"<section.*?</section>", page, re.DOTALL)
    assert len(sections) > 5
    assert all(MARK in section for section in sections)
    (head,) = re.findall(r'<p class="meta">(.*?)</p>', page)
    assert cpu in head
    assert "Raspberry" not in head
    assert run_quick("report", tmp_path / "run", "--recompute").returncode == 0
