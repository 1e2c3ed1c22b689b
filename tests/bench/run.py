"""`make bench`: edgeopt's median latency against litert-benchmark's, same file, same threads, in turns.

Ratios from paired runs on one machine; an absolute time means little here. litert-benchmark rounds to 0.01 ms, so only
models of 5 ms and more are judged. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import efficientnet

BIN = Path(sys.executable).parent
RUNS = 400
TOLERANCE = 0.05
SHORTEST_S = 0.005


def ours(model: Path, threads: int, root: Path) -> float:
    """Median seconds of invoke, as `edgeopt bench` reports it."""
    command = [BIN / "edgeopt", "bench", model, "--random", "--threads", threads, "--root", root, "--json"]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    median: float = json.loads(done.stdout)["results"][0]["latency"]["p50_s"]["value"]
    return median


def theirs(model: Path, threads: int, folder: Path) -> float:
    """Median seconds of a run, as litert-benchmark reports it."""
    result = folder / "litert.json"
    command = [BIN / "litert-benchmark", "--model", model, "--num_threads", threads, "--num_runs", RUNS]
    subprocess.run([*map(str, command), "--result_json", str(result)], check=True, capture_output=True, text=True)
    found = json.loads(result.read_text())
    return float(found["latency"]["median_ms"]) / 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for scheme in ("fp32", "int8"):
            model = efficientnet.artifact(scheme, folder / f"efficientnet-lite0-{scheme}.tflite")
            pairs = []
            for number in range(chosen.rounds):
                print(f"{scheme}: pair {number + 1} of {chosen.rounds}", file=sys.stderr, flush=True)
                first = ours(model, chosen.threads, folder / "board")
                pairs.append((first, theirs(model, chosen.threads, folder)))
            ratios = [own / other for own, other in pairs]
            middle = statistics.median(ratios)
            is_judged = statistics.median(pair[1] for pair in pairs) >= SHORTEST_S
            if is_judged:
                worst = max(worst, abs(middle - 1))
            print(
                f"EfficientNet-Lite0 {scheme}, {chosen.threads} thread(s): edgeopt / litert-benchmark = {middle:.3f} "
                f"({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} pairs); "
                f"medians {statistics.median(p[0] for p in pairs) * 1e3:.2f} and "
                f"{statistics.median(p[1] for p in pairs) * 1e3:.2f} ms" + ("" if is_judged else "; too short to judge")
            )
    print(f"within {TOLERANCE:.0%}: {'yes' if worst <= TOLERANCE else 'NO'}")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
