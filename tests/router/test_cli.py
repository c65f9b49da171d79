"""The command line from outside: what it prints where, and how it fails."""

from __future__ import annotations

import io
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from policies.types import SCALARS
from router.cli.evaluate import NOT_ANSWERABLE, summary_lines, table
from router.cli.main import EPILOG, main
from router.cli.progress import Reporter
from router.cli.render import SIGNALS, answer_line, duration
from router.events import FellBack, TrainingStep

ROOT = Path(__file__).parents[2]

PAIRS = [("abcd", "a b"), ("bcda", "b c"), ("ddab", "d d"), ("cabd", "c a")]


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def tiny_settings(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model and a data folder of the test's, for every command that is not told otherwise."""
    monkeypatch.setenv("TTT_ROUTER_MODEL", str(tiny_llama))
    monkeypatch.setenv("TTT_ROUTER_DTYPE", "float32")
    monkeypatch.setenv("TTT_ROUTER_DEVICE", "cpu")
    monkeypatch.setenv("TTT_ROUTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("TTT_ROUTER_POLICY", "rule")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tiny_settings: None) -> Run:
    """Runs one command line in this process."""

    def call(*arguments: str | Path) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    """Four demonstrations, two queries, one of them with a gold answer."""
    return write_task(
        tmp_path / "task.json", queries=["abab", {"input": "cdcd", "output": "the gold answer"}]
    )


def write_task(path: Path, pairs: list[tuple[str, str]] = PAIRS, **more: Any) -> Path:
    demonstrations = [{"input": given, "output": output} for given, output in pairs]
    path.write_text(json.dumps({"name": "letters", "demonstrations": demonstrations, **more}))
    return path


def solved(ran: Ran) -> dict[str, Any]:
    """The receipt that `--json` printed."""
    assert ran.code == 0, ran.err
    receipt: dict[str, Any] = json.loads(ran.out)
    return receipt


# -------------------------------------------------------------------------------------------------- solve


def test_answers_go_to_stdout_one_a_line_and_the_receipt_to_stderr(run: Run, task_file: Path) -> None:
    ran = run("solve", task_file, "--arm", "icl")
    assert ran.code == 0
    assert len(ran.out.splitlines()) == 2
    for word in ("icl answered 2 queries in", "why", "steps", "signals", "episode", "ttt-router feedback"):
        assert word in ran.err


def test_gold_answers_change_no_answer_and_give_an_accuracy(
    run: Run, task_file: Path, tmp_path: Path
) -> None:
    blind = write_task(tmp_path / "blind.json", queries=["abab", "cdcd"])
    labelled, unlabelled = (run("solve", path, "--arm", "icl") for path in (task_file, blind))
    assert labelled.out == unlabelled.out
    assert "accuracy     0 %: 0 of 1 known answer matched" in labelled.err
    assert "known answer" not in unlabelled.err
    first = unlabelled.out.splitlines()[0]
    task = write_task(tmp_path / "known.json", queries=[{"input": "abab", "output": first}, "cdcd"])
    assert "100 %: 1 of 1 known answer matched" in run("solve", task, "--arm", "icl").err


def test_json_prints_the_receipt_and_nothing_else_on_stdout(run: Run, task_file: Path) -> None:
    receipt = solved(run("solve", task_file, "--arm", "icl", "--json"))
    assert receipt["arm"] == "icl" and len(receipt["answers"]) == 2
    assert receipt["seconds"] == pytest.approx(sum(step["seconds"] for step in receipt["steps"]))
    assert "the gold answer" not in json.dumps(receipt)


def test_the_task_may_come_from_standard_input(
    run: Run, task_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_file = solved(run("solve", task_file, "--arm", "icl", "--json"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(task_file.read_bytes())))
    piped = solved(run("solve", "-", "--arm", "icl", "--json"))
    assert piped["fingerprint"] == from_file["fingerprint"]
    assert [a["text"] for a in piped["answers"]] == [a["text"] for a in from_file["answers"]]


def test_standard_input_that_is_not_utf8_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"queries": ["\xff"]}')))
    assert_refused(run("solve", "-"), 3, "Standard input is not UTF-8: byte 14 is 0xff")


def test_tables_and_single_queries_are_one_task(run: Run, tmp_path: Path) -> None:
    demos, queries = tmp_path / "pairs.csv", tmp_path / "new.csv"
    demos.write_text("input,output\n" + "".join(f"{given},{output}\n" for given, output in PAIRS))
    queries.write_text("input\nabab\ncdcd\n")
    options = ("--query", "dada", "--instruction", "Give two letters.", "--arm", "icl", "--json")
    receipt = solved(run("solve", "--demos", demos, "--queries", queries, *options))
    assert receipt["n_queries"] == 3
    assert receipt["signals"]["n_demonstrations"] == 4
    assert receipt["task_name"] == "pairs"


def test_queries_given_beside_a_task_file_replace_its_own(run: Run, task_file: Path) -> None:
    ran = run("solve", task_file, "--query", "dada", "--arm", "icl")
    assert len(ran.out.splitlines()) == 1 and "known answer" not in ran.err


def test_without_demonstrations_the_answer_is_zero_shot_and_says_why(run: Run, tmp_path: Path) -> None:
    ran = run("solve", write_task(tmp_path / "t.json", [], queries=["abab"]))
    assert ran.code == 0
    assert "zero-shot answered 1 query" in ran.err and "There are no demonstrations" in ran.err


def test_one_demonstration_is_enough_for_in_context_learning(run: Run, tmp_path: Path) -> None:
    ran = run("solve", write_task(tmp_path / "t.json", PAIRS[:1], queries=["abab"]))
    assert ran.code == 0 and "icl answered 1 query" in ran.err


def test_the_knobs_reach_the_receipt(run: Run, task_file: Path) -> None:
    receipt = solved(run("solve", task_file, "--prefer", "fast", "--repeats", "7", "--json"))
    assert receipt["worth_s"] == 5 and receipt["signals"]["expected_repeats"] == 7
    assert solved(run("solve", task_file, "--worth", "12.5", "--json"))["worth_s"] == 12.5
    near = solved(run("solve", task_file, "--arm", "ttt", "--reuse", "near", "--seed", "7", "--json"))
    assert "neighbours" in [step["name"] for step in near["steps"]]
    assert run("solve", task_file, "--arm", "icl", "--prompt", "chat").code in (0, 3)


def test_training_shows_its_steps_and_is_reused_the_next_time(run: Run, task_file: Path) -> None:
    first, second = (run("solve", task_file, "--arm", "ttt") for _ in range(2))
    assert (
        "Training on halves: step 1 of" in first.err
        and "Training: step" in first.err
        and "train:auto answered" in first.err
    )
    assert "Training" not in second.err and "reuse:" in second.err
    assert first.out == second.out


def test_ctrl_c_during_training_is_said_and_falls_back_to_in_context_answers(
    tiny_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    long = [(given * 20, output) for given, output in PAIRS * 2]
    pairs = [(f"{i} {given}", output) for i, (given, output) in enumerate(long)]
    task = write_task(tmp_path / "t.json", pairs, queries=["abab"] * 20)

    class PressesCtrlC(io.StringIO):
        def write(self, text: str) -> int:
            written = super().write(text)
            if "step 1 of" in text:
                signal.raise_signal(signal.SIGINT)
            return written

    errors = PressesCtrlC()
    monkeypatch.setattr(sys, "stderr", errors)
    before = signal.getsignal(signal.SIGINT)
    code = main(["solve", str(task), "--worth", "1000000"])
    captured = capfd.readouterr()
    assert code == 0, errors.getvalue()
    assert len(captured.out.splitlines()) == 20
    assert "Ctrl-C: training stops at its next step" in captured.err
    assert "Falling back to in-context learning" in errors.getvalue()
    assert "icl answered 20 queries" in errors.getvalue()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_terminal_sees_a_live_line_that_leaves_only_what_matters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    with Reporter(live=True) as reporter:
        reporter.say("Loading")
        for step in (1, 2):
            reporter.event(TrainingStep("train", step, 2, 0.5))
        time.sleep(0.25)  # the line is drawn ten times a second
        reporter.event(FellBack("because [so]."))
    kept = capsys.readouterr().err
    assert "Training: step 2 of 2, loss 0.500 nats per token" in kept
    assert "Falling back to in-context learning: because [so]." in kept


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a b", "a b"),
        ("tab\tstays", "tab\tstays"),
        ("two\nlines", '"two\\nlines"'),
        ("\x1b[31mred", '"\\u001b[31mred"'),
        ('"quoted"', '"\\"quoted\\""'),
        ("", ""),
    ],
)
def test_an_answer_is_one_line_and_can_be_read_back(text: str, line: str) -> None:
    assert answer_line(text) == line
    assert (json.loads(line) if line.startswith('"') else line) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0341, "34 ms"), (0.25, "0.25 s"), (12.34, "12.3 s"), (125.2, "2 min 5 s")]
)
def test_durations_carry_a_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_every_signal_is_explained() -> None:
    assert list(SIGNALS) == list(SCALARS)


# ------------------------------------------------------------------------------------------------- errors


def assert_refused(ran: Ran, code: int, *words: str) -> None:
    """One sentence on stderr, nothing on stdout, the documented exit code."""
    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert ran.code == code, ran
    assert len(errors) == 1 and ran.err.rstrip().endswith(errors[0]), ran.err
    assert "Traceback" not in ran.err and ran.out == ""
    for word in words:
        assert word in errors[0]
    progress = [line for line in ran.err.splitlines() if not line.startswith(("Loading ", "Answering"))]
    assert progress == errors


def test_a_malformed_task_file_is_refused_with_its_place(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text('{"demonstrations": [}')
    assert_refused(run("solve", path), 3, str(path), "line 1, column 21")


def test_a_malformed_table_is_refused_with_its_line(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "broken.csv"
    path.write_text("input,output\nab,ba\ncd,dc,dc\n")
    assert_refused(run("solve", "--demos", path, "--query", "x"), 3, "line 3 has 3 column(s)")


def test_a_missing_file_is_refused(run: Run, tmp_path: Path) -> None:
    assert_refused(run("solve", tmp_path / "none.json"), 3, "none.json can't be read")


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_query_is_refused_before_the_model_is_loaded(run: Run, task_file: Path, text: str) -> None:
    ran = run("solve", task_file, "--query", text)
    assert_refused(ran, 3, "--query number 1 is empty")
    assert "Loading" not in ran.err


def test_a_task_that_asks_nothing_is_refused(run: Run, tmp_path: Path) -> None:
    assert_refused(run("solve", write_task(tmp_path / "t.json")), 3, "asks nothing", "--query TEXT")


def test_training_without_demonstrations_is_refused(run: Run, tmp_path: Path) -> None:
    task = write_task(tmp_path / "t.json", [], queries=["abab"])
    assert_refused(run("solve", task, "--arm", "ttt"), 3, "Training needs demonstrations")


def test_an_unknown_model_is_refused(run: Run, task_file: Path) -> None:
    assert_refused(run("solve", task_file, "--model", "nope"), 4, "No model 'nope'")


def test_a_device_that_is_not_there_is_refused(run: Run, task_file: Path) -> None:
    assert_refused(run("solve", task_file, "--device", "abacus"), 4, "'abacus' is not on this machine")


def test_a_data_folder_that_is_a_file_is_refused(run: Run, task_file: Path) -> None:
    before = task_file.read_bytes()
    assert_refused(run("solve", task_file, "--data-dir", task_file), 5, str(task_file))
    assert_refused(run("history", "--data-dir", task_file), 5, str(task_file))
    assert task_file.read_bytes() == before


def test_a_corrupt_database_is_refused_and_left_as_it_is(run: Run, task_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corrupt"
    folder.mkdir()
    (folder / "router.db").write_bytes(b"not a database, surely" * 100)
    for command in (("solve", task_file), ("history",), ("explain", "abcdefgh")):
        assert_refused(run(*command, "--data-dir", folder), 5, "router.db is damaged")
    assert (folder / "router.db").read_bytes() == b"not a database, surely" * 100


@pytest.mark.parametrize("command", [("explain",), ("feedback", "--right")])
def test_an_unknown_episode_is_refused(run: Run, command: tuple[str, ...]) -> None:
    assert_refused(run(*command, "0123456789ab"), 7, "No episode '0123456789ab'")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("solve",), "give a task file, or --demos and --queries"),
        (("solve", "t.json", "--prefer", "fast", "--worth", "3"), "give one of them"),
        (("solve", "t.json", "--worth", "0"), "must be above 0"),
        (("solve", "t.json", "--prefer", "cheap"), "'cheap'"),
        (("solve", "t.json", "--arm", "guess"), "'guess'"),
        (("solve", "t.json", "--demos", "d.csv"), "give one of them"),
        (("solve", "t.json", "--repeats", "-1"), "greater than or equal to 0"),
        (("evaluate", "f.json", "--arms", "icl,guess"), "'guess' is no arm"),
        (("evaluate", "f.json", "--seeds", "one"), "'one' is no list of whole numbers"),
        (("evaluate", "f.json", "--resume"), "--out"),
        (("feedback", "0123456789ab"), "give one of these three"),
        (("feedback", "0123456789ab", "--right", "--wrong"), "give one of these three"),
        (("frobnicate",), "No such command 'frobnicate'"),
        (("solve", "--frobnicate"), "--frobnicate"),
        (("solve", "--reuse", "far"), "'far' is not one of 'off', 'near'"),
        (("evaluate", "f.json", "--prompt", "verse"), "'verse' is not one of 'plain', 'chat'"),
    ],
)
def test_wrong_usage_is_told_with_where_to_look(run: Run, arguments: tuple[str, ...], words: str) -> None:
    assert_refused(run(*arguments), 2, words, "--help)")


def test_an_impossible_setting_is_refused(run: Run, task_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTT_ROUTER_SEED", "many")
    assert_refused(run("solve", task_file), 2, "TTT_ROUTER_SEED", "'many'")


def test_an_unforeseen_error_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise ZeroDivisionError("from elsewhere")

    monkeypatch.setattr(sys, "stdout", Broken())
    with pytest.raises(ZeroDivisionError, match="from elsewhere"):
        main(["model", "list"])


# ---------------------------------------------------------------------------------------------- afterwards


@pytest.fixture
def answered(run: Run, task_file: Path) -> str:
    """The id of an episode with two queries."""
    return str(solved(run("solve", task_file, "--arm", "icl", "--json"))["episode_id"])


def test_history_lists_answers_newest_first(run: Run, task_file: Path, answered: str) -> None:
    second = solved(run("solve", task_file, "--arm", "zero-shot", "--json"))["episode_id"]
    lines = run("history").out.splitlines()
    assert [line.split()[0] for line in lines] == ["EPISODE", second[:12], answered[:12]]
    assert "letters" in lines[1] and "zero-shot" in lines[1]
    assert len(run("history", "-n", "1").out.splitlines()) == 2


def test_an_empty_history_says_so(run: Run) -> None:
    ran = run("history")
    assert ran.code == 0 and ran.out == "" and "Nothing was answered yet" in ran.err


def test_explain_tells_decision_steps_signals_and_outcomes(run: Run, answered: str) -> None:
    run("feedback", answered[:12], "--answer", "c d", "--query", "1")
    text = run("explain", answered[:12]).out
    for expected in (
        answered,
        "4 demonstrations, 2 queries",
        '"abcd" → "a b"',
        "Answer with icl.",
        "Signals",
    ):
        assert expected in text
    assert "taken with probability 1" in text and "nats" in text and "not measured" in text
    assert 'query 1: wrong, the answer is "c d" (user,' in text


def test_explain_as_json_holds_receipt_task_and_outcomes(run: Run, answered: str) -> None:
    run("feedback", answered, "--right")
    said = json.loads(run("explain", answered, "--json").out)
    assert said["receipt"]["episode_id"] == answered
    assert said["task"]["demonstrations"] == [list(pair) for pair in PAIRS]
    assert [outcome["value"] for outcome in said["outcomes"]] == [1.0, 1.0]


def test_feedback_is_recorded_once(run: Run, answered: str) -> None:
    first = run("feedback", answered[:12], "--wrong", "--query", "0")
    again = run("feedback", answered[:12], "--wrong", "--query", "0")
    assert first.out == f"Episode {answered[:12]}: 1 outcome recorded.\n"
    assert again.out == f"Episode {answered[:12]}: 0 outcomes recorded; 1 outcome known already.\n"
    assert len(json.loads(run("explain", answered, "--json").out)["outcomes"]) == 1


def test_feedback_on_a_query_that_is_not_there_is_refused(run: Run, answered: str) -> None:
    assert_refused(run("feedback", answered, "--right", "--query", "2"), 3, "numbered 0 to 1")


# --------------------------------------------------------------------------------- evaluate, graph, models


def test_evaluate_prints_families_by_arms_and_writes_a_report(run: Run, tmp_path: Path) -> None:
    family, out = tmp_path / "first_letter.json", tmp_path / "report.json"
    items = ["".join(letters) for letters in itertools.product("abc", repeat=3)]
    family.write_text(json.dumps({"examples": [{"input": item, "target": item[0]} for item in items]}))
    options = ("--demos", "3", "--queries", "4", "--seeds", "0,1", "--arms", "icl,auto", "--out", out)
    ran = run("evaluate", family, *options)
    assert ran.code == 0, ran.err
    assert "first_letter" in ran.out and "auto - icl: " in ran.out and "chance / majority" in ran.out
    assert "[2/2] first_letter seed 1: " in ran.err
    report = json.loads(out.read_text())
    assert [(row["family"], row["seed"]) for row in report["families"]] == [
        ("first_letter", s) for s in (0, 1)
    ]


def test_families_are_written_and_collected_and_the_same_command_goes_on(run: Run, tmp_path: Path) -> None:
    folder, out = tmp_path / "families", tmp_path / "rows.jsonl"
    ran = run("families", "--out", folder, "--items", "40", "--only", "words-roman,counting-length")
    assert ran.code == 0 and "2 families" in ran.err
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.json")) == [
        "counting/counting-length.json",
        "words/words-roman.json",
    ]
    options = ("collect", folder, "--demos", "4", "--queries", "3", "--arms", "icl", "--out", out)
    ran = run(*options)
    assert ran.code == 0 and "2 new rows" in ran.err and "[2/2] words-roman seed 0: icl " in ran.err
    assert [json.loads(line)["collection"] for line in out.read_text().splitlines()] == ["counting", "words"]
    again = run(*options)
    assert again.code == 0 and "0 new rows" in again.err and "2 were there" in again.err
    other = run(*options, "--metric", "normalised")
    assert other.code == 3 and 'made with metric "exact", now it is "normalised"' in other.err


def test_tasks_without_a_row_are_named_and_change_the_exit_code(run: Run, tmp_path: Path) -> None:
    pairs = [(f"x {i}", "y" * 3000) for i in range(20)]
    task = write_task(tmp_path / "long.json", pairs=pairs)
    ran = run("collect", task, "--demos", "4", "--queries", "3", "--out", tmp_path / "rows.jsonl")
    assert ran.code == 3 and "1 task could not be done" in ran.err and "letters seed 0" in ran.err


def test_a_family_that_can_not_be_answered_when_pooled_is_marked() -> None:
    cell = {"accuracy": 0.5, "low": 0.2, "high": 0.8, "seconds": 61.0, "correct": [1, 0], "arm": "icl"}
    row = {
        "family": "recolour", "seed": 0, "answerable": False, "chance": 0.25, "majority": 0.3, "arms": {"icl": cell}
    }  # fmt: skip
    shown = table([row], {})
    assert list(shown.columns[0].cells) == [f"recolour {NOT_ANSWERABLE}"]
    assert list(shown.columns[3].cells) == ["50 % (20–80) · 61.0 s"]
    assert "not answerable when pooled" in summary_lines({"families": [row], "summary": {}})[-1]


def test_graph_is_mermaid_with_every_node(run: Run) -> None:
    text = run("graph").out
    assert "graph TD" in text
    for node in (
        "prepare",
        "look_up",
        "icl",
        "signals",
        "decide",
        "probe",
        "train",
        "guard",
        "answer",
        "record",
    ):
        assert f"{node}({node})" in text


def test_model_info_needs_no_loading_and_list_says_what_is_not_fetched(run: Run) -> None:
    info = run("model", "info")
    assert info.code == 0 and "LlamaForCausalLM" in info.out and "1,024 tokens" in info.out
    assert "not fetched yet" in run("model", "list").out


def test_an_unfetched_model_names_the_command_that_fetches_it(run: Run) -> None:
    assert_refused(run("model", "info", "smollm2-135m"), 4, "ttt-router model pull smollm2-135m")


# ---------------------------------------------------------------------------------------- help and imports


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)


def test_help_answers_within_a_second_without_torch() -> None:
    code = (
        "import sys; from router.cli.main import main; code = main(['--help']); "
        "sys.exit(code or 'torch' in sys.modules or 'sqlalchemy' in sys.modules)"
    )
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        ran = python(code)
        seconds.append(time.perf_counter() - started)
        assert ran.returncode == 0, ran.stderr
        assert "Exit codes:" in ran.stdout
    assert min(seconds) < 1.0


def test_explain_history_and_feedback_need_no_torch(run: Run, answered: str, tmp_path: Path) -> None:
    commands = [["explain", answered], ["history"], ["feedback", answered, "--right"]]
    ran = python(
        "import sys; from router.cli.main import main; "
        f"codes = [main(command) for command in {commands!r}]; "
        "sys.exit(any(codes) or 'torch' in sys.modules)"
    )
    assert ran.returncode == 0, ran.stderr
    assert f"Episode {answered[:12]}: 2 outcomes recorded." in ran.stdout


@pytest.mark.parametrize(
    "command",
    [
        "solve",
        "evaluate",
        "collect",
        "families",
        "explain",
        "history",
        "feedback",
        "demo",
        "doctor",
        "graph",
        "model pull",
        "store verify",
        "store repair",
        "store gc",
        "store stats",
    ],
)
def test_every_command_has_help_with_an_example(run: Run, command: str) -> None:
    ran = run(*command.split(), "--help")
    assert ran.code == 0 and "Example" in ran.out and f"ttt-router {command}" in ran.out


def test_the_help_documents_every_exit_code() -> None:
    import router.errors

    documented = {line.split()[0] for line in EPILOG.splitlines() if line[2:3].isdigit()}
    declared = {word for word in (router.errors.__doc__ or "").replace(",", " ").split() if word.isdigit()}
    assert declared <= documented


def test_no_command_prints_the_help_and_is_wrong_usage(run: Run) -> None:
    ran = run()
    assert ran.code == 2 and ran.out == "" and "Commands:" in ran.err


def test_a_reader_that_leaves_early_is_met_in_silence(tmp_path: Path) -> None:
    code = "import sys; from router.cli.main import main; sys.exit(main(['--help']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
