"""Reuse, refusal and failure: what each node does when the store, the guard or the training says no."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from policies.baselines import AlwaysArm
from policies.types import MEASURED, Decision, Situation
from router import nodes, reuse
from router.agent import Router
from router.events import Decided, Done, Event, FellBack, GuardDone, ICLDone, TrainingStep
from router.receipt import Answered, Receipt
from router.state import AdapterRef, Start, State
from store import AdapterKey
from tests.router.conftest import (
    LONG,
    OTHER,
    QUERIES,
    QUICK,
    TASK,
    TRUSTING,
    OpenRouter,
    base_hash,
    kinds,
    ok_task,
    step_names,
)
from ttt.crossfit import CrossFitResult
from ttt.errors import Cancelled, NonFiniteLoss
from ttt.icl import ICLResult
from ttt.icl import answer as answer_queries
from ttt.prompts import PromptFormat
from ttt.recipes import RECIPES
from ttt.task import Demonstration, Query, Task

TRAIN = AlwaysArm("train:quick")


def key_of(agent: Router, task: Task, recipe: Any = QUICK, seed: int = 0) -> AdapterKey:
    loaded = agent.parts.engine.loaded
    template = PromptFormat(loaded.tokenizer, task).template
    return AdapterKey(task.fingerprint, loaded.revision, template, recipe.id, seed)


def detail(receipt: Receipt, name: str) -> dict[str, Any]:
    step = receipt.step(name)
    assert step is not None, f"no step {name} in {step_names(receipt)}"
    return dict(step.detail)


# Reuse


def test_the_same_task_again_is_looked_up_and_answered_and_nothing_else(open_router: OpenRouter) -> None:
    agent = open_router(policy=TRUSTING)
    first = agent.ask(TASK, QUERIES)
    (row,) = agent.parts.store.adapters.list()
    again = agent.ask(TASK, QUERIES)
    assert first.arm == "train:quick" and row.accepted
    assert step_names(again) == ["look-up", "answer"] and detail(again, "look-up") == {"hit": True}
    assert again.arm == f"reuse:{first.adapter[:12]}" and again.adapter == first.adapter
    assert again.answers == first.answers and again.icl_answers == ()
    assert again.signals == {} and again.decisions == () and again.fallback == ""
    (touched,) = agent.parts.store.adapters.list()
    assert touched.last_used_at > row.last_used_at and touched.created_at == row.created_at
    episode = agent.history(1)[0]
    assert (episode.signals, episode.policy, episode.propensity) == (None, "verified-hit", 1.0)


def test_a_hit_survives_the_process_that_trained_it(open_router: OpenRouter) -> None:
    first = open_router(policy=TRUSTING).ask(TASK, QUERIES)
    again = open_router().ask(TASK, QUERIES)
    assert again.arm.startswith("reuse:") and again.answers == first.answers


def test_order_of_demonstrations_and_white_space_make_no_other_task(open_router: OpenRouter) -> None:
    agent = open_router(policy=TRUSTING)
    agent.ask(TASK, QUERIES)
    shuffled = tuple(Demonstration(f" {d.input}\r\n", d.output) for d in TASK.demonstrations[::-1])
    assert agent.ask(Task(shuffled, TASK.instruction, "another name"), QUERIES).arm.startswith("reuse:")


def test_another_task_recipe_or_seed_is_no_hit(open_router: OpenRouter) -> None:
    agent = open_router(policy=TRUSTING)
    agent.ask(TASK, QUERIES)
    renamed = replace(TASK, demonstrations=(*TASK.demonstrations[:5], Demonstration("kl", "no")))
    others: list[tuple[Task, dict[str, Any]]] = [
        (TASK, {"recipe": "other"}),
        (TASK, {"seed": 1}),
        (renamed, {}),
        (replace(TASK, instruction="Say another word."), {}),
    ]
    for task, options in others:
        got = agent.ask(task, QUERIES[:1], **({"recipe": "other"} | options))
        assert detail(got, "look-up") == {"hit": False} and got.icl_answers, options


def test_another_base_model_is_no_hit(open_router: OpenRouter, tiny_qwen2: Path) -> None:
    open_router(policy=TRUSTING).ask(TASK, QUERIES)
    got = open_router(model=str(tiny_qwen2), recipe="quick").ask(TASK, QUERIES, arm="auto")
    assert detail(got, "look-up") == {"hit": False} and not got.arm.startswith("reuse:")


def test_another_prompt_template_is_no_hit(open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = open_router(policy=TRUSTING)
    agent.ask(TASK, QUERIES)
    monkeypatch.setattr("ttt.prompts.TEMPLATE", "qa2")
    assert detail(agent.ask(TASK, QUERIES[:1]), "look-up") == {"hit": False}


def test_an_adapter_that_the_guard_refused_is_no_hit_but_serves_who_asks_for_training(
    open_router: OpenRouter,
) -> None:
    agent, task = open_router(policy=TRAIN), ok_task(2)
    refused = agent.ask(task, QUERIES)
    assert refused.fallback and detail(refused, "train")["tokens"] > 0
    assert detail(agent.ask(task, QUERIES), "look-up") == {"hit": False}
    asked = agent.ask(task, QUERIES, arm="ttt")
    assert step_names(asked) == ["look-up", "answer"] and asked.arm.startswith("reuse:")


def test_an_adapter_answers_as_the_engine_does_with_it(open_router: OpenRouter) -> None:
    agent = open_router()
    got = agent.ask(TASK, QUERIES, arm="ttt")
    (row,) = agent.parts.store.adapters.list()
    engine = agent.parts.engine
    folder = agent.parts.store.adapters.path(row)

    async def by_hand() -> ICLResult:
        async with engine.adapter(folder) as name:
            return await answer_queries(engine, TASK, [Query(q) for q in QUERIES], adapter=name)

    direct = agent.run(by_hand())
    assert got.adapter == row.content_hash
    assert got.answers == tuple(Answered(a.text, a.logprob, a.finished, a.n_tokens) for a in direct.answers)


def test_a_damaged_adapter_is_named_not_used_and_trained_again(open_router: OpenRouter) -> None:
    agent = open_router(policy=TRUSTING)
    first = agent.ask(TASK, QUERIES)
    (row,) = agent.parts.store.adapters.list()
    file = agent.parts.store.adapters.path(row) / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)
    mended = open_router(policy=TRUSTING).ask(TASK, QUERIES)  # anew: the first one holds it in memory
    assert detail(mended, "look-up") == {"hit": False} and detail(mended, "train")["tokens"] > 0
    assert [n for n in mended.notes if "has changed" in n and row.content_hash in n]
    assert mended.texts == first.texts, "the same but for the order of sums in passes that both halves share"
    assert step_names(open_router().ask(TASK, QUERIES)) == ["look-up", "answer"]


def test_the_adapter_of_fewer_demonstrations_is_checked_on_the_others_and_reused(
    open_router: OpenRouter,
) -> None:
    small = open_router(policy=TRUSTING).ask(TASK, QUERIES)
    arm = f"reuse:{small.adapter[:12]}"
    got = open_router(policy=AlwaysArm(arm)).ask(ok_task(8), QUERIES)
    check = detail(got, "reuse-check")
    assert check["passed"] and check["logprob_adapter"] > check["logprob_base"]
    assert check["unseen_demonstrations"] == 2 and check["adapter"] == small.adapter[:12]
    assert got.arm == arm and got.adapter == small.adapter and got.texts != got.icl_texts
    assert "train" not in step_names(got) and step_names(got)[-1] == "answer"


@pytest.mark.parametrize("more", [1, 2])
def test_what_the_check_of_such_an_adapter_shows_is_what_reusing_it_promises(
    open_router: OpenRouter, more: int
) -> None:
    """One demonstration has no spread, so that nothing is concluded from it."""
    open_router(policy=TRUSTING).ask(TASK, QUERIES)
    policy = Watching()
    got = open_router(policy=policy).ask(ok_task(6 + more), QUERIES)
    check, checked = detail(got, "reuse-check"), policy.seen[0].checked
    if more == 1:
        assert check["passed"] and checked is None
        return
    assert checked is not None and checked.n_demonstrations == 2
    assert checked.probe_logprob_before == pytest.approx(check["logprob_base"])
    assert checked.probe_logprob_after == pytest.approx(check["logprob_adapter"])
    assert not policy.seen[0].signals.probed, "the task's own probe is still to come"


def test_an_adapter_that_does_worse_on_the_others_is_not_feasible(open_router: OpenRouter) -> None:
    small = open_router(policy=TRUSTING).ask(TASK, QUERIES)
    unlike = tuple(Demonstration(x, "::::::::") for x in ("mn", "op"))
    task = replace(TASK, demonstrations=(*TASK.demonstrations, *unlike))
    got = open_router(policy=AlwaysArm(f"reuse:{small.adapter[:12]}")).ask(task, QUERIES)
    check = detail(got, "reuse-check")
    assert not check["passed"] and check["logprob_adapter"] < check["logprob_base"]
    assert got.arm == "icl" and "not feasible" in got.decisions[-1]["reason"]


def test_a_damaged_candidate_is_skipped_with_a_reason(open_router: OpenRouter) -> None:
    agent = open_router(policy=TRUSTING)
    small = agent.ask(TASK, QUERIES)
    folder = agent.parts.store.adapters.folder / small.adapter
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    got = open_router(recipe="other").ask(ok_task(8), QUERIES)
    assert "is missing" in detail(got, "reuse-check")["skipped"]


# Failure and cancellation: ICL's answers stand, the base is as it was


def stream_until(agent: Router, stop_at: Callable[[Event], bool], **options: Any) -> list[Event]:
    """Ask, and cancel as soon as an event says so."""
    stop = threading.Event()

    async def listen() -> list[Event]:
        seen = []
        async for event in agent.astream(TASK, QUERIES, should_stop=stop.is_set, **options):
            seen.append(event)
            if stop_at(event):
                stop.set()
        return seen

    return agent.run(listen())


def fell_back(agent: Router, events: list[Event]) -> Receipt:
    """The receipt, after checking that ICL's answers stand and that the base is as it was loaded."""
    done = events[-1]
    assert isinstance(done, Done)
    receipt = done.receipt
    assert receipt.arm == "icl" and receipt.adapter == "" and len(receipt.answers) == 3
    assert receipt.answers == receipt.icl_answers == agent.ask(TASK, QUERIES, arm="icl").answers
    assert any(isinstance(e, FellBack) and e.reason in receipt.fallback for e in events)
    assert agent.explain(receipt.episode_id) == receipt
    return receipt


@pytest.fixture
def pristine(open_router: OpenRouter) -> str:
    return base_hash(open_router())


def test_the_base_is_bit_identical_after_normal_answers(open_router: OpenRouter, pristine: str) -> None:
    agent = open_router(policy=TRUSTING)
    asked: list[dict[str, Any]] = [{}, {}, {"arm": "ttt", "seed": 1}, {"arm": "icl"}]
    for options in asked:
        agent.ask(TASK, QUERIES, **options)
        assert base_hash(agent) == pristine


@pytest.mark.parametrize(("phase", "step"), [("probe", 3), ("train", QUICK.probed + 2)])
def test_cancelled_training_falls_back_and_leaves_the_base_alone(
    open_router: OpenRouter, pristine: str, phase: str, step: int
) -> None:
    agent = open_router(policy=TRUSTING)
    events = stream_until(agent, lambda e: isinstance(e, TrainingStep) and (e.phase, e.step) == (phase, step))
    receipt = fell_back(agent, events)
    assert "was cancelled after" in receipt.fallback and "failed" in detail(receipt, phase)
    assert base_hash(agent) == pristine
    assert agent.parts.store.adapters.list() == []
    after = agent.ask(TASK, QUERIES)
    assert after.arm == "train:quick", "the lease was given back and the same task can be trained"


def test_a_loss_that_is_no_number_falls_back_and_leaves_the_base_alone(
    open_router: OpenRouter, pristine: str
) -> None:
    agent = open_router(policy=AlwaysArm("train:wild"), recipe="wild")
    receipt = fell_back(agent, list(agent.stream(TASK, QUERIES)))
    assert "the loss was" in receipt.fallback and "lower the learning rate" in receipt.fallback
    assert base_hash(agent) == pristine and agent.parts.store.adapters.list() == []


def test_training_that_was_asked_for_outright_fails_with_an_error(
    open_router: OpenRouter, pristine: str
) -> None:
    agent = open_router()
    with pytest.raises(NonFiniteLoss, match="lower the learning rate"):
        agent.ask(TASK, QUERIES, arm="ttt", recipe="wild")
    with pytest.raises(Cancelled, match="cancelled after"):
        stream_until(agent, lambda e: isinstance(e, TrainingStep), arm="ttt", recipe="long")
    assert base_hash(agent) == pristine and list(agent.history()) == []
    assert agent.ask(TASK, QUERIES, arm="ttt").adapter


def test_cancelling_while_signals_are_measured_keeps_the_answers(open_router: OpenRouter) -> None:
    agent = open_router(policy=TRUSTING, signals="all")
    receipt = fell_back(agent, stream_until(agent, lambda e: isinstance(e, ICLDone)))
    assert detail(receipt, "signals")["cancelled"] and receipt.signals["agreement"] is None
    assert any("Measuring was cancelled" in note for note in receipt.notes)


def test_cancelling_while_the_guard_gathers_evidence_is_a_veto(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = replace(QUICK, name="plain", form="direct", stop_loss=0.0)  # does not begin by a probe
    monkeypatch.setitem(RECIPES, "plain", (direct, direct))
    agent = open_router(policy=AlwaysArm("train:plain"), recipe="plain")
    events = stream_until(
        agent, lambda e: isinstance(e, TrainingStep) and (e.phase, e.step) == ("train", e.of)
    )
    receipt = fell_back(agent, events)
    assert "no evidence to judge it by" in receipt.fallback
    assert [row.accepted for row in agent.parts.store.adapters.list()] == [False]


def test_cancelling_before_the_adapter_has_answered_keeps_the_answers_of_icl(open_router: OpenRouter) -> None:
    agent = open_router(policy=TRUSTING)
    events = stream_until(agent, lambda e: isinstance(e, GuardDone))
    assert kinds(events)[-3:] == ["GuardDone", "FellBack", "Done"]
    receipt = fell_back(agent, events)
    assert "Answering was cancelled" in receipt.fallback
    assert agent.ask(TASK, QUERIES).arm.startswith("reuse:"), "the accepted adapter is kept"


def test_cancelling_where_nothing_was_answered_yet_is_an_error(open_router: OpenRouter) -> None:
    agent = open_router()
    with pytest.raises(Cancelled, match="ask again"):
        agent.ask(TASK, QUERIES, should_stop=lambda: True)
    assert list(agent.history()) == [] and agent.ask(TASK, QUERIES, arm="icl").texts


def test_the_guard_hears_of_a_training_whose_loss_rose() -> None:
    """The mapper from a training and its evidence to the guard; the evidence alone shows help."""
    before, after = (-1.0, -2.0) * 3, (-0.5, -1.0) * 3
    evidence = CrossFitResult((True,) * 6, (True,) * 6, before, after, tokens=1, train_s=0.1)
    rising = AdapterRef("0" * 64, "/folder", QUICK.id, False, (5.0, 5.0, 5.0, 5.5, 5.5, 5.5))
    verdict = nodes._verdict(evidence, State(task=TASK, trained=rising))
    assert not verdict.accept and "rose from 5.00 to 5.50" in verdict.reason
    falling = replace(rising, losses=rising.losses[::-1])
    assert nodes._verdict(evidence, State(task=TASK, trained=falling)).accept


def test_evidence_that_the_policy_has_weighed_is_left_to_it() -> None:
    """But not that of another task's adapter, which no outcome has taught to weigh."""
    before, after = (-0.5, -1.0) * 3, (-1.5, -2.0) * 3
    harm = CrossFitResult((True,) * 6, (False,) * 6, before, after, tokens=1, train_s=0.1)
    trained = AdapterRef("0" * 64, "/folder", QUICK.id, False, (5.5, 5.5, 5.5, 5.0, 5.0, 5.0))
    weighed = Decision("answer", "train:quick", 1.0, 0.3, 0.1, 1.0, "why", "p", weighed=True)
    state = State(task=TASK, trained=trained, decisions=[weighed])
    assert nodes._verdict(harm, state).accept
    assert not nodes._verdict(
        harm, State(task=TASK, trained=trained, decisions=[replace(weighed, weighed=False)])
    ).accept
    begun = Start(("a",), (), ())
    assert not nodes._verdict(
        harm, State(task=TASK, trained=trained, decisions=[weighed], start=begun)
    ).accept


# Many at once


def test_two_threads_with_the_same_task_train_it_once(open_router: OpenRouter) -> None:
    agent = open_router(policy=TRAIN)
    start = threading.Barrier(2)

    def ask(_: int) -> Receipt:
        start.wait()
        return agent.ask(TASK, QUERIES)

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(ask, range(2)))
    trained = [r for r in both if (s := r.step("train")) is not None and s.detail.get("tokens")]
    assert len(trained) == 1
    assert both[0].answers == both[1].answers and both[0].adapter == both[1].adapter
    (other,) = [r for r in both if r is not trained[0]]
    assert other.arm.startswith("reuse:") or "found" in detail(other, "train")


def test_two_routers_on_one_store_train_a_task_once(open_router: OpenRouter) -> None:
    pair = [open_router(policy=TRAIN), open_router(policy=TRAIN)]
    assert pair[0].parts.owner != pair[1].parts.owner
    start = threading.Barrier(2)

    def ask(agent: Router) -> Receipt:
        start.wait()
        return agent.ask(TASK, QUERIES)

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(ask, pair))
    tokens = [s.detail.get("tokens", 0) for r in both if (s := r.step("train")) is not None]
    assert sum(t > 0 for t in tokens) == 1 and both[0].answers == both[1].answers


def test_an_adapter_published_between_look_up_and_training_is_used(open_router: OpenRouter) -> None:
    """One caller has looked up in vain and decided; before it trains, another trains and publishes."""
    agent = open_router(policy=TRAIN)

    async def late() -> tuple[Receipt, Receipt]:
        slow = agent.astream(TASK, QUERIES)
        async for event in slow:
            if isinstance(event, Decided):
                break
        quick = await agent.aask(TASK, QUERIES)
        last = [event async for event in slow][-1]
        assert isinstance(last, Done)
        return quick, last.receipt

    quick, slow = agent.run(late())
    assert detail(quick, "train")["tokens"] > 0
    assert "another caller" in detail(slow, "train")["found"]
    assert slow.answers == quick.answers and slow.arm == "train:quick"
    assert detail(slow, "guard")["accepted"]


def test_waiting_for_somebody_elses_training_can_be_cancelled(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reuse, "POLL_S", 0.01)
    agent = open_router(policy=TRAIN)
    name = f"train:{key_of(agent, TASK).hash}"
    held = agent.parts.store.leases.acquire(name, "somebody else", 60.0)
    assert held is not None
    receipt = fell_back(agent, stream_until(agent, lambda e: isinstance(e, Decided)))
    assert "Waiting for another caller's training was cancelled" in receipt.fallback
    agent.parts.store.leases.renew(held)  # still theirs: nothing raised


def test_the_lease_of_a_dead_owner_is_taken_over(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reuse, "POLL_S", 0.01)
    agent = open_router(policy=TRAIN)
    agent.parts.store.leases.acquire(f"train:{key_of(agent, TASK).hash}", "dead", 0.3)
    assert detail(agent.ask(TASK, QUERIES), "train")["tokens"] > 0


def test_tasks_at_once_do_not_answer_through_each_others_adapters(
    open_router: OpenRouter, tmp_path: Path
) -> None:
    tasks = [TASK, ok_task(6, "no way"), ok_task(5, "0 1 2")]
    alone = [open_router(data_dir=tmp_path / str(i)).ask(t, QUERIES, arm="ttt") for i, t in enumerate(tasks)]
    agent = open_router()
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda t: agent.ask(t, QUERIES, arm="ttt"), tasks))
    for one, other in zip(alone, together, strict=True):
        assert other.texts == one.texts
        for a, b in zip(one.answers, other.answers, strict=True):  # shared passes round otherwise
            assert b.logprob == pytest.approx(a.logprob, abs=5e-3)
    said = [r.answers[0].logprob for r in alone]
    assert min(abs(a - b) for a, b in combinations(said, 2)) > 0.03, "each adapter says something else"
    assert len({r.adapter for r in together}) == 3


def test_a_listener_that_leaves_stops_the_training_and_gives_the_lease_back(
    open_router: OpenRouter, pristine: str
) -> None:
    agent = open_router()

    async def leave() -> None:
        stream: Any = agent.astream(TASK, QUERIES, arm="ttt", recipe="long")
        async for event in stream:
            if isinstance(event, TrainingStep):
                break
        await stream.aclose()

    agent.run(leave())
    for event in agent.stream(TASK, QUERIES, arm="ttt", recipe="long"):
        if isinstance(event, TrainingStep):
            break  # the synchronous stream's end waits for the work to end
    assert base_hash(agent) == pristine
    name = f"train:{key_of(agent, TASK, LONG).hash}"
    assert agent.parts.store.leases.acquire(name, "next", 1.0) is not None


# What is looked at before deciding


class Watching:
    """A policy that keeps what it was asked and stays."""

    version = "watching-1"
    reads = MEASURED

    def __init__(self) -> None:
        self.seen: list[Situation] = []

    def decide(self, situation: Situation) -> Decision:
        self.seen.append(situation)
        return Decision("answer", "icl", 1.0, None, None, 0.0, "It only watches.", self.version)


def test_the_policy_sees_feasible_arms_costs_and_worth(open_router: OpenRouter) -> None:
    policy = Watching()
    agent = open_router(policy=policy)
    agent.ask(TASK, QUERIES, worth_s=12.0, expected_repeats=40)
    before, measured = policy.seen
    assert before.signals.loo_accuracy is None and measured.signals.loo_accuracy is not None
    assert measured.feasible == ("icl", "train:quick") and measured.probe_feasible
    assert measured.worth_s == 12.0 and measured.signals.expected_repeats == 40
    assert measured.signals.n_demonstrations == 6 and measured.signals.n_queries == 3
    assert min(measured.costs.probe_s, measured.costs.train_s, measured.costs.answer_s) > 0
    agent.ask(ok_task(2), QUERIES)
    assert not policy.seen[-1].probe_feasible


def test_duplicates_and_contradictions_are_told_in_the_notes(open_router: OpenRouter) -> None:
    odd = (*TASK.demonstrations, TASK.demonstrations[0], Demonstration("cd", "no"))
    got = open_router().ask(replace(TASK, demonstrations=odd), QUERIES, arm="icl")
    assert "1 duplicate demonstration(s) dropped, 7 left." in got.notes
    assert any("Contradiction" in note for note in got.notes)


def test_more_demonstrations_than_fit_are_told_in_the_notes(open_router: OpenRouter) -> None:
    many = tuple(Demonstration(f"{i:03d} " * 12, "ok") for i in range(40))
    got = open_router().ask(Task(many), QUERIES, arm="icl")
    shown = detail(got, "icl")["demonstrations"]
    assert 0 < shown < 40 and any(f"shows {shown} of 40 demonstrations" in note for note in got.notes)


def test_a_demonstration_beyond_the_context_costs_signals_not_the_answers(open_router: OpenRouter) -> None:
    huge = Demonstration("0 1 2 3 " * 400, "ok")
    agent = open_router(policy=TRUSTING)
    got = agent.ask(replace(TASK, demonstrations=(*TASK.demonstrations, huge)), QUERIES)
    assert got.arm == "icl" and len(got.answers) == 3
    assert any("6 of 7 demonstrations" in note for note in got.notes)
    assert any("Leave-one-out was not measured" in note for note in got.notes)


def test_an_adapter_is_kept_under_its_whole_key(open_router: OpenRouter) -> None:
    agent = open_router()
    first = agent.ask(TASK, QUERIES, arm="ttt", recipe="other", seed=3)
    row = agent.parts.store.adapters.find(key_of(agent, TASK, OTHER, 3))
    assert row is not None and row.content_hash == first.adapter and not row.accepted
    assert row.report["losses"][-1] == detail(first, "train")["last_loss"]
    assert len(set(row.demonstration_hashes)) == 6
