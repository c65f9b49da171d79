"""Several views answered together: the same as one by one, turned back, counted, and voted on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.ttt.conftest import SMALL, babble, letters_task, load_tiny
from ttt import icl
from ttt.augment import AUGMENTATIONS, View, identity, space
from ttt.engine import Engine
from ttt.errors import Cancelled, TaskError
from ttt.icl import Answer, ICLResult, answer
from ttt.task import Demonstration, Query, Task
from ttt.train import TrainRequest, train_adapter
from ttt.transforms import Labels, Scale, Symbols, Symmetry
from ttt.views import answer_views, consistency, draw_views, gather_views, vote_answers
from ttt.vote import Vote, plurality

TASK = letters_task(6)
QUERIES = [Query(x) for x in ("abcd", "dcba", "a", "bbbbccccdddd", "cab", "daddada", "b c", "c\nd")]
CELLS = Task(tuple(Demonstration(f"0 0 {i}", f"{i} 0 0") for i in range(1, 5)))
VIEWS = [
    identity(6),
    View((2, 0, 1, 5, 4, 3), (Symbols((("a", "b"), ("b", "a"))),)),
    View((5, 4, 3, 2, 1, 0)),
]


@pytest.fixture
def digit_engine(tiny_qwen2: Path) -> Iterator[Engine]:
    """Says rows of 0 and 1 that seldom are rectangles."""
    engine = Engine(babble(load_tiny(tiny_qwen2), ("0", "1", "\n", ":")))
    yield engine
    engine.close()


def count_forward_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    from ttt.tree import TokenTree

    passes: list[int] = []
    forward = TokenTree._forward

    def spy(self: TokenTree, ids: Any, *rest: Any) -> Any:
        passes.append(len(ids))
        return forward(self, ids, *rest)

    monkeypatch.setattr(TokenTree, "_forward", spy)
    return passes


async def test_views_in_one_tree_answer_as_each_by_itself(
    loud_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without an adapter; and together they take fewer passes."""
    await train_adapter(loud_engine, TrainRequest(TASK, SMALL, 0, None, "a"), keep=True)
    for adapter in (None, "a"):
        passes = count_forward_passes(monkeypatch)
        together = await answer_views(loud_engine, TASK, QUERIES, VIEWS, adapter=adapter)
        n_together = len(passes)
        for view, found in zip(VIEWS, together, strict=True):
            shown = [view.query(q) for q in QUERIES]
            alone = await answer(loud_engine, view.task(TASK), [q for q in shown if q], adapter=adapter)
            assert found.not_shown == found.not_inverted == 0
            for query, a, b in zip(QUERIES, found.answers, alone.answers, strict=True):
                assert a is not None and a.text == view.invert(b.text, query.input)
                assert a.logprob == pytest.approx(b.logprob, abs=1e-3)
        assert n_together < len(passes) - n_together
        monkeypatch.undo()


async def test_many_queries_go_view_by_view(loud_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is full without a second view, whose keys would only be in the way."""
    made: list[int] = []
    real = icl.Prefixes.__init__

    def spy(self: Any, bench: Any, fmt: Any, prefixes: Any, *more: Any) -> None:
        made.append(len(prefixes))
        real(self, bench, fmt, prefixes, *more)

    monkeypatch.setattr(icl.Prefixes, "__init__", spy)
    await answer_views(loud_engine, TASK, QUERIES[:1] * 17, VIEWS)
    await answer_views(loud_engine, TASK, QUERIES[:1] * 16, VIEWS)
    assert made == [1, 1, 1, 2, 1]


async def test_predictions_that_can_not_be_turned_back_are_counted(digit_engine: Engine) -> None:
    task = Task(tuple(Demonstration(f"0 {i}\n1 1", f"{i} 0\n1 1") for i in range(1, 5)))
    queries = [Query("0 7\n1 1"), Query("no cells"), Query("8 8\n0 1"), Query("1 2\n3")]
    views = [identity(4), View((0, 1, 2, 3), (Symmetry("transpose"),)), View((3, 2, 1, 0), (Scale(True),))]
    plain, transposed, scaled = await answer_views(digit_engine, task, queries, views)
    assert (plain.not_shown, plain.not_inverted) == (0, 0) and None not in plain.answers
    assert (transposed.not_shown, scaled.not_shown) == (2, 1)
    assert scaled.answers[1] is None and scaled.not_inverted > 0, "what it says is not of two by two blocks"
    for found in (transposed, scaled):
        assert found.answers.count(None) == found.not_shown + found.not_inverted


async def test_a_view_that_can_show_no_query_is_not_run(digit_engine: Engine) -> None:
    views = [View((0, 1, 2, 3), (Symmetry("mirror"),))]
    (found,) = await answer_views(digit_engine, CELLS, [Query("no cells")], views)
    assert found.answers == (None,) and (found.not_shown, found.not_inverted) == (1, 0)


async def test_the_plain_view_may_be_asked_in_the_same_passes(babbling_engine: Engine) -> None:
    plain = await answer(babbling_engine, TASK, QUERIES)
    before, _ = await gather_views(babbling_engine, TASK, QUERIES, plain, 3, seed=3)
    together, left_out = await gather_views(babbling_engine, TASK, QUERIES, None, 3, seed=3)
    assert [f.view for f in together] == [f.view for f in before] and len(together) == 3 and not left_out
    for one, other in zip(before, together, strict=True):
        assert [a and a.text for a in one.answers] == [a and a.text for a in other.answers]


async def test_votes_are_those_of_the_views(babbling_engine: Engine) -> None:
    plain = await answer(babbling_engine, TASK, QUERIES)
    voted = await vote_answers(babbling_engine, TASK, QUERIES, plain, 4, seed=3)
    views = draw_views(TASK, ("order",), 3, random.Random(3))
    found = await answer_views(babbling_engine, TASK, QUERIES, views)
    assert voted.rule == "plurality" and voted.views == ("plain", "order", "order", "order")
    assert (voted.not_inverted, voted.not_shown, voted.left_out) == (0, 0, ())
    for i, given in enumerate(voted.answers):
        said = [a for f in found if (a := f.answers[i]) is not None] + [plain.answers[i]]
        assert given.text == plurality(Vote(a.text, a.logprob, a.n_tokens) for a in said)
        assert given.logprob == max(a.logprob for a in said if a.text == given.text)
    assert voted.changed == sum(a.text != b.text for a, b in zip(voted.answers, plain.answers, strict=True))


async def test_views_overrule_a_plain_answer_that_none_of_them_gives(llama_engine: Engine) -> None:
    queries = [Query("0 7 0"), Query("0 0 8")]
    real = await answer(llama_engine, CELLS, queries)
    odd = replace(real, answers=(Answer("9 9 9", -0.1, 3, 1.0, True), real.answers[1]))
    voted = await vote_answers(llama_engine, CELLS, queries, odd, 5, augmentations=("order",))
    assert voted.rule == "hierarchical"
    views = draw_views(CELLS, ("order",), 4, random.Random(0))
    found = await answer_views(llama_engine, CELLS, queries[:1], views)
    said = [f.answers[0].text for f in found if f.answers[0] is not None]
    agreed = len(said) - len(set(said)) > 0
    assert (voted.answers[0].text == "9 9 9") is not agreed and voted.changed == int(agreed)


async def test_cells_are_voted_on_hierarchically_and_what_is_lost_is_counted(digit_engine: Engine) -> None:
    queries = [Query("0 7 0"), Query("0 0 8")]
    plain = await answer(digit_engine, CELLS, queries)
    names = ("order", "scale", "tile")
    voted = await vote_answers(digit_engine, CELLS, queries, plain, 8, augmentations=names)
    assert voted.rule == "hierarchical" and len(voted.views) == 8
    assert voted.not_inverted > 0 and all(isinstance(a, Answer) for a in voted.answers)
    with pytest.raises(TaskError, match="'colours'"):
        await vote_answers(digit_engine, CELLS, queries, plain, 2, augmentations=("colours",))


async def test_a_task_without_further_views_says_so(llama_engine: Engine) -> None:
    task = letters_task(2)
    plain = await answer(llama_engine, task, QUERIES[:1])
    voted = await vote_answers(llama_engine, task, QUERIES[:1], plain, 5)
    assert voted.views == ("plain", "order")
    assert voted.left_out == ("5 views were asked for; this task has 2 different ones.",)
    nothing: ICLResult = await answer(llama_engine, Task((), "Say."), QUERIES[:1])
    alone = await vote_answers(llama_engine, Task((), "Say."), QUERIES[:1], nothing, 3)
    assert alone.answers == nothing.answers and alone.views == ("plain",)


async def test_without_context_an_order_is_no_view(llama_engine: Engine) -> None:
    plain = await answer(llama_engine, TASK, QUERIES[:1], in_context=False)
    voted = await vote_answers(llama_engine, TASK, QUERIES[:1], plain, 3, in_context=False)
    assert voted.views == ("plain",) and voted.answers == plain.answers


async def test_a_view_that_does_not_fit_is_left_out_and_told(llama_engine: Engine) -> None:
    # Doubled, the demonstrations would fit, but not the query.
    query = Query(" ".join("01" * 150))
    llama_engine.loaded = replace(llama_engine.loaded, context_length=500)
    plain = await answer(llama_engine, CELLS, [query])
    voted = await vote_answers(llama_engine, CELLS, [query], plain, 2, augmentations=("scale",), seed=1)
    assert voted.answers == plain.answers and voted.views == ("plain",)
    assert "The view scale was left out: The longest query takes" in voted.left_out[0]


async def test_voting_can_be_cancelled(llama_engine: Engine) -> None:
    plain = await answer(llama_engine, TASK, QUERIES)
    with pytest.raises(Cancelled):
        await vote_answers(llama_engine, TASK, QUERIES, plain, 3, should_stop=lambda: True)


def test_drawn_views_differ_from_one_another_and_from_the_task_as_it_is() -> None:
    for task in (TASK, CELLS, letters_task(3)):
        views = draw_views(task, AUGMENTATIONS, 4, random.Random(0))
        assert len(set(views)) == 4 and identity(len(task.demonstrations)) not in views
        assert views == draw_views(task, AUGMENTATIONS, 4, random.Random(0))


async def test_labels_are_asked_for_under_other_names(babbling_engine: Engine) -> None:
    task = Task(tuple(Demonstration(f"in {i}", "ab"[i % 2]) for i in range(6)))
    swap = (("a", "b"), ("b", "a"))
    assert space(task, AUGMENTATIONS).names == ("order", "labels")
    view = View(tuple(range(6)), (Labels(swap),))
    (found,) = await answer_views(babbling_engine, task, QUERIES, [view])
    plain = await answer(babbling_engine, view.task(task), QUERIES)
    expected = [dict(swap).get(a.text, a.text) for a in plain.answers]
    assert [a.text if a is not None else None for a in found.answers] == expected


# -------------------------------------------------------------------------------------------- consistency


async def test_consistency_samples_queries_evenly_and_counts_the_plain_view(babbling_engine: Engine) -> None:
    plain = await answer(babbling_engine, TASK, QUERIES)
    seen = await consistency(babbling_engine, TASK, QUERIES, plain, n_views=3, n_queries=4)
    assert seen.queries == (0, 2, 5, 7)
    assert seen.views == ("order",) * 3
    assert len(seen.found) == 4 and all(0 <= b.agreement <= 1 for b in seen.found)
    assert seen == await consistency(babbling_engine, TASK, QUERIES, plain, n_views=3, n_queries=4)
    one = await consistency(babbling_engine, TASK, QUERIES[:1], plain, n_queries=4)
    assert one.queries == (0,)


async def test_cells_are_looked_at_permuted_and_mirrored(llama_engine: Engine) -> None:
    queries = [Query("0 0 7"), Query("0 8 0")]
    plain = await answer(llama_engine, CELLS, queries)
    seen = await consistency(llama_engine, CELLS, queries, plain, n_views=2)
    assert seen.views == ("order+symbols", "order+symbols+mirror")
