"""The plan as far as one board can follow it: its cores, its power sensor, its clocks. From the facts that it tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from . import sensing
from .errors import PlanError
from .plan import OF_ENERGY, Plan, objective_of, require_cores, without_frequency

KINDS = {"energy_j": "energy", "power_w": "power"}


def settle(plan: Plan, facts: Mapping[str, Any], address: str) -> Plan:
    """The plan as the board (edgeopt_agent.facts) can follow it; `notes` says what of it falls away.

    Raises PlanError where the board cannot do what the run file demands.
    """
    cores = facts["cores_allowed"]
    require_cores(plan.threads, cores, address)
    plan = dataclasses.replace(plan, more_threads=tuple(count for count in plan.more_threads if count <= cores))
    return _with_caps(_with_sensor(plan, facts, address), facts, address)


def _with_sensor(plan: Plan, facts: Mapping[str, Any], address: str) -> Plan:
    """What the run file demands of energy needs a sensor; the profile's budgets, which are the whole board's, are
    judged where one sees all of it, and noted where none does."""
    if plan.energy is None:
        return plan
    asked = {name for name in OF_ENERGY if getattr(plan.run_file.budget, name) is not None}
    demanded = [f"[budget] {name}" for name in OF_ENERGY if name in asked]
    demanded += ["[energy] measure"] if plan.run_file.energy.measure else []
    problem = plan.energy.problem(facts, address)
    if problem and demanded:
        raise PlanError(
            f"{' and '.join(demanded)}: {problem}; or leave it out, and measure the bundle with `edgeopt power --meter`"
        )
    found = None if problem else plan.energy.on(facts["sensors"])
    why = problem or (found.unseen() if found else "")
    plan = dataclasses.replace(plan, energy=found if demanded or not why else None)
    if asked and why:
        told = f"[budget] {' and '.join(sorted(asked))}: judged by {found.named() if found else ''}; {why}"
        plan = dataclasses.replace(plan, notes=(*plan.notes, told))
    theirs = [name for name in OF_ENERGY if name in plan.budgets and name not in asked]
    return _without(plan, theirs, why) if why and theirs else plan


def _without(plan: Plan, names: Sequence[str], why: str) -> Plan:
    """The plan without these budgets of the profile, which is said."""
    told = " and ".join(f"{KINDS[name]} budget of {plan.budgets[name]:g} {name[-1].upper()}" for name in names)
    note = f"the profile's {told} was not judged here ({why}); `edgeopt power` with the bundle judges it"
    budgets = {name: value for name, value in plan.budgets.items() if name not in names}
    return dataclasses.replace(
        plan,
        budgets=budgets,
        objective=objective_of(plan.run_file, budgets),
        rungs=without_frequency(plan.run_file, budgets, plan.rungs),
        notes=(*plan.notes, note),
    )


def _with_caps(plan: Plan, facts: Mapping[str, Any], address: str) -> Plan:
    """The frequency caps that the board admits; it is an error where it admits none of a rung asked for by name."""
    if "frequency" not in plan.rungs:
        return plan
    fastest = plan.profile.cpu.frequency_max_hz
    clocks_hz, why = sensing.clocks(facts["frequency_control"], fastest.value if fastest else None)
    if not why:
        return dataclasses.replace(plan, clocks_hz=clocks_hz)
    if "rungs" in plan.run_file.ladder.model_fields_set:
        raise PlanError(f"[ladder] rungs holds 'frequency', but at {address} {why}; or leave the rung out")
    rungs = tuple(rung for rung in plan.rungs if rung != "frequency")
    return dataclasses.replace(plan, rungs=rungs, notes=(*plan.notes, f"the rung 'frequency' was not tried: {why}"))
