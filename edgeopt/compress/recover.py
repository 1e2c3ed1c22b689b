"""Repairs a pruned model by distillation: the student learns the source model's outputs on the calibration split.

Every epoch is seeded and leaves a checkpoint, so an interrupted run goes on at its last whole epoch and ends with the
same weights as one that was never interrupted.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgeopt.errors import ModelError, PlanError
from edgeopt.model import user_code

from .cuts import plain_state
from .groups import NO_GRADIENT

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]

# Hinton et al., https://arxiv.org/abs/1503.02531: soft targets carry what the classes have in common.
TEMPERATURE = 2.0
LABEL_WEIGHT = 0.3
WARM_UP = 0.1
TEACHER_BATCH = 256
MEND_BATCH = "; recovery trains on batches: forward must take them, the sample first"


class RecoverStep(Protocol):
    @property
    def epochs(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def batch(self) -> int: ...
    @property
    def seed(self) -> int: ...


class Data(Protocol):
    """inputs: one preprocessed array (n, ...) per input; labels: (n,) class numbers, or anything else, or None."""

    @property
    def inputs(self) -> tuple[Array, ...]: ...
    @property
    def labels(self) -> Array | None: ...


def requirements() -> tuple[str, ...]:
    return ("torch",)


def recover(
    student: torch.nn.Module,
    teacher: torch.nn.Module,
    samples: Data,
    step: RecoverStep,
    checkpoint: Path,
    progress: Callable[[int, int, float], None],
) -> torch.nn.Module:
    """A trained copy of `student` in eval mode.

    A classifier (one output (n, classes) and integer labels) learns the teacher's softened probabilities and the
    labels; any other model learns the teacher's outputs by squared error relative to their variance. Outputs that are
    no floating-point numbers, or not one row a sample, are not learned. The student answers as in eval mode meanwhile;
    only its norms and dropouts train. `checkpoint` is a file, made after every epoch and used when it stems from the
    same student, data and step; progress(epoch, epochs, loss).
    Raises PlanError for fewer samples than can be trained on, ModelError when the loss is not finite, no gradient
    reaches a weight, or the model does not take a batch.
    """
    import torch

    count = len(samples.inputs[0]) if samples.inputs else 0
    if count < 2:
        raise PlanError(f"recovery needs calibration samples to train on, there are {count}; enlarge the split")
    batch = min(step.batch, count)
    identity = _identity(student, samples, step)
    model = copy.deepcopy(student)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    optimizer = torch.optim.AdamW(model.parameters(), lr=step.learning_rate, weight_decay=0.0)
    done = _resume(checkpoint, identity, model, optimizer)
    target = Target.of(teacher, samples)
    per_epoch = count // batch
    for epoch in range(done, step.epochs):
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(step.seed * 1_000_003 + epoch)
            order = torch.randperm(count)[: per_epoch * batch].view(per_epoch, batch).numpy()
            _train(model)
            total = 0.0
            for number, rows in enumerate(order):
                rate = _rate((epoch * per_epoch + number) / (step.epochs * per_epoch))
                for group in optimizer.param_groups:
                    group["lr"] = step.learning_rate * rate
                with user_code(f"training the pruned model on a batch of {batch}"):
                    loss = target.loss(model, rows)
                if not loss.requires_grad:
                    raise ModelError(NO_GRADIENT)
                optimizer.zero_grad()
                with user_code("training the pruned model"):
                    loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += float(loss.detach())
        if not math.isfinite(total):
            raise ModelError(f"recovery diverged in epoch {epoch + 1}: the loss is {total}; lower its learning_rate")
        _write(checkpoint, identity, epoch + 1, model, optimizer)
        progress(epoch + 1, step.epochs, total / per_epoch)
    return model.eval()


class Target:
    """What the student is to say: the teacher's outputs for every sample, computed once.

    places: of the learned outputs among all that the model returns.
    """

    def __init__(
        self, inputs: list[torch.Tensor], outputs: list[torch.Tensor], places: list[int], labels: torch.Tensor | None
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.places = places
        self.labels = labels
        self.probabilities = labels is not None and _sum_to_one(outputs[0])
        self.variances = [output.var().clamp_min(1e-12) for output in outputs]

    @classmethod
    def of(cls, teacher: torch.nn.Module, samples: Data) -> Target:
        """Raises ModelError where the teacher does not take batches, or returns nothing that can be learned."""
        import torch

        inputs = [torch.from_numpy(np.ascontiguousarray(array)) for array in samples.inputs]
        teacher.eval()
        parts, places = [], None
        for part in zip(*(torch.split(tensor, TEACHER_BATCH) for tensor in inputs), strict=True):
            with torch.no_grad(), user_code(f"running the source model on a batch of {len(part[0])}", MEND_BATCH):
                leaves = _leaves(teacher(*part))
            if places is None:
                places = [place for place, leaf in enumerate(leaves) if _is_learned(leaf, len(part[0]))]
            parts.append([leaves[place] for place in places])
        if not places:
            raise ModelError(
                "recovery learns the source model's outputs, but none is of floating-point numbers with the sample "
                "first; return the values from which the others are decided, too"
            )
        with user_code("joining the source model's outputs of several batches"):
            outputs = [torch.cat(column) for column in zip(*parts, strict=True)]
        return cls(inputs, outputs, places, _classes(samples.labels, outputs))

    def loss(self, model: torch.nn.Module, rows: Array) -> torch.Tensor:
        """Mean over the batch `rows` (batch,)."""
        import torch
        from torch.nn import functional

        index = torch.from_numpy(rows)
        leaves = _leaves(model(*(tensor[index] for tensor in self.inputs)))
        said = [leaves[place] for place in self.places]
        wanted = [output[index] for output in self.outputs]
        if self.labels is None:
            errors = [
                functional.mse_loss(ours, theirs) / variance
                for ours, theirs, variance in zip(said, wanted, self.variances, strict=True)
            ]
            return torch.stack(errors).mean()
        ours, theirs = (t.clamp_min(1e-9).log() if self.probabilities else t for t in (said[0], wanted[0]))
        soft = functional.kl_div(
            functional.log_softmax(ours / TEMPERATURE, 1),
            functional.log_softmax(theirs / TEMPERATURE, 1),
            reduction="batchmean",
            log_target=True,
        )
        hard = functional.cross_entropy(ours, self.labels[index])
        return (1 - LABEL_WEIGHT) * TEMPERATURE**2 * soft + LABEL_WEIGHT * hard


def _train(model: torch.nn.Module) -> None:
    """Norms and dropouts in training mode, all else as it answers: a training forward may want targets, or return
    losses, raw maps and auxiliary heads."""
    from torch import nn

    model.eval()
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd):
            part.train()


def _is_learned(leaf: object, count: int) -> bool:
    import torch

    return torch.is_tensor(leaf) and leaf.is_floating_point() and leaf.ndim > 0 and len(leaf) == count


def _leaves(outputs: Any) -> list[torch.Tensor]:
    from torch.utils._pytree import tree_leaves

    return list(tree_leaves(outputs))


def _sum_to_one(output: torch.Tensor) -> bool:
    return bool((output >= 0).all() and ((output.sum(1) - 1).abs() < 1e-3).all())


def _classes(labels: Array | None, outputs: list[torch.Tensor]) -> torch.Tensor | None:
    """labels as class numbers, or None where outputs and labels are not those of a classifier."""
    import torch

    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        return None
    if len(outputs) != 1 or outputs[0].ndim != 2 or outputs[0].shape[1] < 2:
        return None
    if labels.min() < 0 or labels.max() >= outputs[0].shape[1]:
        raise ModelError(
            f"labels go from {labels.min()} to {labels.max()}, but the model has {outputs[0].shape[1]} classes; "
            "labels are class numbers from 0"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _rate(position: float) -> float:
    """Share of the learning rate at `position` (0 … 1) of the training: linear warm-up, then half a cosine."""
    if position < WARM_UP:
        return 0.1 + 0.9 * position / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (position - WARM_UP) / (1 - WARM_UP)))


def _identity(student: torch.nn.Module, samples: Data, step: RecoverStep) -> str:
    """Hash of all that the result depends on, save the teacher, which the student stems from."""
    found = hashlib.sha256(repr((step.epochs, step.learning_rate, step.batch, step.seed)).encode())
    for name, array in plain_state(student).items():
        found.update(name.encode())
        found.update(np.ascontiguousarray(array).tobytes())
    for array in (*samples.inputs, *([] if samples.labels is None else [samples.labels])):
        found.update(repr((array.shape, array.dtype.str)).encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _write(checkpoint: Path, identity: str, epoch: int, model: torch.nn.Module, optimizer: Any) -> None:
    import torch

    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    partial = checkpoint.with_name(checkpoint.name + ".part")
    state = {"identity": identity, "epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, partial)
    os.replace(partial, checkpoint)


def _resume(checkpoint: Path, identity: str, model: torch.nn.Module, optimizer: Any) -> int:
    """Epochs already done: loads them when the file belongs to this run; any other file is left to be overwritten."""
    import torch

    if not checkpoint.is_file():
        return 0
    try:
        state = torch.load(checkpoint, weights_only=True)
    except Exception:  # torn or foreign: training again is right, and costs only time
        return 0
    if state.get("identity") != identity:
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["epoch"])
