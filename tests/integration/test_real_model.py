"""What only a real model can show: that training learns, and that our ICL is the published prompt's."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policies.learned import Learned
from router.agent import Router
from router.metrics import exact
from ttt.icl import answer
from ttt.judging import judge
from ttt.prompts import PromptFormat
from ttt.task import Demonstration, Query, Task

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def router(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    with Router.open(model=str(smollm2), data_dir=str(tmp_path_factory.mktemp("data"))) as opened:
        yield opened


def shifted_rows(n: int, seed: int) -> list[tuple[str, str]]:
    """A block of one colour moves right by one cell: out of reach of a small model by prompting."""
    rng = random.Random(seed)
    items: dict[str, str] = {}
    while len(items) < n:
        size = rng.randint(2, 4)
        start, colour = rng.randrange(0, 9 - size), str(rng.randint(1, 9))
        row = ["0"] * 10
        row[start : start + size] = [colour] * size
        items[" ".join(row)] = " ".join(["0", *row[:-1]])
    return list(items.items())


def as_task(items: list[tuple[str, str]]) -> Task:
    return Task(tuple(Demonstration(a, b) for a, b in items))


def share_right(texts: tuple[str, ...], gold: list[str]) -> float:
    return sum(exact(t, g) for t, g in zip(texts, gold, strict=True)) / len(gold)


def test_the_shipped_policy_was_learned_on_the_embedded_model(router: Router) -> None:
    decides = router.parts.policy
    assert isinstance(decides, Learned) and decides.base_model_known
    assert decides.provenance.base_models == (router.parts.engine.loaded.revision,)


def test_training_answers_what_prompting_cannot_and_the_second_time_costs_no_training(router: Router) -> None:
    items = shifted_rows(24, seed=1)
    task, asked = as_task(items[:8]), items[8:]
    queries, gold = [a for a, _ in asked], [b for _, b in asked]
    before = _base_hash(router)

    first = router.ask(task, queries, worth_s=1000.0)

    icl = share_right(first.icl_texts, gold)
    assert first.arm.startswith("train:"), first.decisions[-1]["reason"]
    assert share_right(first.texts, gold) >= icl + 0.25
    assert _base_hash(router) == before

    again = router.ask(task, queries)
    assert again.arm.startswith("reuse:")
    assert [s.name for s in again.steps] == ["look-up", "answer"]
    assert again.texts == first.texts
    assert again.signals == {}


def test_a_hit_costs_little_more_than_answering_with_the_adapter_attached(router: Router) -> None:
    items = shifted_rows(24, seed=1)
    task, queries = as_task(items[:8]), [a for a, _ in items[8:]]
    adapters, engine = router.parts.store.adapters, router.parts.engine
    rows = adapters.list()
    assert rows, "the test before this one trains the adapter"
    folder = adapters.path(rows[0])

    async def attached_already() -> float:
        async with engine.adapter(folder) as name:
            started = time.perf_counter()
            await answer(engine, task, [Query(q) for q in queries], adapter=name)
            return time.perf_counter() - started

    def own() -> float:
        return router.run(attached_already())

    def hit() -> float:
        started = time.perf_counter()
        assert router.ask(task, queries).arm.startswith("reuse:")
        return time.perf_counter() - started

    hit(), own()
    ratios = sorted(hit() / own() for _ in range(5))
    assert ratios[2] <= 1.3, ratios


def test_icl_gives_the_answers_of_a_plain_transformers_script_with_the_published_prompt(
    smollm2: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    demonstrations = [
        ("red apple", "fruit"),
        ("old oak", "tree"),
        ("ripe pear", "fruit"),
        ("tall pine", "tree"),
    ]
    queries = ["green plum", "young birch", "sweet cherry", "dark yew", "big melon", "small elm"]
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model: Any = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    shots = "".join(f"Q: {a}\nA: {b}\n\n" for a, b in demonstrations)
    plain = []
    for query in queries:
        ids = tokenizer(f"{shots}Q: {query}\nA:", return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
        plain.append(str(tokenizer.decode(out[0, ids.shape[1] :])).split("\n")[0].strip())

    with Router.open(model=str(smollm2), dtype="float32", data_dir=str(tmp_path)) as own:
        receipt = own.ask(as_task(demonstrations), queries, arm="icl")

    assert list(receipt.texts) == plain


def test_scoring_by_one_forward_pass_agrees_with_decoding(smollm2: Path, tmp_path: Path) -> None:
    """In float32; bfloat16 rounds near ties differently when tokens are run together (see docs/log.md)."""
    items = shifted_rows(20, seed=2)
    task = as_task(items[:8])
    with Router.open(model=str(smollm2), dtype="float32", data_dir=str(tmp_path)) as own:
        engine = own.parts.engine
        assert PromptFormat(engine.loaded.tokenizer, task).compact
        decoded = own.run(answer(engine, task, [Query(a) for a, _ in items[8:]])).answers
        said = [Demonstration(a, d.text) for (a, _), d in zip(items[8:], decoded, strict=True)]
        other = [Demonstration(d.input, d.output[::-1]) for d in said if d.output != d.output[::-1]]
        judged = own.run(judge(engine, task, said, adapter=None))
        refused = own.run(judge(engine, task, other, adapter=None))
    assert list(judged.correct) == [d.finished for d in decoded]
    assert other and not any(refused.correct)


def _base_hash(router: Router) -> str:
    digest: str = router.run(router.parts.engine.base_hash())
    return digest
