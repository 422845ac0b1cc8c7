"""Where the daemon is, and starting one that belongs to this program alone."""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import List, Optional

from ._errors import DaemonUnavailable

PATIENCE = 20.0
"""Seconds that a daemon may take to start."""


def program() -> str:
    """The `ringfence` to start: `$RINGFENCE_BIN`, else the one in `$PATH`."""
    named = os.environ.get("RINGFENCE_BIN")
    if named:
        return named
    found = shutil.which("ringfence")
    if not found:
        raise DaemonUnavailable(
            "there is no ringfence in $PATH: install it, or name it in RINGFENCE_BIN"
        )
    return found


def _candidates() -> List[Path]:
    named = os.environ.get("RINGFENCE_SOCKET")
    if named:
        return [Path(named)]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isabs(runtime):
        return [Path(runtime) / "ringfence" / "daemon.sock"]
    store = os.environ.get("RINGFENCE_STATE")
    if store:
        return [Path(store) / "daemon" / "daemon.sock"]
    state = os.environ.get("XDG_STATE_HOME")
    base = Path(state) if state and os.path.isabs(state) else Path.home() / ".local" / "state"
    return [base / "ringfence" / "daemon" / "daemon.sock"]


def _answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(PATIENCE)
            probe.connect(str(path))
        return True
    except OSError:
        return False


def running() -> Optional[Path]:
    """The socket of this user's daemon, if one answers."""
    return next((path for path in _candidates() if _answers(path)), None)


class PrivateDaemon:
    """A daemon for this process alone. It ends with it, however that comes, and leaves nothing."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [program(), "daemon", "--private"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.socket = self._begin()

    def _begin(self) -> Path:
        out = self._process.stdout
        assert out is not None
        until, line = time.monotonic() + PATIENCE, b""
        while not line.endswith(b"\n"):
            left = until - time.monotonic()
            if left <= 0 or not select.select([out], [], [], left)[0]:
                self.close()
                raise DaemonUnavailable(f"the daemon does not answer within {PATIENCE:.0f} s")
            byte = os.read(out.fileno(), 1)
            if not byte:
                said = self._process.communicate()[1].decode(errors="replace").strip()
                raise DaemonUnavailable(f"the daemon ended: {said}")
            line += byte
        # What it says later is of no interest, and must not fill the pipe.
        assert self._process.stderr is not None
        threading.Thread(target=self._process.stderr.read, daemon=True).start()
        return Path(json.loads(line)["socket"])

    def close(self) -> None:
        """Ends it and every sandbox that it keeps."""
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except OSError:
                pass
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_lock = threading.Lock()
_private: Optional[PrivateDaemon] = None
_owner = 0


def find_or_start() -> Path:
    """The socket of this user's daemon, else of one that is started for this process alone."""
    global _private, _owner
    found = running()
    if found is not None:
        return found
    if os.environ.get("RINGFENCE_SOCKET"):
        raise DaemonUnavailable(f"no daemon answers at {os.environ['RINGFENCE_SOCKET']}")
    with _lock:
        # After a fork it is the parent's.
        if _private is None or _owner != os.getpid() or not _answers(_private.socket):
            _private, _owner = PrivateDaemon(), os.getpid()
            atexit.register(_end, _private, _owner)
        return _private.socket


def _end(daemon: PrivateDaemon, owner: int) -> None:
    if os.getpid() == owner:
        daemon.close()
