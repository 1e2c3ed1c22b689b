"""The run file, and the Plan made from it: all that is fixed before work starts. Only here are budgets and
capabilities read; later stages obey."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pkgutil
from collections.abc import Iterator, Mapping
from importlib import util
from pathlib import Path
from typing import Annotated, Any

from edgeopt_agent import preprocess as operations
from pydantic import Field

from . import profile as profiles
from .config import Allowed, Choices, Conflict, Section, load_toml, nearest, show
from .errors import ConfigError, MissingDependency, PlanError
from .profile import Budget, DeviceProfile
from .task import CLASS_METRICS, Split

RUNGS = ("fp32", "int8", "prune")
# What each budget makes the ladder improve; the first one given decides. A ratio of medians serves both latencies.
OBJECTIVE_OF = {
    "latency_p50_s": "latency_p50_s",
    "latency_p95_s": "latency_p50_s",
    "size_bytes": "size_bytes",
    "peak_memory_bytes": "peak_memory_bytes",
}
BUDGETS = tuple(OBJECTIVE_OF)

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
Steps = Annotated[
    dict[str, Annotated[tuple[dict[str, Any], ...], Field(strict=False)]],
    Allowed('per input a list of steps { op = "…", … }, op one of ' + ", ".join(operations.OPERATIONS)),
]


class ModelSection(Section):
    torch: Spec = Field(description="A function that returns the trained torch.nn.Module.")
    arguments: Values = Field(default_factory=dict, description="Keyword arguments for that function.")

    def conflicts(self) -> Iterator[Conflict]:
        yield from _unstorable(self.arguments, "arguments")


class TaskSection(Section):
    arrays: Text | None = Field(default=None, description="An .npz beside the run file, with one row per sample.")
    object: Spec | None = Field(default=None, description="Instead of arrays: a function that returns a TaskObject.")
    inputs: Texts = Field(description="Names of the arrays that are the model's inputs, in its order.")
    labels: Text | None = Field(default=None, description="Name of the array of labels.")
    groups: Text | None = Field(default=None, description="Name of the array of groups: subjects, speakers, sites.")
    metric: Annotated[str, Choices(tuple(operations.METRICS))] | None = Field(
        default=None, description="How a sample is scored; absent only where the object has a score()."
    )
    classes: Annotated[tuple[Text, ...], Field(strict=False)] = Field(default=(), description="Names of the classes.")
    preprocess: Steps = Field(
        default_factory=dict,
        description="Per input, the steps from the raw array to the model's input; run by host and board alike.",
    )

    def conflicts(self) -> Iterator[Conflict]:
        if (self.arrays is None) == (self.object is None):
            found = "both" if self.arrays else "neither"
            yield Conflict(("arrays", "object"), found, "exactly one of the two", "name an .npz or a factory")
        if self.metric is None and self.object is None:
            yield Conflict(
                ("metric",), "nothing", ", ".join(operations.METRICS), "say how a sample of the arrays is scored"
            )
        if self.metric is not None and self.labels is None:
            yield Conflict(("labels",), "nothing", "the name of an array", f"metric '{self.metric}' needs labels")
        for name, steps in self.preprocess.items():
            if name not in self.inputs:
                yield Conflict(("preprocess",), f"steps for '{name}'", ", ".join(self.inputs), "name an input")
            key = f"preprocess.{name}"
            for problem in operations.problems([dict(step) for step in steps]):
                yield Conflict((key,), problem, f"steps of {', '.join(operations.OPERATIONS)}", "correct that step")


class SplitSection(Section):
    groups: Annotated[tuple[int | str, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None, description="The groups that belong to this split alone."
    )
    count: Count | None = Field(default=None, description="At most so many samples, drawn with the seed.")

    def conflicts(self) -> Iterator[Conflict]:
        if self.groups is None and self.count is None:
            yield Conflict(("groups", "count"), "neither", "one of the two, or both", "say which samples it takes")


class SplitsSection(Section):
    seed: Seed = Field(default=0, description="Seed of every random choice among samples.")
    calibration: SplitSection = Field(description="For quantization ranges and recovery training.")
    selection: SplitSection = Field(description="Chooses among candidates.")
    final: SplitSection = Field(description="Scored once, for the chosen candidate only.")


class DeviceSection(Section):
    profile: Text = Field(description="A bundled profile's name, or the path of a profile.")
    address: Text = Field(default="local", description='"local" or "ssh://[user@]host[:port]".')
    root: Text | None = Field(default=None, description="edgeopt's folder on the board; default: the profile's.")
    python: Text | None = Field(default=None, description="The board's Python; default: the profile's.")
    identity: Text | None = Field(default=None, description="Private key file for ssh.")
    known_hosts: Text | None = Field(default=None, description="known_hosts file; default: ~/.ssh/known_hosts.")


class LadderSection(Section):
    rungs: Annotated[tuple[Annotated[str, Choices(RUNGS)], ...], Field(strict=False, min_length=1)] = Field(
        default=RUNGS, description="The rungs that may be tried, in their fixed order."
    )
    floor_drop: Annotated[float, Field(ge=0)] = Field(
        description="Greatest drop of the score below the source model's, in the score's unit (0.01: one point)."
    )
    min_gain: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.05, description="With every budget met, a rung that promises less of the objective is not tried."
    )
    mode: Annotated[str, Choices(("rapid", "quick", "normal"))] = Field(
        default="rapid", description="How long each comparison measures; rapid gives p50 and p90 only."
    )
    threads: Count = Field(default=1, description="Threads of the runtime.")
    seed: Seed = Field(default=0, description="Seed of training and of the order of queries.")


class PruneSection(Section):
    ratios: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False, min_length=1)] = Field(
        default=(0.3,), description="Shares of channels to remove, mildest first; the next is tried if one was kept."
    )
    round_to: Count = Field(default=8, description="Widths become multiples of this: kernels work in such lanes.")
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
    splits: SplitsSection = Field(description="Three disjoint parts of the data; no group is in two of them.")
    device: DeviceSection = Field(description="The board.")
    budget: Budget = Field(
        default=Budget(),
        description="Demands; they replace the profile's. The ladder improves the first one given, else latency_p50_s.",
    )
    ladder: LadderSection = Field(description="What may be tried, and how well it must do.")
    prune: PruneSection = Field(default_factory=PruneSection, description="Structured pruning and its recovery.")

    def conflicts(self) -> Iterator[Conflict]:
        metric, drop = self.task.metric, self.ladder.floor_drop
        if metric in CLASS_METRICS and drop >= 1:
            mend = f"write {drop / 100:g} for {drop:g} points" if drop < 100 else "lower it"
            yield Conflict(("ladder.floor_drop",), show(drop), f"below 1: '{metric}' is a share", mend)


@dataclasses.dataclass(frozen=True)
class Prune:
    """Remove a share `ratio` of the channels; widths stay multiples of `round_to`."""

    ratio: float
    round_to: int
    kind: str = "prune"


@dataclasses.dataclass(frozen=True)
class Recover:
    """Train the pruned model to answer as the source model does."""

    epochs: int
    learning_rate: float
    batch: int
    seed: int
    kind: str = "recover"


@dataclasses.dataclass(frozen=True)
class Lower:
    """Convert to a runtime's artifact in a scheme of that lowering."""

    runtime: str
    scheme: str
    kind: str = "lower"


Step = Prune | Recover | Lower


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that is decided before work starts. Budgets, floors and gains in SI units and the score's unit."""

    name: str
    run_file: RunFile
    folder: Path
    profile: DeviceProfile
    budgets: dict[str, float]
    objective: str
    rungs: tuple[str, ...]
    runtime: str
    floor_drop: float
    min_gain: float
    mode: str
    threads: int
    seed: int
    prunes: tuple[tuple[Prune, Recover], ...]

    @property
    def splits(self) -> dict[str, Split]:
        spec = self.run_file.splits
        chosen = {"calibration": spec.calibration, "selection": spec.selection, "final": spec.final}
        return {name: Split(section.groups, section.count) for name, section in chosen.items()}

    @property
    def preprocess(self) -> list[list[dict[str, Any]]]:
        """The task's steps, a list per input, in the inputs' order."""
        task = self.run_file.task
        return [[dict(step) for step in task.preprocess.get(name, ())] for name in task.inputs]

    def to_json(self) -> dict[str, Any]:
        """The plan as run.json keeps it, printable before work starts."""
        return {
            "name": self.name,
            "profile": self.profile.dump(),
            "run_file": self.run_file.model_dump(mode="json"),
            **{
                name: getattr(self, name)
                for name in ("objective", "budgets", "floor_drop", "min_gain", "mode", "threads", "seed", "runtime")
            },
            "rungs": list(self.rungs),
            "metric": self.run_file.task.metric or self.run_file.task.object,
        }


def load(path: Path, profile: str | None = None) -> Plan:
    """The plan of a run file, or of a folder's edgeopt.toml; `profile` replaces the run file's.

    Raises ConfigError, PlanError.
    """
    if path.is_dir():
        path = _run_file_in(path)
    run_file = load_toml(path, RunFile)
    folder = path.resolve().parent
    return make(run_file, folder, _profile(profile or run_file.device.profile, Path.cwd() if profile else folder))


def make(run_file: RunFile, folder: Path, board: DeviceProfile) -> Plan:
    """Settle what the run file and the profile demand together. Raises PlanError where they contradict."""
    budgets = _budgets(run_file, board)
    ladder = run_file.ladder
    runtimes = [name for name in board.runtimes if name in _lowerings()]
    if not runtimes:
        raise PlanError(
            f"profile '{board.id}' runs {', '.join(board.runtimes)}, but this edgeopt makes artifacts for "
            f"{', '.join(_lowerings())} only; name a profile whose runtimes hold one of these"
        )
    if "latency_p95_s" in budgets and ladder.mode == "rapid":
        where = "the run file" if run_file.budget.latency_p95_s is not None else f"profile '{board.id}'"
        raise PlanError(
            f"[budget] latency_p95_s of {where} needs a 95th percentile, which [ladder] mode = 'rapid' does not give; "
            "set mode = 'quick' or 'normal', or budget latency_p50_s"
        )
    if "fp32" not in ladder.rungs:
        raise PlanError(
            f"[ladder] rungs = {show(list(ladder.rungs))} must hold 'fp32': every other rung is measured against it; "
            "add it"
        )
    if board.cpu.cores is not None:
        _require_cores(ladder.threads, board.cpu.cores.value, f"profile '{board.id}'")
    objective = next((OBJECTIVE_OF[name] for name in BUDGETS if name in budgets), "latency_p50_s")
    prune = run_file.prune
    recover = Recover(prune.epochs, prune.learning_rate, prune.batch, ladder.seed)
    return Plan(
        name=run_file.name,
        run_file=run_file,
        folder=folder,
        profile=board,
        budgets=budgets,
        objective=objective,
        rungs=tuple(rung for rung in RUNGS if rung in ladder.rungs),
        runtime=runtimes[0],
        floor_drop=ladder.floor_drop,
        min_gain=ladder.min_gain,
        mode=ladder.mode,
        threads=ladder.threads,
        seed=ladder.seed,
        prunes=tuple((Prune(ratio, prune.round_to), recover) for ratio in prune.ratios),
    )


def require_packages(plan: Plan) -> None:
    """Say at once which extras are missing, not after minutes of work. Raises MissingDependency."""
    needed = {"torch": ("torch",), "tflite": ("litert_torch", "ai_edge_quantizer", "ai_edge_litert")}
    if "prune" in plan.rungs:
        needed["torch"] += ("torch_pruning",)
    for extra in ("torch", plan.runtime):
        for module in needed[extra]:
            if util.find_spec(module) is None:
                raise MissingDependency(
                    f"optimize needs '{module}', which is not installed: pip install 'edgeopt[{extra}]'"
                )


def require_board(plan: Plan, facts: Mapping[str, Any], address: str) -> None:
    """What only the board can tell (edgeopt_agent.facts) must allow the plan. Raises PlanError."""
    _require_cores(plan.threads, facts["cores_allowed"], address)


def _require_cores(threads: int, cores: int, where: str) -> None:
    if threads > cores:
        raise PlanError(f"[ladder] threads = {threads}, but {where} has {cores} cores; lower threads")


def _lowerings() -> list[str]:
    """Runtimes that artifacts can be made for: the files of lower/, not imported."""
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).with_name("lower"))]))


def _run_file_in(folder: Path) -> Path:
    path = folder / "edgeopt.toml"
    if path.exists():
        return path
    others = sorted(file.name for file in folder.glob("*.toml"))
    mend = nearest("edgeopt.toml", others) or f"name one of {', '.join(others)}" if others else "name another folder"
    raise ConfigError(
        f"{folder}: found no edgeopt.toml in this folder; allowed: a run file, or a folder that holds an "
        f"edgeopt.toml; {mend} (`edgeopt optimize --explain .` tells what is in one)"
    )


def _profile(name: str, folder: Path) -> DeviceProfile:
    if name.endswith(".toml") and not Path(name).is_absolute():
        return profiles.load(folder / name)
    return profiles.load(name)


def _budgets(run_file: RunFile, board: DeviceProfile) -> dict[str, float]:
    """The run file's demands over the profile's; a zero or negative one cannot get past the schemas."""
    found: dict[str, float] = {}
    for name in BUDGETS:
        own = getattr(run_file.budget, name)
        given = own if own is not None else getattr(board.budget, name)
        if given is not None:
            found[name] = given
    if found.get("latency_p95_s", math.inf) < found.get("latency_p50_s", 0.0):
        raise PlanError(
            f"[budget] latency_p95_s = {found['latency_p95_s']:g} is below latency_p50_s = {found['latency_p50_s']:g}; "
            f"one is the run file's, one that of profile '{board.id}': state both in the run file"
        )
    return found


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
