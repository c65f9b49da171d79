"""What the router starts from: outcome rows that come with the package, refitted when they are read.

`prior.jsonl` beside this module holds them; `SHA256` names them, so that a changed file is noticed. docs/outcomes.md
says how they were made.
"""

from __future__ import annotations

from pathlib import Path

from policies.errors import PolicyError
from policies.outcomes import TaskOutcome, hash_rows, read_rows

FILE = Path(__file__).with_name("prior.jsonl")
SHA256 = "8feb65f512041c6768dff582ecff2294e09e17cb6773afeb477fa02b64584de6"
"""Of the rows (`outcomes.hash_rows`)."""


def prior_rows(file: Path = FILE, sha256: str = SHA256) -> list[TaskOutcome]:
    """The shipped rows.

    Raises:
        PolicyError: the file is missing, damaged or was changed.
    """
    try:
        rows = read_rows([file])
        whole = hash_rows(rows) == sha256
    except PolicyError as error:
        raise PolicyError(
            f"The shipped outcomes can't be read ({error}): install the package again."
        ) from error
    if not whole:
        raise PolicyError(f"The shipped outcomes {file} do not match their hash: install the package again.")
    return rows
