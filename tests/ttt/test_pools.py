"""Pools: disjoint whatever the seed, the same everywhere, and honest about what is too small."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt.errors import TaskError
from ttt.formats import Family, Item
from ttt.pools import baseline_rates, mislabelled, sample, split
from ttt.task import Demonstration, Task, canonical_text


def family(*items: Item, notes: tuple[str, ...] = ()) -> Family:
    return Family("letters", "Spell.", items, True, "table", notes)


def numbered(n: int) -> Family:
    return family(*(Item(f"item {i}", f"label {i % 3}") for i in range(n)))


words = st.text("ab \n", min_size=1, max_size=4)
items = st.builds(Item, words, words, st.sampled_from(["", "f1", "f2", "f3"]))


@settings(max_examples=100, deadline=None)
@given(found=st.lists(items, max_size=30), seeds=st.lists(st.integers(0, 99), min_size=2, max_size=2))
def test_no_demonstration_of_any_seed_is_a_query_of_any_seed(found: list[Item], seeds: list[int]) -> None:
    pools = split(family(*found))
    demonstrations = {canonical_text(item.input) for item in pools.demonstrations}
    queries = {canonical_text(item.input) for item in pools.queries}
    assert not demonstrations & queries
    assert demonstrations | queries == {canonical_text(item.input) for item in found}
    assert len(pools.demonstrations) + len(pools.queries) == len(demonstrations | queries)
    grouped = [{item.group for item in pool} - {""} for pool in (pools.demonstrations, pools.queries)]
    assert not grouped[0] & grouped[1]
    if pools.queries:
        first, second = (sample(pools, len(pools.demonstrations) // 2, 5, seed) for seed in seeds)
        asked = {canonical_text(query.input) for query in (*first.queries, *second.queries)}
        shown = {canonical_text(d.input) for d in (*first.task.demonstrations, *second.task.demonstrations)}
        assert not asked & shown


def test_split_does_not_depend_on_the_order_of_items() -> None:
    forward, backward = split(numbered(60)), split(family(*reversed(numbered(60).items)))
    assert set(forward.demonstrations) == set(backward.demonstrations)


def test_about_forty_per_cent_become_demonstrations() -> None:
    assert 360 <= len(split(numbered(1000)).demonstrations) <= 440


def test_split_and_draw_are_the_same_on_every_machine() -> None:
    drawn = sample(split(numbered(12)), 3, 3, seed=0)
    assert [d.input for d in drawn.task.demonstrations] == ["item 3", "item 7", "item 6"]
    assert [query.input for query in drawn.queries] == ["item 9", "item 2", "item 11"]


def test_duplicates_are_dropped_and_contradictions_counted() -> None:
    pools = split(family(Item("a", "1"), Item(" a\r\n", "1"), Item("a", "2"), Item("b", "1"), notes=("n",)))
    assert sorted((i.input, i.output) for i in pools.demonstrations + pools.queries) == [
        ("a", "1"),
        ("b", "1"),
    ]
    assert pools.notes == (
        "n",
        "2 of 4 items dropped, as their input came before; 1 of them with another output.",
    )


def test_seeds_differ_and_repeat() -> None:
    pools = split(numbered(100))
    assert sample(pools, 10, 20, 1) == sample(pools, 10, 20, 1)
    assert sample(pools, 10, 20, 1) != sample(pools, 10, 20, 2)
    assert sample(pools, 10, 40, 1).queries[:20] == sample(pools, 10, 20, 1).queries


def test_sample_carries_instruction_and_gold_but_keeps_gold_out_of_queries() -> None:
    drawn = sample(split(numbered(100)), 4, 8, 0)
    gold = {item.input: item.output for item in numbered(100).items}
    assert (drawn.task.name, drawn.task.instruction) == ("letters", "Spell.")
    assert len(drawn.task.demonstrations) == 4
    assert drawn.gold == tuple(gold[query.input] for query in drawn.queries)
    assert drawn.notes == ()


def test_too_small_pools_are_told() -> None:
    pools = split(numbered(20))
    n, left = len(pools.demonstrations), len(pools.queries)
    with pytest.raises(TaskError, match=f"'letters' has {n} demonstrations to draw from, {n + 1} were"):
        sample(pools, n + 1, 1, 0)
    drawn = sample(pools, n, left + 1, 0)
    assert len(drawn.queries) == left
    assert f"all {left} of the pool" in drawn.notes[0]
    with pytest.raises(TaskError, match="no items left as queries"):
        sample(split(family()), 0, 1, 0)
    for bad in ((-1, 1), (0, 0)):
        with pytest.raises(TaskError, match="can't be drawn"):
            sample(pools, *bad, 0)


def test_no_demonstrations_can_be_drawn_for_zero_shot() -> None:
    assert sample(split(numbered(20)), 0, 3, 0).task.demonstrations == ()


def test_chance_of_a_closed_label_set() -> None:
    assert baseline_rates(split(numbered(60))).chance == pytest.approx(1 / 3)
    assert baseline_rates(split(numbered(40))).chance == 0.0


def test_chance_of_free_outputs_is_zero() -> None:
    free = family(*(Item(f"item {i}", f"answer {i}") for i in range(60)))
    assert baseline_rates(split(free)).chance == 0.0


def test_chance_of_multiple_choice_counts_the_options_of_each_input() -> None:
    two, four = "Options:\n(A) x\n(B) y", "Options:\n(A) x\n(B) y\n(C) see (F)\n(D) z"
    choice = family(*(Item(f"Question {i}?\n{two if i % 2 else four}", "(A)") for i in range(20)))
    assert baseline_rates(split(choice)).chance == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_majority_is_chosen_on_demonstrations_and_measured_on_queries() -> None:
    pools = split(numbered(60))
    labels = [item.output for item in pools.demonstrations]
    commonest = max(sorted(set(labels)), key=labels.count)
    expected = sum(item.output == commonest for item in pools.queries) / len(pools.queries)
    assert baseline_rates(pools).majority == pytest.approx(expected)


def test_rates_of_an_empty_family_are_zero() -> None:
    rates = baseline_rates(split(family()))
    assert (rates.chance, rates.majority) == (0.0, 0.0)


TENS = Task(tuple(Demonstration(f"in {i}", "ab"[i % 2]) for i in range(10)), "Say.")


@pytest.mark.parametrize("share,n", [(0.0, 0), (0.1, 1), (0.25, 2), (1.0, 10)])
def test_mislabelled_demonstrations_have_another_ones_output(share: float, n: int) -> None:
    task, flipped = mislabelled(TENS, share, 3)
    changed = [
        i for i, (a, b) in enumerate(zip(TENS.demonstrations, task.demonstrations, strict=True)) if a != b
    ]
    assert tuple(changed) == flipped and len(flipped) == n
    assert [d.input for d in task.demonstrations] == [d.input for d in TENS.demonstrations]
    assert {d.output for d in task.demonstrations} <= {"a", "b"} and task.instruction == "Say."
    assert mislabelled(TENS, share, 3) == (task, flipped)


def test_seeds_mislabel_other_demonstrations() -> None:
    assert len({mislabelled(TENS, 0.1, seed)[1] for seed in range(8)}) > 2


def test_where_all_outputs_are_one_none_can_be_mislabelled() -> None:
    same = Task(tuple(Demonstration(f"in {i}", "ok") for i in range(4)))
    assert mislabelled(same, 0.5, 0) == (same, ())


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(TaskError, match="from 0 to 1"):
        mislabelled(TENS, share, 0)
