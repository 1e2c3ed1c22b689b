"""prune: whole channels go, the rest learns the source model's answers, and the result is converted."""

from __future__ import annotations

import tempfile
from importlib import util
from pathlib import Path
from typing import Any

from edgeopt.errors import ConfigError, MissingDependency
from edgeopt.plan import Prune, Recover
from edgeopt.task import Samples

from .lowering import Clock, Say, lower_to, require_packages
from .source import Given, Source, require_torch_runs


def prune(
    source: Source,
    given: Given,
    step: Prune,
    recover_step: Recover | None,
    runtime: str,
    scheme: str,
    out: Path,
    folder: Path,
    say: Say,
    *,
    accept_error: bool,
) -> dict[str, Any]:
    """As lowering.convert, of the pruned model; "prune" of what it returns has widths, MACs and parameters.

    recover_step: None leaves the pruned model as it is. Raises as lowering.convert does.
    """
    if source.contents is not None:
        raise ConfigError(
            f"{source.named}: pruning trains the model again, which an .onnx file does not allow; give the factory"
        )
    require_packages(runtime, source.kind)
    if util.find_spec("torch_pruning") is None:
        raise MissingDependency("pruning needs torch-pruning, which is not installed: pip install 'edgeopt[torch]'")
    from edgeopt.compress import prune as pruning
    from edgeopt.compress import recover

    clock = Clock(say)
    clock("loading the model")
    loaded = source.load(folder)
    assert not isinstance(loaded, Path)
    require_torch_runs(loaded, given.arrays)
    example = tuple(array[:1] for array in given.arrays)
    module, history = pruning.prune(loaded, step, example, clock)
    if recover_step is not None:

        def epoch(done: int, total: int, loss: float) -> None:
            clock(f"recovering by distillation (loss {loss:.4f})", done, total)

        clock("recovering by distillation")
        with tempfile.TemporaryDirectory() as text:
            samples = Samples(given.arrays, given.labels, None)
            module = recover.recover(module, loaded, samples, recover_step, Path(text) / "checkpoint", epoch)
    document = lower_to(module, source, given, runtime, scheme, out, clock, accept_error=accept_error)
    document["prune"] = {
        "ratio": step.ratio,
        "round_to": step.round_to,
        "epochs": recover_step.epochs if recover_step else 0,
        "labels": given.labels is not None,
        **{name: history[name] for name in ("macs", "parameters", "widths")},
        "accuracy": None,
    }
    return document
