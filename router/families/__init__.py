"""Procedural task families: what a policy's prior is learned from.

From tasks that a small model answers in context to some that nobody could. Grouped into collections by kind,
so that a policy can be judged on a kind that it has not seen.
"""

from __future__ import annotations

from collections.abc import Collection

from router.errors import RouterError
from router.families import (
    arithmetic,
    brackets,
    cells,
    chance,
    codes,
    counting,
    edits,
    labels,
    letters,
    lists,
    lookups,
    records,
    sequences,
    words,
)
from router.families.procedure import Procedure

__all__ = ["PROCEDURES", "Procedure", "chosen"]

PROCEDURES: dict[str, Procedure] = {
    procedure.name: procedure
    for module in (
        arithmetic,
        brackets,
        cells,
        chance,
        codes,
        counting,
        edits,
        labels,
        letters,
        lists,
        lookups,
        records,
        sequences,
        words,
    )
    for procedure in module.FAMILIES
}
"""By name, grouped by collection."""


def chosen(names: Collection[str] = ()) -> list[Procedure]:
    """The procedures of these names or collections, or all of them.

    Raises:
        RouterError: a name that neither a family nor a collection has.
    """
    collections = sorted({procedure.collection for procedure in PROCEDURES.values()})
    for name in names:
        if name not in PROCEDURES and name not in collections:
            raise RouterError(
                f"There is no procedural family or collection {name!r}; collections are: {', '.join(collections)}."
            )
    return [p for p in PROCEDURES.values() if not names or {p.name, p.collection} & set(names)]
