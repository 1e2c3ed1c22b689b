"""How long the agent takes until it has answered hello and ended, over `python -c pass`; the least of many turns.

With the Pythons of ~/.pyenv, or with those that are named. An idle machine is needed.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

from edgeopt_agent import wire

from edgeopt.device.archive import agent_archive
from edgeopt.device.session import BEGIN

HELLO = wire.encode({"id": 1, "op": "hello"})


def seconds(command: list[str], sent: bytes) -> float:
    started = time.perf_counter()
    subprocess.run(command, input=sent, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pythons", nargs="*", help="default: those of ~/.pyenv that the agent runs on")
    parser.add_argument("--turns", type=int, default=40)
    chosen = parser.parse_args()
    found = {
        int(path.parts[-3].split(".")[1]): str(path) for path in Path.home().glob(".pyenv/versions/3.*/bin/python")
    }
    pythons = chosen.pythons or [found[minor] for minor in sorted(found) if minor >= 8]
    with tempfile.TemporaryDirectory() as folder:
        data, sha256 = agent_archive()
        archive = Path(folder) / f"{sha256}.pyz"
        archive.write_bytes(data)
        print(f"archive: {len(data)} bytes")
        for python in pythons:
            agent = [python, "-S", "-c", BEGIN, str(archive), "serve", "--root", f"{folder}/root"]
            bare, whole = [], []
            for _ in range(chosen.turns):
                bare.append(seconds([python, "-c", "pass"], b""))
                whole.append(seconds(agent, HELLO))
            ratio = min(whole) / min(bare)
            print(f"{python}: {min(bare) * 1e3:.1f} ms, {min(whole) * 1e3:.1f} ms, {ratio:.2f} times", flush=True)


if __name__ == "__main__":
    main()
