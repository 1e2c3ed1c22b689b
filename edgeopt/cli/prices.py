"""The user's prices, as options of the commands that tell costs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

POSITIVE = click.FloatRange(min=0, min_open=True)
_OPTIONS = (
    click.option("--hardware-price", type=POSITIVE, help="Price of the board; else [cost] of its profile."),
    click.option("--life-years", type=POSITIVE, help="How long the board serves; else [cost] of its profile."),
    click.option(
        "--energy-price",
        type=POSITIVE,
        help="Price of a kilowatt-hour; else [cost] of the profile.",
    ),
    click.option("--runs-per-day", type=POSITIVE, help="Default: [cost] of the profile, else without a pause."),
    click.option("--currency", help="What the prices are in: EUR."),
)


def price_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options as one `prices` argument, with the keys of a profile's [cost]; None where not given."""

    @functools.wraps(command)
    def wrapped(**options: Any) -> Any:
        names = {"hardware": "hardware_price", "energy_per_kwh": "energy_price"}
        keys = ("hardware", "life_years", "energy_per_kwh", "runs_per_day", "currency")
        prices = {key: options.pop(names.get(key, key)) for key in keys}
        return command(prices=prices, **options)

    found: Callable[..., Any] = wrapped
    for option in reversed(_OPTIONS):
        found = option(found)
    return found
