"""The client. Made from `_async.py` by `unasync.py`; do not edit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Iterator, Callable, Iterable, List, Mapping, Optional, Sequence, TypeVar, Union

import httpx

from . import _calls
from ._calls import Call, Content, EventReader
from ._daemon import find_or_start
from ._errors import ApiError, CommandFailed, CommandTimeout, DaemonUnavailable, from_answer
from ._types import (
    Applied,
    BatchItem,
    Change,
    CodebaseInfo,
    Command,
    Event,
    ExecInfo,
    ExecResult,
    FileEvent,
    FileInfo,
    FileRule,
    LayerInfo,
    ResourceLimits,
    SandboxInfo,
    SearchResult,
    SessionInfo,
    Unpacked,
)

T = TypeVar("T")
E = TypeVar("E")


def _sent(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield piece


def _body(content: Union[None, bytes, Iterable[bytes]]) -> Union[None, bytes, Iterator[bytes]]:
    return content if content is None or isinstance(content, bytes) else _sent(content)


class Client:
    """A connection to a daemon.

    `socket` is the path of its unix socket. Without one, this user's daemon is asked; where none runs,
    one is started for this process alone and ends with it (`DaemonUnavailable` if it cannot be).
    `url` and `token` reach a daemon that listens on loopback (`ringfence daemon --listen`) instead.
    """

    def __init__(
        self,
        socket: Optional[Union[str, Path]] = None,
        *,
        url: Optional[str] = None,
        token: Optional[str] = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if url is None:
            path = str(socket if socket is not None else find_or_start())
            transport = httpx.HTTPTransport(uds=path)
            self._http = httpx.Client(
                transport=transport, base_url="http://localhost", timeout=None, headers=headers, trust_env=False
            )
            self._where = path
        else:
            self._http = httpx.Client(base_url=url, timeout=None, headers=headers, trust_env=False)
            self._where = url

    def close(self) -> None:
        """Closes the connection. Sandboxes stay."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, call: Call[T]) -> T:
        try:
            answer = self._http.request(
                call.method,
                call.path,
                params=call.params or None,
                json=call.json,
                content=_body(call.content),
                headers=call.headers,
            )
        except httpx.TransportError as e:
            raise DaemonUnavailable(f"no answer from {self._where}: {e}") from e
        if answer.is_error:
            raise _refused(answer.status_code, answer.content)
        return call.read(answer.content)

    def _commands(self, call: Call[None]) -> Iterator[Event]:
        return self._events(call, _calls.command_event)

    def _events(
        self, call: Call[None], make: Callable[[str, Mapping[str, Any]], Optional[E]]
    ) -> Iterator[E]:
        reader = EventReader(make)
        try:
            with self._http.stream(
                call.method, call.path, params=call.params or None, json=call.json, headers=call.headers
            ) as answer:
                if answer.is_error:
                    raise _refused(answer.status_code, answer.read())
                for line in answer.iter_lines():
                    event = reader.line(line)
                    if event is not None:
                        yield event
        except httpx.TransportError as e:
            raise DaemonUnavailable(f"lost {self._where}: {e}") from e

    def health(self) -> Mapping[str, Any]:
        """`status`, `version` and `pid` of the daemon."""
        return self._do(_calls.health())

    def create(
        self,
        workspace: Union[None, str, Path] = None,
        *,
        codebase: Optional[str] = None,
        layer: Union[bool, str, None] = None,
        rules: Sequence[FileRule] = (),
        name: Optional[str] = None,
        profiles: Sequence[str] = (),
        policy: Optional[Mapping[str, Any]] = None,
        limits: Optional[ResourceLimits] = None,
        environment: Optional[Mapping[str, str]] = None,
        labels: Optional[Mapping[str, str]] = None,
        persistent: bool = False,
        ttl: Optional[float] = None,
        idle_stop: Optional[float] = None,
        idempotency_key: Optional[str] = None,
    ) -> "Sandbox":
        """Makes a sandbox in a directory (`workspace`; default: the current one) or in a codebase.

        What commands write is written to the real directory, unless `layer` is true (a layer of the
        sandbox's own, which goes with it) or the name of a layer that stays; in a codebase it always
        goes to a layer. `rules` are of names in the workspace, over those of profiles and policy.
        `profiles` are built-in ones, lowest first (`ringfence policy profiles`); `policy` is what a policy
        file would say, over them. `ttl` and `idle_stop` are whole seconds. A `persistent` one survives
        the daemon. The same `idempotency_key` makes one sandbox, however often it is sent.

        Raises `InvalidRequest` for a policy or a directory that cannot be, `Conflict` for a name that is
        taken, `LimitReached` where there are too many.
        """
        call = _calls.create(
            None if codebase is not None and workspace is None else os.path.abspath(workspace or "."),
            codebase=codebase,
            layer=layer,
            rules=rules,
            name=name,
            profiles=list(profiles),
            policy=policy,
            limits=limits,
            environment=environment,
            labels=labels,
            persistent=persistent,
            ttl=ttl,
            idle_stop=idle_stop,
            key=idempotency_key,
        )
        return Sandbox(self, self._do(call))

    def get(self, id: str) -> "Sandbox":
        """The sandbox of this id or name. Raises `NotFound`."""
        return Sandbox(self, self._do(_calls.get(id)))

    def list(self) -> List[SandboxInfo]:
        """All of one's sandboxes."""
        return self._do(_calls.list_sandboxes())

    def run_batch(
        self, items: Sequence[BatchItem], *, concurrency: Optional[int] = None
    ) -> List[Union[ExecResult, ApiError]]:
        """Runs many commands by one request, `concurrency` at a time (1 to 64; default 8), each to its end.

        Answers a result for each, in their order: what came of it, or the error that the single request would
        have raised. Raises `InvalidRequest` for more than 256.
        """
        return self._do(_calls.batch_run(items, concurrency))

    def create_codebase(
        self,
        name: str,
        directory: Union[None, str, Path] = None,
        *,
        exclude: Sequence[str] = (),
        owner: Optional[str] = None,
        sealed: bool = False,
    ) -> "Codebase":
        """Makes a codebase: a copy of a directory of this machine, else an empty one. `exclude` are patterns
        as in `.gitignore`. Raises `Conflict` for a name that is taken."""
        where = None if directory is None else os.path.abspath(directory)
        call = _calls.create_codebase(name, where, exclude, owner, sealed)
        return Codebase(self, self._do(call))

    def codebase(self, name: str) -> "Codebase":
        """The codebase of this name or id. Raises `NotFound`."""
        return Codebase(self, self._do(_calls.get_codebase(name)))

    def codebases(self) -> List[CodebaseInfo]:
        """All of one's codebases."""
        return self._do(_calls.codebases())


def _refused(status: int, content: bytes) -> ApiError:
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    return from_answer(status, body if isinstance(body, dict) else None)


class Exec:
    """A command that runs in the background. It goes on when nobody looks."""

    def __init__(self, client: Client, info: ExecInfo) -> None:
        self._client = client
        self.info = info

    @property
    def id(self) -> str:
        return self.info.id

    def refresh(self) -> ExecInfo:
        """Asks how it stands."""
        self.info = self._client._do(_calls.get_exec(self.info.sandbox, self.info.id))
        return self.info

    def follow(self, stdout_offset: int = 0, stderr_offset: int = 0) -> Iterator[Event]:
        """Its output from these offsets on, as it comes, until it ends. Who was cut off goes on at the
        offset that was reached: nothing is lost or repeated while the last MiB of each stream is kept."""
        call = _calls.follow(self.info.sandbox, self.info.id, stdout_offset, stderr_offset)
        return self._client._commands(call)

    def wait(self) -> ExecInfo:
        """Waits for its end."""
        for _ in self.follow(self.info.stdout_bytes, self.info.stderr_bytes):
            pass
        return self.refresh()

    def kill(self, signal: int = 9) -> None:
        """Sends it, and what it started, a signal."""
        self._client._do(_calls.kill(self.info.sandbox, self.info.id, signal))


class _Files:
    """Files of a sandbox, under its own rules, or of a codebase. Paths are relative to the workspace, or
    to the codebase."""

    _client: Client

    def _files(self) -> str:
        raise NotImplementedError

    def read_file(self, path: str, offset: int = 0, length: Optional[int] = None) -> bytes:
        """Bytes of a file. Raises `NotFound`, `PermissionDenied`."""
        return self._client._do(_calls.read_file(self._files(), path, offset, length))

    def read_text(self, path: str) -> str:
        """A file as UTF-8."""
        return (self.read_file(path)).decode()

    def write_file(self, path: str, data: Union[str, bytes]) -> None:
        """Writes a file as a whole: others see what was there before, or all of it."""
        self._client._do(_calls.write_file(self._files(), path, _encoded(data) or b""))

    def remove_file(self, path: str) -> None:
        """Removes a file or an empty directory."""
        self._client._do(_calls.remove_file(self._files(), path))

    def make_directory(self, path: str) -> None:
        """Makes a directory; what is above it must be there."""
        self._client._do(_calls.make_directory(self._files(), path))

    def stat(self, path: str) -> FileInfo:
        """What a name is; symbolic links are not followed at the end."""
        return self._client._do(_calls.stat(self._files(), path))

    def list_files(self, path: str = ".") -> List[FileInfo]:
        """The names in a directory."""
        return self._client._do(_calls.list_files(self._files(), path))


class Codebase(_Files):
    """A named tree that sandboxes are made from. They do not change it: what they write goes to layers."""

    def __init__(self, client: Client, info: CodebaseInfo) -> None:
        self._client = client
        self.info = info

    @property
    def id(self) -> str:
        return self.info.id

    def _files(self) -> str:
        return _calls.codebase_files(self.id)

    def refresh(self) -> CodebaseInfo:
        """Asks how it stands."""
        self.info = self._client._do(_calls.get_codebase(self.id))
        return self.info

    def seal(self) -> CodebaseInfo:
        """From now on nothing can be put into it."""
        self.info = self._client._do(_calls.seal_codebase(self.id))
        return self.info

    def delete(self) -> None:
        """Removes it. Raises `Conflict` while a sandbox is made from it."""
        self._client._do(_calls.delete_codebase(self.id))


class Session:
    """A shell in a sandbox that keeps directory, variables and functions from one command to the next.

    As a context manager it is closed at the end.
    """

    def __init__(self, client: Client, info: SessionInfo) -> None:
        self._client = client
        self.info = info

    @property
    def id(self) -> str:
        return self.info.id

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refresh(self) -> SessionInfo:
        """Asks how it stands."""
        self.info = self._client._do(_calls.get_session(self.info.sandbox, self.id))
        return self.info

    def run(
        self,
        command: str,
        *,
        stdin: Union[None, str, bytes] = None,
        timeout: Optional[float] = None,
        check: bool = False,
    ) -> ExecResult:
        """Runs text of the shell's to its end. At the `timeout` (seconds) it is killed and the shell goes on.

        Raises `Conflict` when the session is closed; with `check`, as `Sandbox.run`.
        """
        call = _calls.session_run(
            self.info.sandbox, self.id, command, stdin=_encoded(stdin), timeout=timeout
        )
        return _checked(self._client._do(call), check)

    def stream(
        self, command: str, *, stdin: Union[None, str, bytes] = None, timeout: Optional[float] = None
    ) -> Iterator[Event]:
        """As `run`, and hands out what it does as it comes."""
        call = _calls.session_stream(
            self.info.sandbox, self.id, command, stdin=_encoded(stdin), timeout=timeout
        )
        return self._client._commands(call)

    def close(self) -> None:
        """Ends the shell and what runs in it."""
        self._client._do(_calls.delete_session(self.info.sandbox, self.id))


class Layer:
    """What a sandbox with a layer changed, and what becomes of it. All but `info`, `diff` and `patch` need the
    sandbox to be stopped, and raise `Conflict` otherwise."""

    def __init__(self, client: Client, sandbox: str) -> None:
        self._client = client
        self._sandbox = sandbox

    def info(self) -> LayerInfo:
        """Its size, snapshots and checkpoints."""
        return self._client._do(_calls.layer_info(self._sandbox))

    def diff(self, path: Optional[str] = None) -> List[Change]:
        """What is different, of all names or of one and what is below it."""
        return self._client._do(_calls.diff(self._sandbox, path))

    def patch(self, path: Optional[str] = None, binary: bool = False) -> bytes:
        """The same as a unified patch; with `binary` such files too, as git has them."""
        return self._client._do(_calls.patch(self._sandbox, path, binary))

    def apply(
        self, paths: Sequence[str] = (), *, dry_run: bool = False, theirs: bool = False
    ) -> Applied:
        """Brings changes to the real files: all, or those at `paths` and below. What was changed there too is a
        conflict and left alone, unless `theirs` takes the layer's. `dry_run` changes nothing."""
        return self._client._do(_calls.apply(self._sandbox, paths, dry_run, theirs))

    def discard(self, paths: Sequence[str] = ()) -> None:
        """Throws changes away: all, or those at `paths` and below."""
        self._client._do(_calls.discard(self._sandbox, paths))

    def checkpoint(self) -> None:
        """Seals what is there, for `undo`."""
        self._client._do(_calls.checkpoint(self._sandbox))

    def undo(self, steps: int = 1) -> None:
        """Goes back to how it was at a checkpoint."""
        self._client._do(_calls.undo(self._sandbox, steps))

    def fork(self, layer: str) -> None:
        """Makes another layer of what is there, without copying; sandboxes can be made with it."""
        self._client._do(_calls.fork(self._sandbox, layer))

    def snapshot(self, name: str) -> None:
        """Keeps what is there under a name."""
        self._client._do(_calls.snapshot(self._sandbox, name, "PUT"))

    def restore(self, name: str) -> None:
        """Goes back to a snapshot."""
        self._client._do(_calls.snapshot(self._sandbox, name, "POST", "/restore"))

    def forget(self, name: str) -> None:
        """Removes a snapshot."""
        self._client._do(_calls.snapshot(self._sandbox, name, "DELETE"))

    def export(self, snapshot: Optional[str] = None, zstd: bool = False) -> bytes:
        """What it holds as a tar archive, an OCI layer with whiteouts."""
        return self._client._do(_calls.export(self._sandbox, snapshot, zstd))


class _Tree(_Files):
    """What only a sandbox can do with its files, under its own rules."""

    @property
    def id(self) -> str:
        raise NotImplementedError

    def write_file(
        self,
        path: str,
        data: Union[str, Content],
        durable: bool = False,
        *,
        if_match: Optional[str] = None,
        only_new: bool = False,
    ) -> None:
        """Writes a file as a whole: others see what was there before, or all of it. A file or an iterable of
        bytes is sent as it is read, whatever its size. With `durable` it is on the disk when this returns.

        `if_match` is the `etag` that `stat` told: `FileChanged` is raised where somebody wrote it since.
        With `only_new` it is where there is such a file already.

        Raises `PermissionDenied`, `NotFound` for a directory that is not there, `TooLarge` for more than the
        layer may hold, or 16 GiB.
        """
        content = data.encode() if isinstance(data, str) else data
        call = _calls.write_file(self._files(), path, content, durable, if_match, only_new)
        self._client._do(call)

    def move_file(self, path: str, to: str) -> None:
        """Gives a file or directory another name; what has it is replaced. Raises `NotFound`, `Conflict`."""
        self._client._do(_calls.move_file(self.id, path, to))

    def chmod(self, path: str, mode: int) -> None:
        """Sets the nine bits of permissions (`0o644`) of a file or directory. Raises `PermissionDenied`, also
        for a symbolic link."""
        self._client._do(_calls.chmod(self.id, path, mode))

    def search(
        self,
        path: str = "",
        *,
        name: Optional[str] = None,
        content: Optional[str] = None,
        limit: Optional[int] = None,
    ) -> SearchResult:
        """Finds names below a directory that match a pattern (`*.rs`, or with a slash of paths: `src/**/*.rs`), or
        lines that have a text; at most `limit` (1 to 10000; default 1000), within 30 seconds.

        Raises `LimitReached` while two others are at work in this sandbox.
        """
        return self._client._do(_calls.search(self.id, path, name, content, limit))

    def pack(self, path: str = "") -> bytes:
        """What is below a directory as a tar archive, without what the sandbox may not read."""
        return self._client._do(_calls.pack(self.id, path))

    def unpack(self, archive: Content, path: str = "") -> Unpacked:
        """Puts the files and directories of a tar archive below a directory: of bytes, or of a binary file or an
        iterable of bytes, which are sent as they are read. Raises `InvalidRequest` for links,
        devices and names that lead out; what came before them stays."""
        return self._client._do(_calls.unpack(self.id, path, archive))

    def watch(self, path: str = "", *, recursive: bool = False) -> Iterator[FileEvent]:
        """What changes in a directory, with `recursive` also below it, as it comes. The first event is `ready`;
        it ends with the sandbox or the directory (`ended`). Who reads slowly gets `overflow` and should list.

        Raises `LimitReached` where the sandbox has eight watches already, or there are too many directories.
        """
        return self._client._events(_calls.watch(self.id, path, recursive), _calls.file_event)


class Sandbox(_Tree):
    """A sandbox of the daemon: a directory in which confined commands run.

    As a context manager it is deleted at the end.
    """

    def __init__(self, client: Client, info: SandboxInfo, owns_client: bool = False) -> None:
        self._client = client
        self._owns_client = owns_client
        self.info = info

    def _files(self) -> str:
        return _calls.sandbox_files(self.id)

    @classmethod
    def create(cls, workspace: Union[None, str, Path] = None, **options: Any) -> "Sandbox":
        """Makes one in this user's daemon, else in one that is started for this process alone.

        The options are those of `Client.create`.
        """
        client = Client()
        try:
            made = client.create(workspace, **options)
        except BaseException:
            client.close()
            raise
        return cls(client, made.info, owns_client=True)

    @classmethod
    def connect(cls, id: str) -> "Sandbox":
        """One that is there, by id or name. Raises `NotFound`."""
        client = Client()
        try:
            found = client.get(id)
        except BaseException:
            client.close()
            raise
        return cls(client, found.info, owns_client=True)

    @property
    def id(self) -> str:
        return self.info.id

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.delete()

    @property
    def layer(self) -> Layer:
        """What it changed. Its methods raise `ApiError` where it has no layer."""
        return Layer(self._client, self.id)

    def refresh(self) -> SandboxInfo:
        """Asks how it stands."""
        self.info = self._client._do(_calls.get(self.id))
        return self.info

    def _change(self, verb: str) -> SandboxInfo:
        self.info = self._client._do(_calls.change(self.id, verb))
        return self.info

    def start(self) -> SandboxInfo:
        """Starts it again, or lets it go on where it was frozen."""
        return self._change("start")

    def stop(self) -> SandboxInfo:
        """Ends its processes. Files stay."""
        return self._change("stop")

    def freeze(self) -> SandboxInfo:
        """Stops every process where it stands, until `start`."""
        return self._change("freeze")

    def extend(self, seconds: float) -> SandboxInfo:
        """Lets it live so many whole seconds longer; one that had no end, that long from now."""
        self.info = self._client._do(_calls.extend(self.id, seconds))
        return self.info

    def delete(self) -> None:
        """Ends it and forgets it. No error when it is gone already."""
        self._client._do(_calls.delete(self.id))
        if self._owns_client:
            self._client.close()

    def run(
        self,
        command: Command,
        *,
        stdin: Union[None, str, bytes] = None,
        cwd: Optional[str] = None,
        environment: Optional[Mapping[str, str]] = None,
        timeout: Optional[float] = None,
        check: bool = False,
    ) -> ExecResult:
        """Runs a command to its end. A string is a line for `/bin/sh -c`, a list is a program with its
        arguments. `timeout` is in seconds; the command is killed then.

        With `check`, raises `CommandFailed` when it does not end with 0, `CommandTimeout` at the timeout.
        """
        call = _calls.run(
            self.id, command, stdin=_encoded(stdin), cwd=cwd, environment=environment, timeout=timeout
        )
        return _checked(self._client._do(call), check)

    def stream(
        self,
        command: Command,
        *,
        stdin: Union[None, str, bytes] = None,
        cwd: Optional[str] = None,
        environment: Optional[Mapping[str, str]] = None,
        timeout: Optional[float] = None,
    ) -> Iterator[Event]:
        """Runs a command and hands out what it does as it comes: `Started`, `Output`s, `Ended`. Who reads
        slowly slows the command down; nothing is dropped."""
        call = _calls.stream(
            self.id, command, stdin=_encoded(stdin), cwd=cwd, environment=environment, timeout=timeout
        )
        return self._client._commands(call)

    def start_command(
        self,
        command: Command,
        *,
        stdin: Union[None, str, bytes] = None,
        cwd: Optional[str] = None,
        environment: Optional[Mapping[str, str]] = None,
        timeout: Optional[float] = None,
    ) -> Exec:
        """Starts a command in the background."""
        call = _calls.background(
            self.id, command, stdin=_encoded(stdin), cwd=cwd, environment=environment, timeout=timeout
        )
        return Exec(self._client, self._client._do(call))

    def commands(self) -> List[ExecInfo]:
        """The commands that run, and the last that ended."""
        return self._client._do(_calls.execs(self.id))

    def command(self, id: str) -> Exec:
        """The command of this id. Raises `NotFound`."""
        return Exec(self._client, self._client._do(_calls.get_exec(self.id, id)))

    def session(
        self,
        shell: Optional[str] = None,
        *,
        cwd: Optional[str] = None,
        environment: Optional[Mapping[str, str]] = None,
    ) -> Session:
        """Starts a shell that stays: `bash`, `sh` (the default) or the path of one."""
        call = _calls.create_session(self.id, shell, cwd, environment)
        return Session(self._client, self._client._do(call))

    def sessions(self) -> List[SessionInfo]:
        """The shells that are open, and the last that were closed."""
        return self._client._do(_calls.sessions(self.id))


def _checked(result: ExecResult, check: bool) -> ExecResult:
    if check and not result.ok:
        raise (CommandTimeout if result.reason == "timeout" else CommandFailed)(result)
    return result


def _encoded(data: Union[None, str, bytes]) -> Optional[bytes]:
    return data.encode() if isinstance(data, str) else data
