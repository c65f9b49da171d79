"""The only composition root: settings → everything that a router holds."""

from __future__ import annotations

import gc
import json
import math
import os
import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from policies.cost import CostModel
from policies.errors import PolicyError
from policies.rule import Rule
from policies.types import Policy
from router.errors import check_packages
from router.settings import Settings
from router.upkeep import keep_within
from router.versions import deciding, in_force
from store import Store
from store.errors import translated
from ttt.engine import Engine
from ttt.executor import Limits, Worker, choose
from ttt.process import prepare
from ttt.recipes import find_recipes
from ttt.turns import turns_of

if TYPE_CHECKING:
    from ttt.hardware import Hardware
    from ttt.model import ModelSource

WORKER_SHARE = 0.9
"""Of the memory that is free when the model has been loaded, what a training process may take."""


@dataclass(frozen=True)
class Parts:
    """What `open_parts` made; close the engine and the store when done."""

    engine: Engine
    store: Store
    policy: Policy
    costs: CostModel
    costs_file: Path
    owner: str
    notes: tuple[str, ...]
    worker: Worker | None = None
    """Where trainings run; None is the engine itself."""
    executor: str = ""
    """Where trainings run and why, in words."""


def open_store(settings: Settings) -> Store:
    """The store alone, for commands that need no model."""
    folder = settings.data_path
    with translated(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return Store.open(settings.url, folder / "adapters")


def open_parts(
    settings: Settings, progress: Callable[[str], None] | None = None, policy: Policy | None = None
) -> Parts:
    """Check the settings, open the store, load the model.

    Raises:
        PolicyError, TaskError: a setting that makes no sense.
        StoreError, ModelError: what can't be opened, why, and what helps.
    """
    check_packages()
    _ = settings.worth  # a preference or recipe that there is none of should not wait for the model
    find_recipes(settings.recipe)
    prepare()
    opened = open_store(settings)
    try:
        from ttt.model import load, resolve

        saved, said = in_force(opened, settings, may_revert=True) if policy is None else (None, [])
        said += keep_within(opened, settings)
        _settle_imports()
        source = resolve(settings.model, progress=progress)
        kind, why = choose(settings.executor, *machine_for(source, settings))
        loaded = load(source, settings.device, settings.dtype)
        if settings.prompt == "chat":
            turns_of(loaded.tokenizer, False)  # a template that can't be used should not wait for a task
            loaded = replace(loaded, as_turns=True)
    except BaseException:
        opened.close()
        raise
    costs_file = costs_path(settings, loaded.revision, str(loaded.model.dtype))
    costs, notes = _costs(costs_file, loaded.n_nonembedding)
    decides = policy or deciding(saved or Rule(), settings, loaded.name, loaded.revision)
    owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    reload = partial(load, source, settings.device, settings.dtype)
    worker = _worker(source, settings) if kind == "process" else None
    return Parts(
        Engine(loaded, reload), opened, decides, costs, costs_file, owner, (*notes, *said), worker, why
    )


def machine_for(source: ModelSource, settings: Settings) -> tuple[Hardware, int]:
    """The machine as it is now, and the model's number of parameters."""
    from ttt.hardware import detect
    from ttt.model_files import weight_shapes

    n_parameters = sum(math.prod(shape) for shape in weight_shapes(source.folder).values())
    return detect(settings.device, settings.dtype), n_parameters


def _worker(source: ModelSource, settings: Settings) -> Worker:
    share = WORKER_SHARE if os.name == "posix" else 0.0
    limits = Limits(memory_share=share, seconds=settings.train_max_s or math.inf)
    return Worker(source, settings.device, settings.dtype, as_turns=settings.prompt == "chat", limits=limits)


@cache
def _settle_imports() -> None:
    """Import what every answer needs, and have the garbage collector pass over all that is there by now.

    A full collection looks at every object while all threads wait: with these libraries half a million, for
    a quarter of a second, about once in a hundred answers. The model, loaded later, stays collectable.
    """
    import langgraph.graph  # noqa: F401
    import transformers

    import ttt.lora  # noqa: F401

    transformers.AutoModelForCausalLM  # noqa: B018 – libraries are imported at the first use of a name
    gc.collect()
    gc.freeze()


def costs_path(settings: Settings, revision: str, dtype: str) -> Path:
    """Where the speeds of one model in one type (`torch.bfloat16`) on this machine are remembered."""
    return settings.data_path / f"costs-{revision.replace(':', '-')[:24]}-{dtype}.json"


def save_costs(parts: Parts) -> None:
    """Keep the observed rates for the next start; atomic."""
    temporary = parts.costs_file.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
    with translated(parts.costs_file):
        temporary.write_text(parts.costs.to_json())
        temporary.replace(parts.costs_file)


def _costs(file: Path, n_parameters: int) -> tuple[CostModel, tuple[str, ...]]:
    guessed = CostModel.guess(n_parameters)
    if not file.exists():
        return guessed, ()
    try:
        return CostModel.from_json(file.read_text()), ()
    except (PolicyError, OSError, json.JSONDecodeError) as error:
        return guessed, (f"The remembered speeds in {file} are not used ({error}); they are measured anew.",)
