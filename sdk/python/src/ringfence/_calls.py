"""Each request of the interface, once: what is sent, and what is made of the answer.

The synchronous and the asynchronous classes send these and differ in nothing else.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import (
    Any,
    BinaryIO,
    Callable,
    Dict,
    Generic,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    TypeVar,
    Union,
)
from urllib.parse import quote

from ._errors import ApiError, RingfenceError, from_answer
from ._types import (
    Applied,
    BatchItem,
    Change,
    CodebaseInfo,
    Command,
    Ended,
    Event,
    ExecInfo,
    ExecResult,
    FileEvent,
    FileInfo,
    FileRule,
    LayerInfo,
    Output,
    ResourceLimits,
    SandboxInfo,
    SearchResult,
    SessionInfo,
    Started,
    Unpacked,
    _bytes,
    _files,
)

T = TypeVar("T")
#: What is sent: as a whole, as a file that is read piece by piece, or in pieces.
Content = Union[bytes, BinaryIO, Iterable[bytes]]
#: Bytes that are read of a file at once.
_PIECE = 1 << 16


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[bytes], T]
    params: Mapping[str, str] = field(default_factory=dict)
    json: Optional[Mapping[str, Any]] = None
    content: Union[None, bytes, Iterable[bytes]] = None
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


def batch_run(
    items: Sequence[BatchItem], concurrency: Optional[int]
) -> Call[List[Union[ExecResult, ApiError]]]:
    data = []
    for item in items:
        stdin = item.stdin.encode() if isinstance(item.stdin, str) else item.stdin
        exec = _request(item.command, stdin, item.cwd, item.environment, item.timeout, False)
        data.append({"sandbox": item.sandbox, "exec": exec})
    body = _without_none({"items": data, "concurrency": concurrency})
    return Call("POST", "/v1/batch/exec", _json(_outcomes), json=body)


def _outcomes(data: Any) -> List[Union[ExecResult, ApiError]]:
    def one(outcome: Mapping[str, Any]) -> Union[ExecResult, ApiError]:
        error = outcome.get("error")
        if error is not None:
            return from_answer(int(error["status"]), {"error": error})
        return ExecResult._of(outcome["result"])

    return [one(outcome) for outcome in data["results"]]


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


def _layer(id: str, rest: str = "") -> str:
    return _sandbox(id, f"/layer{rest}")


def layer_info(id: str) -> Call[LayerInfo]:
    return Call("GET", _layer(id), _json(LayerInfo._of))


def diff(id: str, path: Optional[str]) -> Call[List[Change]]:
    read = _json(lambda data: [Change._of(one) for one in data["changes"]])
    return Call("GET", _layer(id, "/diff"), read, params={"path": path} if path else {})


def patch(id: str, path: Optional[str], binary: bool) -> Call[bytes]:
    params = {"path": path} if path else {}
    if binary:
        params["binary"] = "true"
    return Call("GET", _layer(id, "/patch"), bytes, params=params)


def _chosen(paths: Sequence[str], dry_run: bool, theirs: bool) -> Dict[str, Any]:
    given = {"paths": list(paths) or None, "dry_run": dry_run or None, "theirs": theirs or None}
    return _without_none(given)


def apply(id: str, paths: Sequence[str], dry_run: bool, theirs: bool) -> Call[Applied]:
    return Call("POST", _layer(id, "/apply"), _json(Applied._of), json=_chosen(paths, dry_run, theirs))


def discard(id: str, paths: Sequence[str]) -> Call[None]:
    return Call("POST", _layer(id, "/discard"), _nothing, json=_chosen(paths, False, False))


def checkpoint(id: str) -> Call[None]:
    return Call("POST", _layer(id, "/checkpoint"), _nothing)


def undo(id: str, steps: int) -> Call[None]:
    return Call("POST", _layer(id, "/undo"), _nothing, json={"steps": steps})


def fork(id: str, layer: str) -> Call[None]:
    return Call("POST", _layer(id, "/fork"), _nothing, json={"layer": layer})


def snapshot(id: str, name: str, method: str, rest: str = "") -> Call[None]:
    return Call(method, _layer(id, f"/snapshots/{quote(name, safe='')}{rest}"), _nothing)


def export(id: str, snapshot: Optional[str], zstd: bool) -> Call[bytes]:
    params = {"snapshot": snapshot} if snapshot else {}
    if zstd:
        params["zstd"] = "true"
    return Call("GET", _layer(id, "/archive"), bytes, params=params)


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


_BYTES = {"Content-Type": "application/octet-stream"}


def move_file(id: str, path: str, to: str) -> Call[None]:
    return Call("POST", _sandbox(id, "/files/move"), _nothing, json={"from": path, "to": to})


def chmod(id: str, path: str, mode: int) -> Call[None]:
    if not 0 <= mode <= 0o777:
        raise ValueError(f"mode: {mode:#o} is not nine bits of permissions")
    return _file("POST", _sandbox(id), "/chmod", path, _nothing, params={"mode": f"{mode:03o}"})


def search(
    id: str, path: str, name: Optional[str], content: Optional[str], limit: Optional[int]
) -> Call[SearchResult]:
    given = {"name": name, "content": content, "limit": None if limit is None else str(limit)}
    return _file("GET", _sandbox(id), "/search", path, _json(SearchResult._of), params=_without_none(given))


def pack(id: str, path: str) -> Call[bytes]:
    return _file("GET", _sandbox(id), "/archive", path, bytes)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


def _content(what: Content) -> Union[bytes, Iterable[bytes]]:
    if isinstance(what, (bytes, bytearray, memoryview)):
        return bytes(what)
    return _pieces(what) if hasattr(what, "read") else what


def write_file(
    base: str,
    path: str,
    data: Content,
    durable: bool = False,
    if_match: Optional[str] = None,
    only_new: bool = False,
) -> Call[None]:
    if if_match is not None and only_new:
        raise ValueError("if_match and only_new exclude each other")
    params = {"durable": "true"} if durable else {}
    headers = dict(_BYTES)
    if if_match is not None:
        headers["If-Match"] = if_match
    if only_new:
        headers["If-None-Match"] = "*"
    content = _content(data)
    return _file("PUT", base, "", path, _nothing, content=content, headers=headers, params=params)


def unpack(id: str, path: str, archive: Content) -> Call[Unpacked]:
    content = _content(archive)
    return _file(
        "PUT", _sandbox(id), "/archive", path, _json(Unpacked._of), content=content, headers=_BYTES
    )


def watch(id: str, path: str, recursive: bool) -> Call[None]:
    params = {"recursive": "true"} if recursive else {}
    return _file("GET", _sandbox(id), "/watch", path, _nothing, params=params)


def extend(id: str, seconds: float) -> Call[SandboxInfo]:
    body = {"seconds": _seconds("seconds", seconds)}
    return Call("POST", _sandbox(id, "/extend"), _json(SandboxInfo._of), json=body)


def remove_file(base: str, path: str) -> Call[None]:
    return _file("DELETE", base, "", path, _nothing)


def make_directory(base: str, path: str) -> Call[None]:
    return _file("POST", base, "/directory", path, _nothing)


def stat(base: str, path: str) -> Call[FileInfo]:
    return _file("GET", base, "/stat", path, _json(FileInfo._of))


def list_files(base: str, path: str) -> Call[List[FileInfo]]:
    return _file("GET", base, "/list", path, _json(_files))


E = TypeVar("E")


def command_event(name: str, data: Mapping[str, Any]) -> Optional[Event]:
    """What a command does, out of a server-sent event."""
    if name == "started":
        return Started(ExecInfo._of(data))
    if name in ("stdout", "stderr"):
        return Output(name, _bytes(data), data["offset"], data.get("lost", 0))
    if name == "ended":
        return Ended(ExecInfo._of(data))
    if name == "error":
        raise RingfenceError(str(data))
    return None


def file_event(name: str, data: Mapping[str, Any]) -> Optional[FileEvent]:
    """What a watched directory tells, out of a server-sent event."""
    return FileEvent._of(name, data)


class EventReader(Generic[E]):
    """Server-sent events out of lines."""

    def __init__(self, make: Callable[[str, Mapping[str, Any]], Optional[E]]) -> None:
        self._make = make
        self._name = ""
        self._data: List[str] = []

    def line(self, line: str) -> Optional[E]:
        """The event that ends with this line, if one does."""
        if line.startswith("event: "):
            self._name = line[7:]
        elif line.startswith("data: "):
            self._data.append(line[6:])
        elif not line and self._data:
            name, data = self._name, json.loads("\n".join(self._data))
            self._name, self._data = "", []
            return self._make(name, data)
        return None
