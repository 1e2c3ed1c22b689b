"""The stages of a run, each a function whose output is cached: source → reference → compressed → lowered → measured.

The user's model is imported only when a stage really has to be built, so a run that is all cached loads no framework.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from edgeopt_agent import preprocess

from . import lower, measure, model, onnx_model, origin, stats
from .artifact import Artifact
from .cache import Cache, key_of, source_of, versions
from .device.session import Session
from .errors import ModelError
from .ladder import Recipe
from .lower import ethosu
from .measure import Comparison
from .plan import Frequency, Lower, Npu, Plan, Prune, Recover, Threads
from .task import Array, Samples, check_outputs

if TYPE_CHECKING:
    import torch

Say = Callable[[dict[str, Any]], None]

COMPRESS_FILES = ("cuts", "groups", "proof", "prune", "recover")
PRUNE_PACKAGES = ("torch", "torch-pruning", "numpy")


def hash_arrays(arrays: Sequence[Array]) -> str:
    """SHA-256 over types, shapes and values."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@dataclasses.dataclass
class Workbench:
    """What every stage of one run shares. `splits` holds raw samples; `graph` names the source model."""

    plan: Plan
    cache: Cache
    say: Say
    splits: dict[str, Samples]
    graph: str
    remeasure: bool = False

    @functools.cached_property
    def source(self) -> torch.nn.Module | Path:
        """The user's model, imported now if no stage needed it before. Raises ModelError if it is another one now."""
        self.say({"event": "stage", "what": "loading the model"})
        section = self.plan.run_file.model
        source, _ = origin.load(self.plan)
        if origin.graph_hash(source, self.example) != self.graph:
            raise ModelError(
                f"{section.named()} gives another model each time it is called, or its files changed meanwhile; load "
                "trained weights in it, set its seed, or start again"
            )
        return source

    @property
    def module(self) -> torch.nn.Module:
        """The source as a torch module, for what trains it."""
        assert not isinstance(self.source, Path)
        return self.source

    @functools.cached_property
    def example(self) -> tuple[Array, ...]:
        """One prepared sample per input, (1, ...)."""
        return self.splits["calibration"].take(np.arange(1)).prepared(self.plan.preprocess)

    @functools.cached_property
    def task_object(self) -> Any:
        spec = self.plan.run_file.task.object
        return model.call_factory(spec, self.plan.folder, {}, "[task] object") if spec else None

    def progress(self, what: str, done: int = 0, total: int = 0) -> None:
        """Tell what is being done; how far, where that can be counted."""
        if total:
            self.say({"event": "progress", "what": what, "done": done, "of": total})
        else:
            self.say({"event": "stage", "what": what})

    def prepared(self, name: str) -> tuple[Array, ...]:
        return self.splits[name].prepared(self.plan.preprocess)

    def hash_of(self, name: str) -> str:
        """What decides a split's prepared inputs and labels, without preparing them: pictures grow by four then."""
        return self._hash(self.splits[name])

    def _hash(self, own: Samples) -> str:
        labels = () if own.labels is None else (own.labels,)
        how = {"steps": self.plan.preprocess, "code": source_of("edgeopt_agent/preprocess.py")}
        return key_of({"arrays": hash_arrays([*own.inputs, *labels]), **how})

    @property
    def training(self) -> str:
        """Name of the split that trains."""
        return "train" if "train" in self.splits else "calibration"

    @functools.cached_property
    def range_samples(self) -> Samples:
        """The samples of calibration that give quantization ranges: all, or so many of them as the run file says."""
        own, most = self.splits["calibration"], self.plan.run_file.splits.ranges
        if len(own) <= most:
            return own
        rows = np.random.default_rng(self.plan.run_file.splits.seed).permutation(len(own))[:most]
        return own.take(np.sort(rows))

    @functools.cached_property
    def ranges_hash(self) -> str:
        return self._hash(self.range_samples)

    def scores(self, outputs: Sequence[Array], labels: Array | None) -> Array:
        """Per-sample scores (n,) of outputs, each (n, ...), by the task's metric or its own score()."""
        metric = self.plan.run_file.task.metric
        if metric is not None:
            return np.asarray(preprocess.score(metric, outputs, labels))
        with model.user_code(f"score() of [task] object = '{self.plan.run_file.task.object}'"):
            found = np.asarray(self.task_object.score(outputs, labels), dtype=np.float64)
        if found.shape != (len(outputs[0]),) or not np.isfinite(found).all():
            raise ModelError(
                f"score() of [task] object gave shape {found.shape}; it must give one finite number for each of the "
                f"{len(outputs[0])} samples"
            )
        return found


def open_workbench(
    plan: Plan, splits: dict[str, Samples], cache: Cache, say: Say, remeasure: bool = False
) -> Workbench:
    """`splits`: of data.opened; the source model known; `remeasure`: no stored comparison is used.

    The plan and the samples of the workbench have their inputs in the model's order. Before anything else a few samples
    show that the source gives one answer to each.

    Raises ConfigError, ModelError, MissingDependency.
    """
    found = origin.known(plan, splits["calibration"], cache, say)
    if len(found.binding.inputs) > 1:
        say({"event": "stage", "what": f"inputs: {found.binding}"})
        plan = plan.noted(f"the model's inputs and their arrays: {found.binding}")
    order = [plan.run_file.task.inputs.index(name) for name in found.binding.arrays]
    splits = {name: samples.of_inputs(order) for name, samples in splits.items()}
    return Workbench(plan.with_inputs(found.binding.arrays), cache, say, splits, found.graph, remeasure)


def reference(bench: Workbench, name: str) -> tuple[Array, ...]:
    """The source model's outputs, each (n, ...), on a split: what every score is compared with."""

    def build(folder: Path) -> None:
        what = f"running the source model on the {name} split"
        bench.progress(what)
        source, prepared = bench.source, bench.prepared(name)

        def told(done: int, total: int) -> None:
            bench.progress(what, done, total)

        if isinstance(source, Path):
            outputs = onnx_model.run(source, prepared, told)
            model.check_finite(outputs, "the source model")
        else:
            outputs = model.run_torch(source, prepared, told)
        _save_arrays(folder / "outputs.npz", outputs)

    inputs = {
        "graph": bench.graph,
        "samples": bench.hash_of(name),
        "versions": versions(origin.PACKAGES),
        "code": source_of(*origin.CODE),
    }
    outputs = _load_arrays(bench.cache.stage(f"reference of {name}", inputs, build) / "outputs.npz")
    task, labels = bench.plan.run_file.task, bench.splits[name].labels
    if task.metric is not None:
        check_outputs(outputs, labels, task.metric, len(task.classes))
    else:
        bench.scores(outputs, labels)  # a score() that fails does so before anything is converted
    return outputs


def artifact(bench: Workbench, recipe: Recipe) -> tuple[Artifact, dict[str, Any]]:
    """The recipe's steps, in order: (artifact, notes of the stages)."""
    steps = {step.kind: step for step in recipe.steps}
    prune, recover, lowering, threads = (steps.get(kind) for kind in ("prune", "recover", "lower", "threads"))
    assert isinstance(lowering, Lower)
    compressed = None
    if isinstance(prune, Prune) and isinstance(recover, Recover):
        compressed = pruned(bench, prune, recover)
    folder = lowered(bench, lowering, compressed)
    notes = json.loads((folder / "lowered.json").read_text())
    if compressed is not None:
        notes["compress"] = json.loads((compressed / "compress.json").read_text())
    preprocess_steps = [
        [*own, *adapters] for own, adapters in zip(bench.plan.preprocess, notes["adapters"], strict=True)
    ]
    if isinstance(npu := steps.get("npu"), Npu):
        folder, notes["notes"]["npu"] = ethosu.stage(bench.cache, folder / notes["files"][0], npu, bench.progress)
        notes["options"]["delegate"] = npu.delegate
    paths = [folder / file for file in notes["files"]]
    count = threads.count if isinstance(threads, Threads) else bench.plan.threads
    made = Artifact.of_files(paths, lowering.runtime, count, preprocess_steps, notes["options"], recipe.name)
    if isinstance(cap := steps.get("frequency"), Frequency):
        made = dataclasses.replace(made, frequency_max_hz=cap.frequency_max_hz)
    return made, notes


def pruned(bench: Workbench, prune_step: Prune, recover_step: Recover) -> Path:
    """A folder from which the pruned and recovered model can be rebuilt. Trained on the train split, where there is
    one, else on calibration."""
    inputs = {
        "graph": bench.graph,
        "prune": dataclasses.asdict(prune_step),
        "recover": dataclasses.asdict(recover_step),
        "training": bench.hash_of(bench.training),
        "versions": versions(PRUNE_PACKAGES),
        "code": source_of(*(f"edgeopt/compress/{name}.py" for name in COMPRESS_FILES)),
    }

    def build(folder: Path) -> None:
        from .compress import prune, recover

        def epoch(done: int, total: int, loss: float) -> None:
            bench.progress(f"recovering the model pruned by {prune_step.ratio:.0%} (loss {loss:.4f})", done, total)

        training = Samples(bench.prepared(bench.training), bench.splits[bench.training].labels, None)
        example = tuple(array[: prune.SAMPLES] for array in training.inputs)
        module, history = prune.prune(bench.module, prune_step, example, bench.progress, prune_step.keep)
        bench.progress(prune.summary(history))
        checkpoint = bench.cache.partial("pruned", inputs) / "checkpoint"
        module = recover.recover(module, bench.module, training, recover_step, checkpoint, epoch)
        prune.save(module, history, folder)
        facts = {name: history[name] for name in ("macs", "parameters", "widths", "whole", "proof")}
        (folder / "compress.json").write_text(json.dumps(facts))

    return bench.cache.stage("pruned", inputs, build)


def lowered(bench: Workbench, step: Lower, compressed: Path | None) -> Path:
    """The artifact of the source model, or of a compressed one, with lowered.json beside it."""
    lowering = importlib.import_module(f"edgeopt.lower.{step.runtime}")
    inputs = {
        "graph": bench.graph,
        "compressed": compressed.name if compressed else None,
        "lower": dataclasses.asdict(step),
        "calibration": bench.ranges_hash,
        "versions": versions(lowering.ABILITY.distributions),
        "code": source_of(*lower.sources(step.runtime)),
    }

    def build(folder: Path) -> None:
        source = bench.source
        if compressed is not None:
            from .compress import prune

            source = prune.restore(bench.module, compressed)
        calibration = bench.range_samples.prepared(bench.plan.preprocess)
        example = tuple(array[: model.REFERENCE_BATCH] for array in calibration)
        made = lower.make(step.runtime, source, step.scheme, example, calibration, folder, bench.progress)
        facts = {
            "files": [path.name for path in made.paths],
            "options": made.options,
            "inputs": [dataclasses.asdict(tensor) for tensor in made.inputs],
            "outputs": [dataclasses.asdict(tensor) for tensor in made.outputs],
            "adapters": [[dict(step) for step in own] for own in made.adapters],
            "notes": made.notes,
        }
        (folder / "lowered.json").write_text(json.dumps(facts))

    return bench.cache.stage(f"lowered to {step.scheme}", inputs, build)


def measured(bench: Workbench, session: Session, facts: dict[str, Any], artifacts: Sequence[Artifact]) -> Comparison:
    """A whole paired comparison on this board; it is stored as a whole and never mixed with another."""
    shards = timed(bench)
    inputs = {
        **board_key(session, facts, artifacts),
        "inputs": [hashlib.sha256(data).hexdigest() for data in shards],
        "mode": dataclasses.asdict(stats.MODES[bench.plan.mode]),
        "seed": bench.plan.seed,
        "code": source_of("edgeopt/measure.py"),
    }
    names = ", ".join(artifact.name for artifact in artifacts)

    def build(folder: Path) -> None:
        bench.say({"event": "stage", "what": f"measuring {names} on {session.address}"})
        measure.settled(session, artifacts, shards, bench.plan.mode, bench.plan.seed, folder, bench.say)

    stage = f"measured {names}"
    if bench.remeasure:
        bench.cache.forget(stage, inputs)
    return Comparison.read(bench.cache.stage(stage, inputs, build))


def timed(bench: Workbench) -> list[bytes]:
    """Shards of the selection's samples that are timed."""
    selection = bench.splits["selection"]
    rows = np.random.default_rng(bench.plan.seed).permutation(len(selection))[: measure.LATENCY_SAMPLES]
    return measure.shards(dataclasses.replace(selection.take(rows), labels=None))


def board_outputs(
    bench: Workbench, session: Session, facts: dict[str, Any], artifact: Artifact, name: str
) -> tuple[Array, ...]:
    """What the artifact answers on the board for a split, each output (n, ...). Raises ModelError for NaN."""
    artifact = dataclasses.replace(artifact, frequency_max_hz=None)  # no clock changes an answer
    shards = measure.shards(dataclasses.replace(bench.splits[name], labels=None))
    inputs = {
        **board_key(session, facts, [artifact]),
        "inputs": [hashlib.sha256(data).hexdigest() for data in shards],
        "code": source_of("edgeopt/measure.py"),
    }

    def build(folder: Path) -> None:
        bench.say({"event": "stage", "what": f"running {artifact.name} on the {name} split on {session.address}"})
        _save_arrays(folder / "outputs.npz", measure.outputs(session, artifact, shards))

    found = _load_arrays(bench.cache.stage(f"{name} outputs of {artifact.name}", inputs, build) / "outputs.npz")
    try:
        model.check_finite(found, f"'{artifact.name}' on {session.address}", "")
    except ModelError as error:
        raise ModelError(
            f"{error}; the source model's outputs are finite, so it is not at fault: {artifact.runtime}'s artifact is, "
            "or that board's runtime; `edgeopt convert` or `quantize` looks for the node where it arises"
        ) from error
    return found


def board_key(session: Session, facts: dict[str, Any], artifacts: Sequence[Artifact]) -> dict[str, Any]:
    return {
        "board": measure.board_identity(facts, artifacts[0].runtime),
        "agent": session.hello["agent_sha256"],
        "artifacts": [artifact.entry() for artifact in artifacts],
    }


def _save_arrays(path: Path, arrays: Sequence[Array]) -> None:
    named: dict[str, Any] = {f"output{index}": array for index, array in enumerate(arrays)}
    np.savez(path, **named)


def _load_arrays(path: Path) -> tuple[Array, ...]:
    with np.load(path, allow_pickle=False) as archive:
        return tuple(archive[f"output{index}"] for index in range(len(archive.files)))
