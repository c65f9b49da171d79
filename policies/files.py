"""Files of policies and rows, and the JSON in them: bounded in size and depth, refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from policies.errors import PolicyError

MAX_BYTES = 2**30
"""A million rows are about as much."""


def read_text(path: Path, what: str, remedy: str) -> str:
    """The whole file as text.

    Raises:
        PolicyError: it can't be read, is not UTF-8, or is larger than `MAX_BYTES`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise PolicyError(f"{what} is larger than {MAX_BYTES} bytes, the limit; {remedy}.")
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{what} can't be read ({error}); {remedy}.") from error


def parse(text: str, what: str, remedy: str) -> Any:
    """The JSON in `text`.

    Raises:
        PolicyError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise PolicyError(f"{what} is not JSON ({error}); {remedy}.") from error
    except RecursionError as error:
        raise PolicyError(f"{what} is nested too deeply; {remedy}.") from error
