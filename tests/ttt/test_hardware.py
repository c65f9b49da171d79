"""Device, dtype and memory detection on the machine that runs the tests, and on files made for the purpose."""

from pathlib import Path

import psutil
import pytest
import torch

from ttt.errors import ModelError
from ttt.hardware import cpu_flags, detect, estimate, matmul_flops, memory


def test_detect_describes_this_machine() -> None:
    found = detect()
    assert torch.zeros(1, device=found.device).device.type == found.device
    assert 1 <= found.cores <= psutil.cpu_count()
    assert 0 < found.memory_free_bytes <= found.memory_total_bytes
    assert found.torch_dtype() in (torch.float32, torch.bfloat16, torch.float16)


def test_cpu_takes_bfloat16_only_where_the_processor_has_it() -> None:
    found = detect("cpu")
    assert (found.dtype == "bfloat16") == bool(cpu_flags())
    assert found.gpu_name is None


def test_device_and_dtype_can_be_overridden() -> None:
    found = detect("cpu", "float32")
    assert (found.device, found.dtype) == ("cpu", "float32")


def test_a_missing_device_is_refused_with_what_is_there() -> None:
    with pytest.raises(ModelError, match=r"'cuda:99' is not on this machine, which has .*cpu"):
        detect("cuda:99")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_is_refused_without_cuda() -> None:
    with pytest.raises(ModelError, match=r"'cuda' is not on this machine.*choose one or auto"):
        detect("cuda")


def test_an_unknown_dtype_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match="'int3'.*float32, bfloat16, float16"):
        detect("cpu", "int3")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA on this machine")
def test_cuda_is_preferred_and_its_own_memory_counts() -> None:
    found = detect()
    assert found.device == "cuda" and found.gpu_name
    assert found.memory_total_bytes == torch.cuda.mem_get_info(0)[1]


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16 amx_bf16 amx_tile\n", ("amx_bf16", "avx512_bf16")),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n", ()),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", ("bf16",)),
    ],
)
def test_cpu_flags_are_read_from_cpuinfo(tmp_path: Path, text: str, flags: tuple[str, ...]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_flags(tmp_path / "cpuinfo") == flags


def test_no_cpuinfo_means_no_flags(tmp_path: Path) -> None:
    assert cpu_flags(tmp_path / "cpuinfo") == ()


def _cgroup(folder: Path, maximum: str, current: int, cache: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{maximum}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\nactive_file 0\n")


def test_a_container_limit_counts_as_the_memory(tmp_path: Path) -> None:
    _cgroup(tmp_path / "root/pod/app", str(200 << 20), current=150 << 20, cache=50 << 20)
    (tmp_path / "membership").write_text("0::/pod/app\n")
    assert memory(tmp_path / "root", tmp_path / "membership") == (200 << 20, 100 << 20)


def test_the_tightest_limit_above_this_process_counts(tmp_path: Path) -> None:
    _cgroup(tmp_path / "root/pod/app", "max", current=1, cache=0)
    _cgroup(tmp_path / "root/pod", str(64 << 20), current=60 << 20, cache=0)
    (tmp_path / "membership").write_text("0::/pod/app\n")
    assert memory(tmp_path / "root", tmp_path / "membership") == (64 << 20, 4 << 20)


def test_without_a_limit_the_machine_counts(tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("0::/\n")
    assert memory(tmp_path, tmp_path / "membership")[0] == psutil.virtual_memory().total
    assert memory(tmp_path, tmp_path / "none")[0] == psutil.virtual_memory().total


def test_matmul_flops_is_a_plausible_speed() -> None:
    assert 1e8 < matmul_flops("float32", "cpu", seconds=0.05) < 1e14


def test_estimates_follow_parameters_and_tokens() -> None:
    found = estimate(100_000_000, 1e11, prompt_tokens=500, train_tokens=1000, efficiency=0.5)
    assert found.prefill_s == pytest.approx(2 * 1e8 * 500 / 5e10)
    assert found.train_s == pytest.approx(4 * 1e8 * 1000 / 5e10)
