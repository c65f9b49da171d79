"""Settings: one frozen value, read once at the edge: argument, then environment, then file, then default.

The environment variables are `TTT_ROUTER_` and the field's name in capitals (`TTT_ROUTER_MODEL`); the
file is `$TTT_ROUTER_CONFIG` or `config.toml` in the user's configuration folder.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import platformdirs

from policies.utility import worth
from router.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Settings:
    """All that can be set. Seconds are wall seconds on this machine."""

    model: str = "smollm2-135m"
    """Built-in name, local folder, `.gguf` file or hub id."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: str = "auto"
    """auto, bfloat16, float16 or float32."""
    data_dir: str = ""
    """Where database and adapters are; the user's data folder when empty."""
    database_url: str = ""
    """SQLAlchemy URL; SQLite in `data_dir` when empty."""
    prefer: str = "balanced"
    """fast, balanced or accurate: 5, 30 or 300 seconds of compute for one more correct answer."""
    worth_s: float = 0.0
    """The same as a number of seconds; 0 takes `prefer`."""
    expected_repeats: float = 0.0
    """Further queries of the same task that are expected later."""
    recipe: str = "auto"
    """A name (docs/recipes.md), or the path of a `.toml` file."""
    votes: int = 1
    """Views of the task that vote on each answer; 1 answers once."""
    prompt: str = "plain"
    """plain writes few-shot tasks as `Q:` and `A:`; chat as turns in the model's own chat template."""
    signals: str = "needed"
    """needed measures what the policy looks at; all measures everything, for episodes to learn from."""
    policy: str = "active"
    """What decides: active (the promoted version, or else the shipped policy), rule, or the path of a policy's file."""
    confidence: float = 0.0
    """One-sided confidence of the bound that the policy acts on, 0.5 to 0.999; 0 leaves the policy's own."""
    explore_s: float = 0.0
    """Seconds a task, in expectation, for trainings in the shadow of answers, to learn from; 0 explores nothing."""
    auto_revert: bool = False
    """Whether a policy whose gains stay below its promise is replaced by the one before it (the shipped one by the
    built-in rule), when a router opens."""
    reuse: str = "off"
    """off, or near: adapters of like tasks are tried on a task's demonstrations before it is trained on, as answers and
    as beginnings (docs/reuse.md)."""
    executor: str = "auto"
    """Where adapters are trained: thread (beside the answers), process (one of its own, which holds the model once
    more and can die alone), or auto (a process where the machine can hold that)."""
    train_max_s: float = 3600.0
    """Seconds of one training in a process of its own; 0 is no limit."""
    quota_bytes: int = 10_000_000_000
    """Bytes that adapters may take up; above it those go that save the fewest seconds a byte. 0 is no limit."""
    max_age_days: float = 0.0
    """Days without use after which an adapter goes; 0 is no limit."""
    seed: int = 0
    tracing: bool = False
    """Whether LangSmith tracing may send prompts elsewhere when its environment variables ask for it."""

    @property
    def data_path(self) -> Path:
        return (
            Path(self.data_dir).expanduser()
            if self.data_dir
            else platformdirs.user_data_path("ttt-router", False)
        )

    @property
    def worth(self) -> float:
        """Seconds of compute that one more correct answer is worth.

        Raises:
            PolicyError: neither a known preference nor a usable number of seconds.
        """
        return worth(worth_s=self.worth_s) if self.worth_s else worth(self.prefer)

    @property
    def url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_path / 'router.db'}"


def read_settings(
    arguments: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Merge the four sources; arguments that are None do not count.

    Raises:
        SettingsError: an unknown key, or a value of the wrong type or out of range.
    """
    env = os.environ if environment is None else environment
    settings = changed(Settings(), _file(env), "the settings file")
    for field in fields(Settings):  # field by field, so that an error names the variable
        name = f"TTT_ROUTER_{field.name.upper()}"
        if name in env:
            settings = changed(settings, {field.name: env[name]}, name)
    return changed(settings, arguments or {}, "the arguments")


def in_one_process(settings: Settings) -> Settings:
    """For programs that ask many tasks and serve nobody beside: `auto` trains where trainings share passes."""
    return replace(settings, executor="thread") if settings.executor == "auto" else settings


def changed(settings: Settings, values: Mapping[str, Any], source: str) -> Settings:
    """`settings` with `values` on top; those that are None do not count. A preference alone puts an earlier
    number of seconds out of force.

    Raises:
        SettingsError: an unknown key, or a value of the wrong type or out of range; it names `source`.
    """
    parsed = {key: _parse(key, value, source) for key, value in values.items() if value is not None}
    if "prefer" in parsed:
        parsed.setdefault("worth_s", 0.0)
    return replace(settings, **parsed)


def settings_file(env: Mapping[str, str]) -> Path:
    """Where the settings file is, or would be."""
    named = env.get("TTT_ROUTER_CONFIG")
    return Path(named) if named else platformdirs.user_config_path("ttt-router", False) / "config.toml"


def write_setting(key: str, value: float, environment: Mapping[str, str] | None = None) -> Path:
    """Set one number in the settings file, leaving all other lines as they are; atomic.

    Raises:
        SettingsError: an impossible value, or a file that can't be read or written.
    """
    env = os.environ if environment is None else environment
    path, line = settings_file(env), f"{key} = {float(value)!r}"
    if path.exists():
        _file(env)  # refuse to edit what can't be read
    changed(Settings(), {key: value}, "the new setting")
    try:
        lines = path.read_text().splitlines() if path.exists() else []
        own = [i for i, text in enumerate(lines) if text.split("=")[0].strip() == key]
        if own:
            lines[own[0]] = line
        else:
            lines.insert(0, line)  # before any table
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text("\n".join(lines) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise SettingsError(f"The setting can't be written to {path} ({error.strerror}).") from error
    return path


def _file(env: Mapping[str, str]) -> dict[str, Any]:
    path = settings_file(env)
    if not path.exists():
        if env.get("TTT_ROUTER_CONFIG"):
            raise SettingsError(
                f"TTT_ROUTER_CONFIG names {path}, which does not exist; correct it or unset it."
            )
        return {}
    try:
        return tomllib.loads(path.read_text())
    except (ValueError, OSError) as error:  # ValueError also of a number without end
        raise SettingsError(f"The settings file {path} can't be read: {error}; correct it.") from error
    except RecursionError as error:
        raise SettingsError(f"The settings file {path} is nested too deeply; correct it.") from error


def _parse(key: str, value: Any, source: str) -> Any:
    known: dict[str, type] = {name: type(value) for name, value in asdict(Settings()).items()}
    if key not in known:
        raise SettingsError(f"Unknown setting {key!r} in {source}; known are: {', '.join(known)}.")
    kind = known[key]
    if isinstance(value, str) and kind is not str:
        text = value.strip().lower()
        try:
            if kind is bool:
                if text not in ("true", "false", "1", "0"):
                    raise ValueError
                return text in ("true", "1")
            value = kind(text)
        except ValueError:
            raise SettingsError(f"{source} sets {key} to {value!r}; it must be a {kind.__name__}.") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            raise SettingsError(
                f"{source} sets {key} to a number without bounds; write a smaller one."
            ) from None
    if kind is str and isinstance(value, Path):
        value = str(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise SettingsError(f"{source} sets {key} to {value!r}; it must be a {kind.__name__}.")
    if key == "signals" and value not in ("needed", "all"):
        raise SettingsError(f"{source} sets signals to {value!r}; it must be needed or all.")
    if key == "prompt" and value not in ("plain", "chat"):
        raise SettingsError(f"{source} sets prompt to {value!r}; it must be plain or chat.")
    if key == "reuse" and value not in ("off", "near"):
        raise SettingsError(f"{source} sets reuse to {value!r}; it must be off or near.")
    if key == "confidence" and isinstance(value, float) and value and not 0.5 <= value <= 0.999:
        raise SettingsError(f"{source} sets confidence to {value!r}; it must be 0, or between 0.5 and 0.999.")
    if key == "votes" and isinstance(value, int) and value < 1:
        raise SettingsError(f"{source} sets votes to {value!r}; it must be at least 1.")
    if key == "executor" and value not in ("thread", "process", "auto"):
        raise SettingsError(f"{source} sets executor to {value!r}; it must be thread, process or auto.")
    if key == "quota_bytes" and isinstance(value, int) and value < 0:
        raise SettingsError(f"{source} sets quota_bytes to {value!r}; it must be at least 0.")
    if isinstance(value, float) and not 0 <= value < math.inf:
        raise SettingsError(f"{source} sets {key} to {value!r}; it must be finite and at least 0.")
    return value
