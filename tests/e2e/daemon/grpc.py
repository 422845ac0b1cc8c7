import glob, importlib, os, queue, sys, tarfile, io, threading

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_tools import protoc

out = os.environ["OUT"]
assert protoc.main(["protoc", "-I", os.environ["PROTO"], "--python_out", out,
                    "--grpc_python_out", out, "ringfence.proto"]) == 0
sys.path.insert(0, out)
pb = importlib.import_module("ringfence_pb2")
rpc = importlib.import_module("ringfence_pb2_grpc")

TOKEN = os.environ["TOKEN"]
PORT = os.environ["PORT"]


class Services:
    def __init__(self, channel):
        for name in ["Sandboxes", "Execs", "Sessions", "Files", "Layers", "Codebases"]:
            setattr(self, name.lower(), getattr(rpc, name + "Stub")(channel))


def refused(call, code, reason=None):
    try:
        call()
    except grpc.RpcError as e:
        assert e.code() == code, (e.code(), e.details())
        if reason is not None:
            raw = dict(e.trailing_metadata())["grpc-status-details-bin"]
            status = status_pb2.Status.FromString(raw)
            assert status.code == code.value[0] and status.message == e.details(), status
            info = error_details_pb2.ErrorInfo()
            assert status.details[0].Unpack(info)
            assert (info.reason, info.domain) == (reason, "ringfence"), info
            return dict(info.metadata).get("remedy", "")
        return None
    raise AssertionError("it was not refused")


def collect(events):
    got = {"stdout": b"", "stderr": b""}
    kinds = []
    for event in events:
        kind = event.WhichOneof("message")
        if not kinds or kinds[-1] != kind:
            kinds.append(kind)
        if kind in got:
            piece = getattr(event, kind)
            assert piece.offset == len(got[kind]) and piece.lost == 0
            got[kind] += piece.data
        if kind == "ended":
            got["end"] = event.ended
    assert kinds[0] == "started" and kinds[-1] == "ended", kinds
    return got


def everything(s):
    box = s.sandboxes.Create(pb.CreateSandbox(
        name="box", own_layer=True, labels={"team": "web"}, workspace=os.environ["WORKSPACE"],
        policy_json='{"limits": {"timeout": "1m"}}', ttl_seconds=600, idempotency_key="one"))
    again = s.sandboxes.Create(pb.CreateSandbox(
        name="box", own_layer=True, labels={"team": "web"}, workspace=os.environ["WORKSPACE"],
        policy_json='{"limits": {"timeout": "1m"}}', ttl_seconds=600, idempotency_key="one"))
    assert box.id == again.id and box.state == "idle" and box.labels["team"] == "web", box
    assert box.layer == box.id and box.expires_ms == box.created_ms + 600_000, box
    longer = s.sandboxes.Extend(pb.Extension(sandbox="box", seconds=60))
    assert longer.expires_ms == box.expires_ms + 60_000
    assert [b.name for b in s.sandboxes.List(pb.Nothing()).sandboxes] == ["box"]

    # Commands: whole, in the background, and as streams.
    ran = s.execs.Run(pb.ExecRequest(sandbox="box", argv=["sh", "-c", "cat; echo err >&2; exit 3"],
                                     stdin=b"\x00\xffbytes"))
    assert (ran.exec.ended.exit_code, ran.exec.ended.reason) == (3, "exit"), ran
    assert (ran.stdout.data, ran.stderr.data) == (b"\x00\xffbytes", b"err\n"), ran
    assert ran.exec.ended.HasField("exit_code") and not ran.exec.ended.HasField("signal")
    slow = s.execs.Start(pb.ExecRequest(sandbox="box", shell="echo here; exec sleep 1000"))
    assert s.sandboxes.Get(pb.SandboxName(sandbox="box")).state == "running"
    assert [e.id for e in s.execs.List(pb.SandboxName(sandbox="box")).execs] == [slow.id]
    follow = s.execs.Follow(pb.FollowExec(sandbox="box", exec=slow.id, stdout_offset=2))
    assert next(follow).started.id == slow.id
    piece = next(follow).stdout
    assert (piece.offset, piece.data) == (2, b"re\n"), piece
    s.execs.Kill(pb.KillExec(sandbox="box", exec=slow.id, signal=15))
    assert [e.ended.ended.signal for e in follow if e.HasField("ended")] == [15]
    assert s.execs.Get(pb.ExecName(sandbox="box", exec=slow.id)).ended.reason == "killed"

    # Both ways: each line is answered before the next one is sent.
    to = queue.Queue()
    to.put(pb.ToExec(start=pb.ExecRequest(
        sandbox="box", shell="while read x; do echo got $x; done; echo over")))
    events = s.execs.Stream(iter(to.get, None))
    assert next(events).HasField("started")
    for word in ["one", "two"]:
        to.put(pb.ToExec(stdin=word.encode() + b"\n"))
        assert next(events).stdout.data == b"got " + word.encode() + b"\n"
    to.put(None)
    rest = list(events)
    assert rest[0].stdout.data == b"over\n" and rest[-1].ended.ended.exit_code == 0, rest
    # A signal by the same way, and a terminal.
    to = queue.Queue()
    to.put(pb.ToExec(start=pb.ExecRequest(sandbox="box", argv=["sleep", "1000"])))
    to.put(pb.ToExec(signal=2))
    assert collect(s.execs.Stream(iter(to.get, None)))["end"].ended.signal == 2
    to.put(None)
    to = queue.Queue()
    to.put(pb.ToExec(start=pb.ExecRequest(
        sandbox="box", shell="stty size; read x; stty size; echo $x",
        terminal=pb.TerminalSize(rows=11, columns=22))))
    events = s.execs.Stream(iter(to.get, None))
    assert next(events).HasField("started")
    assert next(events).stdout.data == b"11 22\r\n"
    to.put(pb.ToExec(resize=pb.TerminalSize(rows=33, columns=44)))
    to.put(pb.ToExec(stdin=b"typed\n"))
    shown = b"".join(e.stdout.data for e in events if e.HasField("stdout"))
    assert shown.endswith(b"33 44\r\ntyped\r\n"), shown
    to.put(None)
    big = s.execs.Stream(iter([pb.ToExec(start=pb.ExecRequest(
        sandbox="box", shell="head -c 5000000 /dev/zero"))]))
    assert collect(big)["stdout"] == bytes(5000000)

    # Sessions keep what a shell keeps.
    session = s.sessions.Create(pb.CreateSession(sandbox="box", environment={"A": "1"}))
    line = lambda command: s.sessions.Run(pb.SessionExec(
        sandbox="box", session=session.id, command=command, stdin=b"in"))
    assert line("cd /; f() { echo $A$PWD; cat; }").exec.ended.exit_code == 0
    assert line("f").stdout.data == b"1/\nin"
    assert collect(s.sessions.Stream(pb.SessionExec(
        sandbox="box", session=session.id, command="f >&2; false")))["stderr"] == b"1/\n"
    assert [x.state for x in s.sessions.List(pb.SandboxName(sandbox="box")).sessions] == ["active"]
    s.sessions.Delete(pb.SessionName(sandbox="box", session=session.id))
    closed = s.sessions.Get(pb.SessionName(sandbox="box", session=session.id))
    assert (closed.state, closed.reason) == ("closed", "deleted"), closed

    # Files, in parts.
    at = lambda path: pb.FilePath(sandbox="box", path=path)
    read = lambda path, **more: b"".join(
        p.data for p in s.files.Read(pb.FileRange(sandbox="box", path=path, **more)))
    large = os.urandom(5_000_000)
    s.files.Write(iter([pb.FilePart(sandbox="box", path="large", data=large[:3_000_000]),
                        pb.FilePart(data=large[3_000_000:])]))
    assert read("large") == large and read("large", offset=9, length=4) == large[9:13]
    s.files.MakeDirectory(at("dir"))
    s.files.Move(pb.FileMove(sandbox="box", **{"from": "large", "to": "dir/moved"}))
    info = s.files.Stat(at("dir/moved"))
    assert (info.kind, info.size) == ("file", 5_000_000), info
    assert "dir" in [e.name for e in s.files.List(at(".")).entries]
    found = s.files.Search(pb.SearchFiles(sandbox="box", name="mov*"))
    assert [f.path for f in found.found] == ["dir/moved"], found
    packed = b"".join(p.data for p in s.files.Pack(at("dir")))
    assert tarfile.open(fileobj=io.BytesIO(packed)).extractfile("moved").read() == large
    s.files.MakeDirectory(at("other"))
    unpacked = s.files.Unpack(iter([pb.FilePart(sandbox="box", path="other", data=packed[:9]),
                                    pb.FilePart(data=packed[9:])]))
    assert (unpacked.files, unpacked.bytes) == (1, 5_000_000), unpacked
    s.files.Remove(at("other/moved"))

    # What it changed.
    name = pb.SandboxName(sandbox="box")
    assert s.layers.Get(name).bytes >= 5_000_000
    changes = s.layers.Diff(pb.LayerPath(sandbox="box")).changes
    assert ("dir/moved", "A") in [(c.path.split("project/")[-1], c.status) for c in changes], changes
    stats = s.sandboxes.Stats(name)
    assert stats.pids >= 1 and stats.execs >= 5 and stats.disk.bytes >= 5_000_000, stats

    # Errors say reason and remedy.
    remedy = refused(lambda: s.layers.Apply(pb.ChosenPaths(sandbox="box")),
                     grpc.StatusCode.FAILED_PRECONDITION, "conflict")
    assert "stop it first" in remedy, remedy
    none = pb.SandboxName(sandbox="none")
    refused(lambda: s.sandboxes.Get(none), grpc.StatusCode.NOT_FOUND, "not-found")
    refused(lambda: s.execs.Run(pb.ExecRequest(sandbox="box")),
            grpc.StatusCode.INVALID_ARGUMENT, "invalid")
    refused(lambda: s.sandboxes.Create(pb.CreateSandbox(name="box")),
            grpc.StatusCode.FAILED_PRECONDITION, "conflict")
    refused(lambda: s.sandboxes.Create(pb.CreateSandbox(policy_json="{")),
            grpc.StatusCode.INVALID_ARGUMENT, "invalid")
    refused(lambda: read("/etc/shadow"), grpc.StatusCode.PERMISSION_DENIED)
    refused(lambda: list(s.execs.Stream(iter([]))), grpc.StatusCode.INVALID_ARGUMENT, "invalid")
    assert s.sandboxes.Freeze(name).state == "frozen"
    refused(lambda: s.execs.Run(pb.ExecRequest(sandbox="box", argv=["true"])),
            grpc.StatusCode.FAILED_PRECONDITION, "conflict")
    assert s.sandboxes.Start(name).state == "idle"
    assert s.sandboxes.Stop(name).state == "stopped"
    s.layers.Snapshot(pb.SnapshotName(sandbox="box", snapshot="now"))
    assert [x.name for x in s.layers.Get(name).snapshots] == ["now"]
    tried = s.layers.Apply(pb.ChosenPaths(sandbox="box", dry_run=True))
    assert any(line.path.endswith("dir/moved") for line in tried.applied), tried
    s.layers.Discard(pb.ChosenPaths(sandbox="box"))

    # Codebases.
    made = s.codebases.Create(pb.CreateCodebase(name="app"))
    assert made.id.startswith("cb_") and not made.sealed, made
    wrote = s.codebases.WriteFile(iter([
        pb.FilePart(codebase="app", path="a/run", mode=0o755, data=b"one"), pb.FilePart(data=b"two")]))
    assert (wrote.size, wrote.mode & 0o777) == (6, 0o755), wrote
    part = s.codebases.ReadFile(pb.FileRange(codebase="app", path="a/run", offset=3))
    assert b"".join(p.data for p in part) == b"two"
    listed = s.codebases.ListFiles(pb.FilePath(codebase="app", recursive=True))
    assert "a/run" in [e.name for e in listed.entries], listed
    tar = b"".join(p.data for p in s.codebases.Export(pb.CodebaseName(codebase="app")))
    s.codebases.RemoveFile(pb.FilePath(codebase="app", path="a", recursive=True))
    assert s.codebases.Get(pb.CodebaseName(codebase="app")).files == 0
    assert s.codebases.Import(iter([pb.FilePart(codebase="app", data=tar)])).files == 1
    assert s.codebases.Seal(pb.CodebaseName(codebase="app")).sealed
    assert [c.name for c in s.codebases.List(pb.Nothing()).codebases] == ["app"]
    s.codebases.Delete(pb.CodebaseName(codebase="app"))
    for _ in range(2):
        s.sandboxes.Delete(name)
    refused(lambda: s.sandboxes.Get(name), grpc.StatusCode.NOT_FOUND, "not-found")


def with_token(token):
    def add(_, callback):
        callback((("authorization", "Bearer " + token),), None)
    credentials = grpc.ssl_channel_credentials(open(os.environ["CERT"], "rb").read())
    credentials = grpc.composite_channel_credentials(
        credentials, grpc.metadata_call_credentials(add))
    return grpc.secure_channel("localhost:" + PORT, credentials)


if os.environ["WHAT"] == "everything":
    # Else it would say the path of the socket in a way that HTTP/2 does not know.
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel("unix:" + os.environ["SOCKET"], options=options) as channel:
        everything(Services(channel))
    with with_token(TOKEN) as channel:
        everything(Services(channel))
else:
    nothing = pb.Nothing()
    for wrong in ["", "00" * 16]:
        with with_token(wrong) as channel:
            s = Services(channel)
            refused(lambda: s.sandboxes.List(nothing), grpc.StatusCode.UNAUTHENTICATED, "unauthorized")
            start = pb.ToExec(start=pb.ExecRequest(sandbox="box", argv=["touch", "/x"]))
            refused(lambda: list(s.execs.Stream(iter([start]))), grpc.StatusCode.UNAUTHENTICATED)
    right = [("authorization", "Bearer " + TOKEN)]
    with with_token(TOKEN) as channel:
        s = Services(channel)
        refused(lambda: s.sandboxes.List(nothing, metadata=[("origin", "https://localhost")]),
                grpc.StatusCode.PERMISSION_DENIED, "forbidden")
        unknown = channel.unary_unary("/ringfence.v1.Sandboxes/Nope")
        refused(lambda: unknown(b""), grpc.StatusCode.UNIMPLEMENTED)
        unknown = channel.unary_unary("/ringfence.v1.Nope/Nope")
        refused(lambda: unknown(b""), grpc.StatusCode.UNIMPLEMENTED)
        garbage = channel.unary_unary("/ringfence.v1.Sandboxes/Create")
        refused(lambda: garbage(b"\xff\xff\xff"), grpc.StatusCode.INTERNAL)
        # The control.
        assert len(s.sandboxes.List(nothing).sandboxes) == 0
    # Without encryption there is nobody.
    with grpc.insecure_channel("localhost:" + PORT) as channel:
        refused(lambda: Services(channel).sandboxes.List(nothing, metadata=right, timeout=5),
                grpc.StatusCode.UNAVAILABLE)
print("all is well")
