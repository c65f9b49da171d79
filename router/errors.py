"""Every error that a person can meet, as one tree, and the exit code of each kind.

    RouterError                      3   wrong use of the router itself
    ├── SettingsError                2   an argument, environment variable or settings file
    ├── MetricError                  3
    ├── ConversationError            3   messages that can't be read as a conversation
    └── PackageShadowed              9   a user's own router.py, ttt.py … hides one of the four packages
    ttt.errors.TTTError
    ├── TaskError                    3   the task or a file of it
    ├── ModelError                   4   a base model
    ├── AdapterError                 5
    └── TrainingFailed               6   only where no fall-back was asked for (`--arm ttt`)
    store.errors.StoreError          5   database or data folder
    ├── NotFound                     7   no such episode
    policies.errors.PolicyError      8
    KeyboardInterrupt              130

0 is success, 1 an error that we did not foresee (with its traceback: please report it).
"""

from __future__ import annotations


class RouterError(Exception):
    """Wrong use of the router itself."""


class SettingsError(RouterError, ValueError):
    """An argument, an environment variable or the settings file has an impossible value."""


class ConversationError(RouterError, ValueError):
    """Messages that can't be read as a conversation."""


class PackageShadowed(RouterError):
    """A file of the user's hides one of our packages."""


def exit_code(error: BaseException) -> int | None:
    """The documented exit code, or None for an error that we did not foresee."""
    from policies.errors import PolicyError
    from router.metrics import MetricError
    from store.errors import NotFound, StoreError
    from ttt.errors import AdapterError, ModelError, TaskError, TrainingFailed

    codes: list[tuple[type[BaseException], int]] = [
        (SettingsError, 2),
        (PackageShadowed, 9),
        (RouterError, 3),
        (MetricError, 3),
        (TaskError, 3),
        (ModelError, 4),
        (AdapterError, 5),
        (TrainingFailed, 6),
        (NotFound, 7),
        (StoreError, 5),
        (PolicyError, 8),
        (KeyboardInterrupt, 130),
    ]
    return next((code for kind, code in codes if isinstance(error, kind)), None)


def check_packages() -> None:
    """Make sure that `ttt`, `policies`, `store` are ours and not a user's file of the same name.

    Raises:
        PackageShadowed: names the file that is in the way.
    """
    import importlib.util
    from pathlib import Path

    ours = Path(__file__).resolve().parent.parent
    for name in ("router", "ttt", "policies", "store"):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or origin.parent.parent != ours:
            raise PackageShadowed(
                f"The package {name!r} of ttt-router is hidden by {origin or 'a folder without __init__.py'}; "
                "rename that or run from another folder."
            )
