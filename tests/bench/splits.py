"""EfficientNet-Lite0 in int8 over five fixed splits, on a board behind OpenSSH on loopback: drop, agreement, MACs.

python tests/bench/splits.py --pictures FOLDER [--runtimes openvino tflite] [--seeds 0 1 2 3 4] [--out FOLDER]

FOLDER holds one picture per ImageNet class, in the classes' order. What was done before is found in --out's cache.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "examples" / "efficientnet-lite0"
sys.path.insert(0, str(REPOSITORY / "examples"))
GREATEST_DROP, LEAST_AGREEMENT, LEAST_SHARE = 0.004, 0.975, 0.95


def run(project: Path, runtime: str, seed: int, options: list[str], out: Path) -> dict[str, Any]:
    """run.json of one split; its candidates are fp32 and the int8 schemes."""
    text = (EXAMPLE / "edgeopt.toml").read_text()
    text, splits = re.subn(r"(\[splits\][^\n]*\n)seed = 0", rf"\1seed = {seed}", text)
    text, rungs = re.subn(r"rungs = .*", f'rungs = ["fp32", "int8"]\nruntime = "{runtime}"', text)
    text, floors = re.subn(r"floor_drop = .*", "floor_drop = 0.05", text)  # 200 samples may reject int8 by chance
    assert splits == rungs == floors == 1
    (project / "edgeopt.toml").write_text(text)
    target = out / f"{runtime}-{seed}"
    command = [sys.executable, "-m", "edgeopt", "optimize", str(project), *options, "--out", str(target)]
    command += ["--cache", str(out / "cache"), "--allow-undecided", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{runtime}, seed {seed}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def int8_share(found: dict[str, Any]) -> float:
    """Of the multiply-accumulates of the graph that the runtime executed for the chosen candidate."""
    macs = next(trial for trial in found["trials"] if trial["name"] == found["chosen"])["executed"]["macs"]
    return float(macs.get("int8", 0)) / sum(macs.values())


def main() -> int:
    from loopback_board import LoopbackBoard

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--runtimes", nargs="+", default=["openvino", "tflite"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "edgeopt-splits")
    given = parser.parse_args()
    project = given.out / "project"
    project.mkdir(parents=True, exist_ok=True)
    for file in EXAMPLE.glob("*.py"):
        shutil.copy(file, project)
    subprocess.run([sys.executable, str(project / "prepare.py"), str(given.pictures.resolve())], check=True)
    passed = True
    shutil.rmtree(given.out / "sshd", ignore_errors=True)
    server = LoopbackBoard(given.out / "sshd")
    try:
        options = [*server.options, "--root", str(given.out / "board"), "--board-python", sys.executable]
        for runtime in given.runtimes:
            rows = []
            for seed in given.seeds:
                found = run(project, runtime, seed, options, given.out)
                final = found["final"]
                rows.append((final["drop"], final["agreement"], int8_share(found)))
                print(
                    f"{runtime}, seed {seed}: {found['chosen']}, drop {final['drop'] * 100:.2f} points, agreement "
                    f"{final['agreement']:.3%}, {rows[-1][2]:.2%} of the MACs in int8 (n={final['n']})",
                    flush=True,
                )
            drops, agreements, shares = zip(*rows, strict=True)
            drop, agreement, share = statistics.mean(drops), statistics.mean(agreements), min(shares)
            good = drop <= GREATEST_DROP and agreement >= LEAST_AGREEMENT and share >= LEAST_SHARE
            passed &= good
            print(
                f"{runtime}: mean drop {drop * 100:.2f} points ({min(drops) * 100:.2f} to {max(drops) * 100:.2f}), "
                f"mean agreement {agreement:.2%} (least {min(agreements):.2%}), at least {share:.2%} of the MACs in "
                f"int8: {'within the bar' if good else 'MISSED'}"
            )
    finally:
        server.close()
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
