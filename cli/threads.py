"""Number and wait policy of torch's threads, set before torch is imported.

libgomp reads its environment variables once, when it is loaded. By default its threads spin at the end of every
parallel loop, which slows down the last thread if other processes share the cores. It respects the CPU affinity mask
but ignores the CPU quota of a container.
"""

import os
import sys
from math import ceil
from pathlib import Path

PROCESS = Path("/proc/self/cgroup")  # the control groups of this process
MOUNT = Path("/sys/fs/cgroup")


def configure_threads() -> None:
    """Let idle threads sleep, and limit their number to the CPU quota.

    Variables that the user has set are kept. Does nothing if torch is already imported.
    """
    if "torch" in sys.modules:
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    quota = quota_cores()
    # Without a quota the libraries' defaults are best: they follow the affinity and avoid slow hyperthreads.
    if quota is not None and quota < affinity_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(ceil(quota)))


def affinity_cores() -> int:
    """Count the cores that this process may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota_cores(process: Path = PROCESS, mount: Path = MOUNT) -> float | None:
    """Return the CPU quota of this process's control groups (version 1 or 2) in cores; None without a limit.

    A group is limited by every group above it.
    """
    if not process.is_file():
        return None
    limits = []
    for line in process.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = mount / controllers  # in version 2 `controllers` is empty, because there is a single tree
        group = top / path.lstrip("/")
        # In a container the path may be the host's, of which only the root is mounted.
        limits += [_quota_of(folder) for folder in (group, *group.parents) if folder.is_relative_to(top)]
    return min((limit for limit in limits if limit is not None), default=None)


def _quota_of(group: Path) -> float | None:
    if (group / "cpu.max").is_file():  # version 2: "max 100000" or "150000 100000"
        quota, period = (group / "cpu.max").read_text().split()
    elif (group / "cpu.cfs_quota_us").is_file():  # version 1: -1 means no limit
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    else:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
