"""Each request of the interface, once: what is sent, and what is made of the answer.

The synchronous and the asynchronous classes send these and differ in nothing else.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Generic, List, Mapping, Optional, TypeVar
from urllib.parse import quote

from ._errors import RingfenceError
from ._types import (
    Command,
    Ended,
    Event,
    ExecInfo,
    ExecResult,
    FileInfo,
    Output,
    ResourceLimits,
    SandboxInfo,
    Started,
    _bytes,
    _files,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[bytes], T]
    params: Mapping[str, str] = field(default_factory=dict)
    json: Optional[Mapping[str, Any]] = None
    content: Optional[bytes] = None
    headers: Mapping[str, str] = field(default_factory=dict)


def _json(of: Callable[[Any], T]) -> Callable[[bytes], T]:
    return lambda body: of(json.loads(body))


def _nothing(_: bytes) -> None:
    return None


def _sandbox(id: str, rest: str = "") -> str:
    return f"/v1/sandboxes/{quote(id, safe='')}{rest}"


def _without_none(values: Mapping[str, Any]) -> Dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def health() -> Call[Mapping[str, Any]]:
    return Call("GET", "/v1/health", _json(dict))


def create(
    workspace: str,
    *,
    name: Optional[str],
    profiles: List[str],
    policy: Optional[Mapping[str, Any]],
    limits: Optional[ResourceLimits],
    environment: Optional[Mapping[str, str]],
    labels: Optional[Mapping[str, str]],
    persistent: bool,
    ttl: Optional[float],
    idle_stop: Optional[float],
    key: Optional[str],
) -> Call[SandboxInfo]:
    merged = dict(policy or {})
    if limits is not None:
        merged["limits"] = {**merged.get("limits", {}), **limits.policy()}
    body = _without_none(
        {
            "workspace": workspace,
            "name": name,
            "profiles": profiles or None,
            "policy": merged or None,
            "environment": dict(environment) if environment else None,
            "labels": dict(labels) if labels else None,
            "persistent": persistent or None,
            "ttl_seconds": _seconds("ttl", ttl),
            "idle_stop_seconds": _seconds("idle_stop", idle_stop),
        }
    )
    headers = {"Idempotency-Key": key} if key else {}
    return Call("POST", "/v1/sandboxes", _json(SandboxInfo._of), json=body, headers=headers)


def _seconds(name: str, value: Optional[float]) -> Optional[int]:
    if value is None:
        return None
    if value != int(value) or value < 0:
        raise ValueError(f"{name}: {value} is not a whole number of seconds")
    return int(value)


def list_sandboxes() -> Call[List[SandboxInfo]]:
    read = _json(lambda data: [SandboxInfo._of(one) for one in data["sandboxes"]])
    return Call("GET", "/v1/sandboxes", read)


def get(id: str) -> Call[SandboxInfo]:
    return Call("GET", _sandbox(id), _json(SandboxInfo._of))


def change(id: str, verb: str) -> Call[SandboxInfo]:
    return Call("POST", _sandbox(id, f"/{verb}"), _json(SandboxInfo._of))


def delete(id: str) -> Call[None]:
    return Call("DELETE", _sandbox(id), _nothing)


def _request(
    command: Command,
    stdin: Optional[bytes],
    cwd: Optional[str],
    environment: Optional[Mapping[str, str]],
    timeout: Optional[float],
    background: bool,
) -> Dict[str, Any]:
    body: Dict[str, Any] = {}
    if isinstance(command, str):
        body["shell"] = command
    else:
        body["argv"] = list(command)
    if stdin is not None:
        body["stdin"] = base64.b64encode(stdin).decode()
        body["stdin_base64"] = True
    if cwd is not None:
        body["cwd"] = cwd
    if environment:
        body["environment"] = dict(environment)
    if timeout is not None:
        if timeout <= 0:
            raise ValueError(f"timeout: {timeout} is not a time")
        body["timeout_ms"] = max(1, round(timeout * 1000))
    if background:
        body["background"] = True
    return body


def run(
    id: str,
    command: Command,
    *,
    stdin: Optional[bytes],
    cwd: Optional[str],
    environment: Optional[Mapping[str, str]],
    timeout: Optional[float],
) -> Call[ExecResult]:
    body = _request(command, stdin, cwd, environment, timeout, False)
    return Call("POST", _sandbox(id, "/exec"), _json(ExecResult._of), json=body)


def background(
    id: str,
    command: Command,
    *,
    stdin: Optional[bytes],
    cwd: Optional[str],
    environment: Optional[Mapping[str, str]],
    timeout: Optional[float],
) -> Call[ExecInfo]:
    body = _request(command, stdin, cwd, environment, timeout, True)
    return Call("POST", _sandbox(id, "/exec"), _json(ExecInfo._of), json=body)


def stream(
    id: str,
    command: Command,
    *,
    stdin: Optional[bytes],
    cwd: Optional[str],
    environment: Optional[Mapping[str, str]],
    timeout: Optional[float],
) -> Call[None]:
    body = _request(command, stdin, cwd, environment, timeout, False)
    return Call("POST", _sandbox(id, "/exec/stream"), _nothing, json=body)


def execs(id: str) -> Call[List[ExecInfo]]:
    read = _json(lambda data: [ExecInfo._of(one) for one in data["execs"]])
    return Call("GET", _sandbox(id, "/execs"), read)


def _exec(id: str, exec: str, rest: str = "") -> str:
    return _sandbox(id, f"/execs/{quote(exec, safe='')}{rest}")


def get_exec(id: str, exec: str) -> Call[ExecInfo]:
    return Call("GET", _exec(id, exec), _json(ExecInfo._of))


def follow(id: str, exec: str, stdout_offset: int, stderr_offset: int) -> Call[None]:
    params = {"stdout_offset": str(stdout_offset), "stderr_offset": str(stderr_offset)}
    return Call("GET", _exec(id, exec, "/stream"), _nothing, params=params)


def kill(id: str, exec: str, signal: int) -> Call[None]:
    return Call("POST", _exec(id, exec, "/kill"), _nothing, json={"signal": signal})


def _file(method: str, id: str, rest: str, path: str, read: Callable[[bytes], T], **more: Any) -> Call[T]:
    params = {"path": path, **more.pop("params", {})}
    return Call(method, _sandbox(id, f"/files{rest}"), read, params=params, **more)


def read_file(id: str, path: str, offset: int, length: Optional[int]) -> Call[bytes]:
    params = {"offset": str(offset)} if offset else {}
    if length is not None:
        params["length"] = str(length)
    return _file("GET", id, "", path, bytes, params=params)


def write_file(id: str, path: str, data: bytes) -> Call[None]:
    headers = {"Content-Type": "application/octet-stream"}
    return _file("PUT", id, "", path, _nothing, content=data, headers=headers)


def remove_file(id: str, path: str) -> Call[None]:
    return _file("DELETE", id, "", path, _nothing)


def make_directory(id: str, path: str) -> Call[None]:
    return _file("POST", id, "/directory", path, _nothing)


def stat(id: str, path: str) -> Call[FileInfo]:
    return _file("GET", id, "/stat", path, _json(FileInfo._of))


def list_files(id: str, path: str) -> Call[List[FileInfo]]:
    return _file("GET", id, "/list", path, _json(_files))


class EventReader:
    """Server-sent events out of lines."""

    def __init__(self) -> None:
        self._name = ""
        self._data: List[str] = []

    def line(self, line: str) -> Optional[Event]:
        """The event that ends with this line, if one does."""
        if line.startswith("event: "):
            self._name = line[7:]
        elif line.startswith("data: "):
            self._data.append(line[6:])
        elif not line and self._data:
            name, data = self._name, json.loads("\n".join(self._data))
            self._name, self._data = "", []
            if name == "started":
                return Started(ExecInfo._of(data))
            if name in ("stdout", "stderr"):
                return Output(name, _bytes(data), data["offset"], data.get("lost", 0))
            if name == "ended":
                return Ended(ExecInfo._of(data))
            if name == "error":
                raise RingfenceError(str(data))
        return None
