"""What this machine has for the router, what stands in its way, and about how long answers will take.

Nothing is fetched, loaded or made; the database is opened only where there is one. Seconds are expected
from this machine's matrix speed or, where answers were given before, from what they took; on a shared
machine both swing by two.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from router.settings import Settings

if TYPE_CHECKING:
    from ttt.hardware import Hardware
    from ttt.model import ModelInfo

PACKAGES = ("ttt-router", "torch", "transformers", "peft", "langgraph", "sqlalchemy")
MODEL_PROBLEM = 4
STORE_PROBLEM = 5
"""Exit codes of `router.errors`."""

N_DEMONSTRATIONS, QUESTION_TOKENS, ANSWER_TOKENS, N_QUERIES = 10, 40, 10, 32
"""The task that times are given for: ten demonstrations of 50 tokens, 32 queries."""

PREFILL_SHARE = 0.15
TRAIN_SHARE = 0.1
"""Shares of the matrix speed that a small model reaches, as in `policies.cost.CostModel.guess`."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the diagnosis."""

    name: str
    text: str
    exit_code: int = 0
    """Of the problem; 0 when there is none."""

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


def diagnose(settings: Settings) -> list[Check]:
    """All checks, in reading order. Problems are in the checks, not raised."""
    checks = [_versions()]
    hardware, flops = None, 0.0
    from ttt.errors import ModelError
    from ttt.hardware import detect, matmul_flops

    try:
        hardware = detect(settings.device, settings.dtype)
        flops = matmul_flops(hardware.dtype, hardware.device)
        checks += _machine(hardware, flops)
    except ModelError as error:
        checks.append(Check("device", str(error), MODEL_PROBLEM))
    checks += _folders(settings)
    checks.append(_database(settings))
    if hardware is not None:
        checks += model_checks(settings, hardware, flops)
    return checks


def installed_version(package: str) -> str:
    """Its version, or `not installed` (of ttt-router: run from its sources)."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _versions() -> Check:
    installed = ", ".join(f"{name} {installed_version(name)}" for name in PACKAGES)
    return Check("versions", f"Python {platform.python_version()}, {installed}")


def _machine(hardware: Hardware, flops: float) -> list[Check]:
    from ttt.model_files import gib

    name = f" ({hardware.gpu_name})" if hardware.gpu_name else ""
    fast = f", fast bfloat16 by {', '.join(hardware.cpu_flags)}" if hardware.cpu_flags else ""
    free, total = gib(hardware.memory_free_bytes), gib(hardware.memory_total_bytes)
    return [
        Check("device", f"{hardware.device}{name}, {hardware.dtype}, {hardware.cores} core(s){fast}"),
        Check("memory", f"{free} free of {total}"),
        Check("speed", f"{flops / 1e9:,.0f} GFLOP/s measured in matrix products ({hardware.dtype})"),
    ]


def _folders(settings: Settings) -> list[Check]:
    import platformdirs

    from ttt.model import default_cache_dir

    config = Path(os.environ.get("TTT_ROUTER_CONFIG", ""))
    if not config.name:
        config = platformdirs.user_config_path("ttt-router", False) / "config.toml"
    return [
        folder_check("cache", default_cache_dir(), "TTT_ROUTER_CACHE"),
        folder_check("data", settings.data_path, "--data-dir or TTT_ROUTER_DATA_DIR"),
        Check("config", f"{config} ({'read' if config.exists() else 'none there'})"),
    ]


def folder_check(name: str, folder: Path, remedy: str) -> Check:
    """Whether `folder` can be written, or made where it is not there yet; makes nothing that stays."""
    place = next((p for p in (folder, *folder.absolute().parents) if p.exists()), Path("/"))
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
        free = shutil.disk_usage(place).free
    except OSError as error:
        reason = f"{place} can't be written ({error.strerror})"
        return Check(name, f"{folder}: {reason}; make it writable or set {remedy}.", STORE_PROBLEM)
    missing = "" if place == folder else ", made at the first use"
    return Check(name, f"{folder} (writable{missing}, {free / 2**30:.1f} GiB free)")


def _database(settings: Settings) -> Check:
    from router.bootstrap import open_store
    from store.errors import StoreError

    where = "in the data folder" if not settings.database_url else "at the set URL"
    file = settings.data_path / "router.db"
    if not settings.database_url and not file.exists():
        return Check("database", f"none {where} yet; made at the first answer")
    try:
        opened = open_store(settings)
        try:
            latest = opened.episodes.recent(1)
        finally:
            opened.close()
    except StoreError as error:
        return Check("database", str(error), STORE_PROBLEM)
    return Check("database", f"readable, {'has' if latest else 'without'} episodes, {where}")


def model_checks(settings: Settings, hardware: Hardware, flops: float) -> list[Check]:
    """What the model is, whether it fits in the free memory, and how long it takes at `flops` FLOP/s."""
    from ttt.errors import ModelError
    from ttt.executor import choose
    from ttt.model import list_models, model_info
    from ttt.model_files import gib

    for listed in list_models():
        if listed.name == settings.model and listed.folder is None:
            text = (
                f"{listed.name} is not here yet ({listed.n_bytes / 1e6:.0f} MB); fetched at the first use, "
                "or now by `ttt-router model pull`"
            )
            return [Check("model", text)]
    try:
        info = model_info(settings.model)
    except ModelError as error:
        return [Check("model", str(error), MODEL_PROBLEM)]
    checks = [
        Check("model", f"{settings.model}, {info.n_parameters / 1e6:,.1f} M parameters, {info.source.folder}")
    ]
    needed, free = info.memory_bytes(hardware.dtype), hardware.memory_free_bytes
    if needed > free:
        text = (
            f"{settings.model} needs {gib(needed)} in {hardware.dtype} and {gib(free)} is free: "
            "free some, or choose a smaller model."
        )
        return [*checks, Check("fits", text, MODEL_PROBLEM)]
    checks.append(Check("fits", f"yes: needs {gib(needed)} of {gib(free)} free"))
    _, where = choose(settings.executor, hardware, info.n_parameters)
    checks.append(Check("training", where))
    return [*checks, *_times(settings, info, hardware, flops)]


def _times(settings: Settings, info: ModelInfo, hardware: Hardware, flops: float) -> list[Check]:
    """Expected seconds of the task that the constants above describe."""
    from policies.cost import CostModel
    from policies.errors import PolicyError
    from router.bootstrap import costs_path
    from router.cli.render import duration
    from router.signals import expected_costs
    from ttt.measure import TaskSize
    from ttt.recipes import recipe
    from ttt.task import Task

    size = TaskSize(
        template="",
        n_demonstrations=N_DEMONSTRATIONS,
        prefix_tokens=N_DEMONSTRATIONS * (QUESTION_TOKENS + ANSWER_TOKENS),
        query_tokens=N_QUERIES * QUESTION_TOKENS,
        answer_tokens=ANSWER_TOKENS,
        longest_answer=ANSWER_TOKENS,
    )
    remembered = costs_path(settings, info.source.revision, f"torch.{hardware.dtype}")
    try:
        costs = CostModel.from_json(remembered.read_text()) if remembered.exists() else None
    except (PolicyError, OSError) as error:
        return [Check("times", f"{remembered}: {error}", STORE_PROBLEM)]
    basis = (
        "as earlier answers here took"
        if costs
        else "from the measured speed, before any answer was given here"
    )
    if costs is None:
        costs = CostModel.guess(
            info.n_nonembedding,
            prefill_flops_per_s=PREFILL_SHARE * flops,
            train_flops_per_s=TRAIN_SHARE * flops,
        )
    expected = expected_costs(costs, size, N_QUERIES, recipe(settings.recipe, Task()))
    tokens = QUESTION_TOKENS + ANSWER_TOKENS
    task = f"{N_DEMONSTRATIONS} demonstrations of {tokens} tokens, {N_QUERIES} queries"
    text = (
        f"in-context learning about {duration(expected.answer_s)}, probe {duration(expected.probe_s)}, "
        f"training {duration(expected.train_s)} ({task}; {basis})"
    )
    return [Check("times", text)]
