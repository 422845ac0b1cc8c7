"""Each request of the interface, once: what is sent, and what is made of the answer.

The synchronous and the asynchronous classes send these and differ in nothing else.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Generic, List, Mapping, Optional, Sequence, TypeVar, Union
from urllib.parse import quote

from ._errors import RingfenceError
from ._types import (
    CodebaseInfo,
    Command,
    Ended,
    Event,
    ExecInfo,
    ExecResult,
    FileInfo,
    FileRule,
    Output,
    ResourceLimits,
    SandboxInfo,
    SessionInfo,
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
    workspace: Optional[str],
    *,
    codebase: Optional[str],
    layer: Union[bool, str, None],
    rules: Sequence[FileRule],
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
            "codebase": codebase,
            "layer": layer or None,
            "rules": [rule._data() for rule in rules] or None,
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


def _session(id: str, session: str, rest: str = "") -> str:
    return _sandbox(id, f"/sessions/{quote(session, safe='')}{rest}")


def create_session(
    id: str, shell: Optional[str], cwd: Optional[str], environment: Optional[Mapping[str, str]]
) -> Call[SessionInfo]:
    body = _without_none(
        {"shell": shell, "cwd": cwd, "environment": dict(environment) if environment else None}
    )
    return Call("POST", _sandbox(id, "/sessions"), _json(SessionInfo._of), json=body)


def sessions(id: str) -> Call[List[SessionInfo]]:
    read = _json(lambda data: [SessionInfo._of(one) for one in data["sessions"]])
    return Call("GET", _sandbox(id, "/sessions"), read)


def get_session(id: str, session: str) -> Call[SessionInfo]:
    return Call("GET", _session(id, session), _json(SessionInfo._of))


def delete_session(id: str, session: str) -> Call[None]:
    return Call("DELETE", _session(id, session), _nothing)


def _text(command: str, stdin: Optional[bytes], timeout: Optional[float]) -> Dict[str, Any]:
    body = _request(command, stdin, None, None, timeout, False)
    body["command"] = body.pop("shell")
    return body


def session_run(
    id: str, session: str, command: str, *, stdin: Optional[bytes], timeout: Optional[float]
) -> Call[ExecResult]:
    path = _session(id, session, "/exec")
    return Call("POST", path, _json(ExecResult._of), json=_text(command, stdin, timeout))


def session_stream(
    id: str, session: str, command: str, *, stdin: Optional[bytes], timeout: Optional[float]
) -> Call[None]:
    path = _session(id, session, "/exec/stream")
    return Call("POST", path, _nothing, json=_text(command, stdin, timeout))


def _codebase(name: str, rest: str = "") -> str:
    return f"/v1/codebases/{quote(name, safe='')}{rest}"


def create_codebase(
    name: str, directory: Optional[str], exclude: Sequence[str], owner: Optional[str], sealed: bool
) -> Call[CodebaseInfo]:
    body = _without_none(
        {
            "name": name,
            "directory": directory,
            "exclude": list(exclude) or None,
            "owner": owner,
            "sealed": sealed or None,
        }
    )
    return Call("POST", "/v1/codebases", _json(CodebaseInfo._of), json=body)


def codebases() -> Call[List[CodebaseInfo]]:
    read = _json(lambda data: [CodebaseInfo._of(one) for one in data["codebases"]])
    return Call("GET", "/v1/codebases", read)


def get_codebase(name: str) -> Call[CodebaseInfo]:
    return Call("GET", _codebase(name), _json(CodebaseInfo._of))


def delete_codebase(name: str) -> Call[None]:
    return Call("DELETE", _codebase(name), _nothing)


def seal_codebase(name: str) -> Call[CodebaseInfo]:
    return Call("POST", _codebase(name, "/seal"), _json(CodebaseInfo._of))


def _file(method: str, base: str, rest: str, path: str, read: Callable[[bytes], T], **more: Any) -> Call[T]:
    params = {"path": path, **more.pop("params", {})}
    return Call(method, f"{base}/files{rest}", read, params=params, **more)


def sandbox_files(id: str) -> str:
    """What files of a sandbox are below."""
    return _sandbox(id)


def codebase_files(name: str) -> str:
    """What files of a codebase are below."""
    return _codebase(name)


def read_file(base: str, path: str, offset: int, length: Optional[int]) -> Call[bytes]:
    params = {"offset": str(offset)} if offset else {}
    if length is not None:
        params["length"] = str(length)
    return _file("GET", base, "", path, bytes, params=params)


def write_file(base: str, path: str, data: bytes) -> Call[None]:
    headers = {"Content-Type": "application/octet-stream"}
    return _file("PUT", base, "", path, _nothing, content=data, headers=headers)


def remove_file(base: str, path: str) -> Call[None]:
    return _file("DELETE", base, "", path, _nothing)


def make_directory(base: str, path: str) -> Call[None]:
    return _file("POST", base, "/directory", path, _nothing)


def stat(base: str, path: str) -> Call[FileInfo]:
    return _file("GET", base, "/stat", path, _json(FileInfo._of))


def list_files(base: str, path: str) -> Call[List[FileInfo]]:
    return _file("GET", base, "/list", path, _json(_files))


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
