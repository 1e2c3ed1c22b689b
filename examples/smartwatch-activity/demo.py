"""The whole path in one go: optimize on the board, flash, validate, and say where the report is.

python demo.py          this machine is the board
python demo.py --ssh    the same, through an OpenSSH server on loopback
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
EDGEOPT = Path(sys.executable).with_name("edgeopt")


def run(*command: object) -> None:
    """Run a command that the reader could type, and show it first."""
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join([Path(words[0]).name, *words[1:]])}", flush=True)
    code = subprocess.run(words, check=False).returncode
    if code != 0:
        sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ssh", action="store_true", help="speak to the board through an OpenSSH server on loopback")
    parser.add_argument("--out", type=Path, default=Path("runs/smartwatch-activity"), help="folder of the run")
    parser.add_argument("--root", type=Path, default=Path("runs/board"), help="edgeopt's folder on the board")
    chosen = parser.parse_args()
    if not (FOLDER / "data.npz").exists():
        run(sys.executable, FOLDER / "prepare.py")
    if not (FOLDER / "weights.npz").exists():
        run(sys.executable, FOLDER / "train.py")
    with contextlib.ExitStack() as stack:
        where = ["--root", str(chosen.root.resolve())]
        if chosen.ssh:
            sys.path.insert(0, str(FOLDER.parent))
            from loopback_board import LoopbackBoard

            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="loopback-board-"))
            board = LoopbackBoard(Path(folder))
            stack.callback(board.close)
            where += [*board.options, "--board-python", sys.executable]
        # Three held-out people leave most verdicts undecided, honestly: the demo goes on with such a one.
        run(EDGEOPT, "optimize", FOLDER, "--out", chosen.out, "--allow-undecided", *where)
        bundle = chosen.out / "smartwatch-activity.edgeopt"
        run(EDGEOPT, "flash", bundle, *where)
        run(EDGEOPT, "validate", bundle, "--allow-undecided", *where)
        run(EDGEOPT, "status", *where)
    print(f"\nreport: {chosen.out.resolve() / 'report.html'}")


if __name__ == "__main__":
    main()
