"""What `ttt-router policy eval` prints: the report on unseen families, and estimates from a log."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from router.cli.render import columns, counted


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """The report of `evaluate` as text."""
    lines = [
        f"{counted(report['n_families'], 'family')}, {counted(report['n_rows'], 'row')}, each {report['held_out']} held out in turn; "
        f"base model {', '.join(report['models'])}; 95 % intervals."
    ]
    for name, found in report["worths"].items():
        lines += ["", f"worth {name}: {found['worth_s']:g} s per correct answer"]
        table = [("", "ACCURACY %", "SECONDS PER TASK", "UTILITY", "TRAINED", "LEARNED'S ADVANTAGE")]
        for way, cell in sorted(found["ways"].items(), key=lambda item: -item[1]["utility"][0]):
            ahead = found["advantage"].get(way)
            table.append(
                (
                    way,
                    _interval(cell["accuracy"], 100, ".0f"),
                    _interval(cell["seconds"], 1, ".3g"),
                    _interval(cell["utility"], 1, ".2f"),
                    f"{cell['share_trained']:.0%}",
                    _interval(ahead["utility"], 1, "+.2f") if ahead else "",
                )
            )
        lines += columns(table)
        best, won = found["best_fixed"], found["won_of_oracle"]
        if found["oracle_over_best_fixed"] is None:
            lines.append(
                "There is no oracle: of some tasks one query was judged, so it can't choose on one half and be scored "
                "on the other."
            )
        elif won is None:
            room = _interval(found["oracle_over_best_fixed"], 1, "+.2f")
            lines.append(
                f"The oracle's utility over that of {best} is {room}: too unsure to say what share learned wins."
            )
        else:
            lines.append(f"Of what the oracle wins over {best}, learned wins {_interval(won, 1, '.2f')}.")
        lines += [
            f"Families seen more than 2 points below icl: {_interval(found['share_harmed'], 100, '.0f')} %.",
            _below(found),
        ]
        fresh = found.get("fresh")
        if fresh is not None:
            lines.append(
                f"On fresh rows, {fresh['n_queries']} queries or more of each of {counted(fresh['n_families'], 'family')}: more "
                f"than 2 points below icl {_interval(fresh['share_harmed'], 100, '.0f')} %, {fresh['share_trained']:.0%} "
                f"trained; change {_interval(fresh['change'], 100, '+.1f')} points. {_below(fresh)}"
            )
    lines.append("")
    for label, ranked in report["ranking"].items():
        if ranked is None:
            lines.append(f"Ranking {label}: training gains nothing here, so there is nothing to rank.")
            continue
        lines.append(
            f"Ranking {label}: APGR {_interval(ranked['apgr'], 1, '.2f')} (random .50); half of the gain with "
            f"{ranked['cpt_50']:.0%} of the tasks trained, 80 % with {ranked['cpt_80']:.0%}."
        )
    known = report["calibration"]
    lines.append(
        f"Probability that {known['arm']} is seen to help: Brier {known['brier']:.3f} (base rate "
        f"{known['brier_of_base_rate']:.3f}); predicted → observed "
        + ", ".join(f"{b['predicted']:.0%} → {b['observed']:.0%}" for b in known["bins"])
        + f"; 90 % intervals hold {known['coverage_90']:.0%} of the seen gains."
    )
    for point in report.get("curve", ()):
        lines.append(
            f"Learned from {point['families']} families: utility {point['utility']:.2f} "
            f"({point['least']:.2f} to {point['greatest']:.2f}, {point['draws']} draws)."
        )
    return lines


def _below(found: Mapping[str, Any]) -> str:
    named = ", ".join(found["families_below"]) or "none"
    return f"Significantly below icl (Fisher, one-sided; Holm, 5 %): {named}; least p {found['least_p']:.2g}."


def _interval(values: list[float], factor: float, form: str) -> str:
    middle, low, high = (format(factor * value, form) for value in values)
    return f"{middle} ({low} to {high})"


def judge_log(path: Path, as_json: bool) -> None:
    """Off-policy estimates from a file of logged decisions, on stdout.

    Raises:
        PolicyError: a file or line that can't be read, or a log that does not support the target.
    """
    from policies.errors import PolicyError
    from policies.offpolicy import Logged, off_policy

    logs, target, model = [], [], []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path} can't be read ({error}); give a JSON Lines file of decisions.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            logs.append(Logged(data["family"], data["arm"], data["propensity"], data["reward"]))
            target.append({str(arm): float(p) for arm, p in data["target"].items()})
            model.append({str(arm): float(q) for arm, q in (data.get("model") or {}).items()})
        except PolicyError as error:
            raise PolicyError(f"{path}, line {number}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PolicyError(
                f"{path}, line {number} is no decision ({error!r}); it needs family, arm, propensity, reward and target."
            ) from error
    complete = all(set(t) | {log.arm} <= set(m) for log, t, m in zip(logs, target, model, strict=True))
    found = off_policy(logs, target, model if complete and logs else None)
    if as_json:
        print(json.dumps({name: asdict(value) for name, value in found.items()}, indent=2))
        return
    table = [("", "MEAN REWARD (95 %)", "EFFECTIVE DECISIONS")]
    for name, v in found.items():
        table.append(
            (
                name.upper(),
                f"{v.mean:.3f} ({v.low:.3f} to {v.high:.3f})",
                f"{v.effective_n:.0f} of {len(logs)}",
            )
        )
    print("\n".join(columns(table)))
    if not complete:
        print("note: DR needs a `model` value for every arm of every line.", file=sys.stderr)
