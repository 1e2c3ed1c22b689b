"""DeviceProfile: what is known of a board and what is demanded of it. SI units in the keys; absent is None, never 0."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import Field, PrivateAttr

from edgeopt.config import Allowed, Choices, Conflict, Section, load_toml, nearest, parse_toml
from edgeopt.errors import ConfigError

T = TypeVar("T")

RUNTIMES = ("tflite", "openvino", "onnxruntime")
TRANSPORTS = ("auto", "paramiko", "ssh")  # auto: paramiko, unless the ssh config asks for what only ssh can do
SENSOR_KINDS = ("rapl", "hwmon", "power_supply", "pmic")
INT8_FEATURES = {
    "x86_64": ("avx2", "avx512_vnni", "avx_vnni", "amx_int8"),
    "aarch64": ("neon", "asimddp", "i8mm", "sve"),
    "armv7l": ("neon",),
}
ARCHITECTURES = tuple(INT8_FEATURES)
ANY = "any"  # in the place of an architecture: a profile of no board, for whatever machine there is
TENSOR_TYPES = ("int8", "int16", "fp16", "fp32")
_FEATURES = tuple(dict.fromkeys(feature for features in INT8_FEATURES.values() for feature in features))

Text = Annotated[str, Field(min_length=1), Allowed("text, not empty")]
Source = Annotated[
    str,
    Field(pattern=r"^(https?://\S+|measured: \S.*)$"),
    Allowed('"https://…" or "measured: <how>"'),
]
Texts = Annotated[tuple[Text, ...], Field(strict=False, min_length=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
BoardPath = Annotated[
    str,
    Field(pattern=r"^(/\.?[A-Za-z0-9_+-][A-Za-z0-9._+-]*)+$"),
    Allowed("an absolute path, not / itself, of letters, digits and . _ + -"),
]
Program = Annotated[
    str,
    Field(pattern=r"^(/?\.?[A-Za-z0-9_+-][A-Za-z0-9._+-]*)(/\.?[A-Za-z0-9_+-][A-Za-z0-9._+-]*)*$"),
    Allowed('a program, as "python3" or "/usr/bin/python3", without arguments'),
]
Features = Annotated[tuple[Annotated[str, Choices(_FEATURES)], ...], Field(strict=False)]
TensorTypes = Annotated[tuple[Annotated[str, Choices(TENSOR_TYPES)], ...], Field(strict=False, min_length=1)]


class Sourced(Section, Generic[T]):
    """A fact of the board with the place that states it; `note` says under which conditions it holds."""

    inline: ClassVar[bool] = True
    value: T
    source: Source
    note: Text | None = None


class Cpu(Section):
    architecture: Annotated[str, Choices((*ARCHITECTURES, ANY))] = Field(
        description='What `uname -m` prints on the board; "any" for a profile that fits every machine.'
    )
    model: Text | None = Field(default=None, description="The core, as its maker names it: Cortex-A72.")
    names: Texts | None = Field(
        default=None,
        description="What the board's /proc/cpuinfo has for `model`, any of these; absent: the same as `model`.",
    )
    cores: Sourced[Count] | None = Field(default=None, description="Cores that Linux sees.")
    cores_big: Sourced[Count] | None = Field(
        default=None, description="Of these, the fast ones of a big.LITTLE processor."
    )
    cores_little: Sourced[Count] | None = Field(
        default=None, description="Of these, the slow ones of a big.LITTLE processor."
    )
    frequency_max_hz: Sourced[Positive] | None = Field(default=None, description="Highest clock without overclocking.")
    int8_features: Sourced[Features] | None = Field(
        default=None,
        description="Instructions that speed int8 up, as /proc/cpuinfo names them (neon is asimd on aarch64).",
    )

    def conflicts(self) -> Iterator[Conflict]:
        features = self.int8_features.value if self.int8_features else ()
        fitting = INT8_FEATURES.get(self.architecture, ())
        if foreign := [feature for feature in features if feature not in fitting]:
            yield Conflict(
                ("int8_features", "architecture"),
                f"{', '.join(foreign)} on {self.architecture}",
                f"on {self.architecture}: {', '.join(fitting) or 'none'}",
                "correct the architecture or remove the feature",
            )
        yield from _repeated("int8_features", features)
        if self.cores and self.cores_big and self.cores_little:
            parts = self.cores_big.value + self.cores_little.value
            if parts != self.cores.value:
                yield Conflict(
                    ("cores", "cores_big", "cores_little"),
                    f"{self.cores.value} cores, but {self.cores_big.value} + {self.cores_little.value} = {parts}",
                    "cores = cores_big + cores_little",
                    "correct one of the three",
                )


class Memory(Section):
    total_bytes: Sourced[Count] | None = Field(default=None, description="Memory of the board.")


class Npu(Section):
    model: Sourced[Text] = Field(description="The accelerator, as its compiler names it: ethos-u65.")
    io_types: Sourced[TensorTypes] | None = Field(default=None, description="Tensor types that it computes.")
    macs_per_cycle: Sourced[Count] | None = Field(
        default=None, description="Multiply-accumulates a clock cycle, at int8."
    )
    frequency_hz: Sourced[Positive] | None = Field(default=None, description="Clock of the accelerator.")
    delegate: Sourced[BoardPath] | None = Field(
        default=None, description="The vendor's library on the board that TFLite reaches the accelerator through."
    )

    @property
    def configuration(self) -> str | None:
        """As the accelerator's compiler names it, with its size: ethos-u65-256."""
        return f"{self.model.value}-{self.macs_per_cycle.value}" if self.macs_per_cycle else None


class Sensor(Section):
    kind: Annotated[str, Choices(SENSOR_KINDS)] = Field(description="How the agent reads it.")
    rail: Text = Field(description="What it measures, as the board names it: the rail, domain or hwmon label.")
    source: Source = Field(description="Where that is stated.")


class Power(Section):
    idle_w: Sourced[Positive] | None = Field(default=None, description="Power of the whole board that does nothing.")
    typical_w: Sourced[Positive] | None = Field(
        default=None, description="Power of the whole board with all cores at work."
    )
    budget_w: Positive | None = Field(default=None, description="A demand: what the board may draw at most.")

    def conflicts(self) -> Iterator[Conflict]:
        if self.idle_w and self.budget_w is not None and self.budget_w <= self.idle_w.value:
            yield Conflict(
                ("budget_w", "idle_w"),
                f"a budget of {self.budget_w} W, but the idle board draws {self.idle_w.value} W",
                f"budget_w above {self.idle_w.value}",
                "raise budget_w, or correct idle_w with its source",
            )
        if self.idle_w and self.typical_w and self.typical_w.value < self.idle_w.value:
            yield Conflict(
                ("typical_w", "idle_w"),
                f"{self.typical_w.value} W at work, but {self.idle_w.value} W idle",
                "typical_w at least idle_w",
                "take both from one source, measured in the same way",
            )


class Board(Section):
    models: Texts | None = Field(
        default=None,
        description="How such a board names itself (/proc/device-tree/model, or the product name of a PC): one of "
        "these, whatever follows it; absent: any.",
    )
    root: BoardPath = Field(description="Folder of edgeopt on the board; needs symlinks, rename and fsync.")
    python: Program = Field(description="Interpreter of the agent on the board, 3.8 or newer.")


class Budget(Section):
    """Demands of the board's owner; the run file may state others."""

    latency_p50_s: Positive | None = Field(default=None, description="Median time of one inference, at most.")
    latency_p95_s: Positive | None = Field(
        default=None, description="95th percentile of that time, at most; not with mode rapid."
    )
    size_bytes: Count | None = Field(default=None, description="Size of the model's file, at most.")
    peak_memory_bytes: Count | None = Field(default=None, description="Peak memory above the bare runtime, at most.")
    energy_j: Positive | None = Field(default=None, description="Gross joules of one inference, at most.")

    def conflicts(self) -> Iterator[Conflict]:
        p50, p95 = self.latency_p50_s, self.latency_p95_s
        if p50 is not None and p95 is not None and p95 < p50:
            yield Conflict(
                ("latency_p95_s", "latency_p50_s"),
                f"p95 of {p95} s, below p50 of {p50} s",
                "latency_p95_s at least latency_p50_s",
                "exchange them, or leave latency_p50_s out",
            )


class Cost(Section):
    """The owner's prices; without them no cost is told."""

    hardware: Positive | None = Field(default=None, description="Price of the board, in the currency.")
    life_years: Positive | None = Field(default=None, description="How long the board serves, in years.")
    energy_per_kwh: Positive | None = Field(default=None, description="Price of a kilowatt-hour, in the currency.")
    runs_per_day: Positive | None = Field(
        default=None, description="Inferences a day; absent: one after the other, without a pause."
    )
    currency: Text | None = Field(default=None, description='What the prices are in: "EUR".')


class DeviceProfile(Section):
    """The board and its budgets. Every figure that is a fact carries its source; demands are plain numbers."""

    schema_version: Literal[1] = Field(alias="schema", description="Version of this format.")
    name: Text = Field(description="The board's name, for reports.")
    description: Text = Field(description="One sentence: what it is, and for whom this profile is meant.")
    runtimes: Annotated[tuple[Annotated[str, Choices(RUNTIMES)], ...], Field(strict=False, min_length=1)] = Field(
        description="Runtimes that may be used on the board."
    )
    cpu: Cpu = Field(description="The processor.")
    memory: Memory = Field(default=Memory(), description="Its memory.")
    npu: Npu | None = Field(default=None, description="The neural accelerator, if it has one.")
    sensors: Annotated[tuple[Sensor, ...], Field(strict=False)] | None = Field(
        default=None, description="Power sensors of the board; absent: not known, []: it has none."
    )
    power: Power = Field(default=Power(), description="What it draws.")
    board: Board = Field(description="Where edgeopt lives on it.")
    budget: Budget = Field(default=Budget(), description="What a model may cost on it.")
    cost: Cost = Field(default=Cost(), description="What it costs its owner.")

    _id: str = PrivateAttr(default="")

    @property
    def id(self) -> str:
        """Stem of the file that it was read from."""
        return self._id

    def conflicts(self) -> Iterator[Conflict]:
        yield from _repeated("runtimes", self.runtimes)
        total, peak = self.memory.total_bytes, self.budget.peak_memory_bytes
        if total and peak is not None and peak > total.value:
            yield Conflict(
                ("budget.peak_memory_bytes", "memory.total_bytes"),
                f"a budget of {peak} bytes, but the board has {total.value}",
                f"peak_memory_bytes at most {total.value}",
                "lower the budget, or correct total_bytes with its source",
            )

    def dump(self) -> dict[str, Any]:
        """Plain data for run.json and --json: the file's keys, all of them (None where absent), and `id`."""
        return {"id": self.id, **self.model_dump(mode="json", by_alias=True)}


def names() -> list[str]:
    """Ids of the profiles that come with edgeopt, sorted."""
    return sorted(file.name[: -len(".toml")] for file in _bundled().iterdir() if file.name.endswith(".toml"))


def load(name_or_path: str | Path) -> DeviceProfile:
    """The bundled profile of that name, or the one in that file (a path that ends in .toml).

    Raises ConfigError: no such name (with the names there are), or every problem of the file.
    """
    text = str(name_or_path)
    if Path(text).suffix == ".toml":
        profile = load_toml(text, DeviceProfile)
    elif text in names():
        file = f"device_profiles/{text}.toml"
        profile = parse_toml((_bundled() / f"{text}.toml").read_text("utf-8"), DeviceProfile, file)
    else:
        mend = nearest(text, names()) or "name one of these, or give the path of a file that ends in .toml"
        raise ConfigError(f"profile: found {text!r}; allowed: {', '.join(names())}, or a path ending in .toml; {mend}")
    profile._id = Path(text).stem
    return profile


def named(name: str) -> DeviceProfile | None:
    """The profile of that name that comes with edgeopt; None where none does."""
    return load(name) if name in names() else None


def _bundled() -> Any:
    return resources.files("edgeopt_profiles")


def _repeated(key: str, values: tuple[str, ...]) -> Iterator[Conflict]:
    if twice := sorted({value for value in values if values.count(value) > 1}):
        yield Conflict((key,), f"{', '.join(twice)} more than once", "each once", "remove the repetition")
