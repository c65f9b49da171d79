"""Seconds of what is still to be paid, from sizes in tokens and this machine's rates.

Three rates: `prefill` (seconds per token scored or read as a prompt), `train` (seconds per token trained
on) and `decode` (seconds per decoding step; a step serves a whole batch). They start as guesses from
FLOP/s, and follow what is observed: the first observation replaces the guess, the first few are averaged,
later ones are weighted exponentially. As long as nothing was trained, the rate of training goes in proportion to that of
reading: in-context learning, which comes first on a new machine, is what calibrates it.

Knows nothing of models beyond their parameter count, nor of load: on a shared machine seconds swing by two.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from policies.checks import check_finite
from policies.errors import PolicyError
from policies.files import parse
from policies.types import Costs

Kind = Literal["prefill", "train", "decode"]
KINDS: tuple[Kind, ...] = get_args(Kind)

OBSERVATION_WEIGHT = 0.3
"""Least weight of a new observation: the memory is about three observations long."""
CALIBRATING_TOKENS = 256
"""Read at once, at least, to tell of training: fewer are mostly overhead."""
_RATE_MIN_S, _RATE_MAX_S = 1e-12, 1e4
"""Seconds per token that are believed at all."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work a task is."""

    n_demonstrations: int
    prefix_tokens: int
    """Tokens of the demonstration prefix."""
    query_tokens: int
    """Tokens of all queries together, without the prefix."""
    decode_steps: int
    """Decoding steps for all queries: per batch, the longest answer."""
    probe_train_tokens: int
    """Tokens that both halves of the probe train on, over all steps."""
    train_tokens: int
    """Tokens that the training runs over, over all steps."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            check_finite(f"Sizes.{name}", getattr(self, name), 0.0)


@dataclass(slots=True)
class _Rate:
    seconds_per_token: float
    observations: int = 0


@dataclass(slots=True)
class CostModel:
    """Rates of one model on one machine, in seconds per token. Not safe for writers in two threads."""

    _rates: dict[Kind, _Rate] = field(default_factory=dict)

    @classmethod
    def guess(
        cls,
        n_parameters: int,
        *,
        prefill_flops_per_s: float = 3e11,
        train_flops_per_s: float = 2e11,
        decode_step_s: float = 0.05,
    ) -> CostModel:
        """Rates before anything was observed.

        2 FLOP per parameter and token forward; 4 in training, as LoRA needs no gradient of the base
        weights. The defaults are for two CPU cores, where small models reach about a tenth of the
        bf16 matrix-product peak of 2 TFLOP/s.

        Raises:
            PolicyError: a figure that is not finite or not positive.
        """
        check_finite("n_parameters", n_parameters, 1.0)
        check_finite("prefill_flops_per_s", prefill_flops_per_s, 1.0)
        check_finite("train_flops_per_s", train_flops_per_s, 1.0)
        return cls(
            {
                "prefill": _Rate(_check_rate("prefill", 2.0 * n_parameters / prefill_flops_per_s)),
                "train": _Rate(_check_rate("train", 4.0 * n_parameters / train_flops_per_s)),
                "decode": _Rate(_check_rate("decode", decode_step_s)),
            }
        )

    def predict(self, kind: Kind, tokens: float) -> float:
        """Seconds for `tokens` tokens (for `decode`: steps)."""
        return self._rate(kind).seconds_per_token * check_finite("tokens", tokens, 0.0)

    def observe(self, kind: Kind, tokens: float, seconds: float) -> None:
        """Learn that `tokens` tokens took `seconds` seconds.

        Raises:
            PolicyError: unknown kind, no tokens, or seconds that are not finite or negative.
        """
        rate = self._rate(kind)
        if check_finite("tokens", tokens, 0.0) == 0.0:
            raise PolicyError(f"{kind} was observed over 0 tokens; that tells no rate.")
        seen = max(_RATE_MIN_S, check_finite("seconds", seconds, 0.0) / tokens)
        weight = max(OBSERVATION_WEIGHT, 1.0 / (rate.observations + 1))
        before = rate.seconds_per_token
        rate.seconds_per_token += weight * (_check_rate(kind, seen) - before)
        rate.observations += 1
        train = self._rates["train"]
        if kind == "prefill" and tokens >= CALIBRATING_TOKENS and not train.observations:
            scaled = train.seconds_per_token * rate.seconds_per_token / before
            train.seconds_per_token = min(max(scaled, _RATE_MIN_S), _RATE_MAX_S)

    def observed(self, kind: Kind) -> bool:
        """Whether this machine's rate was ever observed; else it is a guess, or in proportion to one that was."""
        return self._rate(kind).observations > 0

    def icl_s(self, sizes: Sizes) -> float:
        """One ICL pass: the prefix once, all queries, decoding."""
        return self.predict("prefill", sizes.prefix_tokens + sizes.query_tokens) + self.predict(
            "decode", sizes.decode_steps
        )

    def loo_s(self, sizes: Sizes) -> float:
        """Leave-one-out: every demonstration scored in the context of the others."""
        return self.predict("prefill", sizes.n_demonstrations * sizes.prefix_tokens)

    def probe_s(self, sizes: Sizes) -> float:
        """Two short trainings, and every demonstration scored before and after in half of the context."""
        return self.predict("train", sizes.probe_train_tokens) + self.loo_s(sizes)

    def train_s(self, sizes: Sizes) -> float:
        return self.predict("train", sizes.train_tokens)

    def costs(self, sizes: Sizes) -> Costs:
        """What is still to be paid after ICL. Answering with an adapter reads the prefix anew."""
        return Costs(self.probe_s(sizes), self.train_s(sizes), self.icl_s(sizes))

    def to_json(self) -> str:
        rates = {
            kind: {"seconds_per_token": rate.seconds_per_token, "observations": rate.observations}
            for kind, rate in self._rates.items()
        }
        return json.dumps({"cost_model": 1, "rates": rates}, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> CostModel:
        """The model that `to_json` wrote.

        Raises:
            PolicyError: not JSON, unknown or missing keys, or a value that is not finite or out of range.
        """
        data = parse(text, "The cost model", "delete it to start from guesses")
        _check_keys("cost model", data, {"cost_model", "rates"})
        if data["cost_model"] != 1:
            raise PolicyError(
                f"The cost model has format {data['cost_model']!r}, but this version reads format 1."
            )
        _check_keys("cost model's rates", data["rates"], set(KINDS))
        rates: dict[Kind, _Rate] = {}
        for kind in KINDS:
            entry = data["rates"][kind]
            _check_keys(f"cost model's rate {kind}", entry, {"seconds_per_token", "observations"})
            observations = entry["observations"]
            if isinstance(observations, bool) or not isinstance(observations, int) or observations < 0:
                raise PolicyError(
                    f"The rate {kind} has {observations!r} observations, but it must be a count."
                )
            rates[kind] = _Rate(_check_rate(kind, entry["seconds_per_token"]), observations)
        return cls(rates)

    def _rate(self, kind: Kind) -> _Rate:
        if kind not in self._rates:
            raise PolicyError(f"Unknown kind of work {kind!r}; choose one of {', '.join(KINDS)}.")
        return self._rates[kind]


def _check_rate(kind: str, seconds_per_token: float) -> float:
    return check_finite(
        f"The rate {kind}, in seconds per token,", seconds_per_token, _RATE_MIN_S, _RATE_MAX_S
    )


def _check_keys(what: str, data: Any, expected: set[str]) -> None:
    if not isinstance(data, dict):
        raise PolicyError(f"The {what} is {type(data).__name__}, but it must be a JSON object.")
    if set(data) != expected:
        raise PolicyError(f"The {what} has the keys {sorted(data)}, but it must have {sorted(expected)}.")
