"""Starts a real ComfyUI in a process and environment of its own, with the pack as a user has it: as a clone."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

PACK = "Intrinsic LoRA, a clone"  # a folder name that is no Python identifier, with spaces
START_LIMIT = 300  # seconds; alone on a machine it takes 5 to 10


@dataclass
class Server:
    url: str
    base: Path  # its models/, input/, output/, user/ and custom_nodes/
    log: Path
    process: subprocess.Popen

    @property
    def pack(self) -> Path:
        """The clone of this repository."""
        return self.base / "custom_nodes" / PACK


def clone_pack(root: Path, folder: Path) -> None:
    """Copy the tracked files of the repository and new files that are not ignored, as they are on disk."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, folder / name)


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Return the environment for ComfyUI's Python, without the packages of the tests and without network."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    site = str(Path(__file__).parent / "server_site")
    return kept | {"PYTHONPATH": site, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"} | (extra or {})


@contextmanager
def running_server(
    comfyui_dir: Path, python: Path, base: Path, arguments: Sequence[str] = (), env: dict[str, str] | None = None
) -> Iterator[Server]:
    """Start ComfyUI on a free port, wait until it answers, and stop it at the end.

    Args:
        comfyui_dir: a checkout.
        python: the interpreter of ComfyUI's environment.
        base: folder that stands in for the checkout's models/, input/, output/, user/ and custom_nodes/.
        arguments: more of ComfyUI's command line.
        env: more environment variables.

    Raises:
        RuntimeError: it ended, or did not answer within `START_LIMIT` seconds; with the end of its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(python), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
    command += ["--base-directory", str(base), "--database-url", f"sqlite:///{base / 'comfyui.db'}"]
    command += ["--disable-auto-launch", "--disable-api-nodes", *arguments]
    log = base / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=comfyui_dir, env=environment(env), stdout=output, stderr=subprocess.STDOUT
        )
    server = Server(f"http://127.0.0.1:{port}", base, log, process)
    try:
        _wait(server)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(server: Server) -> None:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            requests.get(f"{server.url}/system_stats", timeout=5).raise_for_status()
            return
        except requests.RequestException:
            time.sleep(0.2)
    tail = server.log.read_text(errors="replace")[-5000:]
    raise RuntimeError(f"ComfyUI did not start within {START_LIMIT} s; the end of its log:\n{tail}")
