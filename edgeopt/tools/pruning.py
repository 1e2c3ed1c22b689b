"""prune: whole channels go, the rest learns the source model's answers, and the result is converted.

It is compared with the source model twice: as it was cut, and as it has recovered.
"""

from __future__ import annotations

import tempfile
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from edgeopt_agent import preprocess

from edgeopt import model, parity
from edgeopt.errors import ConfigError, MissingDependency
from edgeopt.plan import Prune, Recover
from edgeopt.task import Array, Samples, check_labels, check_outputs

from .lowering import Clock, Say, lower_to, require_packages
from .source import Given, Source, load

if TYPE_CHECKING:
    import torch


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
    metric: str | None = None,
    *,
    accept_error: bool = False,
) -> dict[str, Any]:
    """As lowering.convert, of the pruned model; "prune" of what it returns has widths, MACs, parameters, the layers
    that were left whole, how far the model is from its source, and by `metric` the scores of both on these samples.

    recover_step: None leaves the pruned model as it is. Raises as lowering.convert does.
    """
    if metric is not None:
        _require_labels(given, metric)
    if source.contents is not None:
        raise ConfigError(
            f"{source.named}: pruning trains the model again, which an .onnx file does not allow; give the factory"
        )
    require_packages(runtime, source.kind)
    if util.find_spec("torch_pruning") is None:
        raise MissingDependency("pruning needs torch-pruning, which is not installed: pip install 'edgeopt[torch]'")
    from edgeopt.compress import prune as pruning

    clock = Clock(say)
    clock("loading the model")
    loaded, given = load(source, given, folder)
    assert not isinstance(loaded, Path)
    example = tuple(array[: pruning.SAMPLES] for array in given.arrays)
    try:
        module, history = pruning.prune(loaded, step, example, clock, step.keep)
    except ConfigError as error:
        raise ConfigError(str(error).replace("[prune] keep = ", "--keep ")) from error
    steps = [_compared(module, loaded, given, "pruned")]
    if recover_step is not None:
        module = _recovered(module, loaded, given, recover_step, clock)
        steps.append(_compared(module, loaded, given, "recovered"))
    score = None if metric is None else _scores(module, loaded, given, metric)
    document = lower_to(module, source, given, runtime, scheme, out, clock, accept_error=accept_error)
    document["prune"] = {
        "ratio": step.ratio,
        "round_to": step.round_to,
        "epochs": recover_step.epochs if recover_step else 0,
        "labels": given.labels is not None,
        "keep": list(step.keep),
        **{name: history[name] for name in ("macs", "parameters", "widths", "whole", "proof")},
        "parity": steps,
        "accuracy": score,
    }
    return document


def _recovered(
    module: torch.nn.Module, source: torch.nn.Module, given: Given, step: Recover, clock: Clock
) -> torch.nn.Module:
    from edgeopt.compress import recover

    def epoch(done: int, total: int, loss: float) -> None:
        clock(f"recovering by distillation (loss {loss:.4f})", done, total)

    clock("recovering by distillation")
    with tempfile.TemporaryDirectory() as text:
        samples = Samples(given.arrays, given.labels, None)
        return recover.recover(module, source, samples, step, Path(text) / "checkpoint", epoch)


def _require_labels(given: Given, metric: str) -> None:
    if given.labels is None:
        raise ConfigError(f"--metric {metric} compares with labels: name their array in --inputs with --labels")
    try:
        check_labels(given.labels, metric, None)
    except ConfigError as error:
        raise ConfigError(str(error).replace("[task] labels", "--labels")) from error


def _compared(module: torch.nn.Module, source: torch.nn.Module, given: Given, stage: str) -> dict[str, Any]:
    """As parity.compare, on the first samples."""
    from edgeopt.compress import proof

    samples = tuple(array[: parity.SAMPLES] for array in given.arrays)
    singles = [parity.one(samples, row) for row in range(len(samples[0]))]
    found, reference = (proof.answers(own, singles) for own in (module, source))
    if len({tuple(answer.shape for answer in row) for row in [*found, *reference]}) > 1:  # as a detector's may
        found, reference = found[:1], reference[:1]
    columns = [[np.concatenate(column) for column in zip(*own, strict=True)] for own in (found, reference)]
    return parity.compare(columns[0], columns[1], stage, None)


def _scores(module: torch.nn.Module, source: torch.nn.Module, given: Given, metric: str) -> dict[str, Any]:
    """{"metric", "samples", "source", "pruned"}: mean scores on the given samples, which recovery has learned from."""

    def mean(outputs: tuple[Array, ...]) -> float:
        return float(np.mean(preprocess.score(metric, outputs, given.labels)))

    reference = model.run_torch(source, given.arrays)
    try:
        check_outputs(reference, given.labels, metric, 0)
    except ConfigError as error:
        raise ConfigError(
            str(error).replace("[task] labels", "--labels").replace("[task] metric = ", "--metric ")
        ) from error
    found = model.run_torch(module, given.arrays)
    return {"metric": metric, "samples": len(given), "source": mean(reference), "pruned": mean(found)}
