"""What sampling a power sensor costs the artifact that is measured: its median latency with the sampler over that
without, by the agent's own alternating blocks (`sampler_overhead` of `edgeopt power`), for EfficientNet-Lite0.

Sensors are a sysfs tree, put over /sys/class in a mount namespace (needs root), and a stand-in for vcgencmd; each is
read at its default rate. An idle machine is needed. Prints each run, and each sensor's runs together.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import efficientnet

from edgeopt import artifact, power, stats
from edgeopt.device.local import LocalTransport
from edgeopt.device.session import Placement, Session
from edgeopt.task import Array

IN_TREE = 'mount --bind "$1" /sys/class && shift && exec "$@"'
TREE = {  # as Documentation/hwmon/ina2xx and ina3221, and power/powercap/powercap.rst name the files
    "hwmon/hwmon0/name": "ina226",
    "hwmon/hwmon0/in1_input": 5072,
    "hwmon/hwmon0/curr1_input": 1200,
    "hwmon/hwmon0/power1_input": 6_086_400,
    "hwmon/hwmon1/name": "ina3221",
    "hwmon/hwmon1/update_interval": 1,
    "hwmon/hwmon1/in1_label": "VDD_IN",
    "hwmon/hwmon1/in1_input": 5072,
    "hwmon/hwmon1/curr1_input": 1200,
    "powercap/intel-rapl:0/name": "package-0",
    "powercap/intel-rapl:0/energy_uj": 1000,
    "powercap/intel-rapl:0/max_energy_range_uj": 262_143_328_850,
}
RAILS = ("3V7_WL_SW", "3V3_SYS", "1V8_SYS", "DDR_VDD2", "DDR_VDDQ", "1V1_SYS", "0V8_SW", "VDD_CORE", "3V3_DAC")
SENSORS = {  # what tells each apart
    "hwmon:ina226": "as chips do that tell no interval",
    "hwmon:VDD_IN": "as fast as any is read",
    "rapl:package-0": "a counter",
    "pmic": "a program is started for every reading",
}


def board(folder: Path) -> None:
    """class/ and bin/vcgencmd."""
    for name, content in TREE.items():
        path = folder / "class" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    lines = [f"{rail}_A current({number})=0.50000000A" for number, rail in enumerate(RAILS)]
    lines += [f"{rail}_V volt({len(RAILS) + number})=1.10000000V" for number, rail in enumerate(RAILS)]
    command = folder / "bin" / "vcgencmd"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\nprintf '%s\\n' " + " ".join(f"'{line}'" for line in lines) + "\n")
    command.chmod(0o755)


def sides(run: power.Run) -> tuple[list[Array], list[Array]]:
    """Invoke seconds of the blocks with the sampler, and without."""
    assert run.overhead_s is not None
    blocks = run.result["overhead"]
    parts = np.split(run.overhead_s, np.cumsum([block["n"] for block in blocks])[:-1])
    both: dict[bool, list[Array]] = {True: [], False: []}
    for block, part in zip(blocks, parts, strict=True):
        both[block["sampling"]].append(np.asarray(part))
    return both[True], both[False]


def measure(model: artifact.Artifact, sensor: str, folder: Path, seed: int) -> power.Run:
    folder.mkdir()
    with Session(LocalTransport(), Placement(str(folder.parent / "board"), sys.executable)) as session:
        return power.sample(session, [model], [], power.choose(sensor), folder, 1, 0.5, 0.1, seed)


def shown(figure: stats.Figure) -> str:
    low, high = figure.interval or (float("nan"),) * 2
    return f"{100 * ((figure.value or 0) - 1):+.2f} % ({100 * (low - 1):+.2f} to {100 * (high - 1):+.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--runtime", default="tflite")
    parser.add_argument("--schemes", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--models", nargs="+", type=Path, help="other files than EfficientNet-Lite0's schemes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sensors", nargs="+", default=list(SENSORS))
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inside is None:
        with tempfile.TemporaryDirectory() as text:
            board(Path(text))
            again = ["sh", "-c", IN_TREE, "sh", f"{text}/class", sys.executable, *sys.argv, "--inside", text]
            path = f"{text}/bin:{os.environ['PATH']}"
            raise SystemExit(subprocess.call(["unshare", "--mount", *again], env={**os.environ, "PATH": path}))
    for scheme in [path.stem for path in chosen.models or ()] or chosen.schemes:
        named = {path.stem: path.resolve() for path in chosen.models or ()}
        path = named.get(scheme) or efficientnet.artifact(chosen.runtime, scheme, chosen.inside / f"model-{scheme}")
        model = artifact.of_model(path, chosen.threads)
        for sensor in chosen.sensors:
            on: list[Array] = []
            off: list[Array] = []
            for number in range(chosen.runs):
                found = measure(model, sensor, chosen.inside / f"{scheme}-{sensor.replace(':', '-')}-{number}", number)
                own = sides(found)
                on, off = on + own[0], off + own[1]
                told = found.result["sensor"]
                marks = "; ".join(found.remarks())
                print(
                    f"{scheme} {told['kind']}:{told['rail']} every {told['period_s']:g} s, run {number + 1}: "
                    f"{shown(stats.ratio_of_medians(*own))} {marks}",
                    flush=True,
                )
            together = stats.ratio_of_medians(on, off)
            latency = 1e3 * float(np.median(np.concatenate(off)))
            print(f"{scheme} {sensor} ({SENSORS.get(sensor, '')}): {shown(together)} of {latency:.2f} ms", flush=True)


if __name__ == "__main__":
    main()
