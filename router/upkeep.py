"""Upkeep of the store as a router's settings want it: bounds on adapters, and whether all is sound.

The store checks what it wrote; only here is it known what a policy version must be.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from policies.errors import PolicyError
from router.settings import Settings
from router.versions import read
from store import Bounds, Report, Store
from store.errors import DatabaseCorrupt, StoreError
from store.upkeep import Finding, sizes

DAY_S = 24 * 3600.0


def bounds_of(settings: Settings) -> Bounds:
    return Bounds(settings.quota_bytes, settings.max_age_days * DAY_S)


def check(opened: Store) -> Report:
    """`Store.verify`, and whether the policy in force can be read.

    Raises:
        StoreError: what can't even be read.
    """
    report = opened.verify()
    try:
        active = opened.policy_versions.active()
        if active is not None:
            read(active)
    except PolicyError as error:
        told = f"{error} Go back with `ttt-router policy revert`."
        return replace(report, findings=(*report.findings, Finding("policy", "active", told)))
    except DatabaseCorrupt as error:
        return replace(report, findings=(*report.findings, Finding("policy", "active", str(error))))
    return report


def counts(opened: Store, settings: Settings) -> dict[str, Any]:
    """Rows by table, bytes of the database and the adapters, and the bounds."""
    found, adapters = sizes(opened.db), opened.adapters.stats()
    return {
        "episodes": found["episodes"],
        "outcomes": found["outcomes"],
        "tasks": found["tasks"],
        "policy_versions": found["policy_versions"],
        "adapters": adapters.n_adapters,
        "accepted_adapters": adapters.n_accepted,
        "adapter_bytes": adapters.size_bytes,
        "database_bytes": found["bytes"],
        "quota_bytes": settings.quota_bytes,
        "max_age_days": settings.max_age_days,
    }


def keep_within(opened: Store, settings: Settings) -> list[str]:
    """Evict adapters beyond the bounds, if there are any; notes. No answer fails over this."""
    bounds = bounds_of(settings)
    try:
        size = opened.adapters.stats().size_bytes if bounds.quota_bytes else 0
        if size <= bounds.quota_bytes and not bounds.max_age_s:
            return []
        gone = opened.collect(bounds)
    except StoreError as error:
        return [f"Old adapters could not be cleared away: {error}"]
    if not gone.evicted:
        return []
    freed = gone.evicted_bytes / 1e6
    return [
        f"{len(gone.evicted)} adapter(s) of {freed:.1f} MB were evicted, to stay within the settings' bounds."
    ]
