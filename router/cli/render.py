"""Receipts, events and figures as text for people. Every figure carries its unit.

Pure: values in, lines out; no terminal, no files. Imports nothing heavy.
"""

from __future__ import annotations

import json
import textwrap
import time
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from router import events
from router.receipt import Receipt

SIGNALS: dict[str, tuple[str, str]] = {
    "n_demonstrations": ("demonstrations after cleaning", ""),
    "n_queries": ("queries asked", ""),
    "expected_repeats": ("further queries of this task expected later", ""),
    "prompt_tokens": ("length of the demonstrations", "tokens"),
    "answer_tokens": ("mean length of a demonstration's output", "tokens"),
    "label_set_size": ("distinct outputs per demonstration (near 0: a closed set of labels)", ""),
    "train_steps": ("steps that training would take", ""),
    "query_logprob": ("log-probability per token of the ICL answers", "nats"),
    "query_margin": ("lead of the best token over the next, in log-probability", "nats"),
    "answer_entropy": ("entropy of the votes over rewritten prompts", "nats"),
    "agreement": ("rewritten prompts that gave the same answer", "%"),
    "loo_accuracy": ("demonstrations predicted right from the others", "%"),
    "loo_logprob": ("log-probability per token of the demonstrations, each from the others", "nats"),
    "zero_shot_accuracy": ("demonstrations predicted right with none shown", "%"),
    "zero_shot_logprob": ("log-probability per token of the demonstrations with none shown", "nats"),
    "probe_accuracy_before": ("held-out demonstrations right before the probe", "%"),
    "probe_accuracy_after": ("held-out demonstrations right after the probe", "%"),
    "probe_logprob_before": ("held-out log-probability per token before the probe", "nats"),
    "probe_logprob_after": ("held-out log-probability per token after the probe", "nats"),
    "probe_logprob_gain_low": ("lower 90 % bound of what the probe added to it", "nats"),
    "probe_loss_before": ("training loss at the probe's first step", "nats"),
    "probe_loss_after": ("training loss at the probe's last step", "nats"),
}
"""What each figure of `policies.Signals` says, and its unit; `%` is a share."""

MAX_DETAIL = 80
LABEL_WIDTH = 13
"""Columns of a line's name; the longest is that of a step."""
SHOWN_DEMONSTRATIONS = 3


def answer_line(text: str) -> str:
    """An answer on one line: as it is or, where that would be ambiguous, as a JSON string.

    Ambiguous are answers of several lines, with control characters other than tabs, and those that
    begin with a double quote.
    """
    special = any(unicodedata.category(c) in ("Cc", "Zl", "Zp") and c != "\t" for c in text)
    return json.dumps(text, ensure_ascii=True) if special or text.startswith('"') else text


def shortened(text: str, limit: int = MAX_DETAIL) -> str:
    """`text` on one line of at most `limit` characters, quoted."""
    line = json.dumps(text, ensure_ascii=False)
    return line if len(line) <= limit else line[: limit - 2] + '…"'


def duration(seconds: float) -> str:
    """Seconds with a unit that suits: `34 ms`, `0.25 s`, `1.2 s`, `2 min 5 s`."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 99.95:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def moment(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))


def signal_value(name: str, value: float) -> str:
    """A signal with its unit."""
    unit = SIGNALS.get(name, ("", ""))[1]
    if unit == "%":
        return percent(value)
    return f"{value:.3g} {unit}" if unit == "nats" else f"{value:.6g} {unit}".rstrip()


def event_line(event: events.Event) -> str:
    """One sentence about an event; empty for those that say nothing new."""
    match event:
        case events.Started():
            return " ".join(event.notes)
        case events.AnswerGrew():
            return ""
        case events.CacheHit():
            return f"An adapter trained for exactly this task is there ({event.adapter[:12]}); it answers."
        case events.ICLDone():
            n = len(event.answers)
            return f"{counted(n, 'query')} answered without training in {duration(event.seconds)}."
        case events.Sampled():
            return f"{event.n} of {counted(event.of, 'query')} answered without training in {duration(event.seconds)}."
        case events.SignalsReady():
            return f"Signals measured in {duration(event.seconds)}."
        case events.Decided():
            return f"Decision: {event.decision.reason}"
        case events.TrainingStep():
            what = {"probe": "Probe", "halves": "Training on halves", "train": "Training"}[event.phase]
            return f"{what}: step {event.step} of {event.of}, loss {event.loss:.3f} nats per token"
        case events.GuardDone():
            return f"Guard: the adapter is {'accepted' if event.accept else 'vetoed'}. {event.reason}"
        case events.FellBack():
            return f"Falling back to in-context learning: {event.reason}"
        case events.Done():
            return ""


def counted(n: int, noun: str) -> str:
    """`1 query`, `2 queries`."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{n} {noun if n == 1 else plural}"


def arm_sentence(receipt: Receipt) -> str:
    """What answered how much in what time."""
    n = counted(receipt.n_queries, "query")
    return f"{receipt.arm} answered {n} in {duration(receipt.seconds)}"


def receipt_lines(receipt: Receipt, width: int) -> list[str]:
    """The short account that follows an answer."""
    steps = ", ".join(f"{s.name} {duration(s.seconds)}" for s in receipt.steps)
    measured = ", ".join(
        f"{name} {signal_value(name, value)}" for name, value in receipt.signals.items() if value is not None
    )
    short = receipt.episode_id[:12]
    which = " --query I" if receipt.n_queries > 1 else ""
    lines = [arm_sentence(receipt)]
    lines += field("why", receipt.reason, width)
    lines += field("steps", steps, width)
    lines += field("signals", measured, width)
    lines += field("fallback", receipt.fallback, width) if receipt.fallback != receipt.reason else []
    for note in receipt.notes:
        lines += field("note", note, width)
    lines += field("episode", f"{short} (ttt-router explain {short})", width)
    say = f"ttt-router feedback {short} --right | --wrong | --answer TEXT{which}"
    return [*lines, f"  {'feedback':<{LABEL_WIDTH}}{say}"]  # not wrapped: to be copied


def field(name: str, text: str, width: int, label: int = LABEL_WIDTH) -> list[str]:
    """`  name        text`, wrapped with a hanging indent; nothing when there is no text."""
    if not text:
        return []
    return textwrap.wrap(
        text,
        width=max(width, 40),
        initial_indent=f"  {name:<{label}}",
        subsequent_indent=" " * (label + 2),
        break_long_words=False,
        break_on_hyphens=False,
    )


def decision_lines(number: int, decision: Mapping[str, Any], width: int) -> list[str]:
    """One decision with its reason and the figures behind it."""
    arm = decision["arm"]
    step = "Probe first." if decision["step"] == "probe" else f"Answer with {arm}."
    figures = [f"taken with probability {decision['propensity']:.3g}"]
    gain, low = decision["expected_gain"], decision["expected_gain_low"]
    if gain is not None and low is not None:
        figures.append(
            f"expected to add {gain:.2f} (at least {low:.2f}) correct answers per query to in-context learning"
        )
    figures.append(f"expected further cost {duration(decision['expected_cost_s'])}")
    lines = field(f"{number}.", f"{step} {decision['reason']}", width, 4)
    lines += field("", "; ".join(figures) + f"; policy {decision['policy']}.", width, 4)
    details = ", ".join(f"{name} {value:.4g}" for name, value in decision["details"].items())
    return lines + field("", f"({details})" if details else "", width, 4)


def detail_text(detail: Mapping[str, Any]) -> str:
    """A step's details: names in words, seconds with their unit."""
    parts = []
    for name, value in detail.items():
        words = name.removesuffix("_s").replace("_", " ")
        if isinstance(value, bool):
            parts.append(f"{words}: {'yes' if value else 'no'}")
        elif isinstance(value, int | float):
            parts.append(f"{words} {duration(value) if name.endswith('_s') else f'{value:.6g}'}")
        elif isinstance(value, list | tuple):
            parts.append(f"{words}: {', '.join(_item(item) for item in value)}")
        else:
            parts.append(f"{words}: {value}")
    return "; ".join(parts)


def _item(item: Any) -> str:
    """One of a list of details; a row of a table as `(name value, …)`."""
    if not isinstance(item, Mapping):
        return str(item)
    shown = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in item.values())
    return f"({', '.join(f'{name} {text}' for name, text in zip(item, shown, strict=True))})"


def columns(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Rows of cells as lines with aligned columns; the last one is not padded."""
    table = list(rows)
    if not table:
        return []
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]) - 1)]
    return [
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in table
    ]
