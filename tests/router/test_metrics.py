"""Metrics: what counts as right, and what people are told when a metric can't be used."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.metrics import MetricError, exact, metric, normalised, numeric


@given(st.text())
def test_every_text_equals_itself(text: str) -> None:
    assert exact(text, text)
    assert normalised(text, text)


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        (" True\n", "true", True),
        ("a  b\nc", "A b c", True),
        ("(B)", "B", False),
        ("yes.", "yes", False),
        ("] )", "] )", True),
        ("", "x", False),
    ],
)
def test_exact_ignores_case_and_white_space_only(answer: str, gold: str, right: bool) -> None:
    assert metric("exact")(answer, gold) is right


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("The answer: yes!", "answer yes", True),
        ("b", "(B)", True),
        ("(A)", "a", True),
        ("", "(A)", False),
        ("the", "(A)", False),
        ("\uff21\uff22", "ab", True),  # full-width letters
        ("STRASSE", "straße", True),
        ("] )", ") ]", False),
        (">", "> ]", False),
        ("-3", "3", False),
        ("3.5", "35", False),
        ("3.5.", "3.5", True),
        ("1,234", "1234", True),
        ("well-known", "wellknown", True),
    ],
)
def test_normalised_drops_punctuation_and_articles_but_not_meaning(
    answer: str, gold: str, right: bool
) -> None:
    assert metric("normalised")(answer, gold) is right


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("The sum is 7.", "7", True),
        ("3 + 4 = 7", "7.0", True),
        ("$1,234.50", "1234.5", True),
        ("-3", "3", False),
        ("\u22123", "-3", True),  # minus sign
        ("range 5-3", "3", True),
        (".5", "0.50", True),
        ("2e3", "2000", True),
        ("100.00001", "100", True),
        ("100.001", "100", False),
        ("0", "0", True),
        ("1e-9", "0", False),
        ("none", "7", False),
        ("9" * 400, "9" * 400, True),
        ("9" * 400, "8" * 400, False),
    ],
)
def test_numeric_compares_the_last_numbers(answer: str, gold: str, right: bool) -> None:
    assert metric("numeric")(answer, gold) is right


def test_numeric_refuses_a_gold_answer_without_a_number() -> None:
    with pytest.raises(MetricError, match="'seven' has no number"):
        numeric("7", "seven")


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_metric_for_test.py").write_text(
        "LIMIT = 3\n"
        "def prefix(answer, gold):\n    return gold.startswith(answer)\n"
        "def score(answer, gold):\n    return 0.3\n"
        "def broken(answer, gold):\n    return answer[99] == gold\n"
    )
    (tmp_path / "own_metric_with_error.py").write_text("def prefix(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_metric_for_test"


def test_own_function_is_loaded_and_called_with_answer_then_gold(own_module: str) -> None:
    prefix = metric(f"{own_module}:prefix")
    assert prefix("ab", "abc")
    assert not prefix("abc", "ab")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("f1", "no metric 'f1'; use exact, normalised, numeric, or module:function"),
        (":f", "no metric ':f'"),
        ("m:", "no metric 'm:'"),
        ("no_such_module_here:f", "can't be imported.*PYTHONPATH"),
        ("own_metric_with_error:prefix", "Importing 'own_metric_with_error' failed .SyntaxError"),
        ("own_metric_for_test:sufix", "has no function 'sufix'"),
        ("own_metric_for_test:LIMIT", "has no function 'LIMIT'"),
    ],
)
def test_metric_that_cannot_be_loaded_is_told(own_module: str, name: str, told: str) -> None:
    with pytest.raises(MetricError, match=told):
        metric(name)


def test_own_function_that_fails_or_returns_a_score_is_told(own_module: str) -> None:
    with pytest.raises(MetricError, match=r"returned 0\.3; make it return True or False"):
        metric(f"{own_module}:score")("a", "b")
    with pytest.raises(MetricError, match=r"failed on the answer 'a'.*IndexError"):
        metric(f"{own_module}:broken")("a", "b")
