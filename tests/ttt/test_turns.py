"""Demonstrations as turns of a chat: the template's own words in pieces, and answers as if it had written it all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.conftest import CHAT_TEMPLATE
from tests.ttt.conftest import SMALL, letters_task, load_tiny
from tests.ttt.test_icl import plain_tokens
from ttt.engine import Engine
from ttt.errors import TaskError
from ttt.icl import answer
from ttt.judging import judge, leave_one_out
from ttt.measure import task_size
from ttt.prompts import PromptFormat
from ttt.task import Demonstration, Query, Task
from ttt.train import TrainRequest, train_adapter
from ttt.turns import Turns, turns_of

TASK = letters_task(5)
NO_SYSTEM = (
    "<s>{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
FORGETS = "{% for m in messages[-2:] %}{{ m['content'] }}{% endfor %}"
COUNTS = "{% for m in messages %}{{ loop.index }}: {{ m['content'] }}\n{% endfor %}"


@pytest.fixture
def tokenizer(tiny_chat: Path) -> PreTrainedTokenizerFast:
    made: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(tiny_chat)
    return made


@pytest.fixture
def chatty(tiny_chat: Path) -> Iterator[Engine]:
    """An engine whose prompts are turns, over weights so large that what it says hangs on the prompt."""
    import torch

    loaded = load_tiny(tiny_chat)
    with torch.no_grad():
        for weight in loaded.model.parameters():
            if weight.dim() == 2:
                weight.mul_(6)
    engine = Engine(replace(loaded, as_turns=True))
    yield engine
    engine.close()


def test_a_template_comes_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    cut = Turns(("<s>system: ", "</s><s>user: "), "</s><s>assistant:", " ", "</s><s>user: ")
    assert turns_of(tokenizer, True) == cut
    assert turns_of(tokenizer, False) == replace(cut, opening=("<s>user: ",))


def test_a_template_without_a_system_message_has_the_instruction_before_the_first_question(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = NO_SYSTEM
    cut = turns_of(tokenizer, True)
    assert cut == Turns(("<s>[user] ", "\n\n"), "\n[assistant] ", "", "\n[user] ")


@pytest.mark.parametrize(
    "template,told",
    [(FORGETS, "does not keep all texts"), (COUNTS, "earlier turns otherwise"), (None, "no chat template")],
)
def test_a_template_that_can_not_be_cut_is_refused(
    tokenizer: PreTrainedTokenizerFast, template: str | None, told: str
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(TaskError, match=f"{told}.*prompt"):
        turns_of(tokenizer, False)


def conversation(tokenizer: Any, task: Task, query: str) -> str:
    """The template's own rendering."""
    messages = [{"role": "system", "content": task.instruction}] if task.instruction else []
    for d in task.demonstrations:
        messages += [{"role": "user", "content": d.input}, {"role": "assistant", "content": d.output}]
    messages.append({"role": "user", "content": query})
    text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text


@pytest.mark.parametrize("instruction", ["", "Give two letters."])
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, NO_SYSTEM])
def test_pieces_together_are_what_the_template_writes(
    tokenizer: PreTrainedTokenizerFast, template: str, instruction: str
) -> None:
    tokenizer.chat_template = template
    task = replace(TASK, instruction=instruction)
    fmt = PromptFormat(tokenizer, task, as_turns=True)
    ids = [*fmt.head(), *(t for d in task.demonstrations for t in fmt.segment(d).ids), *fmt.question("dcba")]
    if instruction and template == NO_SYSTEM:
        first = replace(task.demonstrations[0], input=f"{instruction}\n\n{task.demonstrations[0].input}")
        task = Task((first, *task.demonstrations[1:]))
    expected = conversation(tokenizer, task, "dcba")
    assert tokenizer.decode(ids) == expected and fmt.template == "turns1"
    assert ids.count(tokenizer.bos_token_id) == expected.count("<s>")


def test_special_tokens_that_a_text_spells_out_stay_text(tokenizer: PreTrainedTokenizerFast) -> None:
    task = Task((Demonstration("a</s><s>b", "x</s>"), Demonstration("c", "d")), "<s>Say.")
    fmt = PromptFormat(tokenizer, task, as_turns=True)
    segment = fmt.segment(task.demonstrations[0])
    assert tokenizer.eos_token_id not in segment.answer
    assert segment.question.count(tokenizer.eos_token_id) == 1, "the template's own"
    assert fmt.head().count(tokenizer.bos_token_id) == 2


async def test_answers_are_those_after_the_templates_own_prompt(chatty: Engine) -> None:
    loaded = chatty.loaded
    queries = ["abcd", "dcba", "aabb"]
    result = await answer(chatty, TASK, [Query(q) for q in queries])
    fmt = PromptFormat(loaded.tokenizer, TASK, as_turns=True)
    assert fmt.stop == ("</s>",)
    for query, got in zip(queries, result.answers, strict=True):
        ids = loaded.tokenizer(
            conversation(loaded.tokenizer, TASK, query), add_special_tokens=False
        ).input_ids
        said = plain_tokens(loaded, ids, fmt.max_new_tokens(TASK))
        assert got.text == fmt.parse(str(loaded.tokenizer.decode(said[: got.n_tokens])))


async def test_all_that_rests_on_prompts_takes_turns(chatty: Engine) -> None:
    plain = replace(chatty.loaded, as_turns=False)
    turns = await leave_one_out(chatty, TASK)
    report = await train_adapter(chatty, TrainRequest(TASK, SMALL, 0, None, "x"), keep=True)
    after = await judge(chatty, TASK, TASK.demonstrations[:2], adapter="x")
    assert report.losses[-1] < report.losses[0] and task_size(chatty, TASK, []).template == "turns1"
    chatty.loaded = plain
    assert (await leave_one_out(chatty, TASK)).logprob != turns.logprob
    assert (await judge(chatty, TASK, TASK.demonstrations[:2], adapter="x")).logprob != after.logprob
    assert task_size(chatty, TASK, []).template == "qa1"


async def test_a_task_without_demonstrations_is_asked_as_ever(chatty: Engine) -> None:
    bare = replace(TASK, demonstrations=())
    turns = await answer(chatty, bare, [Query("abcd")])
    chatty.loaded = replace(chatty.loaded, as_turns=False)
    assert (await answer(chatty, bare, [Query("abcd")])).answers == turns.answers
