"""What the router starts from: outcome rows that come with the package, refitted when they are read.

`prior.jsonl` beside this module holds them; `SHA256` names them, so that a changed file is noticed. docs/outcomes.md
says how they were made.
"""

from __future__ import annotations

from pathlib import Path

from policies.errors import PolicyError
from policies.outcomes import TaskOutcome, hash_rows, read_rows

FILE = Path(__file__).with_name("prior.jsonl")
SHA256 = "4e17eccb85ea2ed4fef5426b2308327752ba1b1a2c4df325e039edec76f9a56f"
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
