"""When an answer counts as right: named metrics, or the user's own function.

A metric sees only two texts, the answer and the gold one, and says yes or no. It knows nothing of tasks,
arms or models.
"""

from __future__ import annotations

import importlib
import math
import re
import unicodedata
from collections.abc import Callable

Metric = Callable[[str, str], bool]
"""`(answer, gold) -> right`, in this order."""

NUMERIC_TOLERANCE = 1e-6
"""Largest relative difference of two numbers that count as equal."""

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER = re.compile(
    r"(?:(?<!\w)[-+])?"  # a sign that is not a hyphen
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))"  # whole part: 1,234 or 1234, none in .5
    r"(?:\.\d+)?(?:[eE][-+]?\d+)?"
)


class MetricError(ValueError):
    """A metric can't be loaded, or can't judge what it was given."""


def metric(name: str) -> Metric:
    """The metric `exact`, `normalised`, `numeric`, or a function given as `module:function`.

    A function is imported from Python's search path and called as `function(answer, gold)`; it must
    return true or false.

    Raises:
        MetricError: no such metric, module or function; the message says which.
    """
    known: dict[str, Metric] = {"exact": exact, "normalised": normalised, "numeric": numeric}
    if name in known:
        return known[name]
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise MetricError(f"There is no metric {name!r}; use {', '.join(known)}, or module:function.")
    return _load(name, module, function)


def exact(answer: str, gold: str) -> bool:
    """Equal but for case, surrounding white space and the length of white-space runs.

    Case does not count, as in the published protocol of few-shot test-time training on BIG-Bench-Hard.
    """
    return " ".join(answer.lower().split()) == " ".join(gold.lower().split())


def normalised(answer: str, gold: str) -> bool:
    """Equal after Unicode NFKC and case folding, without punctuation and English articles.

    So `(B)` equals `b.`. Signs and points of numbers stay. Where dropping would leave nothing to compare
    (brackets only, the answer `A`), nothing is dropped.
    """
    return _normal_form(answer) == _normal_form(gold)


def numeric(answer: str, gold: str) -> bool:
    """The last numbers of both texts are equal within `NUMERIC_TOLERANCE`; an answer without one is wrong.

    Reads `-3`, `1,234.5`, `.5` and `2e-3`. A hyphen after a letter or digit is not a sign.

    Raises:
        MetricError: the gold answer has no number.
    """
    expected, found = _last_number(gold), _last_number(answer)
    if expected is None:
        raise MetricError(f"The gold answer {gold[:60]!r} has no number; use the metric exact or normalised.")
    if found is None:
        return False
    if math.isinf(expected) or math.isinf(found):
        return exact(answer, gold)
    return math.isclose(expected, found, rel_tol=NUMERIC_TOLERANCE)


def _normal_form(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    if not any(c.isalnum() for c in folded):
        return " ".join(folded.split())
    words = "".join(c for i, c in enumerate(folded) if not _is_dropped(folded, i)).split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def _is_dropped(text: str, i: int) -> bool:
    """Whether the character is punctuation, but neither a number's sign nor its point."""
    if not unicodedata.category(text[i]).startswith("P"):
        return False
    before, after = text[i - 1 : i], text[i + 1 : i + 2]
    is_sign = text[i] == "-" and after.isdigit() and not before.isalnum()
    return not (is_sign or (text[i] == "." and before.isdigit() and after.isdigit()))


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return float(found[-1].replace(",", "")) if found else None


def _load(name: str, module: str, function: str) -> Metric:
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MetricError(
            f"The metric {name!r} can't be imported ({error}); its folder must be on Python's search path, "
            "e.g. in PYTHONPATH."
        ) from error
    except Exception as error:
        raise MetricError(
            f"Importing {module!r} failed ({type(error).__name__}: {error}); mend it."
        ) from error
    chosen = getattr(loaded, function, None)
    if not callable(chosen):
        raise MetricError(f"The module {module!r} has no function {function!r}; check the name.")

    def judge(answer: str, gold: str) -> bool:
        try:
            verdict = chosen(answer, gold)
        except Exception as error:
            raise MetricError(
                f"The metric {name!r} failed on the answer {answer[:60]!r} and the gold answer {gold[:60]!r} "
                f"({type(error).__name__}: {error}); mend it."
            ) from error
        if not isinstance(verdict, bool):
            raise MetricError(f"The metric {name!r} returned {verdict!r}; make it return True or False.")
        return verdict

    return judge
