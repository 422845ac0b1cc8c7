"""Sandboxes for what AI agents run, kept by the ringfence daemon.

    >>> from ringfence import Sandbox
    >>> with Sandbox.create(".", profiles=["agent-safe"]) as box:
    ...     print(box.run("echo hello").stdout)

Each class has an asynchronous twin: `AsyncSandbox`, `AsyncClient`, `AsyncExec`.
"""

from ._async import AsyncClient, AsyncExec, AsyncSandbox
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
from ._sync import Client, Exec, Sandbox
from ._types import (
    Ended,
    Event,
    ExecInfo,
    ExecResult,
    FileInfo,
    Output,
    ResourceLimits,
    SandboxInfo,
    Started,
    Usage,
)

__version__ = "0.1.0"
__all__ = [
    "ApiError",
    "AsyncClient",
    "AsyncExec",
    "AsyncSandbox",
    "Busy",
    "Client",
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
    "InvalidRequest",
    "LimitReached",
    "NotFound",
    "Output",
    "PermissionDenied",
    "ResourceLimits",
    "RingfenceError",
    "Sandbox",
    "SandboxInfo",
    "Started",
    "Usage",
]
