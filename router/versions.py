"""Fitted policies in the store: which is in force, promoting one, going back. The CLI's `policy` commands.

A version's payload: `policy` (JSON with its own hash, `policies.persist`), `fit` (how it was made) and, once
it was promoted, `promotion` (the evidence, and what was in force before). Nothing else is ever run or loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from policies.errors import PolicyError
from policies.explore import Exploring
from policies.gate import Gate, Kept, gate, kept
from policies.learned import DEFAULT_CONFIDENCE, Learned, fit
from policies.outcomes import TaskOutcome
from policies.persist import Saved, as_payload, from_payload, load
from policies.prior import prior_rows
from policies.rule import Rule
from policies.tune import with_confidence
from policies.types import Policy
from router.settings import Settings
from store import PolicyVersionRow, Store
from store.errors import NotFound

REMEDY = 'go back with `ttt-router policy revert`, or set policy = "rule"'


@cache
def shipped() -> Saved:
    """What decides until a version is promoted: fitted on the outcomes that come with the package.

    Raises:
        PolicyError: these were damaged or changed.
    """
    return fit(prior_rows())[0]


def save_fitted(
    opened: Store,
    rows: Sequence[TaskOutcome],
    *,
    base_model: str | None = None,
    confidence: float = DEFAULT_CONFIDENCE,
    with_prior: bool = True,
) -> tuple[Learned, list[str]]:
    """Fit a policy, with the shipped rows among them unless told otherwise, and keep it; it is not in force yet.

    Returns:
        The policy, and notes on what was left out.

    Raises:
        PolicyError: rows that can't be fitted on.
    """
    everything = list({row.key: row for row in (*(prior_rows() if with_prior else ()), *rows)}.values())
    policy, notes = fit(everything, confidence=confidence, base_model=base_model)
    how = {
        "rows": len(rows),
        "rows_of_prior": len(everything) - len(rows),
        "base_model": base_model,
        "notes": notes,
    }
    payload = {"policy": as_payload(policy), "fit": how}
    new = opened.policy_versions.save(policy.version, payload)
    if not new:  # whole again, if it was damaged
        opened.policy_versions.note(policy.version, "policy", payload["policy"])
    return policy, notes


def matching(opened: Store, name: str) -> list[PolicyVersionRow]:
    """The version of this name, or all whose name or hash begins so."""
    rows = opened.policy_versions.list()
    exact = [row for row in rows if row.version == name]
    return exact or [row for row in rows if begins(row.version, name)]


def begins(version: str, name: str) -> bool:
    return version.startswith(name) or version.split("-")[-1].startswith(name)


def find(opened: Store, name: str) -> PolicyVersionRow:
    """The version of this name, or the only one whose name or hash begins so.

    Raises:
        NotFound: none or several.
    """
    found = matching(opened, name)
    if len(found) != 1:
        what = "Several policy versions begin" if found else "No policy version begins"
        raise NotFound(f"{what} with {name!r}; see `ttt-router policy list`.")
    return found[0]


def read(row: PolicyVersionRow) -> Learned:
    """The policy of a stored version.

    Raises:
        PolicyError: it was changed, is of another version of the signals, or is none.
    """
    try:
        policy = from_payload(row.payload.get("policy"))
    except PolicyError as error:
        raise PolicyError(f"The policy version {row.version} is refused: {error}") from error
    if not isinstance(policy, Learned) or policy.version != row.version:
        raise PolicyError(
            f"The policy version {row.version} is refused: its content is that of another version."
        )
    return policy


def in_force(opened: Store, settings: Settings, *, may_revert: bool = False) -> tuple[Saved, list[str]]:
    """The policy that decides, and notes: the setting's own, else the promoted version, else the shipped one.

    Where the setting `auto_revert` asks for it, one that broke its promise does not decide any more.

    Args:
        may_revert: whether the store may be changed for that: a promoted version then goes out of force.

    Raises:
        PolicyError: the one that should decide can't be read; the message says what helps.
    """
    if settings.policy == "rule":
        return as_set(Rule(), settings), []
    if settings.policy != "active":
        try:
            return as_set(load(Path(settings.policy).expanduser()), settings), []
        except PolicyError as error:
            raise PolicyError(f'{error} To go on without it, set policy = "active".') from error
    active = opened.policy_versions.active()
    if active is None:
        return _unpromoted(opened, settings)
    policy = _promoted(active, settings)
    promise = realised(opened, policy.version) if may_revert and settings.auto_revert else None
    if promise is None or not promise.below:
        return policy, []
    before, notes = revert(opened), list[str]()
    if before is None:
        instead, notes = _unpromoted(opened, settings)
    else:
        instead = as_set(read(find(opened, before)), settings)
    return instead, [f"{promise.sentence} So {instead.version} decides in place of {policy.version}.", *notes]


def _promoted(active: PolicyVersionRow, settings: Settings) -> Saved:
    try:
        return as_set(read(active), settings)
    except PolicyError as error:
        raise PolicyError(f"{error} To go on, {REMEDY}.") from error


def _unpromoted(opened: Store, settings: Settings) -> tuple[Saved, list[str]]:
    """What decides while no version is promoted: the shipped policy or, where that has broken its promise and
    `auto_revert` is set, the built-in rule; and why."""
    try:
        policy = as_set(shipped(), settings)
    except PolicyError as error:
        raise PolicyError(f'{error} To go on, set policy = "rule".') from error
    promise = realised(opened, policy.version) if settings.auto_revert else None
    if promise is None or not promise.below:
        return policy, []
    rule = as_set(Rule(), settings)
    return rule, [f"{promise.sentence} So {rule.version} decides in place of {policy.version}."]


def as_set(policy: Saved, settings: Settings) -> Saved:
    """The policy with the setting `confidence` on it. Episodes have its version, which may be another than the stored
    one's."""
    return with_confidence(policy, settings.confidence) if settings.confidence else policy


def deciding(policy: Saved, settings: Settings, *base_model: str) -> Policy:
    """The policy as it decides over this base model (its name and revision), exploring where that is set."""
    decides: Policy = policy.for_model(*base_model) if isinstance(policy, Learned) else policy
    return Exploring(decides, settings.explore_s) if settings.explore_s else decides


def promote(
    opened: Store,
    name: str,
    rows: Sequence[TaskOutcome],
    settings: Settings,
    *,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[str, Gate]:
    """Put a version in force if it beats the one in force on paired evidence, both as the settings have them decide.

    Returns:
        The version's whole name, and the verdict with its reason.

    Raises:
        NotFound: no such version.
        PolicyError: it is refused, is in force already, or the rows can't judge it.
    """
    row, active = find(opened, name), opened.policy_versions.active()
    if row.active:
        raise PolicyError(f"{row.version} is in force already.")
    candidate = as_set(read(row), settings)
    assert isinstance(candidate, Learned)
    incumbent = _unpromoted(opened, settings)[0] if active is None else _promoted(active, settings)
    own = {row.key for row in rows}
    further = [row for row in prior_rows() if row.key not in own]
    verdict = gate(candidate, incumbent, rows, settings.worth, further=further, progress=progress)
    if verdict.promote:
        before = [] if active is None else [*_before(active), active.version]
        how = {"replaced": before[-1] if before else None, "before": before}
        evidence = asdict(verdict) | how | {"worth_s": settings.worth, "at": time.time()}
        opened.policy_versions.note(row.version, "promotion", evidence)
        opened.policy_versions.activate(row.version)
    return row.version, verdict


def revert(opened: Store) -> str | None:
    """Put back in force what the version in force replaced.

    Returns:
        Its name; None for the shipped policy.

    Raises:
        PolicyError: no version is in force, so that there is nothing to go back from.
    """
    active = opened.policy_versions.active()
    if active is None:
        raise PolicyError(
            "No policy version is in force: the shipped policy decides, and there is nothing to go back to."
        )
    known = {row.version: row for row in opened.policy_versions.list()}
    before = [version for version in _before(active) if version in known]
    if not before:
        opened.policy_versions.deactivate()
        return None
    *earlier, version = before
    promotion = dict(known[version].payload.get("promotion") or {})
    opened.policy_versions.note(version, "promotion", promotion | {"before": earlier})
    opened.policy_versions.activate(version)
    return version


def _before(row: PolicyVersionRow) -> list[str]:
    """Versions that were in force before this one, the last one last: each replaced by the next."""
    return list((row.payload.get("promotion") or {}).get("before", ()))


def realised(opened: Store, version: str) -> Kept | None:
    """Whether the gains that a version promised came true on the tasks that it trained; None below twelve tasks'
    evidence."""
    from router.learning import trained_pairs

    promised, gains, families = trained_pairs(opened, version)
    return kept(promised, gains, families)


def difference(first: Saved, second: Saved) -> list[tuple[str, str, str]]:
    """What differs between two policies: name, value in the first, value in the second."""
    left, right = _flat(as_payload(first)["parameters"]), _flat(as_payload(second)["parameters"])
    return [
        (name, left.get(name, "–"), right.get(name, "–"))
        for name in sorted(set(left) | set(right))
        if left.get(name) != right.get(name)
    ]


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """Leaves by their path; arrays of numbers next to feature names are told by those names."""
    if isinstance(value, dict):
        names = value.get("names")
        found: dict[str, str] = {}
        for key, inner in value.items():
            if key in ("covariance", "names"):
                continue
            if isinstance(names, list) and isinstance(inner, list) and len(inner) == len(names):
                inner = dict(zip(names, inner, strict=True))
            found |= _flat(inner, f"{name}.{key}" if name else key)
        return found
    if isinstance(value, list):
        return {name: ", ".join(map(str, value))}
    return {name: f"{value:.4g}" if isinstance(value, float) else str(value)}
