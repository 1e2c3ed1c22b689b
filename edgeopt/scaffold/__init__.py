"""What `edgeopt init` does: looks at what lies in a folder, settles a run file from it, and writes it with every key
commented. What a look at the files cannot tell is said, to be checked by its author."""

from __future__ import annotations

import ast
import dataclasses
import os
import platform
import re
import tempfile
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import Any

from .. import config, formats, lower, parts, plan, runfile
from .. import profile as profiles
from ..errors import ConfigError, EdgeoptError
from . import arrays, files
from .seen import Seen, Unclear, misfit, steps
from .text import text_of

__all__ = ["Draft", "Unclear", "Wanted", "data_in", "draft", "missing", "models_in", "require_free", "write"]

RUN_FILE = "edgeopt.toml"
FACTORIES = re.compile(r"(get_|load_|build_|make_|create_)?model|load|build|create")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the user said; None is not said. `data` is relative to where the command runs, as is `profile`."""

    model: str | None = None
    data: Path | None = None
    profile: str | None = None
    device: str = "local"
    inputs: tuple[str, ...] = ()
    labels: str | None = None
    groups: str | None = None


@dataclasses.dataclass(frozen=True)
class Draft:
    """A run file before it is written: its text, what should be looked at, and what was decided."""

    text: str
    check: tuple[str, ...]
    chosen: dict[str, Any]


def models_in(folder: Path) -> list[str]:
    """ONNX files, then functions that look like a model's factory, "module:function", of the folder's own modules."""
    found = [path.name for path in sorted(folder.glob("*.onnx"))]
    for path in sorted(folder.glob("*.py")):
        names = _functions(path)
        found += [f"{path.stem}:{name}" for name, needs in names.items() if FACTORIES.fullmatch(name) and not needs]
    return found


def data_in(folder: Path) -> list[Path]:
    """.npz files, then CSV files, then folders with a sub-folder of pictures or sounds per class; relative to it."""
    found = [path for suffix in (".npz", ".csv") for path in sorted(folder.glob(f"*{suffix}"))]
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and not path.name.startswith((".", "runs")) and files.suffixes(path):
            found.append(path)
    return found


def draft(folder: Path, wanted: Wanted) -> Draft:
    """The run file for what is wanted, after a look at the data. Raises ConfigError, ModelError; Unclear where a name
    must be given.
    """
    assert wanted.model is not None
    assert wanted.data is not None
    assert wanted.profile is not None
    board = profiles.load(wanted.profile)
    model = _model(folder, wanted.model)
    source = next(iter(model))
    ports = None
    if source == "onnx":
        ports = formats.read((folder / model["onnx"]).resolve()).inputs
    seen = _look(folder, wanted, ports)
    splits, notes = seen.splits(trains=source == "torch")
    values: dict[str, Any] = {
        "name": _name(folder),
        **{f"model.{key}": value for key, value in model.items()},
        **{f"task.{key}": value for key, value in seen.keys().items()},
        "splits.seed": 0,
        **{f"splits.{key}": value for key, value in splits.items()},
        "device.profile": _profile_path(folder, wanted.profile),
        "device.address": wanted.device,
        "ladder.floor_drop": seen.floor_drop(),
    }
    if board.budget.latency_p95_s is not None:
        values["ladder.mode"] = "quick"  # a p95 needs more samples than rapid takes
    preprocess = {one.name: steps(one, source) for one in seen.inputs}
    guesses = [
        f"[task.preprocess] {name}, {step['op']}: {step['note'].removeprefix('CHECK: ')}"
        for name, own in preprocess.items()
        for step in own
        if step["note"].startswith("CHECK")
    ]
    misfits = [said for one in seen.inputs if (said := misfit(one, source))]
    floor = "[ladder] floor_drop is in the score's unit" if not seen.is_classes else ""
    elsewhere = (
        "[device] address is this machine, and the profile is of another: name the board's address, or set stand_in"
        if wanted.device == "local" and board.cpu.architecture not in (profiles.ANY, platform.machine())
        else ""
    )
    text = text_of(values, preprocess, runfile.RunFile, board)
    return Draft(text, (*seen.check, *notes, *misfits, *guesses, *filter(None, (floor, elsewhere))), values)


def _look(folder: Path, wanted: Wanted, ports: Any) -> Seen:
    assert wanted.data is not None
    path = wanted.data if wanted.data.exists() else folder / wanted.data
    if not path.exists():
        raise ConfigError(
            f"--data {wanted.data}: nothing there, neither here nor in {folder}; name an .npz, CSV or folder"
        )
    given = _parts(path)
    names = {part: relative(one, folder) for part, one in given.items()}
    if given and all(one.suffix == ".npz" for one in given.values()):
        held = arrays.held_parts(given, names)
        return _noted(given, arrays.look(held, ports, wanted.inputs, wanted.labels, wanted.groups))
    shown = relative(path, folder)
    if path.suffix == ".npz":
        return arrays.look(arrays.held(path, shown), ports, wanted.inputs, wanted.labels, wanted.groups)
    if path.is_file() and path.suffix != ".csv":
        raise ConfigError(
            f"--data {path}: found a {path.suffix or 'file without suffix'}; allowed: an .npz, a .csv, or a folder "
            "with a sub-folder per class"
        )
    if wanted.inputs:
        raise ConfigError(f"--inputs: names arrays of an .npz; {path} is none")
    if given:
        return _noted(given, files.look(given, names, folder, ports, wanted.labels, wanted.groups))
    return files.look(path, shown, folder, ports, wanted.labels, wanted.groups)


def _parts(path: Path) -> dict[str, Path]:
    """The files or folders of given splits: those in a folder, or those beside a file that is called after one.

    {} where the data is one: a folder of classes has none that are called train, val and test with classes in them.
    """
    beside = path if path.is_dir() else path.parent
    suffix = None if path.is_dir() else path.suffix
    for kind in (".npz", ".csv", "") if suffix is None else (suffix,):
        there = [one for one in sorted(beside.iterdir()) if one.is_file() == bool(kind) and one.suffix == kind]
        there = there if kind else [one for one in sorted(beside.iterdir()) if one.is_dir() and files.suffixes(one)]
        by_name = {one.stem if kind else one.name: one for one in there if not one.name.startswith(".")}
        for names in (*parts.grouped(by_name).values(), parts.paired(by_name)):
            if names and (suffix is None or path.stem in names.values()):
                return {part: by_name[name] for part, name in names.items()}
    return {}


def _noted(paths: Mapping[str, Path], seen: Seen) -> Seen:
    """With the files that were taken, which nobody may have named."""
    told = ", ".join(f"{part}: {path.name}" for part, path in paths.items())
    return dataclasses.replace(seen, check=(f"the splits are given: {told}", *seen.check))


def write(folder: Path, made: Draft) -> Path:
    """The draft as folder/edgeopt.toml, after `plan.load` took it; an existing file is never replaced.

    Raises ConfigError, PlanError.
    """
    target = folder / RUN_FILE
    require_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".edgeopt-init-", suffix=".toml", dir=folder)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(made.text)
        _require_plan(temporary, target)
        temporary.chmod(0o644)
        os.link(temporary, target)  # unlike a rename, it fails where a file came meanwhile
    except FileExistsError:
        require_free(folder)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _require_plan(temporary: Path, target: Path) -> None:
    """What is wrong is told of the file that would have been written."""
    try:
        plan.load(temporary, lower.abilities())
    except EdgeoptError as error:
        raise type(error)(str(error).replace(str(temporary), str(target))) from error


def require_free(folder: Path) -> None:
    """Raises ConfigError where a run file is there already, or the folder is a file."""
    target = folder / RUN_FILE
    if target.exists() or target.is_symlink():
        raise ConfigError(
            f"{target}: a run file is there already, and init replaces none; edit it, name another folder, or move it "
            "away"
        )
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: found a file; allowed: a folder, there or new; name another")


def _model(folder: Path, model: str) -> dict[str, str]:
    """{"onnx": file} or {"torch": "module:factory"}. Raises ConfigError where that is not there."""
    if model.endswith(".onnx"):
        for path in (Path(model), folder / model):
            if path.is_file():
                return {"onnx": relative(path, folder)}
        raise ConfigError(f"--model {model}: no such file, neither here nor in {folder}; name an .onnx file")
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", model):
        raise ConfigError(
            f"--model {model}: allowed are the path of an .onnx file, or package.module:factory, a function that "
            "returns the trained torch.nn.Module"
        )
    module, _, factory = model.partition(":")
    path = folder.joinpath(*module.split("."))
    file = next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()), None)
    if file is None:
        if util.find_spec(module.partition(".")[0]) is None:
            raise ConfigError(
                f"--model {model}: module '{module}' is neither in {folder} nor installed; put {path.name}.py there, "
                "or install its package"
            )
        return {"torch": model}
    names = _functions(file)
    if names and factory not in names and not _binds(file, factory):
        there = ", ".join(names)
        mend = config.nearest(factory, names) or "name one of these"
        raise ConfigError(f"--model {model}: {file} has no function '{factory}'; it has: {there}; {mend}")
    return {"torch": model}


def _functions(path: Path) -> dict[str, bool]:
    """The file's own functions, and whether each needs arguments; none where it is no Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return {}
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            given = node.args
            without = len(given.posonlyargs) + len(given.args) - len(given.defaults)
            found[node.name] = bool(without or [one for one in given.kw_defaults if one is None])
    return found


def _binds(path: Path, name: str) -> bool:
    """Whether the name is imported or assigned there, so that it may be a function all the same."""
    return re.search(rf"\b{name}\b", path.read_text(encoding="utf-8", errors="replace")) is not None


def _profile_path(folder: Path, name: str) -> str:
    return relative(Path(name), folder) if name.endswith(".toml") else name


def relative(path: Path, folder: Path) -> str:
    """As the run file names it: relative where it lies in the run file's folder, else absolute."""
    full, base = path.expanduser().resolve(), folder.resolve()
    return full.relative_to(base).as_posix() if full.is_relative_to(base) else str(full)


def _name(folder: Path) -> str:
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._")
    return plain[:100] or "my-model"


def missing(wanted: Wanted) -> list[str]:
    """The flags that still must be given."""
    given: Mapping[str, object] = {"--model": wanted.model, "--data": wanted.data, "--profile": wanted.profile}
    return [flag for flag, value in given.items() if value is None]
