"""What this process may use of the machine, and what torch's libraries read from the environment; without torch."""

from __future__ import annotations

import os
import platform
from pathlib import Path, PurePosixPath

_KERNELS_KEPT = "64"
_ROOT = Path("/")


def prepare_environment(threads: int | None = None) -> None:
    """Set what torch's libraries read when they are loaded: to be called before torch is imported. What the user has
    set stays.

    - oneDNN, and PyTorch's caches over it, keep few kernels. In bfloat16 each length of a clip brings kernels of its
      own; by default 1024 are kept: up to 0.8 GB.
    - A thread that waits for others sleeps. By default it spins, and of two programs on the same cores each takes the
      time that the other needs.
    - There are no more threads than the container's CPU quota allows; torch itself counts the machine's cores.

    Args:
        threads: of each operation, whatever the user has set; ``None`` leaves them to torch, but for the quota.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KERNELS_KEPT)
    os.environ.setdefault("LRU_CACHE_CAPACITY", _KERNELS_KEPT)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # GOMP_SPINCOUNT, where the user has set it, overrides it
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    elif default_threads() < _cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(default_threads()))


def default_threads(root: Path = _ROOT) -> int:
    """The cores that this process may use: by its affinity, and by the CPU quota of its control groups.

    Args:
        root: of the file system that describes the machine.
    """
    quotas = [text.split() for (text,) in _in_groups(root, "cpu", "cpu.max")]
    quotas += _in_groups(root, "cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us")
    shares = [int(quota) / int(period) for quota, period in quotas if quota != "max" and int(quota) > 0]
    return max(1, int(min([_cores(), *shares])))


def free_memory(root: Path = _ROOT) -> int:
    """Bytes that this process can take without swapping: of the machine, and of its control groups, where they are
    limited. Files that the system keeps in memory for later count as free.

    Args:
        root: of the file system that describes the machine.
    """
    free = []
    if (meminfo := root / "proc/meminfo").exists():
        values = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free.append(int(values["MemAvailable"].split()[0]) * 1024)
    else:
        free.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    groups = _in_groups(root, "memory", "memory.max", "memory.current", "memory.stat")
    groups += _in_groups(root, "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    for limit, used, stat in groups:
        if limit != "max":
            counters = dict(line.split() for line in stat.splitlines())
            cached = counters.get("total_inactive_file") or counters.get("inactive_file") or "0"
            free.append(int(limit) - int(used) + int(cached))
    return max(0, min(free))


def processor_name(root: Path = _ROOT) -> str:
    """As Linux has it ("Intel(R) Xeon(R) Processor"); elsewhere the architecture."""
    cpuinfo = root / "proc/cpuinfo"
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_groups(root: Path, controller: str, *names: str) -> list[list[str]]:
    """These files of this process's control group, and of each that holds it, where all of them are; version 1 or 2."""
    membership = root / "proc/self/cgroup"
    folders: list[Path] = []
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / (controller if controllers else "")
            # In a container the path may be that of the host; the mount is then the container's own group.
            group = PurePosixPath(path.lstrip("/"))
            folders += [mount / folder for folder in (group, *group.parents)]
    groups = [[folder / name for name in names] for folder in dict.fromkeys(folders)]
    return [[file.read_text().strip() for file in files] for files in groups if all(file.is_file() for file in files)]
