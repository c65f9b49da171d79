"""Kept once, at most one active."""

from __future__ import annotations

import pytest

from store import Store
from store.errors import NotFound


def test_a_version_is_kept_as_first_saved(opened: Store) -> None:
    assert opened.policy_versions.save("1", {"weights": [0.5, None]})
    assert not opened.policy_versions.save("1", {"weights": []})
    (row,) = opened.policy_versions.list()
    assert (row.version, row.payload, row.active) == ("1", {"weights": [0.5, None]}, False)


def test_at_most_one_version_is_active(opened: Store) -> None:
    opened.policy_versions.save("1", {})
    opened.policy_versions.save("2", {})
    assert opened.policy_versions.active() is None
    for version in ("1", "2", "1", "1"):
        opened.policy_versions.activate(version)
        assert [row.version for row in opened.policy_versions.list() if row.active] == [version]
        active = opened.policy_versions.active()
        assert active is not None and active.version == version


def test_activating_an_unknown_version_keeps_the_active_one(opened: Store) -> None:
    opened.policy_versions.save("1", {})
    opened.policy_versions.activate("1")
    with pytest.raises(NotFound, match="'2'"):
        opened.policy_versions.activate("2")
    active = opened.policy_versions.active()
    assert active is not None and active.version == "1"


def test_none_is_active_after_leaving_none_active(opened: Store) -> None:
    opened.policy_versions.save("1", {})
    opened.policy_versions.activate("1")
    opened.policy_versions.deactivate()
    assert opened.policy_versions.active() is None


def test_a_note_stands_beside_what_was_saved(opened: Store) -> None:
    opened.policy_versions.save("1", {"policy": {"a": 1}})
    opened.policy_versions.note("1", "promotion", {"replaced": None})
    (row,) = opened.policy_versions.list()
    assert row.payload == {"policy": {"a": 1}, "promotion": {"replaced": None}}
    with pytest.raises(NotFound, match="'2'"):
        opened.policy_versions.note("2", "promotion", {})
