"""What is known later of an answer → outcomes of its episode; saying it twice changes nothing."""

from __future__ import annotations

import hashlib
from typing import Any

from router.errors import RouterError
from router.metrics import exact
from router.receipt import Receipt
from store import Episodes, OutcomeRow


def attach_outcomes(
    episodes: Episodes,
    episode_id: str,
    *,
    right: bool | None,
    answer: str | None,
    query: int | None,
    source: Any,
) -> tuple[list[OutcomeRow], int]:
    """Store outcomes for one query, or for all of them when `query` is None and `right` is given.

    Returns:
        What was said as rows, and how many of them are new: saying again what was said last adds none.

    Raises:
        NotFound: no such episode.
        RouterError: neither or both of `right` and `answer`; no such query; an `answer` without saying to
            which of several queries.
    """
    episode = episodes.get(episode_id)
    known = episodes.outcomes(episode.episode_id)
    receipt = Receipt.from_dict(episode.receipt)
    if (right is None) == (answer is None):
        raise RouterError(
            "Say either that the answer was right or wrong, or give the right answer: one of the two."
        )
    if answer is not None and "\0" in answer:
        raise RouterError("The answer has a NUL character, which databases do not keep; remove it.")
    n = len(receipt.answers)
    if query is not None and not 0 <= query < n:
        raise RouterError(
            f"Episode {episode.episode_id[:12]} has {n} queries, numbered 0 to {n - 1}; there is no {query}."
        )
    if answer is not None and query is None and n > 1:
        raise RouterError(f"This episode has {n} queries; say which one the answer is for (0 to {n - 1}).")
    indices = range(n) if query is None else (query,)
    rows = []
    for i in indices:
        value = float(right) if right is not None else float(exact(receipt.answers[i].text, answer or ""))
        said = hashlib.sha256(f"{value}\n{answer or ''}".encode()).hexdigest()[:16]
        earlier = [o for o in known if o.source == source and o.query_index == i]
        changed = not earlier or (earlier[-1].value, earlier[-1].answer) != (value, answer)
        key = f"{episode.episode_id}:{source}:{i}:{len(earlier) - (not changed)}:{said}"
        rows.append(OutcomeRow(episode.episode_id, source, value, key, i, answer))
    return rows, sum(episodes.add_outcome(row) for row in rows)
