"""The run file, edgeopt.toml: its keys, what each may hold, and which contradict one another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Annotated, Any

from edgeopt_agent import preprocess as operations
from pydantic import Field

from . import profile as profiles
from . import tasks
from .config import Allowed, Choices, Conflict, Section, nearest, show
from .profile import Budget
from .task import ALL_SPLITS, CLASS_METRICS

RUNGS = ("fp32", "fp16", "int8", "npu", "threads", "prune", "frequency")
LEAST_WINDOW_S = 10.0  # of energy: MEASURING

Text = Annotated[str, Field(min_length=1), Allowed("text, not empty")]
Spec = Annotated[
    str,
    Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"),
    Allowed('"package.module:factory", a function of a module beside the run file or installed'),
]
Texts = Annotated[tuple[Text, ...], Field(strict=False, min_length=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Values = Annotated[dict[str, Any], Allowed("text, numbers, true, false, and lists and tables of these")]
SensorName = Annotated[
    str, Field(pattern=r"^[a-z_]+(:.+)?$"), Allowed("KIND:RAIL as `edgeopt power --list` shows them, or KIND")
]
PartName = Annotated[str, Field(min_length=1, max_length=100)]
Source = Annotated[
    Text | dict[PartName, Text],
    Field(min_length=1),
    Allowed('a path, or one for each given part of the data: { train = "train.npz", test = "test.npz" }'),
]
Prepare = Annotated[dict[str, Any], Allowed("a table with the keys of the kind of data that is named")]
Steps = Annotated[
    dict[str, Annotated[tuple[dict[str, Any], ...], Field(strict=False)]],
    Allowed('per input a list of steps { op = "…", … }, op one of ' + ", ".join(operations.OPERATIONS)),
]


class ModelSection(Section):
    torch: Spec | None = Field(default=None, description="A function that returns the trained torch.nn.Module.")
    onnx: Text | None = Field(default=None, description="Instead of torch: a trained model's .onnx file.")
    arguments: Values = Field(default_factory=dict, description="Keyword arguments for that function.")

    def conflicts(self) -> Iterator[Conflict]:
        yield from _unstorable(self.arguments, "arguments")
        if (self.torch is None) == (self.onnx is None):
            found = "both" if self.torch else "neither"
            yield Conflict(("torch", "onnx"), found, "exactly one of the two", "name a factory or an .onnx file")
        if self.onnx is not None and self.arguments:
            yield Conflict(("arguments",), show(self.arguments), "nothing beside onnx", "they are a torch factory's")

    @property
    def source(self) -> str:
        return "torch" if self.torch is not None else "onnx"

    def named(self) -> str:
        """The key and its value, for messages."""
        return f"[model] {self.source} = '{self.torch or self.onnx}'"


class TaskSection(Section):
    arrays: Source | None = Field(
        default=None,
        description="An .npz beside the run file, with one row per sample. With parts, an array of one may be called "
        "after it: x_train or train_x for x.",
    )
    object: Spec | None = Field(
        default=None,
        description="Instead of arrays: a function; its result has arrays(), and score() where no metric fits.",
    )
    images: Source | None = Field(default=None, description=tasks.source_words("images"))
    audio: Source | None = Field(default=None, description=tasks.source_words("audio"))
    text: Source | None = Field(default=None, description=tasks.source_words("text"))
    prepare: Prepare = Field(default_factory=dict, description=tasks.explain())
    inputs: Texts = Field(description="Names of the arrays that are the model's inputs, in its order.")
    labels: Text | None = Field(default=None, description="Name of the array, or of the CSV file's column, of labels.")
    groups: Text | None = Field(default=None, description="As labels, of groups: subjects, speakers, sites.")
    metric: Annotated[str, Choices(tuple(operations.METRICS))] | None = Field(
        default=None, description="How a sample is scored; absent only where the object has a score()."
    )
    classes: Annotated[tuple[Text, ...], Field(strict=False)] = Field(default=(), description="Names of the classes.")
    confidence_threshold: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="With top1 or top5: outputs whose largest share is below it go to a person for review.",
    )
    preprocess: Steps = Field(
        default_factory=dict,
        description="Per input, the steps from the raw array to the model's input; run by host and board alike.",
    )

    def conflicts(self) -> Iterator[Conflict]:
        sources = ("arrays", "object", *tasks.KINDS)
        named = tuple(name for name in sources if getattr(self, name) is not None)
        if len(named) != 1:
            found = "both" if len(named) == 2 else "all of them" if named else "none of them"
            yield Conflict(named or sources, found, "exactly one", "say in one way where the samples are")
        yield from tasks.conflicts(self.kind, self.inputs, self.metric, self.prepare)
        if self.metric is None and self.object is None:
            yield Conflict(
                ("metric",), "nothing", ", ".join(operations.METRICS), "say how a sample of the arrays is scored"
            )
        if self.confidence_threshold is not None and self.metric not in CLASS_METRICS:
            metrics = ", ".join(CLASS_METRICS)
            found = f"{self.confidence_threshold:g} with metric {self.metric or 'absent'}"
            yield Conflict(
                ("confidence_threshold", "metric"),
                found,
                f"with {metrics}",
                "remove it: only classes have a confidence",
            )
        if self.metric is not None and self.labels is None:
            yield Conflict(("labels",), "nothing", "the name of an array", f"metric '{self.metric}' needs labels")
        for name, steps in self.preprocess.items():
            if name not in self.inputs:
                yield Conflict(("preprocess",), f"steps for '{name}'", ", ".join(self.inputs), "name an input")
            key = f"preprocess.{name}"
            for problem in operations.problems([dict(step) for step in steps]):
                yield Conflict((key,), problem, f"steps of {', '.join(operations.OPERATIONS)}", "correct that step")

    @property
    def kind(self) -> str | None:
        """What the samples are made of where they are no arrays yet: a file of edgeopt/tasks."""
        return next((kind for kind in tasks.KINDS if getattr(self, kind) is not None), None)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that the data is given in; none where it is one."""
        source = getattr(self, self.kind or "arrays")
        return tuple(source) if isinstance(source, dict) else ()


class SplitSection(Section):
    values: Annotated[tuple[int | str, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None,
        description="Where the splits are given: its values in [splits] column, or its parts of [task] arrays, images, "
        "audio or text.",
    )
    groups: Annotated[tuple[int | str, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None, description="The groups that belong to this split alone."
    )
    count: Count | None = Field(default=None, description="At most so many samples, drawn with the seed.")

    def conflicts(self) -> Iterator[Conflict]:
        if self.groups is None and self.count is None and self.values is None:
            allowed = "one of the two, or both; values, where the splits are given"
            yield Conflict(("groups", "count"), "neither", allowed, "say which samples it takes")
        if self.groups is not None and self.values is not None:
            yield Conflict(("values", "groups"), "both", "one of the two", "leave out one")


class SplitsSection(Section):
    column: Text | None = Field(
        default=None, description="Name of the array, or of the CSV file's column, that says which split a row is of."
    )
    seed: Seed = Field(default=0, description="Seed of which samples each split draws.")
    train: SplitSection | None = Field(
        default=None, description="For the recovery of pruned models; absent: calibration serves."
    )
    calibration: SplitSection = Field(description="For quantization ranges, and for training where train is absent.")
    ranges: Count = Field(
        default=500, description="Of calibration, at most so many samples, drawn with the seed, give the ranges."
    )
    selection: SplitSection = Field(description="Chooses among candidates.")
    final: SplitSection = Field(description="Scored once, for the chosen candidate only.")

    def sections(self) -> dict[str, SplitSection]:
        """The splits that there are, by name."""
        chosen = {name: getattr(self, name) for name in ALL_SPLITS}
        return {name: section for name, section in chosen.items() if section is not None}


class DeviceSection(Section):
    profile: Text = Field(description="A name from `edgeopt profiles list`, or the path of a .toml.")
    address: Text = Field(
        default="local", description='"local", "ssh://[user@]host[:port]", or a name from `edgeopt device list`.'
    )
    root: Text | None = Field(
        default=None, description="edgeopt's folder there; default: the profile's; for local, one of this user."
    )
    python: Text | None = Field(
        default=None, description="The board's Python; default: the profile's; for local, this one."
    )
    identity: Text | None = Field(default=None, description="Private key file for ssh.")
    known_hosts: Text | None = Field(default=None, description="known_hosts file; default: ~/.ssh/known_hosts.")
    transport: Annotated[str, Choices(profiles.TRANSPORTS)] | None = Field(
        default=None, description="Who speaks ssh; default: the known board's, else paramiko."
    )
    stand_in: bool = Field(
        default=False, description="The board may stand in for the profile's, which it is not; every figure is marked."
    )


class LadderSection(Section):
    rungs: Annotated[tuple[Annotated[str, Choices(RUNGS)], ...], Field(strict=False, min_length=1)] = Field(
        default=RUNGS, description="The rungs that may be tried, in their fixed order; fp32 is needed."
    )
    floor_drop: Annotated[float, Field(ge=0)] = Field(
        description="Greatest drop of the score below the source model's, in the score's unit (0.01: one point)."
    )
    min_gain: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.05, description="Once all budgets are met, rungs that promise a smaller gain are skipped."
    )
    mode: Annotated[str, Choices(("rapid", "quick", "normal"))] = Field(
        default="rapid", description="How long each comparison measures; rapid gives p50 and p90 only."
    )
    runtime: Annotated[str, Choices(profiles.RUNTIMES)] | None = Field(
        default=None, description="The runtime to make artifacts for; default: the profile's first that the model fits."
    )
    require_int8: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="Least share of its multiply-accumulates that an int8 artifact must compute in int8 on the board.",
    )
    allow_fallback: Annotated[tuple[Text, ...], Field(strict=False)] = Field(
        default=(), description='Operators that may stay on the processor where an NPU is used; "any" allows all.'
    )
    threads: Count = Field(default=1, description="Threads of the runtime; the rung 'threads' tries more.")
    seed: Seed = Field(default=0, description="Seed of training, and of the samples that are timed and their order.")


class Demands(Budget):
    """The profile's and what only a run demands: the profile has its own in [power]."""

    power_w: Positive | None = Field(
        default=None,
        description="Watts at work, at most; default: the profile's [power] budget_w, if it can be seen.",
    )


class EnergySection(Section):
    measure: bool = Field(default=False, description="Measure joules and watts without a budget for them, too.")
    sensor: SensorName | None = Field(default=None, description="The power sensor; default: the board's only one.")
    whole_board: bool = Field(default=False, description="The hwmon rail that sensor names feeds the whole board.")
    windows: Annotated[int, Field(ge=3)] = Field(default=3, description="Windows of each artifact in a comparison.")
    window_s: Annotated[float, Field(ge=LEAST_WINDOW_S, le=600)] | None = Field(
        default=None, description="Length of a window, at least; default: 10, or as its sensor needs."
    )

    def conflicts(self) -> Iterator[Conflict]:
        if self.whole_board and not (self.sensor or "").startswith("hwmon:"):
            mend = 'name the rail: sensor = "hwmon:RAIL"'
            yield Conflict(("whole_board", "sensor"), "a rail that is not named", "a rail of hwmon", mend)


class PruneSection(Section):
    ratios: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False, min_length=1)] = Field(
        default=(0.3, 0.5, 0.7), description="Shares of channels to remove, mildest first, until one drops too far."
    )
    round_to: Count = Field(default=8, description="Widths become multiples of this: kernels work in such lanes.")
    keep: Annotated[tuple[Text, ...], Field(strict=False)] = Field(
        default=(), description='Layers to leave whole, as the model names them or by patterns: "head", "stage1.*".'
    )
    epochs: Count = Field(default=20, description="Epochs of recovery by distillation from the source model.")
    learning_rate: Positive = Field(default=1e-3, description="Learning rate of the recovery.")
    batch: Count = Field(default=64, description="Batch size of the recovery.")

    def conflicts(self) -> Iterator[Conflict]:
        percent = [round(100 * ratio) for ratio in self.ratios]
        if any(after <= before for before, after in itertools.pairwise(percent)):
            mend = "sort them, and leave out what is twice"
            yield Conflict(("ratios",), show(list(self.ratios)), "each at least 0.01 above the one before", mend)


class RunFile(Section):
    """edgeopt.toml, key by key; paths in it are relative to its folder."""

    name: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100),
        Allowed("at most 100 letters, digits and . _ -"),
    ] = Field(description="Name of the run, of its folder in runs/ and of the bundle.")
    model: ModelSection = Field(description="The trained model.")
    task: TaskSection = Field(description="The data, and how a sample is prepared and scored.")
    splits: SplitsSection = Field(
        description="Parts of the data that share no sample and no group; given ones: column, and values in each."
    )
    device: DeviceSection = Field(description="The board.")
    budget: Demands = Field(
        default=Demands(),
        description="Demands; each replaces the profile's own. The ladder improves the first of these that is given, "
        "else latency_p50_s; the profile's watts are a limit only.",
    )
    energy: EnergySection = Field(default_factory=EnergySection, description="How joules and watts are measured.")
    ladder: LadderSection = Field(description="What may be tried, and how well it must do.")
    prune: PruneSection = Field(default_factory=PruneSection, description="Structured pruning and its recovery.")

    def conflicts(self) -> Iterator[Conflict]:
        yield from self._of_given_splits()
        metric, drop = self.task.metric, self.ladder.floor_drop
        if metric in CLASS_METRICS and drop >= 1:
            mend = f"write {drop / 100:g} for {drop:g} points" if drop < 100 else "lower it"
            yield Conflict(("ladder.floor_drop",), show(drop), f"below 1: '{metric}' is a share", mend)

    def _of_given_splits(self) -> Iterator[Conflict]:
        """Where a column or parts of the data say which split a row is of, every split names its values, else none."""
        parts, column = self.task.parts, self.splits.column
        if parts and column:
            mend = "leave out the column, or give the data as one"
            yield Conflict(("splits.column",), f"'{column}' beside parts of [task]", "one of the two", mend)
        for name, section in self.splits.sections().items():
            key = f"splits.{name}.values"
            if (parts or column) and section.values is None:
                given = ", ".join(parts) if parts else f"the values in '{column}'"
                yield Conflict((key,), "nothing", given, "say which rows it takes; a count may stand beside")
            if section.values is not None and not (parts or column):
                mend = "name the column in [splits] column, or give [task] one path per part"
                yield Conflict((key,), show(list(section.values)), "values of a column, or parts of the data", mend)
            if parts and (wrong := [value for value in section.values or () if value not in parts]):
                yield Conflict((key,), show(wrong[0]), ", ".join(parts), nearest(str(wrong[0]), parts) or "correct it")


def _unstorable(value: object, key: str) -> Iterator[Conflict]:
    """Dates, NaN and infinity: TOML has them, the JSON of plans, bundles and cache keys has not."""
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in parts:
            yield from _unstorable(part, f"{key}.{name}" if isinstance(value, dict) else f"{key}[{name}]")
    elif not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        yield Conflict(
            (key,), show(value), "text, finite numbers, true, false, and lists and tables of these", "change it"
        )
