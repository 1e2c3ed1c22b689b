"""MLPerf's LoadGen, single stream, around LiteRT's invoke: MODEL THREADS SECONDS FOLDER; prints p90 in seconds."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import mlperf_loadgen as lg
import numpy as np
from ai_edge_litert.interpreter import Interpreter


def main(model: str, threads: int, seconds: float, folder: Path) -> float:
    interpreter = Interpreter(model_path=model, num_threads=threads)
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        values = np.random.default_rng(0).standard_normal(detail["shape"])
        interpreter.set_tensor(detail["index"], values.astype(detail["dtype"]))
    for _ in range(10):
        interpreter.invoke()

    def issue(queries: list[lg.QuerySample]) -> None:
        for query in queries:
            interpreter.invoke()
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
    return int(found[1]) / 1e9


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])))
