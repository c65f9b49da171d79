"""What the router starts from: outcome rows that come with the package, refitted when they are read.

`prior.jsonl` beside this module holds them; `SHA256` names them, so that a changed file is noticed. None are
shipped yet: until outcomes of real models are there, the built-in rule decides, and `ttt-router policy list`
says so.
"""

from __future__ import annotations

from pathlib import Path

from policies.errors import PolicyError
from policies.outcomes import TaskOutcome, hash_rows, read_rows

FILE = Path(__file__).with_name("prior.jsonl")
SHA256 = ""
"""Of the rows (`outcomes.hash_rows`); empty while none are shipped."""


def prior_rows(file: Path = FILE, sha256: str = SHA256) -> list[TaskOutcome]:
    """The shipped rows; none where none are shipped.

    Raises:
        PolicyError: the file is missing, damaged or was changed.
    """
    if not sha256:
        return []
    rows = read_rows([file])
    if hash_rows(rows) != sha256:
        raise PolicyError(f"The shipped outcomes {file} do not match their hash: install the package again.")
    return rows
