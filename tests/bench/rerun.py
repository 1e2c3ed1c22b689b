"""How long `edgeopt optimize` takes when nothing has changed, for every kind of task, and `edgeopt --help`.

    python tests/bench/rerun.py ../shared/data [KIND…]

The data that the examples need lie in the given folder; runs without it where a kind needs none. An idle machine.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))
EXAMPLES = TESTS.parent / "examples"
EDGEOPT = Path(sys.executable).with_name("edgeopt")
RERUN_S, HELP_S = 3.0, 0.2
COUNTS = {"calibration": 32, "selection": 64, "final": 64}


def example(name: str, data: Path | None) -> Path:
    folder = Path(tempfile.mkdtemp()) / name
    shutil.copytree(EXAMPLES / name, folder)
    if data is not None:
        subprocess.run([sys.executable, folder / "prepare.py", data], check=True, capture_output=True)
    return folder


def made(kind: str, data: Path) -> Path:
    if kind == "arrays":
        return example("smartwatch-activity", None)
    if kind == "images":
        return example("efficientnet-lite0", data / "imagenet-sample")
    if kind == "audio":
        return example("spoken-digits", data / "free-spoken-digits")
    folder = Path(tempfile.mkdtemp()) / kind
    if kind == "text":
        import test_tasks_text

        test_tasks_text.write_ladder(test_tasks_text.write(folder), "tflite")
    elif kind == "object":
        import test_python_task as task

        folder.mkdir()
        for name, text in (("picture_model", task.MODEL), ("picture_task", task.TASK)):
            (folder / f"{name}.py").write_text(text)
        (folder / "edgeopt.toml").write_text(task.RUN_FILE)
    else:
        import test_onnx_source as source

        source.write(folder)
        (folder / "edgeopt.toml").write_text(source.RUN_FILE.format(runtime='runtime = "openvino"'))
    return folder


KINDS = ("arrays", "images", "audio", "text", "object", "onnx")


def seconds(*command: object, codes: tuple[int, ...] = (0,)) -> float:
    began = time.perf_counter()
    done = subprocess.run([EDGEOPT, *map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode not in codes:
        sys.exit(f"edgeopt {' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr}")
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; default: all")
    parser.add_argument("--turns", type=int, default=3)
    chosen = parser.parse_args()
    missed = []
    for kind in chosen.kinds or KINDS:
        folder = made(kind, chosen.data)
        run_file = folder / "edgeopt.toml"
        text = run_file.read_text(encoding="utf-8")
        text = re.sub(r'^mode = ".*\n', "", text, flags=re.MULTILINE)
        run_file.write_text(text.replace("[ladder]\n", '[ladder]\nmode = "rapid"\n'), encoding="utf-8")
        where = ["--root", folder / "board", "--cache", folder / "cache", "--out", folder / "run", "--allow-undecided"]
        command = ["optimize", folder, *where]
        first = seconds(*command, codes=(0, 10))
        again = [seconds(*command, codes=(0, 10)) for _ in range(chosen.turns)]
        missed += [kind] if min(again) > RERUN_S else []
        print(
            f"{kind}: {first:.1f} s, again {', '.join(f'{own:.2f}' for own in again)} s; limit {RERUN_S:g}", flush=True
        )
        shutil.rmtree(folder.parent)
    told = [seconds("--help") for _ in range(20)]
    missed += ["--help"] if min(told) > HELP_S else []
    print(f"--help: {min(told):.3f} s, median {sorted(told)[len(told) // 2]:.3f} s; limit {HELP_S:g}")
    print(f"missed: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
