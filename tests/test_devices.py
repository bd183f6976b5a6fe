"""Devices, precisions, threads and memory: what is chosen on machines that this one is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from phi4mm import Phi4MMError, environment
from phi4mm.devices import choose_dtype, describe, has_bfloat16, resolve_device, resolve_dtype
from phi4mm.environment import default_threads, free_memory, prepare_environment, processor_name

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GIB = 2**30


def write(root: Path, files: dict[str, str]) -> Path:
    """A file system that describes a machine."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A processor with the instructions that the test names."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(request.param.split(), True))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)


with_processor = pytest.mark.usefixtures("processor")


@with_processor
@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ("avx2 avx512_f avx512_bf16 amx_bf16", True),
        ("avx2 avx512_f avx512_bf16", True),
        ("avx2 avx512_f", False),  # where oneDNN emulates it
        ("avx2", False),
        ("neon bf16", True),
        ("neon", False),
    ],
    indirect=["processor"],
)
def test_bfloat16_is_there_where_the_processor_has_instructions_for_it(expected: bool) -> None:
    assert has_bfloat16(CPU) == expected


@with_processor
@pytest.mark.parametrize("processor", ["avx2 avx512_f avx512_bf16 amx_bf16"], indirect=True)
@pytest.mark.parametrize(
    ("limit", "expected", "name"),
    [
        ("AVX2", False, "AVX2"),
        ("avx512_core", False, "AVX-512"),
        ("AVX512_CORE_BF16", True, "AVX-512 with bfloat16"),
        ("AVX512_CORE_AMX", True, "AMX with bfloat16"),
        ("ALL", True, "AMX with bfloat16"),
    ],
)
def test_instructions_that_onednn_may_not_use_do_not_count(
    monkeypatch: pytest.MonkeyPatch, limit: str, expected: bool, name: str
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert has_bfloat16(CPU) == expected
    assert describe(CPU, torch.float32, prepacked=False, why="").instruction_set == name


def chosen(
    device: torch.device, stored: torch.dtype, *, bfloat16: bool, free: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[torch.dtype, str]:
    monkeypatch.setattr("phi4mm.devices.has_bfloat16", lambda device: bfloat16)
    return choose_dtype(None, device, checkpoint_dtype=stored, num_bytes_float32=GIB, free_bytes=free)


@pytest.mark.parametrize(
    ("device", "stored", "bfloat16", "free", "expected", "why"),
    [
        (CPU, torch.bfloat16, True, 0, torch.bfloat16, "has instructions"),
        (CPU, torch.float8_e4m3fn, True, 0, torch.bfloat16, "has instructions"),
        (CPU, torch.bfloat16, False, 2 * GIB, torch.float32, "no instructions for bfloat16"),
        (CPU, torch.bfloat16, False, 2 * GIB - 1, torch.bfloat16, "half of the free memory"),
        (CPU, torch.float16, True, 2 * GIB, torch.float32, "for GPUs"),
        (CPU, torch.float32, True, 0, torch.float32, "not rounded unasked"),
        (GPU, torch.bfloat16, True, 0, torch.bfloat16, "has instructions"),
        (GPU, torch.bfloat16, False, 0, torch.float16, "no instructions for bfloat16"),
        (GPU, torch.float16, True, 0, torch.float16, "own"),
        (GPU, torch.float32, True, 0, torch.float32, "not rounded unasked"),
    ],
)
def test_the_fastest_precision_that_fits_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    stored: torch.dtype,
    bfloat16: bool,
    free: int,
    expected: torch.dtype,
    why: str,
) -> None:
    dtype, reason = chosen(device, stored, bfloat16=bfloat16, free=free, monkeypatch=monkeypatch)
    assert dtype == expected
    assert why in reason


def test_a_small_model_is_float32_on_a_cpu() -> None:
    for device, expected in ((CPU, torch.float32), (GPU, torch.bfloat16)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("phi4mm.devices.has_bfloat16", lambda device: True)
            dtype, _ = choose_dtype(
                None, device, checkpoint_dtype=torch.bfloat16, num_bytes_float32=17 * 10**6, free_bytes=GIB
            )
        assert dtype == expected


def test_what_is_requested_is_taken() -> None:
    dtype, why = choose_dtype(torch.float32, CPU, checkpoint_dtype=torch.bfloat16, num_bytes_float32=GIB, free_bytes=0)
    assert (dtype, why) == (torch.float32, "as requested")
    assert resolve_dtype("float16") == resolve_dtype(torch.float16) == torch.float16
    assert resolve_dtype("auto") is None
    assert resolve_device("cpu") == resolve_device(CPU) == CPU


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "meta:x"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(Phi4MMError, match=f"device '{name}' is not available here .*try 'auto' or 'cpu'"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["int7", torch.int8, torch.float8_e4m3fn])
def test_a_type_that_no_model_has_is_named(name: str | torch.dtype) -> None:
    with pytest.raises(Phi4MMError, match=rf"dtype is '{name}'; expected 'auto' or one of float32"):
        resolve_dtype(name)


def test_a_line_says_what_a_model_runs_on() -> None:
    line = str(describe(CPU, torch.bfloat16, prepacked=True, why="as requested"))
    assert line.startswith(f"bfloat16 on cpu: {processor_name()}, ")
    assert line.endswith(", prepacked (as requested)")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        (
            {  # a service of systemd: the limit is that of a group that holds it
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            },
            4,
        ),
        (
            {  # cgroup 1, with the path that the group has outside the container
                "proc/self/cgroup": "3:cpu,cpuacct:/docker/abc\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
    ],
)
def test_threads_are_the_cores_that_the_process_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(environment, "_cores", lambda: 8)
    assert default_threads(write(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8 * GIB),
        (
            {
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/memory.max": f"{2 * GIB}\n",
                "sys/fs/cgroup/a/memory.current": f"{GIB}\n",
                "sys/fs/cgroup/a/memory.stat": f"anon 1\ninactive_file {GIB // 2}\n",
                "sys/fs/cgroup/memory.stat": "anon 1\n",
            },
            GIB + GIB // 2,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
                "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0\n",
            },
            GIB,
        ),
    ],
)
def test_free_memory_is_that_of_the_machine_and_its_groups(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    meminfo = {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {8 * GIB // 1024} kB\n"}
    assert free_memory(write(tmp_path, meminfo | files)) == expected


def test_the_environment_keeps_what_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "7"})
    prepare_environment()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert os.environ["LRU_CACHE_CAPACITY"] == os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"
    prepare_environment(2)
    assert os.environ["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize("module", ["phi4mm.cli", "phi4mm.asr.__main__", "phi4mm.__main__", "eval_asr.__main__"])
def test_commands_set_the_environment_before_torch_is_imported(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
