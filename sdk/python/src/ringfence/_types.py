"""What is asked and answered, as plain data."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

Command = Union[str, Sequence[str]]
"""A line for `/bin/sh -c`, or a program and its arguments."""


@dataclass(frozen=True)
class ResourceLimits:
    """What all commands of a sandbox together may use. What is not given is not limited by it.

    Limits that this machine cannot hold are refused when the sandbox is made.
    """

    memory: Optional[str] = None
    """Bytes, or with a unit: `"512MiB"`."""
    cpu: Optional[float] = None
    """Processors: 0.5 is half of one."""
    pids: Optional[int] = None
    """Processes and threads at a time."""
    open_files: Optional[int] = None
    """Descriptors of each process."""
    timeout: Optional[str] = None
    """Of each command: `"90s"`, `"10m"`."""

    def policy(self) -> Dict[str, Any]:
        """As the `limits` of a policy."""
        given = {
            "memory": self.memory,
            "cpu": self.cpu,
            "pids": self.pids,
            "open_files": self.open_files,
            "timeout": self.timeout,
        }
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True)
class FileRule:
    """What may be done with names in the workspace. The highest priority decides, then a file over a
    directory over a glob, then the more specific pattern."""

    pattern: str
    """Relative to the workspace."""
    permission: str
    """`none` (they do not exist), `view` (listed only), `read` or `write`."""
    priority: int = 0
    type: str = "glob"
    """`glob`, `directory` (itself and what is below) or `file`."""

    def _data(self) -> Dict[str, Any]:
        return {
            "pattern": self.pattern,
            "permission": self.permission,
            "priority": self.priority,
            "type": self.type,
        }


@dataclass(frozen=True)
class SandboxInfo:
    """A sandbox as the daemon describes it."""

    id: str
    state: str
    """`creating`, `running`, `idle`, `frozen`, `stopped`, `failed` or `destroyed`."""
    reason: str
    """Why it is in this state."""
    workspace: str
    name: Optional[str] = None
    labels: Mapping[str, str] = field(default_factory=dict)
    profiles: Sequence[str] = ()
    persistent: bool = False
    created_ms: int = 0
    """Milliseconds since 1970."""
    expires_ms: Optional[int] = None
    commands: int = 0
    """Commands that are running."""
    degraded: Sequence[str] = ()
    """What is weaker than it should be, a line for each."""
    codebase: Optional[str] = None
    """The id of the codebase that it works in."""
    layer: Optional[str] = None
    """The name of the layer that its changes go to."""
    frozen_by: Optional[str] = None
    """What holds it while it is frozen: `cgroup`, or `signals`."""

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> "SandboxInfo":
        known = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        return cls(**known)


@dataclass(frozen=True)
class Usage:
    """What a command used."""

    user_us: int = 0
    """Microseconds of processor time in the program."""
    system_us: int = 0
    """Microseconds of processor time in the kernel."""
    peak_kib: int = 0
    """Kibibytes of its largest process."""


@dataclass(frozen=True)
class ExecInfo:
    """A command, running or ended."""

    id: str
    sandbox: str
    argv: Sequence[str]
    pid: int
    """Its process id inside the sandbox."""
    started_ms: int
    """Milliseconds since 1970."""
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    ended: bool = False
    exit_code: Optional[int] = None
    signal: Optional[int] = None
    reason: str = ""
    """How it ended: `exit`, `signal`, `timeout`, `killed` (on request), `sandbox` (the sandbox ended)."""
    duration_us: int = 0
    """Microseconds from its start to its end."""
    usage: Usage = Usage()

    @property
    def ok(self) -> bool:
        """Whether it ended with 0."""
        return self.ended and self.exit_code == 0

    @classmethod
    def _values(cls, data: Mapping[str, Any]) -> Dict[str, Any]:
        end: Mapping[str, Any] = data.get("ended") or {}
        return {
            "id": data["id"],
            "sandbox": data["sandbox"],
            "argv": tuple(data["argv"]),
            "pid": data["pid"],
            "started_ms": data["started_ms"],
            "stdout_bytes": data["stdout_bytes"],
            "stderr_bytes": data["stderr_bytes"],
            "ended": bool(end),
            "exit_code": end.get("exit_code"),
            "signal": end.get("signal"),
            "reason": end.get("reason", ""),
            "duration_us": end.get("duration_us", 0),
            "usage": Usage(**{k: v for k, v in end.get("usage", {}).items() if k in Usage.__dataclass_fields__}),
        }

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> "ExecInfo":
        return cls(**cls._values(data))


def _bytes(text: Mapping[str, Any]) -> bytes:
    data: str = text["data"]
    return base64.b64decode(data) if text.get("base64") else data.encode()


@dataclass(frozen=True)
class ExecResult(ExecInfo):
    """A finished command and its output, as bytes and as text."""

    stdout_raw: bytes = b""
    stderr_raw: bytes = b""
    lost: int = 0
    """Bytes at the beginning of its output that were not kept (only the last MiB of each stream is)."""

    @property
    def stdout(self) -> str:
        """Its standard output. Bytes that are not UTF-8 become U+FFFD; `stdout_raw` has them."""
        return self.stdout_raw.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Its standard error output, like `stdout`."""
        return self.stderr_raw.decode("utf-8", "replace")

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> "ExecResult":
        out, err = data["stdout"], data["stderr"]
        return cls(
            **cls._values(data),
            stdout_raw=_bytes(out),
            stderr_raw=_bytes(err),
            lost=out.get("lost", 0) + err.get("lost", 0),
        )


@dataclass(frozen=True)
class Started:
    """The first event of a streamed command."""

    exec: ExecInfo


@dataclass(frozen=True)
class Output:
    """Bytes that a streamed command wrote."""

    stream: str
    """`stdout` or `stderr`."""
    data: bytes
    offset: int
    """Of the first byte, in its stream."""
    lost: int = 0
    """Bytes before these that are not kept any more."""

    @property
    def text(self) -> str:
        """The bytes as text. A character that was cut apart becomes U+FFFD."""
        return self.data.decode("utf-8", "replace")


@dataclass(frozen=True)
class Ended:
    """The last event of a streamed command."""

    exec: ExecInfo


Event = Union[Started, Output, Ended]


@dataclass(frozen=True)
class FileInfo:
    """A name in a sandbox."""

    name: str
    kind: str
    """`file`, `directory`, `symlink` or `other`."""
    size: int
    """Bytes."""
    mode: int
    """Permission bits."""
    modified_ms: int
    """Milliseconds since 1970."""
    etag: Optional[str] = None
    """Of the state that it is in, for `write_file(if_match=...)`; of regular files, by `stat`."""

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> "FileInfo":
        return cls(**{key: data[key] for key in cls.__dataclass_fields__ if key in data})


@dataclass(frozen=True)
class Found:
    """A name that was found, or a line of a file."""

    path: str
    """From the directory on."""
    kind: str
    """`file`, `directory`, `symlink` or `other`."""
    size: int
    """Bytes."""
    line: Optional[int] = None
    """Its number, from 1, where a text was looked for."""
    text: Optional[str] = None
    """The line, or its first 400 bytes."""

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> "Found":
        return cls(**{key: data[key] for key in cls.__dataclass_fields__ if key in data})


@dataclass(frozen=True)
class SearchResult:
    """What a search found."""

    found: Sequence[Found]
    truncated: bool
    """There may be more: a limit was reached."""

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> "SearchResult":
        return cls(tuple(map(Found._of, data["found"])), data["truncated"])


@dataclass(frozen=True)
class Unpacked:
    """What came of an archive."""

    files: int
    directories: int
    """That were made."""
    bytes: int

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> "Unpacked":
        return cls(**{key: data[key] for key in cls.__dataclass_fields__})


@dataclass(frozen=True)
class FileEvent:
    """What a watched directory tells."""

    kind: str
    """`ready` (from now on nothing is missed), `created`, `changed`, `attributes`, `moved`, `removed`,
    `overflow` (changes were lost: list anew) or `ended`."""
    path: str = ""
    """From the directory on."""
    moved_from: Optional[str] = None
    """What it was called before, where it was moved."""
    directory: bool = False
    reason: str = ""
    """Why the watch ended: `gone` (the directory is) or `sandbox`."""

    @classmethod
    def _of(cls, kind: str, data: Mapping[str, Any]) -> "FileEvent":
        moved_from, directory = data.get("from"), data.get("directory", False)
        return cls(kind, data.get("path", ""), moved_from, directory, data.get("reason", ""))


@dataclass(frozen=True)
class BatchItem:
    """A command of a batch, and the sandbox (id or name) to run it in."""

    sandbox: str
    command: Command
    cwd: Optional[str] = None
    environment: Optional[Mapping[str, str]] = None
    stdin: Union[None, str, bytes] = None
    timeout: Optional[float] = None
    """Seconds."""


@dataclass(frozen=True)
class SessionInfo:
    """A shell that stays."""

    id: str
    sandbox: str
    shell: str
    state: str
    """`active` or `closed`."""
    pid: int
    """The shell's process id inside."""
    busy: bool
    """A command runs in it."""
    created_ms: int
    """Milliseconds since 1970."""
    reason: Optional[str] = None
    """Why it is closed: `exit`, `signal`, `deleted`, `timeout` or `sandbox`."""
    closed_ms: Optional[int] = None

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> "SessionInfo":
        return cls(**{key: data[key] for key in cls.__dataclass_fields__ if key in data})


@dataclass(frozen=True)
class CodebaseInfo:
    """A named tree that sandboxes are made from."""

    id: str
    name: str
    owner: str
    created_ms: int
    """Milliseconds since 1970."""
    updated_ms: int
    size: int
    """Bytes of all files."""
    files: int
    entries: int
    """Everything with a name."""
    sealed: bool
    """Nothing can be put into it any more."""
    version: int
    """Raised by every change."""
    sandboxes: Sequence[str] = ()
    """Ids of the sandboxes that are made from it."""

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> "CodebaseInfo":
        return cls(**{key: data[key] for key in cls.__dataclass_fields__ if key in data})


@dataclass(frozen=True)
class Change:
    """One name that a layer changes, compared with what lies below it now."""

    path: str
    status: str
    """`A` added, `M` modified, `D` deleted, `T` of another type, `m` only its attributes."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """All that `ringfence diff --json` says of it."""

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> "Change":
        return cls(data["path"], data["status"], data)


@dataclass(frozen=True)
class Line:
    """What became of one change."""

    path: str
    status: str
    reason: str = ""
    executable: Optional[str] = None
    """Why the host may run it later."""

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> "Line":
        return cls(**{key: data[key] for key in cls.__dataclass_fields__ if key in data})


@dataclass(frozen=True)
class Applied:
    """What an apply did."""

    applied: Sequence[Line]
    conflicts: Sequence[Line]
    """Changed here and there meanwhile; left as they are."""
    refused: Sequence[Line]
    """What the sandbox's policy would not have let it write."""
    notes: Sequence[Line]

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> "Applied":
        lines = {key: tuple(map(Line._of, data[key])) for key in cls.__dataclass_fields__}
        return cls(**lines)


@dataclass(frozen=True)
class LayerInfo:
    """What is kept of a layer."""

    layer: str
    bytes: int
    """What it takes on the disk."""
    inodes: int
    snapshots: Sequence[str]
    checkpoints: int
    """How many steps `undo` can go back."""

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> "LayerInfo":
        names = tuple(one["name"] for one in data["snapshots"])
        return cls(data["layer"], data["bytes"], data["inodes"], names, len(data["checkpoints"]))


def _files(data: Mapping[str, Any]) -> List[FileInfo]:
    return [FileInfo._of(entry) for entry in data["entries"]]
