"""`make bench`: edgeopt's latency against other tools, same file, same threads, in turns (A B B A).

Referees: of the median litert-benchmark, and benchmark_app -api sync, one stream, with precision and threads pinned; of
p90 MLPerf's LoadGen, single stream (`pip install mlcommons-loadgen`; left out where it is not installed), in runs of
its own and, as neighbours move single runs, of the same queries as edgeopt's clock and percentile. Ratios from
paired runs on one machine; an absolute time means little here. litert-benchmark rounds to 0.01 ms, so only models of
5 ms and more are judged. Run it on an idle machine: neighbours on a shared host move single runs by a third.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
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
SHORTEST_S = 0.005
SAME = "loadgen-same-queries"


def ours(model: Path, threads: int, root: Path, figure: str) -> float:
    """Seconds of invoke ("p50_s", "p90_s"), as `edgeopt bench` reports them."""
    command = [BIN / "edgeopt", "bench", model, "--random", "--threads", threads, "--root", root, "--json"]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    found: float = json.loads(done.stdout)["results"][0]["latency"][figure]["value"]
    return found


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


def single_stream(model: Path, threads: int, folder: Path) -> dict[str, float]:
    script = [sys.executable, Path(__file__).with_name("single_stream.py"), model, threads, SECONDS, folder]
    done = subprocess.run(list(map(str, script)), check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def loadgen(model: Path, threads: int, folder: Path) -> float:
    """p90 of MLPerf's single stream; its queries are the invoke alone, the input lies there."""
    return single_stream(model, threads, folder)["loadgen"]


@dataclasses.dataclass(frozen=True)
class Referee:
    runtime: str
    figure: str
    tolerance: float
    run: Callable[[Path, int, Path], float] | None


REFEREES = {
    "litert-benchmark": Referee("tflite", "p50_s", 0.02, litert_benchmark),
    "benchmark_app": Referee("openvino", "p50_s", 0.02, benchmark_app),
    "loadgen": Referee("tflite", "p90_s", 0.03, loadgen),
    SAME: Referee("tflite", "p90_s", 0.03, None),
}


def pairs(model: Path, referee: Referee, threads: int, rounds: int, folder: Path) -> list[tuple[float, float]]:
    """(edgeopt's, the referee's) figures in seconds; who begins changes every time. A referee without a run of its own
    takes the time of the same queries."""
    found = []
    for number in range(rounds):
        print(f"{model.parent.name}: pair {number + 1} of {rounds}", file=sys.stderr, flush=True)
        if (run := referee.run) is None:
            both = single_stream(model, threads, folder)
            found.append((both["edgeopt"], both["loadgen"]))
            continue
        turns = [
            lambda: ours(model, threads, folder / "board", referee.figure),
            lambda run=run: run(model, threads, folder),  # type: ignore[misc]
        ]
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
    known = [name for name in REFEREES if "loadgen" not in name or importlib.util.find_spec("mlperf_loadgen")]
    parser.add_argument("--referees", nargs="+", default=known, choices=known)
    chosen = parser.parse_args()
    missed = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for name in chosen.referees:
            referee = REFEREES[name]
            for scheme in ("fp32", "int8"):
                place = folder / f"{referee.runtime}-{scheme}"
                model = next(place.glob("*.tflite"), None) or next(place.glob("*.xml"), None)
                model = model or efficientnet.artifact(referee.runtime, scheme, place)
                found = pairs(model, referee, chosen.threads, chosen.rounds, folder)
                ratios = sorted(own / other for own, other in found)
                middle = statistics.median(ratios)
                own, other = (statistics.median(column) for column in zip(*found, strict=True))
                is_judged = other >= SHORTEST_S
                if is_judged and abs(middle - 1) > referee.tolerance:
                    missed.append(f"{name} {scheme}")
                print(
                    f"EfficientNet-Lite0 {scheme}, {chosen.threads} thread(s), {referee.figure[:-2]}: edgeopt / {name} "
                    f"= {middle:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}, {len(ratios)} pairs); {own * 1e3:.2f} and "
                    f"{other * 1e3:.2f} ms; limit {referee.tolerance:.0%}"
                    + ("" if is_judged else "; too short to judge"),
                    flush=True,
                )
    print(f"missed: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
