import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from policies.checks import content_hash
from policies.errors import PolicyError
from policies.gain import GainModel
from policies.learned import Learned, fit
from policies.persist import from_json, load, save, to_json
from policies.rule import Rule
from tests.policies.simulated import TRAIN, simulate
from tests.policies.situations import probed, situation

RULE = Rule(GainModel(logprob_weight=0.9, model_sd=0.2), tolerated_losses=2)
LEARNED, _ = fit(simulate(20, seed=1).rows)


def rewritten(change: Any, *, rehash: bool) -> str:
    """The saved rule after `change(data)`, with its hash made right again or not."""
    data = json.loads(to_json(RULE))
    change(data)
    if rehash:
        del data["sha256"]
        data["sha256"] = content_hash(data)
    return json.dumps(data)


def test_a_saved_rule_comes_back_equal_and_decides_the_same(tmp_path: Path) -> None:
    save(RULE, tmp_path / "rule.json")
    again = load(tmp_path / "rule.json")
    assert again == RULE
    assert again.version == RULE.version
    assert again.decide(situation(probed())) == RULE.decide(situation(probed()))
    assert [p.name for p in tmp_path.iterdir()] == ["rule.json"]


def test_a_parameter_changed_by_hand_is_noticed() -> None:
    with pytest.raises(PolicyError, match="does not match its hash"):
        from_json(rewritten(lambda d: d["parameters"]["gain"].update(prior_share=0.9), rehash=False))


@pytest.mark.parametrize(
    "change,says",
    [
        (lambda d: d.update(format="other-policy"), "'other-policy'"),
        (lambda d: d.update(signals_version=99), "version 99 of the signals"),
        (lambda d: d.update(author="me"), "author"),
        (lambda d: d["parameters"].update(extra=1), "extra"),
        (lambda d: d["parameters"].pop("tolerated_losses"), "tolerated_losses"),
        (lambda d: d["parameters"]["gain"].pop("model_sd"), "model_sd"),
        (lambda d: d["parameters"]["gain"].update(model_sd="0.1"), "must be a number"),
        (lambda d: d["parameters"]["gain"].update(model_sd=-1), r"GainModel\.model_sd is -1"),
        (lambda d: d["parameters"].update(tolerated_losses=1.5), "whole number"),
    ],
)
def test_a_foreign_or_wrong_file_is_refused_even_with_a_right_hash(change: Any, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        from_json(rewritten(change, rehash=True))


def test_nan_in_the_file_is_refused() -> None:
    with pytest.raises(PolicyError, match="not finite"):
        from_json(to_json(RULE).replace('"model_sd": 0.2', '"model_sd": NaN'))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"rule"'])
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(PolicyError):
        from_json(text)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return Path.touch, (marker,)

    (tmp_path / "rule.json").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(PolicyError):
        load(tmp_path / "rule.json")
    assert not marker.exists()


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"absent\.json can't be read"):
        load(tmp_path / "absent.json")
    with pytest.raises(PolicyError, match="can't be written"):
        save(RULE, tmp_path / "no-folder" / "rule.json")


def learned_rewritten(change: Any) -> str:
    data = json.loads(to_json(LEARNED))
    change(data["parameters"])
    del data["sha256"]
    return json.dumps({**data, "sha256": content_hash(data)})


def test_a_learned_policy_comes_back_equal_and_decides_the_same(tmp_path: Path) -> None:
    save(LEARNED, tmp_path / "learned.json")
    again = load(tmp_path / "learned.json")
    assert isinstance(again, Learned) and again == LEARNED and again.version == LEARNED.version
    here = situation(probed(), feasible=("icl", TRAIN))
    assert again.decide(here) == LEARNED.decide(here)


@pytest.mark.parametrize(
    "change,says",
    [
        (lambda p: p.update(confidence=2.0), "confidence is 2"),
        (lambda p: p.update(arms={}), "no fitted arm"),
        (lambda p: p["arms"][TRAIN]["stages"].pop("cheap"), "stages"),
        (lambda p: p["arms"][TRAIN]["stages"]["cheap"]["coefficients"].pop(), "arrays of other lengths"),
        (lambda p: p["arms"][TRAIN]["stages"]["cheap"].update(variance=-1.0), "negative variance"),
        (lambda p: p["arms"][TRAIN]["stages"]["cheap"].update(code="x"), "can't be read"),
        (lambda p: p["arms"][TRAIN].update(n_families="many"), "n_families"),
        (lambda p: p["arms"][TRAIN]["stages"]["cheap"].update(n_families=1), "n_families is 1"),
        (lambda p: p["provenance"].update(families="all"), "in lists"),
        (lambda p: p["provenance"].update(base_model=3), "base_model, or none"),
    ],
)
def test_an_impossible_learned_policy_is_refused_even_with_a_right_hash(change: Any, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        from_json(learned_rewritten(change))
