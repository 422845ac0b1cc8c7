"""Sandboxes for what AI agents run, kept by the ringfence daemon.

    >>> from ringfence import Sandbox
    >>> with Sandbox.create(".", profiles=["agent-safe"]) as box:
    ...     print(box.run("echo hello").stdout)

Each class has an asynchronous twin: `AsyncSandbox`, `AsyncClient`, `AsyncSession`, ...
"""

from ._async import AsyncClient, AsyncCodebase, AsyncExec, AsyncSandbox, AsyncSession
from ._errors import (
    ApiError,
    Busy,
    CommandFailed,
    CommandTimeout,
    Conflict,
    DaemonUnavailable,
    InvalidRequest,
    LimitReached,
    NotFound,
    PermissionDenied,
    RingfenceError,
)
from ._sync import Client, Codebase, Exec, Sandbox, Session
from ._types import (
    CodebaseInfo,
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
    Usage,
)

__version__ = "0.1.0"
__all__ = [
    "ApiError",
    "AsyncClient",
    "AsyncCodebase",
    "AsyncExec",
    "AsyncSandbox",
    "AsyncSession",
    "Busy",
    "Client",
    "Codebase",
    "CodebaseInfo",
    "CommandFailed",
    "CommandTimeout",
    "Conflict",
    "DaemonUnavailable",
    "Ended",
    "Event",
    "Exec",
    "ExecInfo",
    "ExecResult",
    "FileInfo",
    "FileRule",
    "InvalidRequest",
    "LimitReached",
    "NotFound",
    "Output",
    "PermissionDenied",
    "ResourceLimits",
    "RingfenceError",
    "Sandbox",
    "SandboxInfo",
    "Session",
    "SessionInfo",
    "Started",
    "Usage",
]
