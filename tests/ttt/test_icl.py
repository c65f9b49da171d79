"""Answers in context: each as if asked alone, judged demonstrations unseen by their contexts, limits kept."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ttt.conftest import SMALL, babble, letters_task, load_tiny
from ttt import icl as icl_module
from ttt.engine import Engine
from ttt.errors import AdapterError, Cancelled, ContextOverflow
from ttt.icl import answer
from ttt.judging import judge, leave_one_out
from ttt.model import LoadedModel
from ttt.prompts import PromptFormat
from ttt.task import Demonstration, Query, Task
from ttt.train import TrainRequest, train_adapter

TASK = letters_task(6)
QUERIES = [Query(x) for x in ("abcd", "dcba", "a", "bbbbccccdddd", "cab", "daddada", "b c", "c\nd")]


def with_context(engine: Engine, n: int) -> Engine:
    """The same engine, as if its model's context held `n` tokens."""
    engine.loaded = replace(engine.loaded, context_length=n)
    return engine


def prompt(loaded: LoadedModel, task: Task, query: str) -> list[int]:
    text = f"{task.instruction}\n\n" if task.instruction else ""
    text += "".join(f"Q: {d.input}\nA: {d.output}\n\n" for d in task.demonstrations) + f"Q: {query}\nA:"
    return list(loaded.tokenizer(text, add_special_tokens=False).input_ids)


def plain_tokens(loaded: LoadedModel, ids: Sequence[int], n: int) -> list[int]:
    model: Any = loaded.model
    given = torch.tensor([list(ids)])
    out = model.generate(
        given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=n, pad_token_id=0
    )
    new: list[int] = out[0, len(ids) :].tolist()
    return new


def plain_logprob(loaded: LoadedModel, ids: Sequence[int], labels: Sequence[int]) -> float:
    """Per token, nats."""
    with torch.inference_mode():
        logits = loaded.model(input_ids=torch.tensor([[*ids, *labels]])).logits[0].float()
    rows = torch.log_softmax(logits[len(ids) - 1 : -1], dim=-1)
    return float(rows.gather(1, torch.tensor(list(labels))[:, None]).mean())


async def test_answers_are_those_of_a_plain_script_with_the_same_prompt(loud_engine: Engine) -> None:
    loaded = loud_engine.loaded
    result = await answer(loud_engine, TASK, QUERIES)
    fmt = PromptFormat(loaded.tokenizer, TASK)
    n = fmt.max_new_tokens(TASK)
    for query, found in zip(QUERIES, result.answers, strict=True):
        text = str(loaded.tokenizer.decode(plain_tokens(loaded, prompt(loaded, TASK, query.input), n)))
        text = text.split("</s>")[0]
        assert found.text == text.split("\n")[0].strip()
        assert found.n_tokens <= n and found.logprob <= 0 and found.margin >= 0
    assert len({a.text for a in result.answers}) > 2
    assert result.n_shown == 6
    assert result.prompt_tokens == len(prompt(loaded, TASK, "")) - len(fmt.head()) - len(fmt.question(""))
    asked = sum(len(fmt.question(q.input)) for q in QUERIES)
    assert result.question_tokens == asked


async def test_answers_do_not_depend_on_what_else_is_asked(
    loud_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = await answer(loud_engine, TASK, QUERIES)
    backwards = await answer(loud_engine, TASK, QUERIES[::-1])
    monkeypatch.setattr(icl_module, "BATCH", 3)
    in_batches = await answer(loud_engine, TASK, QUERIES)
    for i, query in enumerate(QUERIES):
        (alone,) = (await answer(loud_engine, TASK, [query])).answers
        for other in (together.answers[i], backwards.answers[-1 - i], in_batches.answers[i]):
            assert other.text == alone.text
            assert other.logprob == pytest.approx(alone.logprob, abs=1e-3)


async def test_without_demonstrations_the_instruction_and_the_query_are_all_there_is(
    babbling_engine: Engine,
) -> None:
    loaded = babbling_engine.loaded
    for task in (Task(instruction="Say a or b."), Task()):
        result = await answer(babbling_engine, task, QUERIES[:1])
        assert (result.n_shown, result.prompt_tokens) == (0, 0)
        (found,) = result.answers
        new = plain_tokens(loaded, prompt(loaded, task, QUERIES[0].input), found.n_tokens)
        assert found.text == str(loaded.tokenizer.decode(new)).split("\n\n")[0].strip()
        assert found.finished or found.n_tokens == 256


async def test_no_queries_no_answers(llama_engine: Engine) -> None:
    assert (await answer(llama_engine, TASK, [])).answers == ()


async def test_more_demonstrations_than_the_context_holds_are_a_fixed_choice_in_the_given_order(
    llama_engine: Engine,
) -> None:
    loaded = llama_engine.loaded
    task = letters_task(40, seed=1)
    fmt = PromptFormat(loaded.tokenizer, task)
    result = await answer(with_context(llama_engine, 400), task, QUERIES)
    assert 0 < result.n_shown < 40
    longest = max(len(fmt.question(q.input)) for q in QUERIES)
    free = 400 - len(fmt.head()) - longest - fmt.max_new_tokens(task)
    shortest = min(len(fmt.segment(d)) for d in task.demonstrations)
    assert free - shortest < result.prompt_tokens <= free
    again = await answer(llama_engine, task, QUERIES)
    assert again == result


async def test_a_query_that_does_not_fit_is_told_with_its_length(llama_engine: Engine) -> None:
    with pytest.raises(
        ContextOverflow, match=r"longest query takes \d+ tokens .* context holds 100; shorten"
    ):
        await answer(with_context(llama_engine, 100), TASK, [Query("abcd" * 50)])


async def test_a_demonstration_that_does_not_fit_is_told(llama_engine: Engine) -> None:
    task = Task((Demonstration("abcd" * 50, "a"),))
    with pytest.raises(ContextOverflow, match=r"the shortest takes \d+ tokens and \d+ are free"):
        await answer(with_context(llama_engine, 100), task, [Query("a")])


async def test_answering_can_be_cancelled(llama_engine: Engine) -> None:
    with pytest.raises(Cancelled, match="ask again"):
        await answer(llama_engine, TASK, QUERIES, should_stop=lambda: True)


async def test_an_adapter_answers_where_it_is_named_and_only_there(llama_engine: Engine) -> None:
    base = await answer(llama_engine, TASK, QUERIES)
    await train_adapter(llama_engine, TrainRequest(TASK, SMALL, 0, None, "a"), keep=True)
    adapted = await answer(llama_engine, TASK, QUERIES, adapter="a")
    assert [a.logprob for a in adapted.answers] != [a.logprob for a in base.answers]
    assert await answer(llama_engine, TASK, QUERIES) == base
    with pytest.raises(AdapterError, match="No adapter 'b' is attached; attached are: a"):
        await answer(llama_engine, TASK, QUERIES, adapter="b")


async def test_without_context_only_the_instruction_comes_before_the_question(
    babbling_engine: Engine,
) -> None:
    """The answers' form and length are still those of the demonstrations."""
    found = await answer(babbling_engine, TASK, QUERIES, in_context=False)
    shown = await answer(babbling_engine, TASK, QUERIES)
    assert (found.n_shown, found.prompt_tokens, shown.n_shown) == (0, 0, len(TASK.demonstrations))
    loaded = babbling_engine.loaded
    alone = Task((), TASK.instruction)
    budget = PromptFormat(loaded.tokenizer, TASK).max_new_tokens(TASK)
    for query, given in zip(QUERIES, found.answers, strict=True):
        new = plain_tokens(loaded, prompt(loaded, alone, query.input), given.n_tokens)
        assert str(loaded.tokenizer.decode(new)).split("\n")[0].strip() == given.text
        assert given.finished or given.n_tokens == budget


# ------------------------------------------------------------------------------------------- leave one out


def naive_context(task: Task, judged: int, members: list[int] | None = None) -> list[int]:
    """Whom the halving shows before it judges `judged`: the other half first, then that of its own half, …"""
    members = list(range(len(task.demonstrations))) if members is None else members
    if len(members) == 1:
        return []
    middle = len(members) // 2
    halves = (members[:middle], members[middle:])
    own, other = halves if judged in halves[0] else halves[::-1]
    return other + naive_context(task, judged, own)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
async def test_leave_one_out_is_a_plain_pass_over_all_others_for_each(loud_engine: Engine, n: int) -> None:
    task = letters_task(n, seed=2)
    loaded, fmt = loud_engine.loaded, PromptFormat(loud_engine.loaded.tokenizer, task)
    found = await leave_one_out(loud_engine, task)
    assert len(found.correct) == len(found.logprob) == n
    for i, d in enumerate(task.demonstrations):
        others = naive_context(task, i)
        assert sorted([*others, i]) == list(range(n))
        context = replace(task, demonstrations=tuple(task.demonstrations[j] for j in others))
        labels = [*fmt.answer(d.output), fmt.separator[0]]
        expected = plain_logprob(loaded, prompt(loaded, context, d.input), labels)
        assert found.logprob[i] == pytest.approx(expected, abs=1e-4)


async def test_no_context_holds_the_label_of_what_it_judges(loud_engine: Engine) -> None:
    """With another label, a demonstration is judged by the same context: that of the plain pass above."""
    task = letters_task(7, seed=4)
    loaded, fmt = loud_engine.loaded, PromptFormat(loud_engine.loaded.tokenizer, task)
    before = await leave_one_out(loud_engine, task)
    for i, d in enumerate(task.demonstrations):
        changed = list(task.demonstrations)
        changed[i] = Demonstration(d.input, "the one")
        found = await leave_one_out(loud_engine, replace(task, demonstrations=tuple(changed)))
        context = replace(task, demonstrations=tuple(task.demonstrations[j] for j in naive_context(task, i)))
        labels = [*fmt.answer("the one"), fmt.separator[0]]
        expected = plain_logprob(loaded, prompt(loaded, context, d.input), labels)
        assert found.logprob[i] == pytest.approx(expected, abs=1e-4)
        others = [j for j in range(7) if j != i]
        assert any(abs(found.logprob[j] - before.logprob[j]) > 1e-3 for j in others), (
            "it is in their contexts"
        )


async def test_leave_one_out_lets_answers_in_between_its_passes_and_can_be_cancelled_there(
    llama_engine: Engine,
) -> None:
    """Six demonstrations: the head, three levels of contexts and the judging."""
    passes = 0

    def count() -> bool:
        nonlocal passes
        passes += 1
        return passes == 3

    with pytest.raises(Cancelled, match="Leave-one-out was cancelled"):
        await leave_one_out(llama_engine, TASK, should_stop=count)
    assert passes == 3
    ran: list[int] = []

    def ask() -> bool:
        llama_engine.submit(lambda bench: ran.append(1))
        return False

    found = await leave_one_out(llama_engine, TASK, should_stop=ask)
    assert found == await leave_one_out(llama_engine, TASK) and len(ran) == 5


async def test_leave_one_out_of_nothing_is_nothing(llama_engine: Engine) -> None:
    assert (await leave_one_out(llama_engine, Task())).correct == ()


async def test_leave_one_out_keeps_to_the_context(
    llama_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ttt import tree

    deepest = 0
    forward = tree.TokenTree._forward

    def spy(self: tree.TokenTree, ids: Any, nodes: Any, positions: list[int], keep: Any) -> torch.Tensor:
        nonlocal deepest
        deepest = max(deepest, *positions)
        return forward(self, ids, nodes, positions, keep)

    monkeypatch.setattr(tree.TokenTree, "_forward", spy)
    found = await leave_one_out(with_context(llama_engine, 200), letters_task(30))
    assert len(found.correct) == 30
    assert 100 < deepest < 200


async def test_what_is_answered_is_judged_correct_and_anything_else_is_not(tiny_qwen2: Path) -> None:
    """Only answers whose text is tokenised as it was decoded count: other tokens are another answer."""
    engine = Engine(babble(load_tiny(tiny_qwen2), (" o", "b", ":", "\n")))
    rng = random.Random(0)
    n_right = 0
    for seed in range(10):
        task = letters_task(2, seed=seed)
        queries = [Query("".join(rng.choices("abcdefgh", k=6))) for _ in range(6)]
        result = await answer(engine, task, queries)
        fmt = PromptFormat(engine.loaded.tokenizer, task)
        for query, given in zip(queries, result.answers, strict=True):
            decoded = plain_tokens(engine.loaded, prompt(engine.loaded, task, query.input), given.n_tokens)
            if decoded != [*fmt.answer(given.text), fmt.separator[0]]:
                continue
            n_right += 1
            held_out = [Demonstration(query.input, given.text + more) for more in ("", "b", " o")]
            judged = await judge(engine, task, held_out, adapter=None)
            assert judged.correct == (True, False, False)
            assert judged.logprob[0] == pytest.approx(given.logprob_per_token, abs=1e-3)
    assert n_right >= 5
    engine.close()


async def test_judging_is_a_plain_pass_after_the_other_demonstrations(loud_engine: Engine) -> None:
    loaded = loud_engine.loaded
    held_out = letters_task(3, seed=9).demonstrations
    found = await judge(loud_engine, TASK, held_out, adapter=None)
    fmt = PromptFormat(loaded.tokenizer, TASK)
    for i, d in enumerate(held_out):
        labels = [*fmt.answer(d.output), fmt.separator[0]]
        expected = plain_logprob(loaded, prompt(loaded, TASK, d.input), labels)
        assert found.logprob[i] == pytest.approx(expected, abs=1e-4)
