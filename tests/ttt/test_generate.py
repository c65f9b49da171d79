"""Decoding below a shared prefix is plain greedy decoding, and scoring agrees with decoding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.ttt.conftest import load_tiny, tree_of
from ttt import generate
from ttt.generate import Known, Score, Stopper, decode, grow, score
from ttt.model import LoadedModel
from ttt.tree import Append, TokenTree

BUDGET = 14


def tokens(n: int, seed: int) -> list[int]:
    return torch.randint(3, 250, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def plain(loaded: LoadedModel, prompt: Sequence[int], n: int = BUDGET) -> list[int]:
    """New tokens by transformers alone, up to and with an end token."""
    ids = torch.tensor([list(prompt)])
    mask = torch.ones_like(ids)
    given = loaded.model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=n, pad_token_id=0)  # type: ignore[operator]
    new: list[int] = given[0, len(prompt) :].tolist()
    return new


def logprobs(loaded: LoadedModel, prompt: Sequence[int], new: Sequence[int]) -> torch.Tensor:
    """(new, vocabulary) log-probabilities of a full pass."""
    with torch.inference_mode():
        logits = loaded.model(input_ids=torch.tensor([[*prompt, *new]])).logits[0]
    return torch.log_softmax(logits[len(prompt) - 1 : -1].float(), dim=-1)


@pytest.fixture
def loud(tiny_model: Path) -> LoadedModel:
    """Each architecture with weights large enough that what it says depends on the prompt."""
    loaded = load_tiny(tiny_model)
    with torch.no_grad():
        for weight in loaded.model.parameters():
            if weight.dim() == 2:
                weight.mul_(6)
    return loaded


def test_decoding_is_plain_greedy_decoding_row_by_row(loud: LoadedModel) -> None:
    prefix = tokens(30, 0)
    questions = [tokens(n, n) for n in (3, 11, 6, 1, 25)]
    stopper = Stopper(loud.tokenizer, ("never said",), loud.eos_ids)
    tree = tree_of(loud)
    node = grow(tree, TokenTree.ROOT, prefix)
    found = decode(tree, [(node, q) for q in questions], stopper, BUDGET)
    said = set()
    for question, row in zip(questions, found, strict=True):
        new = plain(loud, prefix + question)
        said.update(new)
        ended = new[-1] in loud.eos_ids
        assert row.text == loud.tokenizer.decode(new[:-1] if ended else new)
        assert (row.n_tokens, row.finished) == (len(new), ended)
        top = logprobs(loud, prefix + question, new).topk(2, dim=-1).values
        assert row.logprob == pytest.approx(float(top[:, 0].sum()), abs=1e-3)
        assert row.margin == pytest.approx(float((top[:, 0] - top[:, 1]).mean()), abs=1e-3)
    assert len(said) > 3, "a model that says one thing proves little"


@pytest.mark.parametrize("stop", [("\n",), ("b:",), ("\n\n", "a\n")])
def test_a_row_ends_at_its_first_stop_string_and_the_others_go_on(
    babbler: LoadedModel, stop: tuple[str, ...]
) -> None:
    questions = [tokens(8, seed) for seed in range(12)]
    tree = tree_of(babbler)
    stopper = Stopper(babbler.tokenizer, stop, babbler.eos_ids)
    rows = decode(tree, [(TokenTree.ROOT, q) for q in questions], stopper, BUDGET)
    for question, row in zip(questions, rows, strict=True):
        whole = str(babbler.tokenizer.decode(plain(babbler, question)))
        ends = [whole.index(s) for s in stop if s in whole]
        assert row.text == whole[: min(ends, default=len(whole))]
        assert row.finished == bool(ends)
        assert row.n_tokens <= BUDGET
        if ends:  # every token of this model is one character
            assert row.n_tokens == min(whole.index(s) + len(s) for s in stop if s in whole)
    assert {row.finished for row in rows} == {True, False}


def test_an_end_token_ends_a_row(loud: LoadedModel) -> None:
    prompt = tokens(9, 4)
    new = plain(loud, prompt)
    last = next(i for i in range(len(new) - 1, -1, -1) if new[i] not in new[:i])
    tree = tree_of(loud)
    (row,) = decode(tree, [(TokenTree.ROOT, prompt)], Stopper(loud.tokenizer, (), [new[last]]), BUDGET)
    assert row.finished and row.n_tokens == last + 1
    assert row.text == loud.tokenizer.decode(new[:last])


def test_decoding_stops_early_when_told_to(babbler: LoadedModel) -> None:
    answers = iter([False, False, True, True])
    tree = tree_of(babbler)
    stopper = Stopper(babbler.tokenizer, ("never said",), babbler.eos_ids)
    (row,) = decode(tree, [(TokenTree.ROOT, tokens(8, 0))], stopper, BUDGET, lambda: next(answers))
    assert row.n_tokens == 2 and not row.finished


def scored(loaded: LoadedModel, prompt: Sequence[int], known: Known, stop: tuple[str, ...]) -> Score:
    tree = tree_of(loaded)
    parent = grow(tree, TokenTree.ROOT, prompt[:-1])
    known = replace(known, question=list(prompt[-1:]))
    (found,) = score(tree, [(parent, known)], Stopper(loaded.tokenizer, stop, loaded.eos_ids))
    return found


@pytest.mark.parametrize("stop", ["\n", "b:", ":b"])
def test_what_decoding_gave_is_scored_as_greedy_and_anything_else_is_not(
    babbler: LoadedModel, stop: str
) -> None:
    def ids(text: str) -> list[int]:
        return [int(i) for i in itertools.chain(*(babbler.tokenizer(c).input_ids for c in text))]

    finished, lines = 0, 0
    for seed in range(40):
        prompt = tokens(8, seed)
        whole = str(babbler.tokenizer.decode(plain(babbler, prompt)))
        text, found, _ = whole.partition(stop)
        if not found or not text:
            continue
        finished += 1
        lines += "\n" in text
        answer = ids(text)
        right = scored(babbler, prompt, Known((), answer, ids(stop)), (stop,))
        assert right.greedy
        given = logprobs(babbler, prompt, answer + ids(stop))[: len(answer) + 1]
        labels = torch.tensor([*answer, ids(stop)[0]])
        assert right.n_tokens == len(answer) + 1
        assert right.logprob == pytest.approx(float(given.gather(1, labels[:, None]).sum()), abs=1e-3)
        assert right.logprob_per_token == right.logprob / right.n_tokens
        for other in (answer[:-1], [*answer, answer[0]], [*answer[:-1], ids("Q")[0]]):
            if other:
                assert not scored(babbler, prompt, Known((), other, ids(stop)), (stop,)).greedy
    assert finished >= 5
    assert lines >= 2 or stop == "\n"


def test_index_hints_do_not_count_in_a_score(babbler: LoadedModel) -> None:
    prompt, answer = tokens(8, 0), list(tokens(5, 3))
    given = logprobs(babbler, prompt, [*answer, 7])
    found = scored(babbler, prompt, Known((), answer, [7], hints=(0, 3)), ("never said",))
    labels = torch.tensor([*answer, 7])
    each = given.gather(1, labels[:, None])[:, 0]
    assert found.n_tokens == 4
    assert found.logprob == pytest.approx(float(each[[1, 2, 4, 5]].sum()), abs=1e-3)


def test_an_answer_that_decoding_would_not_end_is_not_greedy(babbler: LoadedModel) -> None:
    prompt = tokens(8, 0)
    new = plain(babbler, prompt)
    ended = scored(babbler, prompt, Known((), new[:4], new[4:6]), ("never said",))
    assert ended.greedy, "the terminator in full is the end"
    assert not scored(babbler, prompt, Known((), new[:4], [*new[4:5], 77]), ("never said",)).greedy


def test_many_answers_below_several_parents_are_scored_as_if_alone(loud: LoadedModel) -> None:
    stopper = Stopper(loud.tokenizer, ("\n",), loud.eos_ids)
    tree = tree_of(loud)
    parents = [tokens(20, 1), tokens(7, 2)]
    nodes = [grow(tree, TokenTree.ROOT, p) for p in parents]
    known = [Known(tokens(5, 10 + i), tokens(3, 20 + i), tokens(2, 30 + i)) for i in range(6)]
    together = score(tree, [(nodes[i % 2], k) for i, k in enumerate(known)], stopper)
    for i, k in enumerate(known):
        labels = [*k.answer, k.terminator[0]]
        each = logprobs(loud, [*parents[i % 2], *k.question], labels)
        expected = float(each.gather(1, torch.tensor(labels)[:, None]).sum())
        assert together[i].logprob == pytest.approx(expected, abs=1e-3)
        assert together[i].n_tokens == 4


def test_answers_scored_a_few_at_a_time_score_as_all_at_once(
    loud: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopper = Stopper(loud.tokenizer, ("\n",), loud.eos_ids)
    tree = tree_of(loud)
    node = grow(tree, TokenTree.ROOT, tokens(20, 1))
    items = [(node, Known(tokens(5, 10 + i), tokens(1 + i, 20 + i), tokens(2, 30 + i))) for i in range(6)]
    mark = tree.mark()
    whole = score(tree, items, stopper)
    tree.rewind(mark)
    monkeypatch.setattr(generate, "KEPT_BYTES", 4 * tree.vocabulary * 9)  # two answers or one at a time
    passes, real = [], tree.append

    def append(asked: Sequence[Append]) -> list[torch.Tensor]:
        passes.append(sum(a.keep for a in asked))
        return real(asked)

    monkeypatch.setattr(tree, "append", append)
    parts = score(tree, items, stopper)
    assert len(passes) > 2 and max(passes) <= 9
    for one, other in zip(parts, whole, strict=True):
        assert (one.n_tokens, one.greedy) == (other.n_tokens, other.greedy)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


def test_single_tokens_that_end_an_answer_are_known(babbler: LoadedModel) -> None:
    stopper = Stopper(babbler.tokenizer, ("\n",), [2])
    newline = babbler.tokenizer("\n").input_ids[0]
    assert stopper.ends(newline) and stopper.ends(2)
    assert not stopper.ends(babbler.tokenizer("a").input_ids[0])
