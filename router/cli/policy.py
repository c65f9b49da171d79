"""`ttt-router policy`: evaluate, fit, list, show, promote, revert and compare policies. Needs no model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from router.cli.options import DataDir, Json, Prefer, Worth, check_worth, settings_of
from router.cli.progress import Reporter
from router.cli.render import columns, moment

if TYPE_CHECKING:
    from policies.outcomes import TaskOutcome
    from policies.persist import Saved
    from router.settings import Settings
    from store import Store

app = typer.Typer(
    help="What decides: evaluate, fit, promote and compare policies.",
    no_args_is_help=False,
    rich_markup_mode=None,
    add_completion=False,
)

Rows = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[ROWS]...",
        help="Outcome rows (JSON Lines), or folders of them; this router's own episodes if left out.",
        show_default=False,
    ),
]
Version = Annotated[
    str,
    typer.Argument(metavar="VERSION", help="Of `policy list`, or its first characters, or a policy's file."),
]
Confidence = Annotated[
    float | None,
    typer.Option("--confidence", metavar="C", help="Of the bound that the policy acts on, 0.5 to 0.999."),
]
Kept = Annotated[str, typer.Argument(metavar="VERSION", help="Of `policy list`, or its first characters.")]
SHIPPED = "the shipped policy"


@app.command("eval")
def evaluate(
    rows: Rows = None,
    by: Annotated[
        Literal["family", "collection", "task"], typer.Option("--by", help="What is held out in turn.")
    ] = "family",
    prefer: Prefer = None,
    worth: Worth = None,
    confidence: Confidence = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Also utility against the number of families learned from.")
    ] = False,
    fresh: Annotated[
        list[Path] | None,
        typer.Option(
            "--fresh", metavar="F", help="Rows of the same tasks with more queries, to judge harm by."
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            "--log", metavar="F", help="Estimate from logged decisions alone (JSON Lines; docs/policy.md)."
        ),
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Judge the learned policy on families that it never saw, against every baseline.

    Each family (or collection, or single task, so that its family is known) is held out in turn. Figures are means over families; intervals are 95 %,
    by resampling families. Utility is in correct answers per task, cost taken off.

    \b
    Examples:
      ttt-router policy eval outcomes.jsonl
      ttt-router policy eval outcomes/ --by collection --worth 60 --json
      ttt-router policy eval outcomes/ --fresh further.jsonl
      ttt-router policy eval --log decisions.jsonl
    """
    check_worth(prefer, worth)
    if log is not None:
        from router.cli.policy_report import judge_log

        judge_log(log, as_json)
        return
    from policies.evaluation import evaluate as judge
    from policies.evaluation import learning_curve
    from policies.learned import DEFAULT_CONFIDENCE
    from policies.outcomes import read_rows
    from policies.utility import WORTH
    from policies.utility import worth as seconds

    worths = (
        dict(WORTH)
        if prefer is None and worth is None
        else {prefer or f"{worth:g} s": seconds(prefer, worth)}
    )
    level = DEFAULT_CONFIDENCE if confidence is None else confidence
    with rows_and_store(rows, data_dir) as (found, _, reporter):
        others = read_rows(fresh) if fresh else []
        report = judge(found, worths=worths, by=by, confidence=level, fresh=others, progress=folds(reporter))
        if curve:
            n = report["n_families"]
            sizes = sorted({m for x in (0.1, 0.2, 0.4, 0.6, 0.8) if (m := max(8, round(n * x))) < n})
            first = next(iter(worths.values()))
            report["curve"] = learning_curve(found, sizes, worth_s=first, confidence=level)
    from router.cli.policy_report import report_lines

    print(json.dumps(report, indent=2) if as_json else "\n".join(report_lines(report)))


@app.command("fit")
def fit(
    rows: Rows = None,
    confidence: Confidence = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="M", help="Base model (the revision in its rows) whose rows count more."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="F", help="Also write the policy to a file.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Fit a policy and keep it as a version; it decides nothing before it is promoted.

    \b
    Examples:
      ttt-router policy fit outcomes.jsonl
      ttt-router policy fit --out learned.json
    """
    from policies.learned import DEFAULT_CONFIDENCE
    from policies.persist import save
    from router.versions import save_fitted

    with rows_and_store(rows, data_dir) as (found, opened, reporter):
        reporter.say(f"Fitting on {len(found)} rows")
        level = DEFAULT_CONFIDENCE if confidence is None else confidence
        policy, notes = save_fitted(opened, found, base_model=model, confidence=level)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    seen = policy.provenance
    print(
        f"{policy.version}  {seen.n_rows} rows of {len(seen.families)} families, arms {', '.join(policy.arms)}"
    )
    if out is not None:
        save(policy, out)
    print(f"It decides once it is promoted: ttt-router policy promote {policy.version} ROWS", file=sys.stderr)


@app.command("list")
def list_(data_dir: DataDir = None) -> None:
    """List the fitted policies, newest first, and say which one decides.

    \b
    Example:
      ttt-router policy list
    """
    from router.versions import in_force

    settings = settings_of(data_dir=data_dir)
    with _store(data_dir) as opened:
        versions = opened.policy_versions.list()
        if versions:
            table = [("VERSION", "FITTED", "ROWS", "STATE")]
            for row in versions:
                how = dict(row.payload.get("fit") or {})
                state = "in force" if row.active else "was in force" if row.payload.get("promotion") else ""
                n = how.get("rows", 0) + how.get("rows_of_prior", 0)
                table.append((row.version, moment(row.created_at), str(n), state))
            print("\n".join(columns(table)))
        policy, notes = in_force(opened, settings)
        promoted = any(row.active for row in versions)
        print(*notes or [f"{policy.version} decides{_why(settings.policy, promoted)}."])


@app.command("show")
def show(version: Version, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Say what a policy was fitted on, how it came into force, and whether it kept its promise.

    \b
    Examples:
      ttt-router policy show learned-1-24102e
      ttt-router policy show learned.json --json
    """
    from policies.learned import Learned
    from policies.persist import to_json
    from router.versions import as_set, realised

    with _store(data_dir) as opened:
        policy = _policy(opened, version)
        if as_json:
            print(to_json(policy), end="")
            return
        lines = [("policy", policy.version)]
        if isinstance(policy, Learned):
            seen = policy.provenance
            lines += [
                (
                    "fitted on",
                    f"{seen.n_rows} rows of {len(seen.families)} families ({', '.join(seen.collections)})",
                ),
                ("base models", ", ".join(seen.base_models)),
                ("rows' hash", seen.rows_sha256),
                ("confidence", f"{policy.confidence:g}, one-sided, of the bound that it acts on"),
                *(
                    (f"arm {name}", f"{', '.join(model.stages)} ({model.n_families} families)")
                    for name, model in policy.arms.items()
                ),
            ]
        if not Path(version).is_file():
            settings = settings_of(data_dir=data_dir)
            lines += _standing(opened, policy, settings)
            promise = realised(opened, as_set(policy, settings).version)
            said = promise.sentence if promise else "too few trained tasks were judged to say."
            lines.append(("promise", said))
        print("\n".join(columns(lines)))


def _standing(opened: Store, policy: Saved, settings: Settings) -> list[tuple[str, str]]:
    """Whether a policy of the store, or the shipped one, is in force, and why."""
    from router.versions import as_set, in_force

    row = next((row for row in opened.policy_versions.list() if row.version == policy.version), None)
    if row is None:
        decides = in_force(opened, settings)[0].version
        own = decides == as_set(policy, settings).version
        return [
            ("in force", "yes, until a version is promoted" if own else f"no, {decides} decides"),
            ("comes from", "the outcomes that are shipped with the package"),
        ]
    lines = [("in force", f"yes.{_overruled(settings)}" if row.active else "no")]
    promotion: Mapping[str, Any] = row.payload.get("promotion") or {}
    if promotion:
        lines.append(("promoted", f"{moment(promotion['at'])}, over {promotion['replaced'] or SHIPPED}"))
        lines.append(("because", promotion["reason"]))
    return lines


@app.command("promote")
def promote(
    version: Kept,
    rows: Rows = None,
    prefer: Prefer = None,
    worth: Worth = None,
    data_dir: DataDir = None,
) -> int:
    """Put a version in force, if paired outcomes show that it beats the one in force.

    Exit code 8 and the reason when they don't: then nothing changes.

    \b
    Examples:
      ttt-router policy promote learned-1-24102e fresh-outcomes.jsonl
      ttt-router policy promote learned-1-24102e outcomes.jsonl --prefer accurate
    """
    from router.versions import promote as put

    check_worth(prefer, worth)
    settings = settings_of(prefer=prefer, worth_s=worth, data_dir=data_dir)
    with rows_and_store(rows, data_dir) as (found, opened, reporter):
        name, verdict = put(opened, version, found, settings, progress=folds(reporter))
    if not verdict.promote:
        print(f"error: {verdict.reason}", file=sys.stderr)
        return 8
    print(f"{name} is in force. {verdict.reason}{_overruled(settings)}")
    return 0


@app.command("revert")
def revert(data_dir: DataDir = None) -> None:
    """Put back in force what the version in force replaced.

    \b
    Example:
      ttt-router policy revert
    """
    from router.versions import revert as back

    with _store(data_dir) as opened:
        print(f"{back(opened) or SHIPPED} is in force.{_overruled(settings_of(data_dir=data_dir))}")


@app.command("diff")
def diff(first: Version, second: Version, data_dir: DataDir = None) -> None:
    """Say what differs between two policies.

    \b
    Example:
      ttt-router policy diff learned-1-24102e learned-1-77ab01
    """
    from router.versions import difference

    with _store(data_dir) as opened:
        found = difference(_policy(opened, first), _policy(opened, second))
    print("\n".join(columns([("WHAT", "FIRST", "SECOND"), *found])) if found else "They do not differ.")


@contextmanager
def rows_and_store(
    paths: list[Path] | None, data_dir: Path | None
) -> Iterator[tuple[list[TaskOutcome], Store, Reporter]]:
    """Rows of files, or of the store's own episodes; notes on what was left out go to stderr."""
    from policies.errors import PolicyError
    from policies.outcomes import read_rows

    with _store(data_dir) as opened, Reporter() as reporter:
        if paths:
            yield read_rows(paths), opened, reporter
            return
        from router.learning import rows_of

        found, notes = rows_of(opened)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        if not found:
            raise PolicyError(
                "No episode here has outcomes of both in-context learning and training: give files of rows, or let "
                "tasks train and tell the right answers by `ttt-router feedback EPISODE --answer TEXT`."
            )
        yield found, opened, reporter


@contextmanager
def _store(data_dir: Path | None) -> Iterator[Store]:
    from router.bootstrap import open_store

    opened = open_store(settings_of(data_dir=data_dir))
    try:
        yield opened
    finally:
        opened.close()


def _policy(opened: Store, name: str) -> Saved:
    from policies.persist import load
    from router.versions import begins, find, matching, read, shipped

    if Path(name).is_file():
        return load(Path(name))
    if not matching(opened, name) and begins((own := shipped()).version, name):
        return own
    return read(find(opened, name))


def folds(reporter: Reporter) -> Callable[[int, int], None]:
    """Tells of progress, five times in all."""

    def say(done: int, of: int) -> None:
        if done == of or done % max(1, of // 5) == 0:
            reporter.say(f"Refitted without a part of the families: {done} of {of}")

    return say


def _overruled(settings: Settings) -> str:
    """What to add where a setting decides in place of what is in force."""
    if settings.policy == "active":
        return ""
    return f' But the setting policy = "{settings.policy}" decides, until it is "active".'


def _why(setting: str, promoted: bool) -> str:
    if setting not in ("active", "rule"):
        return ", as the setting `policy` names its file"
    if setting == "rule":
        return ', as the setting `policy` is "rule"'
    return "" if promoted else ": nothing was promoted, so it is the shipped one"
