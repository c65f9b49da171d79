"""Versions in the store and the commands over them: nothing decides before it proved itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from policies.errors import PolicyError
from policies.explore import Exploring
from policies.gate import Gate, gate
from policies.learned import Learned, fit
from policies.outcomes import TaskOutcome, hash_rows, read_rows, write_rows
from policies.persist import as_payload
from policies.prior import prior_rows
from policies.rule import Rule
from policies.tune import with_confidence
from policies.types import Policy
from router import versions
from router.cli.main import main
from router.settings import Settings, read_settings
from router.versions import deciding, find, in_force, promote, read, realised, revert, save_fitted
from store import Store
from store.errors import NotFound
from store.tables import episodes
from tests.policies.simulated import simulate
from tests.router.test_learning import GOLD, record, tell
from ttt.recipes import find_recipes

OUTCOMES = Path(__file__).parents[2] / "benchmarks" / "outcomes"
SEEN = simulate(60, 2, seed=1).rows


def fresh(n: int, seed: int = 2) -> list[TaskOutcome]:
    return [replace(row, family=f"fresh-{row.family}") for row in simulate(n, seed=seed).rows]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Store]:
    made = Store.open(f"sqlite:///{tmp_path / 'router.db'}", tmp_path / "adapters")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nothing_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule stands for what is shipped, and no further row is fitted with: what follows is about the store."""
    monkeypatch.setattr(versions, "shipped", Rule)
    monkeypatch.setattr(versions, "prior_rows", list)


def promote_without_evidence(opened: Store, name: str) -> None:
    """By the real way, with a gate that lets everything pass."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(versions, "gate", lambda *_, **__: Gate(True, "Let pass.", 1.0, 1.0, 20, 0))
        promote(opened, name, fresh(9), Settings())


def force(opened: Store, policy: Learned, before: Sequence[str] = ()) -> None:
    """In force without a gate, to test what comes after it."""
    opened.policy_versions.save(policy.version, {"policy": as_payload(policy), "fit": {}})
    opened.policy_versions.note(
        policy.version,
        "promotion",
        {"replaced": None, "before": list(before), "at": 0.0, "reason": "test"},
    )
    opened.policy_versions.activate(policy.version)


def test_a_fitted_policy_is_kept_but_the_rule_goes_on_deciding(opened: Store) -> None:
    policy, _ = save_fitted(opened, SEEN)
    assert read(find(opened, policy.version[:14])) == policy
    assert in_force(opened, Settings()) == (Rule(), [])


def test_a_promoted_version_decides_until_it_is_reverted(opened: Store) -> None:
    policy, _ = save_fitted(opened, SEEN)
    name, verdict = promote(opened, policy.version, fresh(150), Settings(worth_s=5.0))
    assert verdict.promote and name == policy.version
    assert in_force(opened, Settings())[0] == policy
    assert in_force(opened, Settings(policy="rule"))[0] == Rule()
    with pytest.raises(PolicyError, match="in force already"):
        promote(opened, policy.version, fresh(60), Settings(worth_s=5.0))
    assert revert(opened) is None
    assert in_force(opened, Settings())[0] == Rule()
    with pytest.raises(PolicyError, match="nothing to go back to"):
        revert(opened)


def test_without_evidence_nothing_changes_and_the_reason_is_given(opened: Store) -> None:
    policy, _ = save_fitted(opened, SEEN)
    _, verdict = promote(opened, policy.version, fresh(9), Settings(worth_s=30.0))
    assert not verdict.promote and "at least 12 families" in verdict.reason
    assert opened.policy_versions.active() is None


def test_reverting_goes_back_version_by_version(opened: Store) -> None:
    first, _ = save_fitted(opened, SEEN)
    second, _ = save_fitted(opened, SEEN[:100])
    force(opened, first)
    force(opened, second, [first.version])
    assert revert(opened) == first.version
    assert revert(opened) is None


def test_a_changed_version_is_refused_with_what_helps(opened: Store) -> None:
    policy, _ = save_fitted(opened, SEEN)
    payload = as_payload(policy)
    payload["parameters"]["confidence"] = 0.5
    opened.policy_versions.note(policy.version, "policy", payload)
    opened.policy_versions.activate(policy.version)
    with pytest.raises(PolicyError, match="does not match its hash .*ttt-router policy revert"):
        in_force(opened, Settings())
    other, _ = save_fitted(opened, SEEN[:100])
    opened.policy_versions.note(policy.version, "policy", as_payload(other))
    with pytest.raises(PolicyError, match="content is that of another version"):
        read(find(opened, policy.version))
    assert revert(opened) is None


def test_an_unknown_or_ambiguous_name_is_refused(opened: Store) -> None:
    save_fitted(opened, SEEN)
    save_fitted(opened, SEEN[:100])
    with pytest.raises(NotFound, match="No policy version begins with 'x'"):
        find(opened, "x")
    with pytest.raises(NotFound, match="Several"):
        find(opened, "learned")


def test_settings_name_a_file_a_confidence_and_exploration(opened: Store, tmp_path: Path) -> None:
    policy, _ = save_fitted(opened, SEEN)
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(as_payload(policy)))
    settings = Settings(policy=str(file), confidence=0.9, explore_s=2.0)
    found, _ = in_force(opened, settings)
    assert isinstance(found, Learned) and found.confidence == 0.9
    decides = deciding(found, settings, "other-model", "rev")
    assert isinstance(decides, Exploring) and isinstance(decides.policy, Learned)
    assert not decides.policy.base_model_known
    assert deciding(found, Settings(), "simulated-1") == found


def break_promises(opened: Store, version: str) -> None:
    """Twenty tasks of this version: .9 was promised, nothing came true."""
    for i in range(20):
        record(opened, f"episode-{i}", "train:standard", GOLD, GOLD, task=f"task {i}", gain=0.9)
        tell(opened, f"episode-{i}", right=GOLD)
    with opened.db.write() as connection:
        connection.execute(update(episodes).values(policy=version))


def test_a_broken_promise_shows_and_reverts_where_that_is_set(opened: Store) -> None:
    policy, _ = save_fitted(opened, SEEN)
    force(opened, policy)
    break_promises(opened, policy.version)
    found = realised(opened, policy.version)
    assert (
        found is not None and found.below and found.realised == 0.0 and found.promised == pytest.approx(0.9)
    )
    assert in_force(opened, Settings(), may_revert=True)[0] == policy
    assert in_force(opened, Settings(auto_revert=True))[0] == policy
    decides, notes = in_force(opened, Settings(auto_revert=True), may_revert=True)
    assert decides == Rule() and "below the promise" in notes[0]
    assert opened.policy_versions.active() is None


def test_the_shipped_policy_keeps_its_promise_too_or_the_rule_decides(
    opened: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = fit(SEEN)[0]
    monkeypatch.setattr(versions, "shipped", lambda: own)
    break_promises(opened, own.version)
    assert in_force(opened, Settings(), may_revert=True) == (own, [])
    decides, notes = in_force(opened, Settings(auto_revert=True))
    assert decides == Rule()
    assert "below the promise" in notes[0] and f"decides in place of {own.version}" in notes[0]
    policy, _ = save_fitted(opened, SEEN[:100])
    assert promote(opened, policy.version, fresh(20), Settings(auto_revert=True))[1].reason.count(
        Rule().version
    )


def test_a_confidence_of_the_settings_does_not_hide_a_broken_promise(opened: Store) -> None:
    policy, _ = save_fitted(opened, SEEN)
    force(opened, policy)
    settings = Settings(auto_revert=True, confidence=0.9)
    decides, _ = in_force(opened, settings)
    assert decides.version != policy.version
    break_promises(opened, decides.version)  # episodes have the version that has decided
    after, notes = in_force(opened, settings, may_revert=True)
    assert after == with_confidence(Rule(), 0.9) and "below the promise" in notes[0]


def test_what_is_promoted_is_judged_as_the_settings_have_it_decide(
    opened: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Policy] = []

    def spied(candidate: Learned, incumbent: Policy, *given: Any, **options: Any) -> Gate:
        judged.extend((candidate, incumbent))
        return gate(candidate, incumbent, *given, **options)

    monkeypatch.setattr(versions, "gate", spied)
    policy, _ = save_fitted(opened, SEEN)
    name, _ = promote(opened, policy.version, fresh(20), Settings(worth_s=5.0, confidence=0.9))
    assert name == policy.version
    assert judged == [with_confidence(policy, 0.9), with_confidence(Rule(), 0.9)]


def test_the_shipped_prior_is_refused_when_it_was_changed(tmp_path: Path) -> None:
    write_rows(SEEN, tmp_path / "prior.jsonl")
    assert prior_rows(tmp_path / "prior.jsonl", hash_rows(SEEN)) == SEEN
    with pytest.raises(PolicyError, match="do not match their hash"):
        prior_rows(tmp_path / "prior.jsonl", "0" * 64)
    with pytest.raises(PolicyError, match="can't be read .*install the package again"):
        prior_rows(tmp_path / "none.jsonl", "0" * 64)


def test_the_shipped_rows_are_those_that_are_published() -> None:
    """Of the embedded model, by the default recipe, every arm in each; and the files under benchmarks/ are they."""
    rows = prior_rows()
    published = read_rows([OUTCOMES])
    assert {row.key for row in rows} == {row.key for row in published} and hash_rows(rows) == hash_rows(
        published
    )
    trained = {
        f"train:{one.name}" for pair in find_recipes(Settings().recipe) for one in (pair, pair.shorter) if one
    }
    assert len(trained) == 2 and all(set(row.arms) == {"icl", *trained} for row in rows)
    steps = {recipe.steps for recipe in find_recipes(Settings().recipe)}
    assert {row.signals["train_steps"] for row in rows} == steps
    told = json.loads((OUTCOMES / "procedural.command.json").read_text())
    assert told["recipes"] == [recipe.id for recipe in find_recipes(Settings().recipe)]
    assert len({row.model for row in rows}) == 1 and len({row.family for row in rows}) >= 100


def test_the_shipped_policy_decides_until_one_is_promoted(
    opened: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "shipped", lambda: fit(SEEN)[0])
    policy, _ = in_force(opened, Settings())
    assert isinstance(policy, Learned) and policy.provenance.n_rows == len(SEEN)
    assert in_force(opened, Settings(policy="rule"))[0] == Rule()
    judged: list[Policy] = []

    def spied(candidate: Learned, incumbent: Policy, *given: Any, **options: Any) -> Gate:
        judged.append(incumbent)
        return gate(candidate, incumbent, *given, **options)

    monkeypatch.setattr(versions, "gate", spied)
    mine, _ = save_fitted(opened, SEEN[:60])
    promote(opened, mine.version, fresh(20), Settings())
    assert judged == [policy], "what would be replaced is what decides"


def test_what_is_fitted_is_fitted_with_the_shipped_rows(
    opened: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "prior_rows", lambda: SEEN)
    both, _ = save_fitted(opened, fresh(10))
    assert both.provenance.n_rows == len(SEEN) + 10


def test_what_is_fitted_with_the_shipped_rows_is_judged_on_its_own_by_refits_without_each_family(
    opened: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "prior_rows", lambda: SEEN)
    own = fresh(20)
    policy, _ = save_fitted(opened, own)
    _, verdict = promote(opened, policy.version, own, Settings(worth_s=5.0))
    assert verdict.n_families == 20, "the shipped families are not judged on"
    again, _ = save_fitted(opened, [*SEEN[:4], *own])  # some of the shipped ones named, too
    assert again.version == policy.version
    with pytest.raises(PolicyError, match="was fitted on all 19 families .* the very rows"):
        promote(opened, policy.version, own[:-1], Settings(worth_s=5.0))


def test_fitting_again_makes_a_damaged_version_whole(opened: Store) -> None:
    policy, _ = save_fitted(opened, SEEN)
    opened.policy_versions.note(policy.version, "policy", {"format": "?"})
    with pytest.raises(PolicyError, match="is refused"):
        read(find(opened, policy.version))
    assert save_fitted(opened, SEEN)[0] == read(find(opened, policy.version)) == policy


def test_going_back_never_goes_round_in_a_circle(opened: Store) -> None:
    first, second = save_fitted(opened, SEEN)[0], save_fitted(opened, SEEN[:100])[0]
    for policy in (first, second, first):
        promote_without_evidence(opened, policy.version)
    assert revert(opened) == second.version
    assert revert(opened) == first.version
    assert revert(opened) is None


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("TTT_ROUTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("TTT_ROUTER_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").write_text("# mine\nseed = 3\n")

    def call(*arguments: str | Path) -> Ran:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return call


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Rows to fit on, and rows of other families."""
    write_rows(SEEN, tmp_path / "seen.jsonl")
    write_rows(fresh(150), tmp_path / "fresh.jsonl")
    return tmp_path / "seen.jsonl", tmp_path / "fresh.jsonl"


def test_fit_list_promote_show_diff_and_revert_on_the_command_line(
    run: Run, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, others = files
    assert "nothing was promoted" in run("policy", "list").out
    fitted = run("policy", "fit", seen, "--out", seen.with_name("policy.json"))
    version = fitted.out.split()[0]
    assert fitted.code == 0 and "120 rows of 60 families" in fitted.out
    second = run("policy", "fit", seen, "--confidence", "0.9").out.split()[0]
    assert version in (listed := run("policy", "list").out) and second in listed
    done = run("policy", "promote", version, others, "--worth", "5")
    assert done.code == 0, done.err
    assert f"{version} is in force." in done.out
    assert f"{version} decides" in run("policy", "list").out
    shown = run("policy", "show", version)
    assert "over the shipped policy" in shown.out and "too few trained tasks" in shown.out
    assert json.loads(run("policy", "show", seen.with_name("policy.json"), "--json").out)["sha256"]
    assert "confidence" in run("policy", "diff", version, second).out
    assert run("policy", "diff", version, version).out == "They do not differ.\n"
    refused = run("policy", "promote", second, others, "--worth", "5")
    assert refused.code == 8 and refused.err.splitlines()[-1].startswith("error: Not promoted")
    assert run("policy", "revert").out == "the shipped policy is in force.\n"
    assert run("policy", "revert").code == 8
    several = run("policy", "show", "learned")
    assert several.code == 7 and "Several policy versions begin with 'learned'" in several.err
    monkeypatch.setenv("TTT_ROUTER_POLICY", "rule")
    done = run("policy", "promote", version, others, "--worth", "5")
    assert done.out.endswith('But the setting policy = "rule" decides, until it is "active".\n')
    assert 'But the setting policy = "rule" decides' in run("policy", "show", version).out
    assert 'But the setting policy = "rule" decides' in run("policy", "revert").out
    assert run("policy", "show", "nothing").code == 7


def test_the_shipped_policy_is_shown_and_compared_like_any_other(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = fit(SEEN)[0]
    monkeypatch.setattr(versions, "shipped", lambda: own)
    assert (
        f"{own.version} decides: nothing was promoted, so it is the shipped one." in run("policy", "list").out
    )
    shown = run("policy", "show", own.version)
    assert (
        shown.code == 0
        and "120 rows of 60 families" in shown.out
        and "yes, until a version is promoted" in shown.out
    )
    monkeypatch.setenv("TTT_ROUTER_POLICY", "rule")
    assert f"no, {Rule().version} decides" in run("policy", "show", own.version).out
    assert run("policy", "diff", own.version[:14], own.version).out == "They do not differ.\n"


def test_eval_prints_every_way_and_json_holds_the_same(run: Run, files: tuple[Path, Path]) -> None:
    write_rows(SEEN[:60], files[0])
    shown = run("policy", "eval", files[0], "--worth", "30", "--curve")
    assert shown.code == 0, shown.err
    for what in (
        "always icl",
        "oracle",
        "random at equal budget",
        "confidence threshold",
        "APGR",
        "Brier",
        "Learned from",
    ):
        assert what in shown.out
    report = json.loads(run("policy", "eval", files[0], "--worth", "30", "--by", "collection", "--json").out)
    assert report["held_out"] == "collection" and set(report["worths"]) == {"30 s"}


def test_eval_of_a_log_gives_three_estimates_or_names_the_bad_line(run: Run, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    line = {"arm": "icl", "propensity": 0.5, "reward": 1.0, "target": {"icl": 1.0}, "model": {"icl": 1.0}}
    log.write_text("\n".join(json.dumps({"family": f"f{i}", **line}) for i in range(40)))
    assert "DR " in run("policy", "eval", "--log", log).out
    found = json.loads(run("policy", "eval", "--log", log, "--json").out)
    assert found["dr"]["mean"] == 1.0 and found["ips"]["mean"] == 2.0
    log.write_text(json.dumps({"family": "f", **line, "propensity": 0.0}))
    assert "line 1: The propensity" in run("policy", "eval", "--log", log).err
    log.write_text("{}")
    assert "line 1 is no decision" in run("policy", "eval", "--log", log).err


def test_tune_draws_chooses_and_writes_the_setting(
    run: Run, files: tuple[Path, Path], tmp_path: Path
) -> None:
    done = run("tune", files[1], "--budget", "30", "--out", tmp_path / "tuned", "--write")
    assert done.code == 0, done.err
    assert "→" in done.out and "Setting: worth_s = " in done.out
    assert (tmp_path / "tuned/tune.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "tuned/tune.svg").read_text()
    written = (tmp_path / "config.toml").read_text()
    assert "# mine\nseed = 3" in written
    settings = read_settings({}, {"TTT_ROUTER_CONFIG": str(tmp_path / "config.toml")})
    assert f"Setting: worth_s = {settings.worth_s:g}\n" in done.out and settings.worth_s > 0


def test_what_can_not_be_met_is_an_exit_code_with_how_many_families_would_do(
    run: Run, files: tuple[Path, Path]
) -> None:
    never = run("tune", files[1], "--target-accuracy", "0.99")
    assert never.code == 8 and "can't be met" in never.out
    few = files[1].with_name("few.jsonl")
    write_rows(fresh(12), few)
    assert "can't be met with 12 families" in run("tune", few, "--max-harm", "2").out


@pytest.mark.parametrize(
    "arguments,code,says",
    [
        (("tune", "--budget", "3", "--max-harm", "2"), 2, "exactly one"),
        (("tune", "--target-accuracy", "7"), 2, "target accuracy is 7"),
        (("tune", "--budget", "3", "--worth", "0"), 2, "worth is 0"),
        (("policy", "eval", "--confidence", "2"), 8, "No episode here"),
        (("policy", "eval", "none.jsonl"), 8, "can't be read"),
        (("policy", "fit"), 8, "ttt-router feedback"),
    ],
)
def test_bad_usage_is_one_clear_sentence(run: Run, arguments: tuple[str, ...], code: int, says: str) -> None:
    done = run(*arguments)
    assert done.code == code and says in done.err
    assert len(done.err.strip().splitlines()) == 1
