"""config.py through its public functions: what is accepted, and what each refusal says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from edgeopt import config
from edgeopt.errors import ConfigError


class Wheel(config.Section):
    radius_m: Annotated[float, Field(gt=0)]
    colour: Literal["black", "white"] = "black"


class Engine(config.Section):
    power_w: Annotated[float, Field(gt=0, le=1e6)] = Field(description="At the shaft.")
    idle_w: Annotated[float, Field(ge=0)] | None = None

    def conflicts(self) -> Iterator[config.Conflict]:
        if self.idle_w is not None and self.idle_w > self.power_w:
            yield config.Conflict(
                ("idle_w", "power_w"), f"{self.idle_w} idle", "idle_w at most power_w", "lower idle_w"
            )


class Car(config.Section):
    """A schema with every kind of key that a run file or a profile has."""

    version: Literal[1] = Field(alias="schema")
    name: Annotated[str, Field(pattern="^[a-z]+$"), config.Allowed("small letters")]
    fuel: Annotated[str, config.Choices(("petrol", "diesel"))] = "petrol"
    doors: Annotated[int, Field(ge=1)] = 4
    hybrid: bool = False
    seats: int | Literal["auto"] = "auto"
    engine: Engine
    wheels: Annotated[tuple[Wheel, ...], Field(strict=False)] = ()
    labels: dict[str, int] = Field(default={}, description="Free.")


VALID = """schema = 1
name = "fiat"

[engine]
power_w = 1000
"""


def refused(tmp_path: Path, text: str) -> str:
    file = tmp_path / "car.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load_toml(file, Car)
    message = str(caught.value)
    assert str(file) in message
    return message


def test_valid_file_and_defaults(tmp_path: Path) -> None:
    file = tmp_path / "car.toml"
    file.write_text(VALID + '[[wheels]]\nradius_m = 0.3\n[labels]\n"a b" = 3\n')
    car = config.load_toml(file, Car)
    assert (car.version, car.engine.power_w, car.engine.idle_w) == (1, 1000.0, None)
    assert car.wheels[0].colour == "black"
    assert car.labels == {"a b": 3}
    with pytest.raises(ValueError, match="frozen"):
        car.name = "other"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("schema = 1", "schema = 2", ["line 1", "schema", "found 2", "one of 1"]),
        ("schema = 1\n", "", ["schema", "found nothing", "one of 1", "add schema"]),
        ('"fiat"', '"FIAT"', ["line 2", "name", 'found "FIAT"', "small letters"]),
        ("[engine]", 'fuel = "dieesel"\n[engine]', ["fuel", '"dieesel"', "petrol, diesel", "did you mean diesel?"]),
        ("[engine]", "doors = true\n[engine]", ["doors", "found true", "whole number, at least 1"]),
        ("[engine]", "doors = 2.5\n[engine]", ["doors", "found 2.5", "whole number"]),
        ("[engine]", "doors = 2024-01-01\n[engine]", ["doors", '"2024-01-01"', "whole number"]),
        ("[engine]", "doors = 0\n[engine]", ["doors", "found 0", "at least 1"]),
        ("[engine]", "hybrid = 1\n[engine]", ["hybrid", "found 1", "true or false"]),
        ("[engine]", 'seats = "many"\n[engine]', ["seats", '"many"', "whole number or one of auto"]),
        (
            "[engine]",
            "wheels = 3\n[engine]",
            ["wheels", "found 3", "list, each: a table with the keys radius_m, colour"],
        ),
        ("[engine]", 'labels = { a = "x" }\n[engine]', ["labels.a", 'found "x"', "whole number"]),
        ("= 1000", '= "1000"', ["line 5", "engine.power_w", 'found "1000"', "in watts", "without quotes"]),
        ("= 1000", "= inf", ["engine.power_w", "Infinity", "above 0"]),
        ("= 1000", "= 2e6", ["engine.power_w", "2000000.0", "at most 1000000.0, in watts"]),
        ("power_w", "power_W", ["line 5", "unknown key power_W", "allowed: power_w, idle_w", "did you mean power_w?"]),
        (
            "[engine]\npower_w =",
            "engine =",
            ["line 4", "engine", "found 1000", "a table with the keys power_w, idle_w"],
        ),
        ("= 1000", "= 1000\nidle_w = 2000", ["engine.idle_w and engine.power_w", "2000.0 idle", "lower idle_w"]),
        ("= 1000", "= 1000\n[[wheels]]\nradius_m=1\n[[wheels]]\nradius_m=-1", ["line 9", "wheels[1].radius_m", "-1"]),
        ("= 1000", "= = 1000", ["line 5", "syntax error", "TOML"]),
        ("= 1000", "= 1\npower_w = 2", ["line 6", "Cannot overwrite a value"]),
    ],
)
def test_each_refusal_names_key_found_and_allowed(tmp_path: Path, old: str, new: str, said: list[str]) -> None:
    assert old in VALID
    message = refused(tmp_path, VALID.replace(old, new))
    for text in said:
        assert text in message


def test_all_problems_in_one_error_in_the_order_of_the_file(tmp_path: Path) -> None:
    message = refused(tmp_path, 'schema = 3\nname = ""\ncolor = 1\n[engine]\npower_w = 0\n')
    head, *lines = message.splitlines()
    assert head.endswith(": 4 problems")
    assert [line.split(":")[0].strip() for line in lines] == ["line 1", "line 2", "line 3", "line 5"]


def test_a_list_with_a_wrong_item_is_reported_once() -> None:
    class Names(config.Section):
        names: Annotated[tuple[Annotated[str, config.Choices(("a",))], ...], Field(strict=False, min_length=1)]

    assert [problem.key for problem in config.check_text('names = ["b"]', Names)[1]] == ["names[0]"]
    assert [problem.found for problem in config.check_text("names = []", Names)[1]] == ["[]"]


def test_missing_file_offers_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "car.toml").write_text(VALID)
    with pytest.raises(ConfigError, match=r"(?s)cra\.toml.*no such file.*did you mean car\.toml\?") as caught:
        config.load_toml(tmp_path / "cra.toml", Car)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "UTF-8"),
        (b"a = " + b"[" * 5000, "nested too deeply"),
        (b"a = " + b"9" * 5000, "syntax error"),
        (b"schema = 0x" + b"f" * 5000, "very long whole number"),
        (b"", "found nothing"),
        (b"\x00", "syntax error"),
    ],
)
def test_hostile_content(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "car.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        config.load_toml(file, Car)


@pytest.mark.parametrize("path", ["", "/", "/nowhere/at/all.toml", "nul\0.toml", "x" * 5000])
def test_hostile_paths(path: str) -> None:
    with pytest.raises(ConfigError):
        config.load_toml(path, Car)


@settings(deadline=None)
@given(st.text())
def test_no_text_raises_anything_else(text: str) -> None:
    value, problems = config.check_text(text, Car)
    assert (value is None) == bool(problems)


TOML = st.recursive(
    st.one_of(st.integers(), st.booleans(), st.floats(), st.sampled_from(['""', '"a"', "1979-05-27", "0xffff"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(map(toml, items))}]"),
        st.dictionaries(st.sampled_from(['"a.b"', '"["', '"]"', "x", '""']), inner, max_size=3).map(
            lambda table: "{" + ", ".join(f"{key} = {toml(value)}" for key, value in table.items()) + "}"
        ),
    ),
    max_leaves=5,
)


def toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool | int | float) else str(value)


@settings(deadline=None)
@given(st.sampled_from([*Car.model_fields, "schema", '"a.["', "fule"]), TOML)
def test_any_value_at_any_key_is_valid_or_named(key: str, value: object) -> None:
    lines = [line for line in ("schema = 1", 'name = "fiat"') if not line.startswith(f"{key} ")]
    engine = "" if key == "engine" else "\n[engine]\npower_w = 1\n"
    result, problems = config.check_text("\n".join([f"{key} = {toml(value)}", *lines]) + engine, Car)
    assert (result is None) == bool(problems)
    for problem in problems:
        assert problem.key.startswith(key) or problem.key == ""
        assert problem.found
        assert problem.allowed
        assert problem.mend


def test_explain_names_every_key_its_choices_default_and_meaning() -> None:
    text = config.explain(Car)
    for part in (
        "schema   [required]",
        "engine.power_w   [required]\n    number, above 0, at most 1000000.0, in watts\n    At the shaft.",
        "engine.idle_w   [default: absent]",
        'fuel   [default: "petrol"]\n    one of petrol, diesel',
        "wheels[].radius_m   [required]",
        "labels   [default: an empty table]\n    table, each value: whole number\n    Free.",
        'seats   [default: "auto"]\n    whole number or one of auto',
    ):
        assert part in text
