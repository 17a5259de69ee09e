"""Threads of the command line: how many, and how they wait."""

import os
import subprocess
import sys

import pytest
from intrinsic_lora.cli.threads import quota_cores


def cgroups(folder, membership, files):
    """Fake control groups: the content of /proc/self/cgroup, and the files below the mount."""
    (folder / "cgroup").write_text(membership)
    for name, text in files.items():
        file = folder / "mount" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder / "cgroup", folder / "mount"


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {}, None),  # the host's own top group has no such file
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "25000 50000\n"}, 0.5),
        ("0::/a\n", {"a/b/cpu.max": "100000 100000\n", "a/cpu.max": "max 100000\n"}, None),  # a group below ours
    ],
    ids=["no limit", "own limit", "no file", "limit above", "smaller limit below", "another group"],
)
def test_quota_of_version_2(tmp_path, membership, files, cores):
    assert quota_cores(*cgroups(tmp_path, membership, files)) == cores


@pytest.mark.parametrize("path", ["/", "/docker/0123", "/docker/0123/inner"])
@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_quota_of_version_1(tmp_path, controllers, path):
    """In a container the mount shows the container's group as the top, whatever path the host calls it."""
    membership = f"12:memory:/m\n4:{controllers}:{path}\n3:cpuset:/\n"
    limits = {f"{controllers}/cpu.cfs_quota_us": "300000\n", f"{controllers}/cpu.cfs_period_us": "100000\n"}
    others = {"cpuset/cpu.cfs_quota_us": "1000\n", "cpuset/cpu.cfs_period_us": "100000\n"}
    assert quota_cores(*cgroups(tmp_path, membership, limits | others)) == 3
    unlimited = limits | {f"{controllers}/cpu.cfs_quota_us": "-1\n"}
    assert quota_cores(*cgroups(tmp_path, membership, unlimited)) is None


def test_no_control_groups(tmp_path):
    assert quota_cores(tmp_path / "nothing", tmp_path) is None


# `info` reads a LoRA with torch; what is printed is the environment at that moment, and torch's answer to it.
SPY = """
import os, sys
from pathlib import Path
import intrinsic_lora.cli.threads as threads
threads.quota_cores = lambda: {quota}
from importlib.abc import MetaPathFinder

class Spy(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print("SEEN", os.environ.get("OMP_WAIT_POLICY"), os.environ.get("OMP_NUM_THREADS"))

sys.meta_path.insert(0, Spy())
from intrinsic_lora.cli.main import app
try:
    app(["info", {file!r}])
except SystemExit as left:
    assert left.code in (0, None), left.code
import torch
print("THREADS", torch.get_num_threads())
"""


def spied(root, prefix=(), quota=None, **variables):
    """(OMP_WAIT_POLICY, OMP_NUM_THREADS) when the command imported torch, and torch's number of threads."""
    file = root / "assets" / "embedded" / "loras" / "intrinsic_lora_depth.safetensors"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_", "GOMP_"))}
    command = [*prefix, sys.executable, "-c", SPY.format(quota=quota, file=str(file))]
    out = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True).stdout
    seen = [line.split()[1:] for line in out.splitlines() if line.startswith("SEEN")]
    threads = [int(line.split()[1]) for line in out.splitlines() if line.startswith("THREADS")]
    assert len(seen) == len(threads) == 1
    return *seen[0], threads[0]


def test_idle_threads_sleep_unless_the_user_says_otherwise(root):
    assert spied(root)[0] == "PASSIVE"
    assert spied(root, OMP_WAIT_POLICY="ACTIVE", OMP_NUM_THREADS="2", quota=1.0)[:2] == ("ACTIVE", "2")


@pytest.mark.skipif(sys.platform != "linux", reason="affinity and control groups are Linux's")
def test_threads_follow_affinity_and_quota(root):
    cores = sorted(os.sched_getaffinity(0))
    assert spied(root, ("taskset", "-c", str(cores[0])))[2] == 1
    if len(cores) > 1:
        assert spied(root, quota=0.5)[1:] == ("1", 1)
    assert spied(root, quota=len(cores))[1] == "None"
