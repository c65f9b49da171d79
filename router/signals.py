"""What was measured → `policies.Signals` and `policies.Situation`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from policies.cost import CostModel, Sizes
from policies.types import Costs, Signals, Situation
from router.state import AdapterRef, State
from ttt.crossfit import MIN_DEMONSTRATIONS, CrossFitResult, lower_bound
from ttt.icl import BATCH, BATCH_TOKENS, ICLResult
from ttt.judging import Judged
from ttt.measure import TaskSize
from ttt.recipes import Recipe, fitting
from ttt.views import Consistency


def cheap_signals(known: Signals, result: ICLResult) -> Signals:
    """`known`, and those that cost nothing beyond the ICL pass."""
    n_tokens = sum(a.n_tokens for a in result.answers)
    return replace(
        known,
        query_logprob=mean(a.logprob_per_token for a in result.answers) if result.answers else None,
        query_margin=sum(a.margin * a.n_tokens for a in result.answers) / n_tokens if n_tokens else None,
    )


def known_before(state: State) -> Signals:
    """What is known before the model is asked any query."""
    task, size, request = state["task"], state["size"], state["request"]
    outputs = {d.output.strip() for d in task.demonstrations}
    return Signals(
        n_demonstrations=len(task.demonstrations),
        n_queries=len(request.queries),
        expected_repeats=request.expected_repeats,
        prompt_tokens=size.prefix_tokens,
        answer_tokens=size.answer_tokens,
        label_set_size=len(outputs) / max(len(task.demonstrations), 1),
        train_steps=fitting(request.recipes, task).steps if task.demonstrations else None,
        location=state.get("location"),
    )


def with_consistency(signals: Signals, seen: Consistency) -> Signals:
    """Add the votes of augmented views."""
    return replace(
        signals,
        agreement=mean(b.agreement for b in seen.found),
        answer_entropy=mean(b.entropy for b in seen.found),
    )


def with_leave_one_out(signals: Signals, judged: Judged) -> Signals:
    """Add how well the demonstrations are predicted from each other."""
    return replace(signals, loo_accuracy=mean(map(float, judged.correct)), loo_logprob=mean(judged.logprob))


def with_zero_shot(signals: Signals, judged: Judged) -> Signals:
    """Add how well the demonstrations are predicted with none shown."""
    return replace(
        signals,
        zero_shot_accuracy=mean(map(float, judged.correct)),
        zero_shot_logprob=mean(judged.logprob),
    )


def with_probe(signals: Signals, evidence: CrossFitResult, losses: Sequence[float] = ()) -> Signals:
    """Add the cross-fitted probe; the bound is one-sided, Student's t over demonstrations. `losses` are those of the short
    training, a step each; none where nothing was trained."""
    changes = [b - a for a, b in zip(evidence.logprob_before, evidence.logprob_after, strict=True)]
    return replace(
        signals,
        probe_accuracy_before=mean(map(float, evidence.correct_before)),
        probe_accuracy_after=mean(map(float, evidence.correct_after)),
        probe_logprob_before=mean(evidence.logprob_before),
        probe_logprob_after=mean(evidence.logprob_after),
        probe_logprob_gain_low=lower_bound(changes, 0.10),
        probe_loss_before=losses[0] if losses else None,
        probe_loss_after=losses[-1] if losses else None,
    )


def expected_costs(
    costs: CostModel, size: TaskSize, n_queries: int, recipe: Recipe, *, probed: bool = True
) -> Costs:
    """Seconds of what may still be paid, on this machine; of a training, what is left of it after a probe, or with
    `probed` false all of it."""
    whole = size.train_tokens(recipe)
    left = size.rest_tokens(recipe) if probed else whole
    sizes = replace(
        _answering(size, n_queries, n_queries),
        probe_train_tokens=size.probe_tokens(recipe),
        train_tokens=left,
    )
    return replace(costs.costs(sizes), by_probe_s=costs.predict("train", max(0, whole - left)))


def icl_seconds(costs: CostModel, size: TaskSize, n: int, of: int) -> float:
    """Seconds of asking `n` of `of` queries in context, on this machine; 0 for none."""
    return costs.icl_s(_answering(size, n, of)) if n else 0.0


def _answering(size: TaskSize, n: int, of: int) -> Sizes:
    """What it takes to answer `n` of `of` queries."""
    tokens = round(size.query_tokens * n / max(of, 1))
    batches = max(math.ceil(n / BATCH), math.ceil(tokens / BATCH_TOKENS))
    return Sizes(size.n_demonstrations, size.prefix_tokens, tokens, batches * size.longest_answer, 0, 0)


def situation(state: State, costs: CostModel, recipe: Recipe, remaining_s: float = math.inf) -> Situation:
    """All that a policy may look at, from the state. What can't be done in `remaining_s` is not feasible, nor is
    training that this answer does not wait for."""
    request, size = state["request"], state["size"]
    n = size.n_demonstrations
    probed = request.arm == "auto" and state.get("start") is None
    judged_first = request.arm == "auto" and n >= MIN_DEMONSTRATIONS and state.get("evidence") is None
    trained, n_queries = state.get("chosen") or recipe, len(request.queries)
    expected = expected_costs(costs, size, n_queries, trained, probed=probed)
    others, ready = dict[str, float](), None
    if (short := recipe.shorter) is not None and n > 0:
        name = f"train:{short.name}"
        if state.get("ready") is not None:
            ready = name
        elif state.get("start") is None:
            by = state.get("shorter") or short
            others[name] = expected_costs(costs, size, n_queries, by, probed=probed).train_s

    def in_time(train_s: float) -> bool:
        first_s = expected.probe_s if judged_first else 0.0
        return request.when == "wait" and first_s + train_s + expected.answer_s < remaining_s

    trains = n > 0 and in_time(expected.train_s)
    rest_s = icl_seconds(costs, size, n_queries - len(state["asked"]), n_queries)
    feasible = ["icl" if n else "zero-shot"]
    candidate = state.get("candidate")
    checked = None
    if candidate is not None:
        checked = _checked(state, candidate)
        feasible.append(f"reuse:{candidate.content_hash[:12]}")
    outright = request.arm == "ttt"
    if trains or outright:
        feasible.append(f"train:{recipe.name}")
    feasible += [name for name, train_s in others.items() if outright or in_time(train_s)]
    trainable = any(name.startswith("train:") for name in feasible)
    if ready is not None and expected.answer_s < remaining_s:
        feasible.append(ready)
    return Situation(
        signals=state["signals"],
        costs=replace(expected, rest_s=rest_s, others=others),
        feasible=tuple(feasible),
        probe_feasible=judged_first and trainable,
        worth_s=request.worth_s,
        ready=ready if ready in feasible else None,
        checked=checked,
    )


def _checked(state: State, candidate: AdapterRef) -> Signals | None:
    """The signals with the candidate's own check as their probe, where more than one demonstration has judged it."""
    start, evidence = state.get("start"), state.get("checked")
    if start is not None and start.adapters == (candidate.content_hash,):
        return state["signals"]
    if evidence is None or len(evidence.logprob_after) < 2:
        return None
    return with_probe(replace(state["signals"], n_demonstrations=len(evidence.logprob_after)), evidence)
