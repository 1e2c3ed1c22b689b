"""The Plan, made of a run file and a profile: all that is fixed before work starts. Only here are budgets and
capabilities read; later stages obey."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any

from . import profile as profiles
from .config import load_toml, nearest, show
from .errors import ConfigError, MissingDependency, PlanError
from .parts import PART
from .profile import DeviceProfile
from .runfile import RUNGS, RunFile
from .sensing import Sensing, choose
from .task import Split

# What each budget makes the ladder improve; the first one given decides. A ratio of medians serves both latencies.
OBJECTIVE_OF = {
    "latency_p50_s": "latency_p50_s",
    "latency_p95_s": "latency_p50_s",
    "size_bytes": "size_bytes",
    "peak_memory_bytes": "peak_memory_bytes",
    "energy_j": "energy_j",
    "power_w": "power_w",
}
BUDGETS = tuple(OBJECTIVE_OF)
OF_ENERGY = ("energy_j", "power_w")
NPUS = ("ethos-u65-256", "ethos-u65-512")  # that artifacts can be compiled for (lower.ethosu)


@dataclasses.dataclass(frozen=True)
class Prune:
    """Remove a share `ratio` of the channels; widths stay multiples of `round_to`, and layers of `keep` as they are."""

    ratio: float
    round_to: int
    kind: str = "prune"
    keep: tuple[str, ...] = ()


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


@dataclasses.dataclass(frozen=True)
class Threads:
    """Run with so many threads: the same artifact, another setting."""

    count: int
    kind: str = "threads"


@dataclasses.dataclass(frozen=True)
class Npu:
    """Compile the artifact for an NPU (a key of lower.ethosu.SYSTEMS), which the board reaches through `delegate`."""

    configuration: str
    delegate: str
    kind: str = "npu"


@dataclasses.dataclass(frozen=True)
class Frequency:
    """Run with the CPUs' clock capped: the same artifact, slower and with fewer watts."""

    frequency_max_hz: float
    kind: str = "frequency"


Step = Prune | Recover | Lower | Threads | Npu | Frequency


@dataclasses.dataclass(frozen=True)
class Ability:
    """What a lowering can do; every file of lower/ has one. sources: kinds of source model that it takes.

    schemes: by rung, the mildest first. modules: what must be importable for it. extra: of edgeopt, that brings them.
    distributions: whose versions decide its output.
    """

    sources: tuple[str, ...]
    schemes: Mapping[str, tuple[str, ...]]
    modules: tuple[str, ...]
    extra: str
    distributions: tuple[str, ...]


Abilities = Mapping[str, Ability]


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
    schemes: Mapping[str, tuple[str, ...]]  # of the runtime, by rung
    floor_drop: float
    min_gain: float
    mode: str
    threads: int
    more_threads: tuple[int, ...]  # what the rung 'threads' tries
    fewer_threads: tuple[int, ...]  # what it tries for the sake of watts and joules
    seed: int
    prunes: tuple[tuple[Prune, Recover], ...]
    npu: Npu | None = None  # what the rung 'npu' compiles for
    require_int8: float | None = None  # of the multiply-accumulates of an int8 artifact, as the board executes it
    allow_fallback: tuple[str, ...] = ()  # operators that may stay on the processor where an NPU is used
    energy: Sensing | None = None  # how joules and watts are measured; None: they are not
    clocks_hz: tuple[float, ...] = ()  # the board's highest, then the caps that the rung 'frequency' tries
    stand_in: bool = False  # another board than the profile's may be used; all is marked then
    notes: tuple[str, ...] = ()  # demands that nothing can judge on this board

    @property
    def splits(self) -> dict[str, Split]:
        chosen = self.run_file.splits.sections()
        return {name: Split(section.groups, section.count, section.values) for name, section in chosen.items()}

    @property
    def column(self) -> str | None:
        """Name of the array that says which split a row is of: a column's, or what parts of the data make."""
        return PART if self.run_file.task.parts else self.run_file.splits.column

    @property
    def preprocess(self) -> list[list[dict[str, Any]]]:
        """The task's steps, a list per input, in the inputs' order."""
        task = self.run_file.task
        return [[dict(step) for step in task.preprocess.get(name, ())] for name in task.inputs]

    def with_inputs(self, names: Sequence[str]) -> Plan:
        """The same with [task] inputs in another order."""
        task = self.run_file.task.model_copy(update={"inputs": tuple(names)})
        return dataclasses.replace(self, run_file=self.run_file.model_copy(update={"task": task}))

    def noted(self, note: str) -> Plan:
        return dataclasses.replace(self, notes=(*self.notes, note))

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
            **({"require_int8": self.require_int8} if self.require_int8 is not None else {}),
            **({"allow_fallback": list(self.allow_fallback)} if self.allow_fallback else {}),
            **({"stand_in": True} if self.stand_in else {}),
            **({"energy": dataclasses.asdict(self.energy)} if self.energy else {}),
            **({"clocks_hz": list(self.clocks_hz)} if self.clocks_hz else {}),
            "metric": self.run_file.task.metric or self.run_file.task.object,
        }


def load(path: Path, abilities: Abilities, profile: str | None = None) -> Plan:
    """The plan of a run file, or of a folder's edgeopt.toml; `profile` replaces the run file's.

    abilities: what the lowerings can do, by runtime (edgeopt.lower.abilities).

    Raises ConfigError, PlanError.
    """
    if path.is_dir():
        path = _run_file_in(path)
    run_file = load_toml(path, RunFile)
    folder = path.resolve().parent
    board = _profile(profile or run_file.device.profile, Path.cwd() if profile else folder)
    return make(run_file, folder, board, abilities)


def make(run_file: RunFile, folder: Path, board: DeviceProfile, abilities: Abilities) -> Plan:
    """Settle what the run file and the profile demand together. Raises PlanError where they contradict."""
    budgets = _budgets(run_file, board)
    ladder = run_file.ladder
    runtime = _runtime(run_file, board, abilities)
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
        require_cores(ladder.threads, board.cpu.cores.value, f"profile '{board.id}'")
    prune = run_file.prune
    rungs = tuple(rung for rung in RUNGS if rung in ladder.rungs)
    if "prune" in rungs and run_file.model.source != "torch":
        rungs = _without_pruning(run_file, rungs)
    npu = _npu(run_file, board, runtime) if "npu" in rungs else None
    if npu is None:
        rungs = tuple(rung for rung in rungs if rung != "npu")
    rungs = without_frequency(run_file, budgets, rungs)
    recover = Recover(prune.epochs, prune.learning_rate, prune.batch, ladder.seed)
    return Plan(
        name=run_file.name,
        run_file=run_file,
        folder=folder,
        profile=board,
        budgets=budgets,
        objective=objective_of(run_file, budgets),
        rungs=rungs,
        runtime=runtime,
        schemes=abilities[runtime].schemes,
        floor_drop=ladder.floor_drop,
        min_gain=ladder.min_gain,
        mode=ladder.mode,
        threads=ladder.threads,
        more_threads=_more_threads(ladder.threads, board),
        fewer_threads=_fewer_threads(ladder.threads),
        seed=ladder.seed,
        prunes=tuple((Prune(ratio, prune.round_to, keep=prune.keep), recover) for ratio in prune.ratios),
        npu=npu,
        require_int8=ladder.require_int8,
        allow_fallback=ladder.allow_fallback,
        energy=_sensing(run_file, budgets),
        stand_in=run_file.device.stand_in,
    )


def require_packages(plan: Plan, abilities: Abilities) -> None:
    """Say at once which extras are missing, not after minutes of work. Raises MissingDependency."""
    source = plan.run_file.model.source
    needed = [("torch", "torch")] if source == "torch" else [("onnx", "onnx"), ("onnx", "onnxruntime")]
    if "prune" in plan.rungs:
        needed.append(("torch", "torch_pruning"))
    if plan.npu is not None:
        needed.append(("npu", "ethosu"))
    ability = abilities[plan.runtime]
    needed += [(ability.extra, module) for module in ability.modules]
    for extra, module in needed:
        if util.find_spec(module) is None:
            raise MissingDependency(
                f"optimize needs '{module}', which is not installed: pip install 'edgeopt[{extra}]'"
            )


def require_cores(threads: int, cores: int, where: str) -> None:
    if threads > cores:
        raise PlanError(f"[ladder] threads = {threads}, but {where} has {cores} cores; lower threads")


def _runtime(run_file: RunFile, board: DeviceProfile, abilities: Abilities) -> str:
    """The one asked for, else the profile's first that artifacts of this model can be made for."""
    source, asked = run_file.model.source, run_file.ladder.runtime
    fitting = [name for name, ability in abilities.items() if source in ability.sources]
    if asked is not None and asked not in board.runtimes:
        raise PlanError(
            f"[ladder] runtime = '{asked}', but profile '{board.id}' runs {', '.join(board.runtimes)}; name one of "
            "these, or another profile"
        )
    found = [name for name in ([asked] if asked else board.runtimes) if name in fitting]
    if not found:
        what = f"[ladder] runtime = '{asked}'" if asked else f"profile '{board.id}' runs {', '.join(board.runtimes)}"
        raise PlanError(
            f"{what}, but of [model] {source} this edgeopt makes artifacts for {', '.join(fitting)} only; name a "
            "profile or a runtime that fits"
        )
    return found[0]


def _without_pruning(run_file: RunFile, rungs: tuple[str, ...]) -> tuple[str, ...]:
    """Pruning trains, and an ONNX file cannot be trained: asked for by name it is an error, by default it is left."""
    if "rungs" in run_file.ladder.model_fields_set:
        raise PlanError(
            "[ladder] rungs holds 'prune', which retrains the model, but [model] onnx gives no model that can be "
            "trained; give it as [model] torch, or leave 'prune' out"
        )
    return tuple(rung for rung in rungs if rung != "prune")


def npu_of(board: DeviceProfile) -> Npu | None:
    """What artifacts can be compiled for; None where the profile has no such NPU, or does not tell all of it."""
    own = board.npu
    if own is None or own.configuration not in NPUS or own.delegate is None:
        return None
    return Npu(own.configuration, own.delegate.value)


def _npu(run_file: RunFile, board: DeviceProfile, runtime: str) -> Npu | None:
    """As npu_of, of artifacts of this runtime. Where there is none, a rung that is asked for by name is an error."""
    found = npu_of(board) if runtime == "tflite" else None
    if found is None and "rungs" in run_file.ladder.model_fields_set:
        raise PlanError(
            f"[ladder] rungs holds 'npu', which compiles tflite artifacts for {' or '.join(NPUS)}: profile "
            f"'{board.id}' with runtime '{runtime}' has none whose [npu] tells model, macs_per_cycle and delegate; "
            "leave 'npu' out, or complete the profile"
        )
    return found


def without_frequency(run_file: RunFile, budgets: Mapping[str, float], rungs: tuple[str, ...]) -> tuple[str, ...]:
    """A cap only costs time, so it is for watts and joules: without a budget for them, by name it is an error."""
    if any(name in budgets for name in OF_ENERGY):
        return rungs
    if "frequency" in rungs and "rungs" in run_file.ladder.model_fields_set:
        raise PlanError(
            "[ladder] rungs holds 'frequency', which trades time for watts and joules, but no budget of them is to be "
            "judged; set [budget] power_w or energy_j, or leave 'frequency' out"
        )
    return tuple(rung for rung in rungs if rung != "frequency")


def objective_of(run_file: RunFile, budgets: Mapping[str, float]) -> str:
    """What the first budget asks for; the profile's watts are a limit, below which less is not better."""
    asked = (name for name in BUDGETS if name in budgets and (name != "power_w" or run_file.budget.power_w is not None))
    return next((OBJECTIVE_OF[name] for name in asked), "latency_p50_s")


def _sensing(run_file: RunFile, budgets: Mapping[str, float]) -> Sensing | None:
    """How energy is measured, where a budget or [energy] measure asks for it."""
    section = run_file.energy
    if not section.measure and not any(name in budgets for name in OF_ENERGY):
        return None
    wanted = choose(section.sensor)
    return Sensing(wanted["kind"], wanted["rail"], section.windows, section.window_s, section.whole_board)


def _fewer_threads(most: int) -> tuple[int, ...]:
    """Half as many each time, down to one."""
    found = []
    while most > 1:
        most //= 2
        found.append(most)
    return tuple(found)


def _more_threads(least: int, board: DeviceProfile) -> tuple[int, ...]:
    """Numbers of threads worth a try: the fast cores of a big.LITTLE processor, and all cores; else powers of two."""
    cpu = board.cpu
    known = [count.value for count in (cpu.cores_big, cpu.cores) if count is not None]
    return tuple(sorted({count for count in known or (2, 4) if count > least}))


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
        theirs = board.power.budget_w if name == "power_w" else getattr(board.budget, name)
        given = own if own is not None else theirs
        if given is not None:
            found[name] = given
    if found.get("latency_p95_s", math.inf) < found.get("latency_p50_s", 0.0):
        raise PlanError(
            f"[budget] latency_p95_s = {found['latency_p95_s']:g} is below latency_p50_s = {found['latency_p50_s']:g}; "
            f"one is the run file's, one that of profile '{board.id}': state both in the run file"
        )
    return found
