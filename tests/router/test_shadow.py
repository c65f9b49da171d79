"""A learned policy decides in a router; a shadow trains behind the answer and makes a row with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from policies.errors import PolicyError
from policies.explore import Exploring
from policies.learned import fit
from policies.persist import as_payload
from policies.types import Decision, Policy, Situation
from router.learning import rows_of
from router.receipt import SHADOW
from tests.policies.simulated import TRAIN, simulate
from tests.router.conftest import QUERIES, TASK, OpenRouter


@dataclass(frozen=True)
class Staying:
    """Stays, though training might pay."""

    version: str = "staying-1"
    reads: frozenset[str] = frozenset()

    def decide(self, situation: Situation) -> Decision:
        return Decision("answer", "icl", 1.0, 0.0, 0.0, 0.0, "It stays.", self.version, {"gain_high": 1.0})


def test_a_shadow_trains_behind_the_answer_and_both_arms_are_judged(open_router: OpenRouter) -> None:
    policy: Policy = Exploring(Staying(), budget_s=1e9, seed=1)  # drawn with probability one half
    agent = open_router(policy=policy)
    receipt = next(r for _ in range(20) if (r := agent.ask(TASK, QUERIES)).shadow)
    assert receipt.arm == "icl" and receipt.step("train") is None
    last = receipt.decisions[-1]
    assert last["shadow"] == "train:quick" and last["shadow_propensity"] == 0.5
    assert agent.settle(60)
    shadow = agent.explain(f"{receipt.episode_id}{SHADOW}")
    assert shadow.arm == "train:quick" and len(shadow.answers) == len(QUERIES)
    for i in range(len(QUERIES)):
        agent.feedback(receipt.episode_id, answer="ok", query=i, source="gold")
    (row,), _ = rows_of(agent.parts.store)
    assert set(row.arms) == {"icl", "train:quick"}
    assert row.arms["icl"].n_queries == len(QUERIES)
    assert row.arms["train:quick"].correct == sum(t == "ok" for t in shadow.texts) / len(QUERIES)


def test_nothing_is_explored_unless_a_budget_is_set(open_router: OpenRouter) -> None:
    agent = open_router()
    receipt = agent.ask(TASK, QUERIES, arm="icl")
    assert receipt.shadow == "" and agent.n_behind == 0
    assert not isinstance(agent.parts.policy, Exploring)
    assert isinstance(open_router(explore_s=1.0).parts.policy, Exploring)


def test_a_learned_policy_decides_and_says_that_it_does_not_know_the_model(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        replace(row, arms={"icl": row.arms["icl"], "train:quick": row.arms[TRAIN]})
        for row in simulate(40, seed=1).rows
    ]
    policy, _ = fit(rows)
    agent = open_router()
    agent.parts.store.policy_versions.save(policy.version, {"policy": as_payload(policy), "fit": {}})
    agent.parts.store.policy_versions.activate(policy.version)
    agent.close()
    monkeypatch.setenv("TTT_ROUTER_POLICY", "active")
    again = open_router()
    assert again.parts.policy.version == policy.version
    receipt = again.ask(TASK, QUERIES)
    assert receipt.decisions[-1]["policy"] == policy.version
    assert (
        "too few outcomes are of this base model (they are of simulated-1)" in receipt.decisions[0]["reason"]
    )


def test_a_changed_policy_in_force_is_refused_before_the_model_is_loaded(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = open_router()
    agent.parts.store.policy_versions.save("learned-1-x", {"policy": {"format": "foreign"}})
    agent.parts.store.policy_versions.activate("learned-1-x")
    agent.close()
    monkeypatch.setenv("TTT_ROUTER_POLICY", "active")
    with pytest.raises(PolicyError, match="learned-1-x is refused: .*'foreign'.*policy = \"rule\""):
        open_router()
