"""The source model: made by the user's factory, known by its exported graph and weights, run as the reference."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import logging
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from .config import nearest
from .errors import ConfigError, MissingDependency, ModelError
from .task import Array

if TYPE_CHECKING:
    import torch

REFERENCE_BATCH = 64
MESSAGE_LINES = 3  # of a foreign error: torch puts what is missing on the second
MEND_INPUTS = (
    "; shapes and types come from [task] inputs after [task.preprocess], where steps like "
    '{ op = "cast", dtype = "float32" } and { op = "transpose", axes = [0, …] } change them'
)

_users_modules: set[str] = set()


def call_factory(spec: str, folder: Path, arguments: Mapping[str, Any], key: str) -> Any:
    """What `package.module:factory` returns; `folder` (the run file's) comes first on the import path.

    Raises ConfigError (no such module or function, arguments that it does not take), MissingDependency (it imports a
    package that is not there) or ModelError (it failed), each naming `key` and the line.
    """
    module_name, _, function_name = spec.partition(":")
    what = f"{key} = '{spec}'"
    with _importing_from(folder):
        module = _imported(module_name, folder, what)
        factory = getattr(module, function_name, None)
        if not callable(factory):
            raise ConfigError(
                f"{what}: '{module_name}' has no function '{function_name}'; {_offer(module, function_name)}"
            )
        _check_arguments(factory, arguments, what)
        with user_code(f"{what}: the function"):
            return factory(**arguments)


@contextmanager
def user_code(what: str, mend: str = "") -> Iterator[None]:
    """Runs code of the user's: whatever it raises is named by `what` and the user's line; `mend` ends the message.

    Raises MissingDependency (a package is not there) or ModelError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"{what} needs '{error.name}', which is not installed for {sys.executable}; install it there{_place(error)}"
        ) from error
    except (Exception, SystemExit) as error:
        raise ModelError(f"{what} failed: {_words(error)}{_place(error)}{mend}") from error


def load_torch(spec: str, folder: Path, arguments: Mapping[str, Any]) -> torch.nn.Module:
    """The torch module, in eval mode, without NaN weights. Raises MissingDependency, ConfigError, ModelError."""
    if importlib.util.find_spec("torch") is None:
        raise MissingDependency("[model] torch needs torch, which is not installed: pip install 'edgeopt[torch]'")
    module = call_factory(spec, folder, arguments, "[model] torch")
    import torch  # after the factory, whose absence is found without it

    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"[model] torch = '{spec}' returned {type(module).__name__}; it must return a torch.nn.Module")
    weights = {name: t for name, t in module.state_dict().items() if isinstance(t, torch.Tensor)}
    bad = [name for name, t in weights.items() if t.is_floating_point() and not t.is_meta and bool(t.isnan().any())]
    if bad:
        raise ModelError(
            f"[model] torch = '{spec}': {len(bad)} of {len(weights)} weights hold NaN, first '{bad[0]}'; train the "
            "model again, or load weights from before it diverged"
        )
    _require_float(module, f"[model] torch = '{spec}'")
    for name in ("eval", "train"):  # torch.export's modules have one mode, and refuse to be asked for it
        vars(module).pop(name, None)
    return module.eval()


def _require_float(module: torch.nn.Module, what: str) -> None:
    kinds = {name: type(layer) for name, layer in module.named_modules() if ".quantized" in type(layer).__module__}
    for name, kind in kinds.items():
        raise ModelError(
            f"{what}: it is int8 already: layer '{name}' is a {kind.__module__}.{kind.__name__}, which no converter "
            "takes; return the float model that it was made from, and let quantize or the rung int8 do it"
        )


def graph_hash(module: torch.nn.Module, example: Sequence[Array]) -> str:
    """SHA-256 over the exported graph and every weight; `example`: one prepared array (n, ...) per input.

    Raises ModelError, with the operator or line that torch.export could not take.
    """
    import torch

    arguments = _tensors(example, slice(0, 1))
    what = f"exporting the source model with one sample of {_kinds(arguments)}"
    with user_code(what, MEND_INPUTS), _silent_log(), torch.no_grad():
        program = torch.export.export(module, arguments)
    digest = hashlib.sha256(re.sub(r"#.*", "", program.graph_module.code).encode("utf-8"))
    for name, tensor in sorted({**program.state_dict, **program.constants}.items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def untold(_done: int, _total: int) -> None:
    """For callers that show no progress."""


def run_torch(
    module: torch.nn.Module, inputs: Sequence[Array], progress: Callable[[int, int], None] = untold
) -> tuple[Array, ...]:
    """Outputs, each (n, ...), of prepared inputs, each (n, ...). `progress` is told samples done and their number.

    A module that takes one sample only, as one that was exported so, is given them one by one.
    Raises ModelError for NaN and infinity too.
    """
    import torch

    columns: list[list[Array]] = []
    count, start, step = len(inputs[0]), 0, REFERENCE_BATCH
    with torch.no_grad():
        while start < count:
            rows = slice(start, min(start + step, count))
            try:
                result = _called(module, inputs, rows)
            except ModelError:
                if step == 1 or rows.stop - start == 1 or not _takes_one(module, inputs):
                    raise
                step = 1
                continue
            columns.append(_answers(result, rows.stop - start))
            start = rows.stop
            progress(start, count)
    try:
        outputs = tuple(np.concatenate(column, axis=0) for column in zip(*columns, strict=True))
    except ValueError as error:
        raise ModelError(f"the source model's outputs change their number or shape between batches: {error}") from error
    check_finite(outputs, "the source model")
    return outputs


def output_names(module: torch.nn.Module, inputs: Sequence[Array]) -> tuple[str, ...]:
    """What the module calls its outputs, in order: keys of dictionaries, places in tuples; nothing of a single one."""
    import torch
    from torch.utils import _pytree

    with torch.no_grad():
        result = _called(module, inputs, slice(0, 1))
    paths = [path for path, _ in _pytree.tree_flatten_with_path(result)[0]]
    return tuple(re.sub(r"\W+", ".", _pytree.keystr(path)).strip(".") for path in paths if path)


def _called(module: torch.nn.Module, inputs: Sequence[Array], rows: slice) -> Any:
    batch = _tensors(inputs, rows)
    what = f"running the source model on samples {rows.start} to {rows.stop - 1}, {_kinds(batch)},"
    with user_code(what, MEND_INPUTS):
        return module(*batch)


def _takes_one(module: torch.nn.Module, inputs: Sequence[Array]) -> bool:
    try:
        _called(module, inputs, slice(0, 1))
    except ModelError:
        return False
    return True


MEND_FINITE = "; mend the model, or its preprocess steps, before optimizing"


def check_finite(outputs: Sequence[Array], who: str, mend: str = MEND_FINITE) -> None:
    """Raises ModelError naming output, count and first sample when an output holds NaN or infinity; `mend` ends it."""
    for index, output in enumerate(outputs):
        bad = ~np.isfinite(output.astype(np.float64)).reshape(len(output), -1).all(axis=1)
        if bad.any():
            raise ModelError(
                f"output {index} of {who} is NaN or infinite for {int(bad.sum())} of {len(output)} samples, first for "
                f"sample {int(np.flatnonzero(bad)[0])}{mend}"
            )


def _tensors(arrays: Sequence[Array], rows: slice) -> tuple[torch.Tensor, ...]:
    import torch

    return tuple(torch.from_numpy(np.ascontiguousarray(array[rows])) for array in arrays)


def _kinds(tensors: Sequence[torch.Tensor]) -> str:
    return ", ".join(f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in tensors)


@contextmanager
def _silent_log() -> Iterator[None]:
    """torch.export logs the traceback of what it raises as well."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _answers(result: Any, count: int) -> list[Array]:
    """What a model returned for `count` samples, as arrays (count, ...)."""
    import torch
    from torch.utils import _pytree

    values = _pytree.tree_leaves(result)  # in the order in which torch.export, and with it every artifact, has them
    if not values:
        raise ModelError("the source model returned no output")
    for index, tensor in enumerate(values):
        if not isinstance(tensor, torch.Tensor):
            raise ModelError(
                f"output {index} of the source model is {type(tensor).__name__}; every output must be a tensor"
            )
        if tensor.ndim == 0 or len(tensor) != count:
            raise ModelError(
                f"output {index} of the source model has shape {tuple(tensor.shape)} for {count} samples; the first "
                "axis of every output must be the sample"
            )
    return [(t.float() if t.dtype is torch.bfloat16 else t).detach().cpu().numpy() for t in values]


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Imports of the user's code, afresh: neither an equally named module of another folder nor what this folder's
    module was before an edit may answer. Nothing is written beside it."""
    for name in _users_modules:
        sys.modules.pop(name, None)
    _users_modules.clear()
    importlib.invalidate_caches()
    path, before = str(folder.resolve()), set(sys.modules)
    writes_nothing, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, path)
    try:
        yield
    finally:
        new = set(sys.modules) - before
        _users_modules.update(name for name in new if is_users(_origin(sys.modules[name])))
        sys.path.remove(path)
        sys.dont_write_bytecode = writes_nothing


def _imported(name: str, folder: Path, what: str) -> ModuleType:
    try:
        with user_code(f"{what}: importing '{name}'"):
            return importlib.import_module(name)
    except MissingDependency as error:
        missing = error.__cause__.name if isinstance(error.__cause__, ModuleNotFoundError) else None
        if missing is None or not f"{name}.".startswith(f"{missing}."):
            raise
        files = sorted(file.stem for file in folder.glob("*.py"))
        raise ConfigError(
            f"{what}: there is no module '{missing}' in {folder} or among the installed packages; "
            f"{nearest(missing, files) or 'modules there: ' + (', '.join(files) or 'none')}"
        ) from error


def _offer(module: ModuleType, wanted: str) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
    ]
    return nearest(wanted, own) or f"functions there: {', '.join(own) or 'none'}"


def _check_arguments(factory: Callable[..., Any], arguments: Mapping[str, Any], what: str) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some built-in callables do not tell
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        given = ", ".join(arguments) or "none"
        raise ConfigError(f"{what}: {error}; it takes {signature}, arguments given: {given}") from error


def _words(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:MESSAGE_LINES])}".rstrip(": ")


def _place(error: BaseException) -> str:
    """The last line of the user's code that the error passed, or nothing."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if is_users(frame.filename)), None)
    return f" ({Path(last.filename).name}, line {last.lineno})" if last else ""


def _origin(module: ModuleType) -> str | None:
    """A module's file; of a package without one, its folder."""
    return getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)


def is_users(file: str | None) -> bool:
    """Neither the interpreter's, nor an installed package's, nor ours."""
    if file is None or file.startswith("<") or {"site-packages", "dist-packages"} & set(Path(file).parts):
        return False
    return not any(Path(file).is_relative_to(folder) for folder in _foreign_code())


@functools.cache
def _foreign_code() -> tuple[Path, ...]:
    return (*(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")), Path(__file__).parent)
