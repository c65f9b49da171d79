"""Episodes and what was later said of them → outcome rows that a policy can be fitted on.

An episode that trained has ICL's answers, too, to all queries or to a sample: both arms are judged by the right answers to
these that became known.
One that stayed has only ICL's, unless a shadow was trained behind it (its episode is named after it). Only
where the right answer itself is known can an arm that did not answer be judged: it was given, or the answer that
was there is said to be right. Queries of which it is not known are left out, whether or not both arms said the
same: to keep those alone would choose queries by their outcome. Rows hold no text.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean

from policies.learned import BY_RULE
from policies.outcomes import BY_PROBE, SAMPLE, TaskOutcome, parse_row
from policies.types import LOCATION, SIGNALS_VERSION
from router.metrics import exact
from router.receipt import SHADOW, Receipt, signals_seconds
from store import EpisodeRow, OutcomeRow, Store
from store.errors import NotFound

STRENGTH = ("gold", "held-out", "user", "judge")
"""Sources, the one to believe first: where they contradict one another, the stronger one counts."""
COLLECTION = "episodes"


@dataclass(frozen=True, slots=True)
class Judged:
    """What is known of one query of an episode."""

    value: float
    """Of the answer given: 1 right, 0 wrong."""
    answer: str | None
    """The right answer, where a source gave it."""
    contradicted: bool
    """A weaker source says otherwise."""


def rows_of(opened: Store) -> tuple[list[TaskOutcome], list[str]]:
    """Rows of all judged episodes that measured signals, and notes: what was left out and why, and what contradicts itself.

    Episodes of another version of the signals are left out: the two can't be mixed.
    """
    rows: list[TaskOutcome] = []
    numbers: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    contradicted = 0
    for episode, said in opened.episodes.for_fit():
        if episode.episode_id.endswith(SHADOW):
            continue
        if episode.signals is None:
            left_out["was answered by a verified adapter, so nothing was measured"] += 1
            continue
        if episode.signals_version != SIGNALS_VERSION:
            left_out[f"has version {episode.signals_version} of the signals"] += 1
            continue
        if _voted(episode):
            left_out["was voted on, so it can't be held against the one view of in-context learning"] += 1
            continue
        if _found(episode):
            left_out["met an adapter that was there, so what training takes was not seen"] += 1
            continue
        if _from_others(episode):
            left_out["rests on adapters of other tasks, not on a probe"] += 1
            continue
        known = judged(said)
        contradicted += any(j.contradicted for j in known.values())
        receipt = Receipt.from_dict(episode.receipt)
        row = _row(opened, receipt, known, numbers[episode.fingerprint])
        if row is None:
            left_out[
                "has no right answers by which both ICL and training could be judged" + _unasked(receipt)
            ] += 1
            continue
        numbers[episode.fingerprint] += 1
        rows.append(row)
    families = _families(opened, [row.task for row in rows if row.family == row.task])
    rows = [replace(row, family=families.get(row.family, row.family)) for row in rows]
    notes = [f"left out {_episodes(n)}: {why}." for why, n in left_out.items()]
    if contradicted:
        notes.append(
            f"{_episodes(contradicted)} with outcomes that contradict one another: the stronger source counts."
        )
    return rows, notes


def _episodes(n: int) -> str:
    return f"{n} episode{'s' * (n != 1)}"


def _unasked(receipt: Receipt) -> str:
    n = sum(a is not None for a in receipt.icl_answers)
    if n == receipt.n_queries or not n:
        return ""
    return f' (ICL was asked {n} of its {receipt.n_queries} queries; signals = "all" asks all)'


def trained_pairs(opened: Store, version: str) -> tuple[list[float], list[float], list[str]]:
    """For each judged task that this policy version trained: promised gain, realised gain, family."""
    promised, realised, families, unnamed = list[float](), list[float](), list[str](), list[str]()
    for episode, said in opened.episodes.for_fit():
        promise = episode.decision.get("expected_gain")
        if episode.policy != version or not episode.arm.startswith("train:") or promise is None:
            continue
        if (episode.decision.get("details") or {}).get(BY_RULE):
            continue
        if _voted(episode):
            continue
        receipt = Receipt.from_dict(episode.receipt)
        pairs = list(_pairs(receipt, None, judged(said)))
        if pairs:
            promised.append(float(promise))
            realised.append(mean(arm - icl for icl, arm in pairs))
            families.append(receipt.task_name or receipt.fingerprint)
            unnamed += [] if receipt.task_name else [receipt.fingerprint]
    joined = _families(opened, unnamed)
    return promised, realised, [joined.get(family, family) for family in families]


def judged(said: Sequence[OutcomeRow]) -> dict[int, Judged]:
    """By query: the last word of the strongest source."""
    by_query: dict[int, list[OutcomeRow]] = {}
    for outcome in said:
        by_query.setdefault(-1 if outcome.query_index is None else outcome.query_index, []).append(outcome)
    found = {}
    for query, outcomes in by_query.items():
        last = {outcome.source: outcome for outcome in outcomes}
        best = next(last[source] for source in STRENGTH if source in last)
        alike = [o for o in outcomes if (o.source, o.value) == (best.source, best.value)]
        answer = next((o.answer for o in reversed(alike) if o.answer is not None), None)
        found[query] = Judged(best.value, answer, any(_differ(best, other) for other in last.values()))
    return found


def _differ(one: OutcomeRow, other: OutcomeRow) -> bool:
    """Whether two sources say different things of an answer, or of what would have been right."""
    if one.value != other.value:
        return True
    if one.answer is None or other.answer is None:
        return False
    return not exact(one.answer, other.answer)


def _families(opened: Store, unnamed: Sequence[str]) -> dict[str, str]:
    """By fingerprint, what tasks without a name have for a family: where one's demonstrations are all among those of
    another, as when a chat grows by corrections, the two are of one, named after the first.

    Args:
        unnamed: fingerprints, the first to be asked first.
    """
    from scipy.cluster.hierarchy import DisjointSet

    tasks = {name: opened.episodes.task(name) for name in dict.fromkeys(unnamed)}
    shown = {name: frozenset(task.demonstrations) for name, task in tasks.items()}
    having: dict[tuple[str, tuple[str, str]], list[str]] = {}
    for name, demonstrations in shown.items():
        for demonstration in demonstrations:
            having.setdefault((tasks[name].instruction, demonstration), []).append(name)
    joined = DisjointSet(shown)
    for name, demonstrations in shown.items():
        some = min(demonstrations, default=None)
        for other in having[tasks[name].instruction, some] if some is not None else ():
            if demonstrations <= shown[other]:
                joined.merge(name, other)
    first: dict[str, str] = {}
    for name in shown:
        first.setdefault(joined[name], name)
    return {name: first[joined[name]] for name in shown}


def _from_others(episode: EpisodeRow) -> bool:
    """Whether the evidence is that of other tasks' adapters: what they do says other things than a short training."""
    steps = episode.receipt.get("steps", ())
    return any(s["name"] == "neighbours" and s["detail"].get("chosen", "nothing") != "nothing" for s in steps)


def _found(episode: EpisodeRow) -> bool:
    """Whether its training had been done before, by another caller or for a question that was worth less."""
    steps = episode.receipt.get("steps", ())
    return any(s["name"] == "train" and "found" in s["detail"] for s in steps)


def _voted(episode: EpisodeRow) -> bool:
    """Whether views voted on a trained arm's answers; what is kept of in-context learning's is before any vote."""
    steps = episode.receipt.get("steps", ())
    return episode.arm.startswith("train:") and any(s["name"] == "vote" for s in steps)


def _row(opened: Store, receipt: Receipt, known: dict[int, Judged], number: int) -> TaskOutcome | None:
    shadow = _shadow(opened, receipt.episode_id)
    pairs = list(_pairs(receipt, shadow, known))
    trained = shadow if shadow is not None else receipt if receipt.arm.startswith("train:") else None
    if not pairs or trained is None:
        return None
    arms = {
        "icl": _in_context(mean(icl for icl, _ in pairs), len(pairs), receipt),
        trained.arm: _arm(mean(arm for _, arm in pairs), len(pairs), trained, ("train", "answer")),
    }
    signals = dict(receipt.signals)
    probe = receipt.step("probe")
    before, after = signals.get("probe_logprob_before"), signals.get("probe_logprob_after")
    correct = (signals.get("probe_accuracy_before"), signals.get("probe_accuracy_after"))
    data = {
        "family": receipt.task_name or receipt.fingerprint,
        "collection": COLLECTION,
        "task": receipt.fingerprint,
        "seed": number,
        "model": receipt.base_revision,
        "machine": socket.gethostname(),
        "signals_version": SIGNALS_VERSION,
        "signals": signals,
        "arms": arms,
        "probe": None
        if probe is None or after is None or "steps" not in probe.detail
        else {
            "steps": [0, int(probe.detail["steps"])],
            "heldout_logprob": [before, after],
            "heldout_accuracy": list(correct),
            "seconds": probe.seconds,
        },
        "n_demonstrations": int(signals["n_demonstrations"] or 0),
        "prompt_tokens": int(signals["prompt_tokens"] or 0),
        "location": receipt.location,
    }
    return parse_row(data, f"Episode {receipt.episode_id[:12]}")


def _pairs(
    receipt: Receipt, shadow: Receipt | None, known: dict[int, Judged]
) -> Iterator[tuple[float, float]]:
    """For each query whose right answer is known, whether ICL and the trained arm were right."""
    trained = shadow if shadow is not None else receipt
    for query, judgement in known.items():
        if not 0 <= query < min(len(receipt.icl_answers), len(trained.answers)):
            continue
        given = receipt.answers[query].text
        answer = given if judgement.answer is None and judgement.value == 1 else judgement.answer
        if answer is None:
            continue
        first = receipt.icl_answers[query]
        if first is None:
            continue
        texts = (first.text, trained.answers[query].text)
        icl, arm = (judgement.value if text == given else float(exact(text, answer)) for text in texts)
        yield icl, arm


def _shadow(opened: Store, episode_id: str) -> Receipt | None:
    try:
        found = opened.episodes.get(f"{episode_id}{SHADOW}")
    except NotFound:
        return None
    receipt = Receipt.from_dict(found.receipt)
    return receipt if receipt.arm.startswith("train:") else None


def _in_context(correct: float, n: int, receipt: Receipt) -> dict[str, object]:
    """The outcome of in-context learning. Beside its seconds stands what measuring signals took, and a sample of the
    queries where one was asked first: asking all at once is then what it was expected to take."""
    step, sample, measuring = receipt.step("icl"), receipt.step(SAMPLE), receipt.step("signals")
    seconds = step.seconds if step is not None and receipt.icl_at_once else 0.0
    beside: dict[str, float] = {}
    located, near = receipt.step(LOCATION), receipt.step("neighbours")
    if located is not None:
        beside[LOCATION] = located.seconds
    elif near is not None and "embed_s" in near.detail:
        beside[LOCATION] = near.detail["embed_s"]
    if sample is not None:
        seconds = seconds or sample.detail["all_s"]
        beside[SAMPLE] = sample.seconds
    if measuring is not None:
        beside |= signals_seconds(asdict(measuring))
    parts = {"icl": seconds, **beside}
    return {"correct": correct, "n_queries": n, "seconds": seconds, "seconds_parts": parts}


def _arm(correct: float, n: int, receipt: Receipt, steps: Sequence[str]) -> dict[str, object]:
    """The outcome of the arm that took these steps. Beside the sum stands what of the training is a probe's.

    Args:
        n: queries that could be judged; the seconds are of all that were asked.
    """
    parts: dict[str, float] = {}
    for step in receipt.steps:
        if step.name in steps:
            parts[step.name] = parts.get(step.name, 0.0) + step.seconds
    if "train" in parts:
        parts["train"] = receipt.training_s
    beside: dict[str, float] = {}
    by_probe_s = receipt.by_probe_s
    if "train" in parts and by_probe_s is not None:
        beside[BY_PROBE] = by_probe_s
    return {
        "correct": correct,
        "n_queries": n,
        "seconds": sum(parts.values()),
        "seconds_parts": parts | beside,
    }
