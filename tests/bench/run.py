"""`make bench`: edgeopt's median latency against the runtimes' own tools, same file, same threads, in turns (A B B A).

Referees: litert-benchmark, and benchmark_app -api sync, one stream, with precision and threads pinned. Ratios from
paired runs on one machine; an absolute time means little here. litert-benchmark rounds to 0.01 ms, so only models of
5 ms and more are judged. Run it on an idle machine: neighbours on a shared host move single runs by a third.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import efficientnet

BIN = Path(sys.executable).parent
RUNS = 400
SECONDS = 4
TOLERANCE = 0.05
SHORTEST_S = 0.005


def ours(model: Path, threads: int, root: Path) -> float:
    """Median seconds of invoke, as `edgeopt bench` reports it."""
    command = [BIN / "edgeopt", "bench", model, "--random", "--threads", threads, "--root", root, "--json"]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    median: float = json.loads(done.stdout)["results"][0]["latency"]["p50_s"]["value"]
    return median


def litert_benchmark(model: Path, threads: int, folder: Path) -> float:
    result = folder / "litert.json"
    command = [BIN / "litert-benchmark", "--model", model, "--num_threads", threads, "--num_runs", RUNS]
    subprocess.run([*map(str, command), "--result_json", str(result)], check=True, capture_output=True, text=True)
    return float(json.loads(result.read_text())["latency"]["median_ms"]) / 1000


def benchmark_app(model: Path, threads: int, folder: Path) -> float:
    """With threads pinned it refuses -hint latency; one stream is what that hint comes to."""
    command = [BIN / "benchmark_app", "-m", model, "-nthreads", threads, "-t", SECONDS, "-report_folder", folder]
    command += ["-d", "CPU", "-hint", "none", "-nstreams", "1", "-api", "sync", "-infer_precision", "f32"]
    command += ["-report_type", "no_counters", "-json_stats"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    found = json.loads((folder / "benchmark_report.json").read_text())
    return float(found["execution_results"]["latency (ms)"]) / 1000


Referee = Callable[[Path, int, Path], float]
REFEREES: dict[str, Referee] = {"tflite": litert_benchmark, "openvino": benchmark_app}


def pairs(model: Path, referee: Referee, threads: int, rounds: int, folder: Path) -> list[tuple[float, float]]:
    """(edgeopt's, the referee's) medians in seconds; who begins changes every time."""
    found = []
    for number in range(rounds):
        print(f"{model.parent.name}: pair {number + 1} of {rounds}", file=sys.stderr, flush=True)
        turns = [lambda: ours(model, threads, folder / "board"), lambda: referee(model, threads, folder)]
        if number % 2:
            second, first = turns[1](), turns[0]()
        else:
            first, second = turns[0](), turns[1]()
        found.append((first, second))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runtimes", nargs="+", default=list(REFEREES), choices=list(REFEREES))
    chosen = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for runtime in chosen.runtimes:
            for scheme in ("fp32", "int8"):
                model = efficientnet.artifact(runtime, scheme, folder / f"{runtime}-{scheme}")
                found = pairs(model, REFEREES[runtime], chosen.threads, chosen.rounds, folder)
                ratios = sorted(own / other for own, other in found)
                middle = statistics.median(ratios)
                is_judged = statistics.median(pair[1] for pair in found) >= SHORTEST_S
                if is_judged:
                    worst = max(worst, abs(middle - 1))
                own, other = (statistics.median(column) * 1e3 for column in zip(*found, strict=True))
                print(
                    f"EfficientNet-Lite0 {scheme}, {chosen.threads} thread(s): edgeopt / "
                    f"{REFEREES[runtime].__name__} = {middle:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}, {len(ratios)} "
                    f"pairs); medians {own:.2f} and {other:.2f} ms" + ("" if is_judged else "; too short to judge"),
                    flush=True,
                )
    print(f"within {TOLERANCE:.0%}: {'yes' if worst <= TOLERANCE else 'NO'}")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
