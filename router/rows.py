"""What a run of every arm came to, as a row of outcomes for policies to learn from.

Reads the report of `evaluate.run_arms`; see `policies.outcomes` for what a row holds. No text of a task is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import mean
from typing import Any

from policies.outcomes import BY_PROBE, SAMPLE, ArmOutcome, ProbeOutcome, TaskOutcome, as_json, parse_row
from policies.types import LOCATION, SHORT, SIGNALS_VERSION, ArmName
from router.evaluate import Drawn
from router.receipt import signals_seconds
from ttt.errors import TrainingFailed
from ttt.formats import Family
from ttt.task import clean_task, fingerprint

BESIDE = (SAMPLE, LOCATION)
"""Steps whose seconds stand beside those of in-context learning."""


def outcome(drawn: Drawn, report: Mapping[str, Any], model: str, machine: str) -> TaskOutcome:
    """A row of the evaluation's report, measured under `Shadow`, as a row of outcomes.

    The seconds of `icl` also name what asking a sample of the queries and measuring the signals took, in all and by part;
    they are not in its sum. Those
    of an arm that trains also name what a probe does of its training; it is in the sum, under `train` or `search`.

    Raises:
        TrainingFailed: the probe failed, or measuring was interrupted.
        PolicyError: a figure that is not finite or out of range.
    """
    measured = report["auto"]
    steps = {step["name"]: step for step in measured["steps"]}
    unmeasured = [steps[name]["detail"] for name in ("signals", "probe") if name in steps]
    if any("failed" in detail or "cancelled" in detail for detail in unmeasured):
        raise TrainingFailed(
            f"Not all signals were measured: {measured['fallback'] or 'it was interrupted.'}"
        )
    arms = _outcomes(report, steps)
    signals = measured["signals"]
    row = TaskOutcome(
        family=drawn.family.name,
        collection=collection_of(drawn.family),
        task=task_fingerprint(drawn),
        seed=drawn.seed,
        model=model,
        machine=machine,
        signals_version=SIGNALS_VERSION,
        signals=signals,
        arms=arms,
        probe=_probe(steps.get("probe")),
        n_demonstrations=int(signals["n_demonstrations"]),
        prompt_tokens=int(signals["prompt_tokens"]),
    )
    plain = as_json(row) | {"location": measured["location"]}
    return parse_row(plain, f"The outcome of {drawn.family.name}")


def _outcomes(report: Mapping[str, Any], steps: Mapping[str, Any]) -> dict[ArmName, ArmOutcome]:
    """By arm; `steps` are those of the run that measured the signals, by name."""
    arms = {}
    for name, cell in report["arms"].items():
        if name == "auto":
            continue
        parts = dict(cell["seconds_parts"])
        if name == "icl":
            parts |= {name: steps[name]["seconds"] for name in BESIDE if name in steps}
            parts |= signals_seconds(steps["signals"]) if "signals" in steps else {}
        if "by_probe_s" in cell:
            parts[BY_PROBE] = cell["by_probe_s"]
        arm = cell["arm"] if name.startswith("ttt") else name  # a fallback is still what that arm comes to
        arms[arm] = ArmOutcome(cell["accuracy"], report["n_queries"], cell["seconds"], parts)
    return arms


def completed(row: TaskOutcome, report: Mapping[str, Any]) -> TaskOutcome:
    """The row with the further arms of a later report, at the row's own pace.

    Raises:
        PolicyError: a figure that is not finite or out of range.
    """
    further = at_its_pace(row, _outcomes(report, {}))
    whole = replace(row, arms={**row.arms, **further})
    return parse_row(as_json(whole), f"The outcome of {row.family}")


def at_its_pace(row: TaskOutcome, further: Mapping[ArmName, ArmOutcome]) -> dict[ArmName, ArmOutcome]:
    """Further arms with the seconds that they would have taken when the row was made. A machine's speed swings by two; so
    those of another length of a training that is there are scaled by what the same work has taken then and now: the
    beginning of a training, and answering with its adapter."""
    found = {}
    for name, arm in further.items():
        now, recipe = _same_work_s(arm), name.removesuffix(SHORT)
        then = [_same_work_s(of) for n, of in row.arms.items() if n.removesuffix(SHORT) == recipe]
        known = [seconds for seconds in then if seconds]
        pace = mean(known) / now if known and now else 1.0
        parts = {part: pace * seconds for part, seconds in arm.seconds_parts.items()}
        found[name] = replace(arm, seconds=pace * arm.seconds, seconds_parts=parts)
    return found


def _same_work_s(arm: ArmOutcome) -> float:
    """Of an arm that trains, what any length of training takes; 0 where that is not known."""
    parts = arm.seconds_parts
    return parts[BY_PROBE] + parts["answer"] if {BY_PROBE, "answer"} <= set(parts) else 0.0


def collection_of(family: Family) -> str:
    """The benchmark that a family is from; of other families, the folder that its file is in."""
    return family.collection if family.collection in ("bbh", "arc", "1d-arc") else family.folder


def task_fingerprint(drawn: Drawn) -> str:
    return fingerprint(clean_task(drawn.sample.task)[0])


def _probe(step: Mapping[str, Any] | None) -> ProbeOutcome | None:
    """Held-out figures before the short training and at each look; None where there was none."""
    if step is None:
        return None
    detail = step["detail"]
    looks = [{"steps": 0, **_look(detail, "before")}]
    looks += detail.get("looks", [])[:-1]
    looks.append({"steps": detail["steps"], **_look(detail, "after")})
    return ProbeOutcome(
        tuple(int(look["steps"]) for look in looks),
        tuple(look["logprob"] for look in looks),
        tuple(look["correct"] for look in looks),
        step["seconds"],
    )


def _look(detail: Mapping[str, Any], when: str) -> dict[str, float]:
    return {key: mean(detail[f"{key}_{when}"]) for key in ("logprob", "correct")}
