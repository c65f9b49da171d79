"""What this machine has for a model: device, dtype, cores, memory, and how fast it multiplies.

Chooses CUDA, then MPS, then the CPU, and the widest dtype that the device computes fast. Container limits
(cgroup v2) count as the machine's memory. Knows nothing of models; the estimates take parameter counts.
torch is imported inside the functions that need it, so that importing this module is cheap.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ttt.errors import ModelError

if TYPE_CHECKING:
    import torch

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one parameter, by the dtypes that a model can be loaded in."""

BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
"""Processor flags that mean fast bfloat16; `bf16` is ARM's."""

EFFICIENCY = 0.5
"""Share of the measured matrix speed that a small model reaches, all else (attention, norms) counted. A prompt
of 1,024 tokens through 135 M parameters reached 0.65 on a CPU; shorter batches reach less."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where a model will live, and what is there."""

    device: str
    """`cuda`, `cuda:N`, `mps` or `cpu`."""
    dtype: str
    """`float32`, `bfloat16` or `float16`."""
    cores: int
    """Logical cores that this process may use."""
    memory_total_bytes: int
    """Of the device: the GPU's own memory on CUDA, else the machine's or the container's."""
    memory_free_bytes: int
    gpu_name: str | None
    cpu_flags: tuple[str, ...]
    """Those of `BF16_FLAGS` that the processor has."""

    def torch_dtype(self) -> torch.dtype:
        import torch

        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.dtype]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected seconds of two kinds of work."""

    prefill_s: float
    """One forward pass over the prompt tokens."""
    train_s: float
    """LoRA training over the training tokens."""


def detect(device: str = "auto", dtype: str = "auto") -> Hardware:
    """What this machine has, with the device and dtype to use.

    Args:
        device: `auto`, `cpu`, `mps`, `cuda` or `cuda:N`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.

    Raises:
        ModelError: the machine lacks the device, or the name of a device or dtype is not known.
    """
    import torch

    chosen = _device(device)
    kind = chosen.partition(":")[0]
    flags = cpu_flags()
    if dtype != "auto" and dtype not in DTYPE_BYTES:
        raise ModelError(f"Unknown dtype {dtype!r}: choose auto, {', '.join(DTYPE_BYTES)}.")
    if kind == "cuda":
        index = torch.device(chosen).index or 0
        free, total = torch.cuda.mem_get_info(index)
        gpu_name: str | None = torch.cuda.get_device_name(index)
        # Emulated bfloat16 does not count: before Ampere it is slower than float16.
        best = "bfloat16" if torch.cuda.get_device_capability(index) >= (8, 0) else "float16"
    elif kind == "mps":
        total, free = memory()
        gpu_name = platform.processor() or "Apple GPU"
        # bfloat16 came with macOS 14; float16 overflows in some models, so float32 before that.
        best = "bfloat16" if torch.backends.mps.is_macos_or_newer(14, 0) else "float32"
    else:
        total, free = memory()
        gpu_name = None
        best = "bfloat16" if flags else "float32"
    return Hardware(
        device=chosen,
        dtype=best if dtype == "auto" else dtype,
        cores=_cores(),
        memory_total_bytes=total,
        memory_free_bytes=free,
        gpu_name=gpu_name,
        cpu_flags=flags,
    )


def _device(wanted: str) -> str:
    import torch

    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_mps = torch.backends.mps.is_available()
    there = [*(f"cuda:{i}" for i in range(n_cuda)), *(["mps"] if has_mps else []), "cpu"]
    if wanted == "auto":
        return "cuda" if n_cuda else "mps" if has_mps else "cpu"
    if wanted in there or (wanted == "cuda" and n_cuda):
        return wanted
    raise ModelError(
        f"Device {wanted!r} is not on this machine, which has {', '.join(there)}: choose one or auto."
    )


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Those of `BF16_FLAGS` that the processor has; empty where there is no such file (not Linux)."""
    if not cpuinfo.exists():
        return ()
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            present = set(value.split())
            return tuple(flag for flag in BF16_FLAGS if flag in present)
    return ()


def memory(
    cgroup_root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> tuple[int, int]:
    """Total and free bytes of main memory, within the container's limit when there is one."""
    machine = psutil.virtual_memory()
    total, free = int(machine.total), int(machine.available)
    for limit, used in _cgroup_limits(cgroup_root, membership):
        total = min(total, limit)
        free = min(free, max(0, limit - used))
    return total, free


def _cgroup_limits(root: Path, membership: Path) -> list[tuple[int, int]]:
    """(limit, used) in bytes of this process's cgroup (v2) and of those above it that have a limit.

    Used is without the page cache, which the kernel gives back.
    """
    if not membership.exists():
        return []
    own = next((line[3:] for line in membership.read_text().splitlines() if line.startswith("0::")), None)
    if own is None:
        return []
    # Inside a container the path may be of the host's tree; then only the root, which is its own, exists.
    folder = root / own.strip().lstrip("/")
    limits = []
    for level in (folder, *folder.parents):
        if not level.is_relative_to(root):
            break
        maximum, current, stat = (level / f"memory.{name}" for name in ("max", "current", "stat"))
        if not (maximum.exists() and current.exists()) or maximum.read_text().strip() == "max":
            continue
        cache = 0
        if stat.exists():
            pairs = dict(line.split() for line in stat.read_text().splitlines())
            cache = int(pairs.get("inactive_file", 0)) + int(pairs.get("active_file", 0))
        limits.append((int(maximum.read_text()), max(0, int(current.read_text()) - cache)))
    return limits


def matmul_flops(dtype: str, device: str, seconds: float = 0.2) -> float:
    """Measured FLOP/s of a square matrix product, over about `seconds`."""
    import torch

    size = 1024 if device == "cpu" else 4096
    a = torch.randn(size, size, device=device).to(getattr(torch, dtype))  # (size, size)
    b = torch.randn(size, size, device=device).to(getattr(torch, dtype))

    def product() -> float:
        started = time.perf_counter()
        (a @ b)[0, 0].item()  # .item() waits for an accelerator
        return time.perf_counter() - started

    product()  # the first one sets up kernels
    times: list[float] = []
    while sum(times) < seconds:
        times.append(product())
    return 2 * size**3 * len(times) / sum(times)


def estimate(
    n_nonembedding: int,
    flops: float,
    *,
    prompt_tokens: int,
    train_tokens: int,
    efficiency: float = EFFICIENCY,
) -> Estimate:
    """Expected seconds from parameter count P and speed: prefill 2·P FLOP a token, LoRA training 4·P.

    Forward is 2·P and backward through the activations 2·P more (Kaplan et al. 2020, without the gradients
    of the frozen weights); attention's own cost, quadratic in the tokens, is left to `efficiency`.

    Args:
        n_nonembedding: parameters without the token embeddings.
        flops: FLOP/s, from `matmul_flops`.
        prompt_tokens: tokens of all prompts that are prefilled.
        train_tokens: tokens of all training sequences, over all steps.
        efficiency: share of `flops` that is reached.
    """
    rate = flops * efficiency
    return Estimate(2 * n_nonembedding * prompt_tokens / rate, 4 * n_nonembedding * train_tokens / rate)
