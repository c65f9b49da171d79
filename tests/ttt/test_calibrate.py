"""Calibrated labels: the published correction by hand, the prior from content-free inputs, queries apart."""

from __future__ import annotations

import math

import pytest
import torch

from tests.ttt.test_icl import plain_logprob, prompt
from ttt.calibrate import CONTENT_FREE, answer_calibrated, labels_of
from ttt.engine import Engine
from ttt.errors import Cancelled
from ttt.prompts import PromptFormat
from ttt.task import Demonstration, Query, Task

WORDS = ("yes", "no", "it is the one")
TASK = Task(tuple(Demonstration(f"in {i}", WORDS[i % 3]) for i in range(9)), "Choose.")
QUERIES = [Query(f"ask {i * i}") for i in range(5)]
OPTIONS = "Which?\nOptions:\n(A) one\n(B) two"


def lettered(n: int) -> Task:
    """Questions of two and of three options in turn."""
    third = ("", "\n(C) three")
    return Task(
        tuple(Demonstration(f"{i} {OPTIONS}{third[i % 2]}", "(A)" if i % 2 else "(B)") for i in range(n))
    )


async def test_labels_are_chosen_by_their_probability_over_the_prior(loud_engine: Engine) -> None:
    """By hand: every label after every question is run by itself through the model's own code."""
    loaded = loud_engine.loaded
    fmt = PromptFormat(loaded.tokenizer, TASK)

    def logprobs(question: str) -> list[float]:
        ids = [*fmt.head(), *(t for d in TASK.demonstrations for t in fmt.segment(d).ids)]
        found = []
        for label in sorted(WORDS):
            tokens = [*fmt.answer(label), fmt.ending[0]]
            found.append(len(tokens) * plain_logprob(loaded, [*ids, *fmt.question(question)], tokens))
        return found

    free = torch.tensor([logprobs(text) for text in CONTENT_FREE]).softmax(-1).mean(0)  # (labels,)
    got = await answer_calibrated(loud_engine, TASK, QUERIES)
    assert list(got.prior) == sorted(WORDS)
    assert list(got.prior.values()) == pytest.approx(free.tolist(), rel=1e-3)
    assert got.result.prompt_tokens == len(prompt(loaded, TASK, "")) - len(fmt.head()) - len(fmt.question(""))
    for query, answer in zip(QUERIES, got.result.answers, strict=True):
        own = logprobs(query.input)
        lead = [p - math.log(q) for p, q in zip(own, free.tolist(), strict=True)]
        best = max(range(3), key=lead.__getitem__)
        assert answer.text == sorted(WORDS)[best] and answer.finished
        assert answer.logprob == pytest.approx(own[best], rel=1e-3, abs=1e-3)
        assert answer.margin == pytest.approx(sorted(lead)[-1] - sorted(lead)[-2], rel=1e-2, abs=1e-2)


async def test_queries_do_not_look_at_one_another(llama_engine: Engine) -> None:
    together = await answer_calibrated(llama_engine, TASK, QUERIES)
    for query, answer in zip(QUERIES, together.result.answers, strict=True):
        alone = await answer_calibrated(llama_engine, TASK, [query])
        assert alone.result.answers[0].text == answer.text and alone.prior == pytest.approx(together.prior)


async def test_a_question_is_answered_by_one_of_its_own_options(llama_engine: Engine) -> None:
    task = lettered(6)
    assert labels_of(task) == ("(A)", "(B)", "(C)")
    got = await answer_calibrated(llama_engine, task, [Query(f"{i} {OPTIONS}") for i in range(6)])
    assert {a.text for a in got.result.answers} <= {"(A)", "(B)"} and set(got.prior) == {"(A)", "(B)", "(C)"}


async def test_a_question_that_only_looks_like_options_may_have_any_label(loud_engine: Engine) -> None:
    """Labels are no letters here, so a list in a query takes none of them away."""
    plain, listed = Query("ask 4"), Query("ask 4\nOptions:\n(A) one\n(B) two")
    got = await answer_calibrated(loud_engine, TASK, [plain, listed])
    margins = [answer.margin for answer in got.result.answers]
    alone = await answer_calibrated(loud_engine, TASK, [listed])
    fmt = PromptFormat(loud_engine.loaded.tokenizer, TASK)
    ids = [*fmt.head(), *(t for d in TASK.demonstrations for t in fmt.segment(d).ids)]
    lead = []
    for label, share in got.prior.items():
        tokens = [*fmt.answer(label), fmt.ending[0]]
        own = plain_logprob(loud_engine.loaded, [*ids, *fmt.question(listed.input)], tokens)
        lead.append(len(tokens) * own - math.log(share))
    best = max(range(3), key=lead.__getitem__)
    assert alone.result.answers[0].text == list(got.prior)[best] and len(margins) == 2


def test_free_outputs_have_no_labels() -> None:
    assert labels_of(TASK) == tuple(sorted(WORDS))
    assert labels_of(Task((Demonstration("a", "b"), Demonstration("c", "d")))) == ()
    assert labels_of(Task()) == ()


async def test_a_task_without_labels_is_refused(llama_engine: Engine) -> None:
    with pytest.raises(ValueError, match="no closed set"):
        await answer_calibrated(llama_engine, Task((Demonstration("a", "b"),)), QUERIES)


async def test_calibrating_can_be_cancelled(llama_engine: Engine) -> None:
    with pytest.raises(Cancelled):
        await answer_calibrated(llama_engine, TASK, QUERIES, should_stop=lambda: True)
