"""A project whose samples are files, read as `optimize` reads them, without board and model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeopt import data, lower, plan
from edgeopt.cache import Cache
from edgeopt.task import Samples

RUN_FILE = """\
name = "files"

[model]
torch = "net:load"

[task]
{task}

{prepare}

[splits]
calibration = {calibration}
selection = {selection}
final = {final}

[device]
profile = "generic-x86-64"

[ladder]
rungs = ["fp32"]
floor_drop = 0.02
"""
COUNTS = {"calibration": "{ count = 1 }", "selection": "{ count = 1 }", "final": "{ count = 1 }"}


def write(folder: Path, task: str, prepare: str = "", **splits: str) -> Path:
    """The run file in `folder`; `prepare` holds the keys of [task.prepare]."""
    table = f"[task.prepare]\n{prepare}" if prepare else ""
    (folder / "edgeopt.toml").write_text(RUN_FILE.format(task=task, prepare=table, **{**COUNTS, **splits}))
    return folder


def read(folder: Path, say: list[dict[str, Any]] | None = None, cache: Cache | None = None) -> dict[str, Samples]:
    """The three splits; events are appended to `say`."""
    made = plan.load(folder, lower.abilities())
    cache = cache or Cache(folder.with_name(folder.name + "-cache"))
    return data.opened(made, cache, (say if say is not None else []).append)


def everything(folder: Path) -> Samples:
    """All samples in the order of the files."""
    from edgeopt import decode

    made = plan.load(folder, lower.abilities())
    cache = Cache(folder.with_name(folder.name + "-cache"))
    return decode.samples(made, cache, str(made.run_file.task.kind), lambda _: None)
