"""What can go wrong, as exceptions."""

from __future__ import annotations

from typing import Any, Dict, Optional, Type


class RingfenceError(Exception):
    """The base of all errors of this package."""


class DaemonUnavailable(RingfenceError):
    """There is no daemon to ask, it could not be started, or it went away."""


class ApiError(RingfenceError):
    """The daemon refused. `reason` is for programs, `message` and `remedy` are for people."""

    def __init__(self, status: int, reason: str, message: str, remedy: str = "") -> None:
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.status = status
        self.reason = reason
        self.message = message
        self.remedy = remedy


class InvalidRequest(ApiError):
    """What was asked makes no sense: a bad name, path or policy (400, 413, 415)."""


class PermissionDenied(ApiError):
    """The sandbox's policy, or the daemon, does not allow it (401, 403)."""


class NotFound(ApiError):
    """There is no such sandbox, command or file; or it is another owner's (404)."""


class Unauthorized(PermissionDenied):
    """The token is missing or wrong (401)."""


class Conflict(ApiError):
    """It cannot be done in this state, or the name is taken (409)."""


class FileChanged(Conflict):
    """A file is not as it was expected to be: somebody wrote it meanwhile, or it is there already (412)."""


class SandboxLost(Conflict):
    """The sandbox, or what makes sandboxes, ended meanwhile (409, `lost`). `start` makes it again."""


class TooLarge(InvalidRequest):
    """More than is taken or given at once: 64 MiB of a file that is read, 64 KiB of arguments (413)."""


class LimitReached(ApiError):
    """Too many at a time; try again later (429)."""


class Busy(ApiError):
    """In the middle of a change; try again in a moment (503)."""


class InternalError(ApiError):
    """The daemon failed (500). Its standard error says more."""


class CommandFailed(RingfenceError):
    """A command did not end with 0, and `check=True` was asked for. `result` is what it did."""

    def __init__(self, result: Any) -> None:
        what = f"signal {result.signal}" if result.signal is not None else f"exit code {result.exit_code}"
        if result.reason in ("timeout", "killed", "sandbox"):
            what = result.reason
        super().__init__(f"{' '.join(result.argv)}: {what}: {result.stderr.strip()[-400:]}")
        self.result = result


class CommandTimeout(CommandFailed):
    """A command was killed at its timeout."""


_BY_STATUS: Dict[int, Type[ApiError]] = {
    400: InvalidRequest,
    412: FileChanged,
    413: TooLarge,
    415: InvalidRequest,
    401: Unauthorized,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    429: LimitReached,
    500: InternalError,
    503: Busy,
}

_BY_REASON: Dict[str, Type[ApiError]] = {"lost": SandboxLost}


def from_answer(status: int, body: Optional[Dict[str, Any]]) -> ApiError:
    """The exception for an answer that is an error."""
    problem: Dict[str, Any] = (body or {}).get("error") or {}
    reason = str(problem.get("reason", "unknown"))
    kind = _BY_REASON.get(reason) or _BY_STATUS.get(status, ApiError)
    return kind(
        status,
        reason,
        str(problem.get("message", f"the daemon answered {status}")),
        str(problem.get("remedy", "")),
    )
