"""A model compared with itself, again and again: how often the interval of the ratio holds 1, how wide it is, how many
quiet runs are marked; and how often a program that starts in the second half is marked.

An idle machine is needed. Prints one line a run, and the counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import efficientnet

EDGEOPT = Path(sys.executable).parent / "edgeopt"
HOG = "while True: pass"


def compare(model: Path, root: Path, mode: str) -> dict[str, Any]:
    command = [EDGEOPT, "compare", model, model, "--random", "--mode", mode, "--root", root, "--json"]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def with_hog(model: Path, root: Path, mode: str) -> dict[str, Any]:
    """`bench`, and a busy program from the middle on."""
    before = set(root.glob("jobs/*"))
    command = [EDGEOPT, "bench", model, "--random", "--mode", mode, "--root", root, "--json"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as bench:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not begun(set(root.glob("jobs/*")) - before):
            time.sleep(0.05)
        with subprocess.Popen([sys.executable, "-c", HOG]) as hog:
            out, errors = bench.communicate()
            hog.kill()
    assert bench.returncode == 0, errors
    return dict(json.loads(out), hog=hog.pid)


def begun(jobs: set[Path]) -> bool:
    """Whether half of the rounds are over."""
    return any('"done": 6, "of": 12' in file.read_text() for job in jobs for file in job.glob("events.jsonl"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--hogs", type=int, default=20)
    parser.add_argument("--mode", default="rapid")
    parser.add_argument("--runtime", default="tflite")
    parser.add_argument("--scheme", default="fp32")
    chosen = parser.parse_args()
    held, widths, marked, named = 0, [], 0, 0
    with tempfile.TemporaryDirectory() as text:
        root = Path(text) / "board"
        model = efficientnet.artifact(chosen.runtime, chosen.scheme, Path(text) / "model")
        for number in range(chosen.runs):
            found = compare(model, root, chosen.mode)
            ratio, marks = found["ratio"], [mark for mark in found["results"][0]["marks"] if mark != "random inputs"]
            low, high = ratio["interval"]
            held += low <= 1 <= high
            widths.append((high - low) / 2)
            marked += bool(marks)
            print(f"{number + 1}: {ratio['value']:.4f} ({low:.4f} to {high:.4f}) {'; '.join(marks)}", flush=True)
        for number in range(chosen.hogs):
            found = with_hog(model, root, chosen.mode)
            told = [mark for mark in found["results"][0]["marks"] if f"process {found['hog']}," in mark]
            named += bool(told)
            print(f"with a hog, {number + 1}: {told or 'NOT MARKED'}", flush=True)
    if chosen.runs:
        wide = statistics.median(widths)
        print(f"1 within the interval: {held} of {chosen.runs}; half-width, median: {wide:.2%}; marked: {marked}")
    if chosen.hogs:
        print(f"hogs named: {named} of {chosen.hogs}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
