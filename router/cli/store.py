"""`ttt-router store`: whether what was kept is sound, mending it, and taking away what is not worth its bytes.

Opens the store alone, never a model. Every command may run while others work.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from router.cli.options import DataDir, Json, settings_of
from router.cli.render import columns, counted, duration

app = typer.Typer(
    help="What was kept: verify, repair, take away, count.",
    no_args_is_help=False,
    rich_markup_mode=None,
    add_completion=False,
)
UNSOUND = 5
"""Exit code; that of a store that can't be used."""


@app.command("verify")
def verify(data_dir: DataDir = None, as_json: Json = False) -> int:
    """Check the database, the hash of every adapter and the policy in force. Only reads.

    Exit code 0 only if all is sound, else 5.

    \b
    Example:
      ttt-router store verify
    """
    from router.bootstrap import open_store
    from router.upkeep import check

    opened = open_store(settings_of(data_dir=data_dir))
    try:
        report = check(opened)
    finally:
        opened.close()
    if as_json:
        print(json.dumps(asdict(report) | {"sound": report.sound}, ensure_ascii=False, indent=2))
        return 0 if report.sound else UNSOUND
    for finding in report.findings:
        print(f"PROBLEM  {finding.kind}: {finding.sentence}")
    looked = (
        f"{counted(report.n_adapters, 'adapter')} ({megabytes(report.n_bytes)}) in {duration(report.seconds)}"
    )
    left = report.n_unreferenced + report.n_staging
    aside = (
        f"; {counted(left, 'folder')} unfinished or left over, which `ttt-router store gc` clears"
        if left
        else ""
    )
    if report.sound:
        print(f"All is sound: the database and {looked}{aside}.")
        return 0
    print(f"{counted(len(report.findings), 'problem')} in the database and {looked}{aside}.")
    print("`ttt-router store repair` mends what can be mended.")
    return UNSOUND


@app.command("repair")
def repair(data_dir: DataDir = None) -> int:
    """Mend what `verify` finds.

    Damaged adapters are forgotten, and trained again when their task is next asked; indexes are built anew.
    Answers, outcomes and policies stay. Exit code 0 only if all is sound afterwards, else 5.

    \b
    Example:
      ttt-router store repair
    """
    from router.bootstrap import open_store
    from router.upkeep import check

    opened = open_store(settings_of(data_dir=data_dir))
    try:
        for told in opened.repair():
            print(told)
        report = check(opened)
    finally:
        opened.close()
    for finding in report.findings:
        print(f"PROBLEM  {finding.kind}: {finding.sentence}")
    print(
        "All is sound."
        if report.sound
        else f"{counted(len(report.findings), 'problem')} can't be mended here."
    )
    return 0 if report.sound else UNSOUND


@app.command("gc")
def gc(
    quota: Annotated[
        int | None,
        typer.Option(
            "--quota", metavar="BYTES", help="Bytes that adapters may take up; 0 is no limit.", min=0
        ),
    ] = None,
    max_age: Annotated[
        float | None,
        typer.Option(
            "--max-age", metavar="DAYS", help="Days unused after which one goes; 0 is no limit.", min=0
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Take away what is left over, and adapters beyond the bounds.

    Those that save the fewest seconds a byte go first, never one in use. The settings `quota_bytes` and
    `max_age_days` hold where no option is given. Answers and outcomes stay.

    \b
    Examples:
      ttt-router store gc
      ttt-router store gc --quota 2000000000 --max-age 90
    """
    from router.bootstrap import open_store
    from router.upkeep import bounds_of

    settings = settings_of(data_dir=data_dir, quota_bytes=quota, max_age_days=max_age)
    opened = open_store(settings)
    try:
        done = opened.collect(bounds_of(settings))
    finally:
        opened.close()
    print(
        f"{counted(len(done.evicted), 'adapter')} evicted ({megabytes(done.evicted_bytes)}), "
        f"{counted(done.unreferenced, 'left-over folder')} cleared ({megabytes(done.unreferenced_bytes)}); "
        f"{megabytes(done.kept_bytes)} of adapters kept."
    )
    if done.over_bytes:
        print(
            f"{megabytes(done.over_bytes)} above the quota, all of it in use; try again in a quarter of an hour."
        )


@app.command("stats")
def stats(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Count what is kept, and what it takes up.

    \b
    Example:
      ttt-router store stats
    """
    from router.bootstrap import open_store
    from router.upkeep import counts

    settings = settings_of(data_dir=data_dir)
    opened = open_store(settings)
    try:
        found = counts(opened, settings)
    finally:
        opened.close()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print("\n".join(columns((name.replace("_", " "), _figure(name, value)) for name, value in found.items())))


def megabytes(n: int) -> str:
    return f"{n / 1e6:.1f} MB"


def _figure(name: str, value: Any) -> str:
    if name.endswith("bytes"):
        return megabytes(value) if value or "quota" not in name else "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
