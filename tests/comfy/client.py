"""A small client of ComfyUI's HTTP and websocket API: runs a graph and gets its files; errors are exceptions."""

import io
import json
import struct
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import requests
from PIL import Image

Graph = dict[str, dict[str, Any]]  # the API format: {node id: {"class_type": ..., "inputs": {...}}}
LIMIT = 300  # seconds for an answer; alone on a machine it takes a fraction of one
TEXT = 3  # core's BinaryEventTypes.TEXT
Event = Callable[[str, dict[str, Any]], object]


class PromptRejected(Exception):
    """The server did not queue a graph (HTTP 400).

    Attributes:
        error: {"type", "message", "details", "extra_info"} of the graph as a whole.
        node_errors: {node id: {"class_type", "errors": [{"type", "message", "details", "extra_info"}], ...}}.
    """

    def __init__(self, answer: dict[str, Any]):
        self.error: dict[str, Any] = answer.get("error", {})
        self.node_errors: dict[str, Any] = answer.get("node_errors", {})
        super().__init__(json.dumps(answer, indent=1))

    def sentences(self) -> set[tuple[str, str]]:
        """(node id, what its `validate_inputs` said), without the name of the input that ComfyUI puts before it."""
        return {
            (number, error["details"].partition(" - ")[2])
            for number, node in self.node_errors.items()
            for error in node["errors"]
            if error["type"] == "custom_validation_failed"
        }


class ExecutionError(Exception):
    """A node raised while the graph ran. `message` is what the user sees on the node."""

    def __init__(self, data: dict[str, Any]):
        self.node_id: str = data["node_id"]
        self.node_type: str = data["node_type"]
        self.exception_type: str = data["exception_type"]
        self.message: str = data["exception_message"].strip()
        self.traceback = "".join(data["traceback"])
        super().__init__(f"{self.node_type} ({self.node_id}): {self.exception_type}: {self.message}\n{self.traceback}")


class Interrupted(Exception):
    """The graph was stopped by `Client.interrupt`."""


@dataclass
class Result:
    """What came of a graph.

    Attributes:
        outputs: {node id: its ui output, such as {"images": [{"filename", "subfolder", "type"}]}}.
        events: the websocket's messages of this graph in order, as (type, data): execution_cached, executing,
            progress, progress_state, executed, execution_success, ...
        seconds: from queueing to the end.
    """

    prompt_id: str
    outputs: dict[str, dict[str, Any]]
    events: list[tuple[str, dict[str, Any]]] = field(repr=False)
    seconds: float
    told: list[tuple[str, str]] = field(default_factory=list)  # (node, text) that the page shows on it

    def texts(self, node: str) -> list[str]:
        """Return the texts that a node displayed."""
        return [text for name, text in self.told if name == node]

    def files(self, node: str, kind: str = "images") -> list[dict[str, str]]:
        """Return the files of one output node, for `Client.fetch`."""
        return self.outputs[node][kind]


class Client:
    """Talks to the server at `url`. Every call raises `requests.HTTPError` where the server refuses it."""

    def __init__(self, url: str):
        self.url = url
        self.id = uuid.uuid4().hex

    def get(self, path: str, **query: str) -> Any:
        """JSON of a GET; `path` without a leading slash."""
        return self._checked(requests.get(f"{self.url}/{path}", params=query, timeout=LIMIT)).json()

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """Return the definitions of all nodes by id, or of one node."""
        return self.get("object_info") if node is None else self.get(f"object_info/{node}")[node]

    def queue(self, graph: Graph, timeout: float = 600, on_event: Event | None = None) -> Result:
        """Run a graph in API format to its end.

        Args:
            timeout: seconds without any message for this graph after which to give up.
            on_event: called with type and data of each message of this graph while it runs; may call `interrupt`.

        Raises:
            PromptRejected, ExecutionError, Interrupted: see there.
            TimeoutError: nothing was heard for `timeout` seconds.
        """
        from websockets.sync.client import connect  # here, since tests without ComfyUI do without it

        address = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={self.id}"
        with connect(address, max_size=None, open_timeout=LIMIT, ping_timeout=LIMIT, proxy=None) as socket:
            start = time.monotonic()
            answer = requests.post(f"{self.url}/prompt", json={"prompt": graph, "client_id": self.id}, timeout=LIMIT)
            if answer.status_code == 400:
                raise PromptRejected(answer.json())
            prompt_id = self._checked(answer).json()["prompt_id"]
            events, told, failure = [], [], None
            while True:
                message = socket.recv(timeout)
                if isinstance(message, bytes):  # a preview picture, or a text: kind, length of the node's id, id, text
                    kind, length = struct.unpack_from(">II", message)
                    if kind == TEXT:
                        told.append((message[8 : 8 + length].decode(), message[8 + length :].decode()))
                    continue
                kind, data = (content := json.loads(message))["type"], content["data"]
                if data.get("prompt_id") != prompt_id:
                    continue
                events.append((kind, data))
                if on_event is not None:
                    on_event(kind, data)
                if kind == "execution_error":
                    failure = ExecutionError(data)
                if kind == "execution_interrupted":
                    failure = Interrupted(f"interrupted at {data['node_type']} ({data['node_id']})")
                # Only now is the run in the history; "execution_success" comes before.
                if kind == "executing" and data["node"] is None:
                    break
            if failure is not None:
                raise failure
        outputs = self.get(f"history/{prompt_id}")[prompt_id]["outputs"]
        return Result(prompt_id, outputs, events, time.monotonic() - start, told)

    def refusal(self, graph: Graph) -> tuple[str, str]:
        """Return the node that rejects a graph, before or while it runs, and its message; one has to."""
        try:
            self.queue(graph)
        except ExecutionError as error:
            return error.node_id, error.message
        except PromptRejected as error:
            [refusal] = error.sentences()
            return refusal
        raise AssertionError("the graph ran")

    def interrupt(self) -> None:
        """Asks the graph that is running to stop."""
        self._checked(requests.post(f"{self.url}/interrupt", timeout=LIMIT))

    def free(self) -> None:
        """Unloads all models and forgets cached outputs, before the next graph runs."""
        body = {"unload_models": True, "free_memory": True}
        self._checked(requests.post(f"{self.url}/free", json=body, timeout=LIMIT))

    def upload(self, name: str, content: bytes) -> str:
        """Put a file into the input folder; return its name for LoadImage etc."""
        form = {"type": "input", "overwrite": "true"}
        answer = requests.post(f"{self.url}/upload/image", files={"image": (name, content)}, data=form, timeout=LIMIT)
        return self._checked(answer).json()["name"]

    def upload_image(self, name: str, picture: Image.Image | np.ndarray) -> str:
        """Upload a picture as PNG: PIL of any mode, or uint8 (H, W), (H, W, 3) or (H, W, 4)."""
        buffer = io.BytesIO()
        (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, format="png")
        return self.upload(name, buffer.getvalue())

    def fetch(self, file: dict[str, str]) -> bytes:
        """Content of one entry of a node's output: {"filename", "subfolder", "type"}."""
        query = {key: file[key] for key in ("filename", "subfolder", "type")}
        return self._checked(requests.get(f"{self.url}/view", params=query, timeout=LIMIT)).content

    def fetch_image(self, file: dict[str, str]) -> np.ndarray:
        """Return a picture as read by PIL: uint8 (H, W, 3) for ComfyUI's PNGs."""
        return np.asarray(Image.open(io.BytesIO(self.fetch(file))))

    @staticmethod
    def _checked(answer: requests.Response) -> requests.Response:
        answer.raise_for_status()
        return answer
