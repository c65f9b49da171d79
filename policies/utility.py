"""What is maximised: correct answers, less the seconds that they cost.

    utility = Σ P(correct) − seconds ÷ worth

over the queries asked now and the repeats expected later. *Worth* is the user's knob: how many seconds of
compute one more correct answer is worth. Knows nothing of how probabilities or seconds were estimated.
"""

from __future__ import annotations

from policies.checks import WORTH_MAX_S, beyond_staying, check_finite
from policies.errors import PolicyError
from policies.types import Situation

WORTH: dict[str, float] = {"fast": 5.0, "balanced": 30.0, "accurate": 300.0}
"""Seconds of compute that one more correct answer is worth, by preset.

`fast`: about what a person at a prompt waits for one answer. `balanced` (the default): a training of a
minute must bring two more correct answers. `accurate`: a wrong answer costs five minutes of someone's time.
"""

DEFAULT_PREFERENCE = "balanced"


def worth(prefer: str | None = None, worth_s: float | None = None) -> float:
    """Worth in seconds per additional correct answer, from a preset's name or a figure (not both).

    Raises:
        PolicyError: unknown preset, both given, or a figure that is not finite, ≤ 0 or above 1e6.
    """
    if prefer is not None and worth_s is not None:
        raise PolicyError(f"Both prefer={prefer!r} and worth={worth_s!r} s were given; give one of them.")
    if worth_s is None:
        name = DEFAULT_PREFERENCE if prefer is None else prefer
        if name not in WORTH:
            raise PolicyError(
                f"Unknown preference {name!r}; choose one of {', '.join(WORTH)}, or give worth in seconds."
            )
        return WORTH[name]
    usable = isinstance(worth_s, int | float) and not isinstance(worth_s, bool)
    if not usable or not 0 < worth_s <= WORTH_MAX_S:
        raise PolicyError(
            f"worth is {worth_s!r}, but it must be above 0 and at most {WORTH_MAX_S:,.0f} "
            "seconds per correct answer."
        )
    return float(worth_s)


def utility(p_correct_sum: float, seconds: float, worth_s: float) -> float:
    """Utility in correct answers: the sum of P(correct) over all queries − seconds ÷ worth."""
    return p_correct_sum - seconds / worth(worth_s=worth_s)


def breakeven_gain(seconds: float, n_expected: float, worth_s: float) -> float:
    """The gain in P(correct) per query at which `seconds`, spread over `n_expected` queries, just pay.

    Raises:
        PolicyError: no query is expected, so that nothing can pay.
    """
    check_finite("seconds", seconds, 0.0)
    check_finite("n_expected", n_expected)
    if n_expected <= 0:
        raise PolicyError(
            f"{n_expected:g} queries are expected; a break-even gain needs at least one query to serve."
        )
    return seconds / (worth(worth_s=worth_s) * n_expected)


def expected_queries(situation: Situation) -> float:
    """Queries that a decision serves: those asked now, and those expected later."""
    return situation.signals.n_queries + situation.signals.expected_repeats


def breakeven(situation: Situation, seconds: float) -> float:
    """`breakeven_gain` of an arm that takes `seconds`, beyond what staying would still take."""
    return breakeven_gain(beyond_staying(situation, seconds), expected_queries(situation), situation.worth_s)
