"""Against a real daemon: `RINGFENCE_BIN` names the program."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ringfence
from ringfence import (
    AsyncSandbox,
    BatchItem,
    Client,
    CommandFailed,
    CommandTimeout,
    Conflict,
    DaemonUnavailable,
    Ended,
    FileChanged,
    FileRule,
    InternalError,
    InvalidRequest,
    NotFound,
    Output,
    PermissionDenied,
    ResourceLimits,
    Sandbox,
    SandboxLost,
    Started,
    TooLarge,
    Unauthorized,
)


@pytest.fixture()
def project(tmp_path: Path) -> Path:
    path = tmp_path / "project"
    path.mkdir()
    return path


@pytest.fixture()
def box(project: Path):
    with Sandbox.create(project) as made:
        yield made


def test_a_command_and_its_end(box: Sandbox) -> None:
    result = box.run("echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr, result.exit_code, result.reason) == ("out\n", "err\n", 3, "exit")
    assert not result.ok and result.ended and result.lost == 0
    assert box.run(["printf", "%s", "a b"]).stdout == "a b"
    assert box.run("cat", stdin="fed").stdout == "fed"
    assert box.run("cat", stdin=b"\xff\x00\xfe").stdout_raw == b"\xff\x00\xfe"
    assert box.run("echo $X", environment={"X": "y z"}).stdout == "y z\n"
    assert box.run("pwd", cwd="/tmp").stdout == "/tmp\n"
    assert box.run("kill -TERM $$").signal == signal.SIGTERM


def test_failures_are_exceptions_where_asked_for(box: Sandbox) -> None:
    with pytest.raises(CommandFailed) as failed:
        box.run("echo why >&2; exit 7", check=True)
    assert failed.value.result.exit_code == 7 and "why" in str(failed.value)
    with pytest.raises(CommandTimeout):
        box.run("sleep 60", timeout=0.2, check=True)
    assert box.run("sleep 60", timeout=0.2).reason == "timeout"


def test_output_comes_as_it_is_made(box: Sandbox, project: Path) -> None:
    # The command goes on only when its first line was seen.
    events = box.stream("echo first; while ! [ -e go ]; do sleep 0.01; done; echo second")
    kinds = []
    for event in events:
        kinds.append(type(event))
        if isinstance(event, Output) and "first" in event.text:
            box.write_file("go", "")
    assert kinds[0] is Started and kinds[-1] is Ended and kinds.count(Output) >= 2


def test_a_command_in_the_background(box: Sandbox) -> None:
    exec = box.start_command("echo one; read line; echo $line")
    assert exec.wait().ok
    text = b"".join(e.data for e in exec.follow() if isinstance(e, Output))
    assert text == b"one\n\n"
    rest = b"".join(e.data for e in exec.follow(stdout_offset=2) if isinstance(e, Output))
    assert rest == b"e\n\n"
    endless = box.start_command(["sleep", "1000"])
    assert endless.id in [one.id for one in box.commands() if not one.ended]
    endless.kill()
    assert box.command(endless.id).wait().reason == "killed"


def test_files(box: Sandbox, project: Path) -> None:
    box.make_directory("d")
    box.write_file("d/a b", b"\x00\xffdata")
    assert (project / "d" / "a b").read_bytes() == b"\x00\xffdata"
    assert box.read_file("d/a b") == b"\x00\xffdata"
    assert box.read_file("d/a b", offset=2, length=3) == b"dat"
    assert box.stat("d/a b").size == 6
    assert [(f.name, f.kind) for f in box.list_files("d")] == [("a b", "file")]
    box.remove_file("d/a b")
    with pytest.raises(NotFound):
        box.read_text("d/a b")


def test_the_policy_holds_for_files_too(box: Sandbox, project: Path) -> None:
    (project / ".env").write_text("secret")
    (project / "way").symlink_to("/root")
    with pytest.raises((PermissionDenied, NotFound, InvalidRequest)):
        box.write_file("/etc/written", "x")
    assert not Path("/etc/written").exists()
    outside = project.parent / "outside"
    outside.write_text("not for you")
    with pytest.raises((PermissionDenied, NotFound)):
        box.read_file(str(outside))
    assert box.run(["cat", str(outside)]).exit_code != 0
    # The control: it is there.
    assert outside.read_text() == "not for you"


def test_profiles_policies_and_limits(project: Path) -> None:
    (project / "f").write_text("x")
    with Sandbox.create(project, policy={"files": {"deny": ["f"]}}) as box:
        assert box.run("cat f").exit_code != 0
    with Sandbox.create(project, limits=ResourceLimits(timeout="200ms")) as box:
        assert box.run("sleep 60").reason == "timeout"
    with pytest.raises(InvalidRequest, match="no_such"):
        Sandbox.create(project, policy={"no_such": 1})
    with pytest.raises(InvalidRequest):
        Sandbox.create(project, profiles=["no-such-profile"])


def test_life(project: Path) -> None:
    with Client() as client:
        box = client.create(project, name="life", labels={"a": "b"}, ttl=3600)
        try:
            with pytest.raises(Conflict):
                client.create(project, name="life")
            assert client.get("life").id == box.id
            assert [one.labels for one in client.list() if one.id == box.id] == [{"a": "b"}]
            assert box.stop().state == "stopped"
            assert box.start().state == "idle"
            assert box.freeze().state == "frozen"
            assert box.start().state == "idle"
        finally:
            box.delete()
        box.delete()
        with pytest.raises(NotFound):
            client.get("life")


def test_one_key_makes_one(project: Path) -> None:
    with Client() as client:
        both = [client.create(project, idempotency_key="k") for _ in range(2)]
        assert both[0].id == both[1].id
        both[0].delete()


def test_from_many_threads(box: Sandbox) -> None:
    said = []
    threads = [threading.Thread(target=lambda n=n: said.append(box.run(f"echo {n}").stdout)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == [f"{n}\n" for n in range(8)]


def test_asynchronous(project: Path) -> None:
    async def main() -> None:
        async with await AsyncSandbox.create(project) as box:
            results = await asyncio.gather(*(box.run(f"echo {n}") for n in range(8)))
            assert [r.stdout for r in results] == [f"{n}\n" for n in range(8)]
            text = ""
            async for event in box.stream("echo a; echo b >&2"):
                if isinstance(event, Output):
                    text += event.stream + ":" + event.text
            assert "stdout:a\n" in text and "stderr:b\n" in text
            await box.write_file("x", "y")
            assert await box.read_text("x") == "y"
            exec = await box.start_command("sleep 1000")
            await exec.kill()
            assert (await exec.wait()).reason == "killed"

    asyncio.run(main())


def test_without_a_daemon_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGFENCE_SOCKET", str(tmp_path / "none"))
    with pytest.raises(DaemonUnavailable, match="none"):
        Client()
    monkeypatch.delenv("RINGFENCE_SOCKET")
    monkeypatch.setenv("RINGFENCE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.delenv("RINGFENCE_BIN")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DaemonUnavailable, match="RINGFENCE_BIN"):
        ringfence._daemon.PrivateDaemon()


def test_a_private_daemon_ends_with_its_program(project: Path, tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
from ringfence import Client, Sandbox
box = Sandbox.create({str(project)!r})
box.start_command("sleep 1000")
print(box._client._where, box._client.health()["pid"], flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "RINGFENCE_STATE": str(tmp_path / "state"), "XDG_RUNTIME_DIR": str(tmp_path)}
    environment.pop("RINGFENCE_SOCKET", None)
    for how in ("ended", "killed"):
        ran = subprocess.run([sys.executable, "-c", script, how], env=environment, stdout=subprocess.PIPE, check=how == "ended")
        where, pid = ran.stdout.decode().split()
        assert Path(where).parent.parent.parent == tmp_path, "one of its own"
        until = time.monotonic() + 20
        while time.monotonic() < until and (Path(where).parent.parent.exists() or Path("/proc", pid).exists()):
            time.sleep(0.02)
        assert not Path(where).parent.parent.exists() and not Path("/proc", pid).exists(), how


def test_a_session_keeps_its_state(box: Sandbox) -> None:
    with box.session("bash", environment={"A": "1"}) as session:
        assert session.run("cd /tmp; B=2; f() { echo f $1; }").ok
        assert session.run("pwd; echo $A $B; f x; echo e >&2").stdout == "/tmp\n1 2\nf x\n"
        assert session.run("read x; echo $x", stdin="fed\n").stdout == "fed\n"
        assert session.run("sleep 60", timeout=0.3).reason == "timeout"
        assert session.run("pwd").stdout == "/tmp\n", "it goes on"
        with pytest.raises(CommandFailed):
            session.run("false", check=True)
        text = "".join(e.text for e in session.stream("echo streamed") if isinstance(e, Output))
        assert text == "streamed\n"
        assert [one.state for one in box.sessions()] == ["active"]
    assert [one.state for one in box.sessions()] == ["closed"]


def test_codebases_rules_and_layers(project: Path) -> None:
    (project / "src").mkdir()
    (project / "src" / "main.py").write_text("print(1)\n")
    (project / "key.pem").write_text("secret")
    (project / "left.log").write_text("x")
    with Client() as client:
        made = client.create_codebase("app", project, exclude=["*.log"])
        try:
            assert (made.info.files, made.info.sealed) == (2, False)
            made.write_file("README.md", "later")
            assert made.read_text("README.md") == "later"
            assert made.refresh().version > 1
            rules = [FileRule("**", "write"), FileRule("**/*.pem", "none", priority=10)]
            boxes = [client.create(codebase="app", rules=rules) for _ in range(2)]
            try:
                first, second = boxes
                assert first.run("ls").stdout.split() == ["README.md", "src"]
                first.write_file("src/main.py", "print(2)\n")
                assert first.run("python3 src/main.py; pwd").stdout == "2\n/workspace\n"
                assert second.read_text("src/main.py") == "print(1)\n", "each has its own"
                assert made.read_text("src/main.py") == "print(1)\n", "and the codebase does not change"
                with pytest.raises(Conflict):
                    made.delete()
            finally:
                for one in boxes:
                    one.delete()
            # In a directory, with a layer: the real one does not change.
            one = client.create(project, layer=True)
            try:
                one.run("echo new > new; echo x > bad; rm left.log", check=True)
                assert one.read_text("new") == "new\n" and not (project / "new").exists()
                changes = {Path(c.path).name: c.status for c in one.layer.diff()}
                assert changes == {"new": "A", "bad": "A", "left.log": "D"}
                assert b"+new" in one.layer.patch()
                with pytest.raises(Conflict):
                    one.layer.apply()
                one.stop()
                one.layer.checkpoint()
                one.start()
                one.run("echo changed > new", check=True)
                one.stop()
                one.layer.undo()
                one.layer.snapshot("kept")
                assert one.layer.info().snapshots == ("kept",)
                done = one.layer.apply(["new", "left.log"])
                assert sorted(Path(line.path).name for line in done.applied) == ["left.log", "new"]
                assert (project / "new").read_text() == "new\n"
                assert not (project / "left.log").exists() and not (project / "bad").exists()
            finally:
                one.delete()
        finally:
            made.delete()
        with pytest.raises(NotFound):
            client.codebase("app")


def test_files_are_searched_packed_and_their_permissions_set(box: Sandbox, project: Path) -> None:
    box.make_directory("src")
    box.write_file("src/a.rs", "fn main() {}\n// TODO\n", durable=True)
    box.write_file("src/b.rs", "0123456789")
    assert box.read_file("src/b.rs", offset=3, length=4) == b"3456"
    box.chmod("src/a.rs", 0o750)
    assert box.stat("src/a.rs").mode == 0o750
    with pytest.raises(ValueError):
        box.chmod("src/a.rs", 0o4755)
    with pytest.raises(NotFound):
        box.chmod("src/none", 0o644)
    names = box.search(name="*.rs")
    assert [hit.path for hit in names.found] == ["src/a.rs", "src/b.rs"] and not names.truncated
    (hit,) = box.search("src", content="TODO").found
    assert (hit.path, hit.line, hit.text) == ("a.rs", 2, "// TODO")
    with pytest.raises(InvalidRequest):
        box.search(limit=0)
    archive = box.pack("src")
    done = box.unpack(archive, "copy")
    assert done.files == 2 and box.read_text("copy/b.rs") == "0123456789"
    # As a file, and in pieces: read as it is sent.
    assert box.unpack(io.BytesIO(archive), "copy").files == 2
    assert box.unpack((archive[at : at + 100] for at in range(0, len(archive), 100)), "copy").files == 2
    for wrong in (b"x" * 1024, io.BytesIO(b"x" * 1024)):
        with pytest.raises(InvalidRequest):
            box.unpack(wrong)
    box.move_file("copy/b.rs", "c.rs")
    assert (project / "c.rs").read_text() == "0123456789"
    # Of any size: sent as it is read, and not larger than a layer may be.
    box.write_file("large", (bytes(1 << 20) for _ in range(65)))
    assert box.stat("large").size == 65 << 20
    with pytest.raises(TooLarge):
        box.read_file("large")


def test_two_writers_do_not_overwrite_each_other(box: Sandbox) -> None:
    box.write_file("shared", "first", only_new=True)
    with pytest.raises(FileChanged):
        box.write_file("shared", "again", only_new=True)
    known = box.stat("shared").etag
    assert known
    box.write_file("shared", "another's", if_match=known)
    with pytest.raises(FileChanged) as refused:
        box.write_file("shared", "mine", if_match=known)
    assert refused.value.status == 412 and refused.value.reason == "changed"
    assert box.read_text("shared") == "another's"
    with pytest.raises(ValueError):
        box.write_file("shared", "x", if_match=known, only_new=True)


def test_a_watched_directory_tells_what_changes(project: Path) -> None:
    with Sandbox.create(project) as box:
        seen = []
        for event in box.watch(recursive=True):
            seen.append(event)
            if event.kind == "ready":
                box.run("mkdir d", check=True)
            # What happens in a new directory is told from when the directory was.
            if (event.kind, event.path) == ("created", "d"):
                box.run("echo 1 > d/x", check=True)
            if (event.kind, event.path) == ("created", "d/x"):
                # It may be told twice: found there, and as it was made.
                box.run("test -e d/y || mv d/x d/y", check=True)
            if event.kind == "moved":
                assert (event.path, event.moved_from, event.directory) == ("d/y", "d/x", False)
                box.stop()
        assert (seen[-1].kind, seen[-1].reason) == ("ended", "sandbox")
        assert any(event.kind == "created" and event.path == "d" and event.directory for event in seen)
        with pytest.raises(Conflict):
            next(iter(box.watch()))


def test_many_commands_by_one_request(box: Sandbox) -> None:
    with Client() as client:
        items = [BatchItem(box.id, f"echo {n}; exit {n}") for n in range(3)]
        items += [BatchItem("nobody", "true"), BatchItem(box.id, ["cat"], stdin="fed", timeout=30)]
        *ran, nobody, fed = client.run_batch(items, concurrency=2)
        assert [(r.stdout, r.exit_code) for r in ran] == [("0\n", 0), ("1\n", 1), ("2\n", 2)]
        assert isinstance(nobody, NotFound) and fed.stdout == "fed"
        with pytest.raises(InvalidRequest):
            client.run_batch(items, concurrency=0)


def test_errors_say_what_they_are(box: Sandbox) -> None:
    before = box.extend(60).expires_ms
    assert before is not None and box.extend(60).expires_ms == before + 60_000
    assert isinstance(ringfence._errors.from_answer(409, {"error": {"reason": "lost"}}), SandboxLost)
    assert isinstance(ringfence._errors.from_answer(500, None), InternalError)
    assert issubclass(Unauthorized, PermissionDenied) and issubclass(TooLarge, InvalidRequest)


def test_the_asynchronous_half_watches_too(project: Path) -> None:
    async def told() -> str:
        async with await AsyncSandbox.create(project) as box:
            archive = await box.pack()
            assert (await box.unpack(io.BytesIO(archive), "again")).bytes >= 0
            async for event in box.watch():
                if event.kind == "ready":
                    await box.write_file("made", "x", durable=True)
                if event.path == "made":
                    return event.kind
        return ""

    assert asyncio.run(told()) in ("changed", "created")
