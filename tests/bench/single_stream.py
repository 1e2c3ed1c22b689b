"""MLPerf's LoadGen, single stream, around the agent's own query: MODEL THREADS SECONDS FOLDER.

Prints {"loadgen": its p90, "edgeopt": p90 by edgeopt's rule of the seconds that the agent noted for the same queries}.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import mlperf_loadgen as lg
import numpy as np
from edgeopt_agent.runner import Runner

from edgeopt import stats


def main(model: str, threads: int, seconds: float, folder: Path) -> dict[str, float]:
    artifact = {"path": model, "runtime": "tflite", "threads": threads, "options": {}, "preprocess": []}
    runner = Runner(lambda: None, artifact, [], None, 1, cold=False)
    for _ in range(10):
        runner.session.invoke()
    noted: list[float] = []

    def issue(queries: list[lg.QuerySample]) -> None:
        for query in queries:
            noted.append(runner.query([])[1])  # the input lies there
            lg.QuerySamplesComplete([lg.QuerySampleResponse(query.id, 0, 0)])

    settings = lg.TestSettings()
    settings.scenario = lg.TestScenario.SingleStream
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = int(seconds * 1000)
    settings.min_query_count = 64
    output = lg.LogOutputSettings()
    output.outdir = str(folder)
    output.copy_summary_to_stdout = False
    logs = lg.LogSettings()
    logs.log_output = output
    logs.enable_trace = False
    sut = lg.ConstructSUT(issue, lambda: None)
    library = lg.ConstructQSL(64, 64, lambda _: None, lambda _: None)
    lg.StartTestWithLogSettings(sut, library, settings, logs)
    lg.DestroyQSL(library)
    lg.DestroySUT(sut)
    summary = (folder / "mlperf_log_summary.txt").read_text()
    found = re.search(r"^90\.00 percentile latency \(ns\)\s*: (\d+)", summary, re.MULTILINE)
    assert found, summary
    own = stats.percentile_figure(np.array(noted), 90).value
    assert own is not None, len(noted)
    return {"loadgen": int(found[1]) / 1e9, "edgeopt": own}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))))
