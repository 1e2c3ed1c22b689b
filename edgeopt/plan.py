"""The run file, and the Plan made from it: all that is fixed before work starts. Only here are budgets and
capabilities read; later stages obey."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Annotated, Any

from edgeopt_agent import preprocess as operations
from pydantic import Field

from . import profile as profiles
from .config import Allowed, Choices, Conflict, Section, load_toml
from .errors import ConfigError, MissingDependency, PlanError
from .profile import Budget, DeviceProfile
from .task import Split

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


class ModelSection(Section):
    torch: Spec = Field(description="A function that returns the trained torch.nn.Module.")
    arguments: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for that function.")


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
    preprocess: dict[str, Annotated[tuple[dict[str, Any], ...], Field(strict=False)]] = Field(
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
        if self.metric is not None and self.labels is None and self.object is None:
            yield Conflict(("labels",), "nothing", "the name of an array", f"metric '{self.metric}' needs labels")
        for name, steps in self.preprocess.items():
            if name not in self.inputs:
                yield Conflict(("preprocess",), f"steps for '{name}'", ", ".join(self.inputs), "name an input")
            for problem in operations.problems([dict(step) for step in steps]):
                yield Conflict((f"preprocess.{name}",), problem, "the steps of the list", "see README, Preprocessing")


class SplitSection(Section):
    groups: Annotated[tuple[int | str, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None, description="The groups that belong to this split alone."
    )
    count: Count | None = Field(default=None, description="At most so many samples, drawn with the seed.")

    def conflicts(self) -> Iterator[Conflict]:
        if self.groups is None and self.count is None:
            yield Conflict(("groups", "count"), "neither", "one of the two, or both", "say which samples it takes")


class SplitsSection(Section):
    seed: int = Field(default=0, description="Seed of every random choice among samples.")
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
    floor_drop: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="Greatest drop of the score below the source model's, in the score's unit (0.01: one point)."
    )
    min_gain: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.05, description="With every budget met, a rung that promises less of the objective is not tried."
    )
    mode: Annotated[str, Choices(("rapid", "quick", "normal"))] = Field(
        default="rapid", description="How long each comparison measures; rapid gives p50 and p90 only."
    )
    threads: Count = Field(default=1, description="Threads of the runtime.")
    seed: int = Field(default=0, description="Seed of training and of the order of queries.")


class PruneSection(Section):
    ratios: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False, min_length=1)] = Field(
        default=(0.3,), description="Shares of channels to remove, mildest first; the next is tried if one was kept."
    )
    round_to: Count = Field(default=8, description="Widths become multiples of this: kernels work in such lanes.")
    epochs: Count = Field(default=20, description="Epochs of recovery by distillation from the source model.")
    learning_rate: Positive = Field(default=1e-3, description="Learning rate of the recovery.")
    batch: Count = Field(default=64, description="Batch size of the recovery.")


class RunFile(Section):
    """edgeopt.toml, key by key; paths in it are relative to its folder."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"), Allowed("letters, digits and . _ -")] = Field(
        description="Name of the run, of its folder in runs/ and of the bundle."
    )
    model: ModelSection
    task: TaskSection
    splits: SplitsSection
    device: DeviceSection
    budget: Budget = Field(default=Budget(), description="Demands; they replace the profile's.")
    ladder: LadderSection
    prune: PruneSection = Field(default_factory=PruneSection)


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
    """The plan of a run file; `profile` replaces the run file's. Raises ConfigError, PlanError, MissingDependency."""
    path = path / "edgeopt.toml" if path.is_dir() else path
    run_file = load_toml(path, RunFile)
    folder = path.resolve().parent
    return make(run_file, folder, _profile(profile or run_file.device.profile, Path.cwd() if profile else folder))


def make(run_file: RunFile, folder: Path, board: DeviceProfile) -> Plan:
    """Settle what the run file and the profile demand together. Raises PlanError where they contradict."""
    budgets = _budgets(run_file, board)
    ladder = run_file.ladder
    runtimes = [name for name in board.runtimes if util.find_spec(f"edgeopt.lower.{name}") is not None]
    if not runtimes:
        raise PlanError(
            f"profile '{board.id}' runs {', '.join(board.runtimes)}; this edgeopt lowers to: tflite. "
            "Name a profile whose runtimes hold one of them"
        )
    if "latency_p95_s" in budgets and ladder.mode == "rapid":
        raise PlanError(
            "budget latency_p95_s needs a 95th percentile, which [ladder] mode = 'rapid' does not give; "
            "set mode = 'quick' or 'normal', or budget latency_p50_s"
        )
    if "fp32" not in ladder.rungs:
        raise PlanError("[ladder] rungs must hold 'fp32': every other rung is measured against it")
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
    needed = {"torch": ("torch", "torch_pruning"), "tflite": ("litert_torch", "ai_edge_quantizer", "ai_edge_litert")}
    for extra in ("torch", plan.runtime):
        for module in needed[extra]:
            if util.find_spec(module) is None:
                raise MissingDependency(
                    f"optimize needs '{module}', which is not installed: pip install 'edgeopt[{extra}]'"
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
    if run_file.ladder.threads > (board.cpu.cores.value if board.cpu.cores else run_file.ladder.threads):
        raise ConfigError(
            f"[ladder] threads = {run_file.ladder.threads}, but profile '{board.id}' has "
            f"{board.cpu.cores.value if board.cpu.cores else '?'} cores"
        )
    return found
