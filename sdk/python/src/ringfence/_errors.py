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


class Conflict(ApiError):
    """It cannot be done in this state, or the name is taken (409)."""


class LimitReached(ApiError):
    """Too many at a time; try again later (429)."""


class Busy(ApiError):
    """In the middle of a change; try again in a moment (503)."""


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
    413: InvalidRequest,
    415: InvalidRequest,
    401: PermissionDenied,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    429: LimitReached,
    503: Busy,
}


def from_answer(status: int, body: Optional[Dict[str, Any]]) -> ApiError:
    """The exception for an answer that is an error."""
    problem: Dict[str, Any] = (body or {}).get("error") or {}
    kind = _BY_STATUS.get(status, ApiError)
    return kind(
        status,
        str(problem.get("reason", "unknown")),
        str(problem.get("message", f"the daemon answered {status}")),
        str(problem.get("remedy", "")),
    )
