import asyncio
import time

from agentkernel import (
    AgentKernel, AsyncAgentKernel, NotFoundError, ServerError, ValidationError,
)


def fails(error, call, *args, **named):
    try:
        call(*args, **named)
    except error as e:
        return str(e)
    raise AssertionError(f"{args} should fail")


with AgentKernel() as client:
    assert client.health() == "ok"

    # Run.
    assert client.run(["echo", "hello"]).output == "hello\n"
    assert client.run(["echo", "x"], image="python:3.12-alpine", profile="restrictive", fast=False).output == "x\n"
    said = fails(ServerError, client.run, ["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert said == "Command exited with code 3: out\n\nerr\n", said
    assert "code 127" in fails(ServerError, client.run, ["nonesuch"])
    assert fails(ValidationError, client.run, []) == "command is required"
    assert "permissive, moderate, restrictive" in fails(ValidationError, client.run, ["true"], profile="none")

    # Stream: an event is there before the command has ended, for it ends only after a while.
    began = None
    kinds, text = [], {"stdout": "", "stderr": ""}
    for event in client.run_stream(["sh", "-c", "echo first; sleep 2; printf 'gr\\303'; sleep .1; printf '\\274n\\n' >&1; echo bad >&2; exit 4"]):
        kinds.append(event.type)
        if event.type == "output":
            if began is None:
                began = time.monotonic()
                assert event.data["data"] == "first\n"
            text[event.data["stream"]] += event.data["data"]
    assert time.monotonic() - began > 1, "it came all at once"
    assert kinds[0] == "started" and kinds[-1] == "done", kinds
    assert text == {"stdout": "first\ngrün\n", "stderr": "bad\n"}, text
    assert event.data["exit_code"] == 4 and event.data["success"] is False, event
    assert [e.type for e in client.run_stream([])] == ["error"]
    # Whatever is wrong is an event, also of a profile.
    wrong = list(client.run_stream(["true"], profile="none"))
    assert [e.type for e in wrong] == ["error"] and "moderate" in wrong[0].data["message"], wrong
    slow = list(client.run_stream(["echo", "x"], fast=False))
    assert [e.type for e in slow] == ["started", "progress", "progress", "output", "done"], slow
    assert [e.data["stage"] for e in slow[1:3]] == ["sandbox_created", "sandbox_started"], slow
    assert [e.type for e in client.run_stream(["nonesuch"])] == ["started", "done"]
    assert [e.data.get("exit_code") for e in client.run_stream(["true"])][-1] == 0

    # Batch: in order, each for itself.
    results = client.batch_run([["echo", "1"], ["sh", "-c", "exit 9"], ["echo", "3"]]).results
    assert [r.output for r in results] == ["1\n", None, "3\n"], results
    assert [r.error is None for r in results] == [True, False, True], results

    # Sandboxes.
    assert client.list_sandboxes() == []
    with client.sandbox("test", image="python:3.12-alpine", memory_mb=256) as sandbox:
        info = sandbox.info()
        assert (info.name, info.status, info.image, info.memory_mb) == ("test", "running", "python:3.12-alpine", 256)
        assert client.get_sandbox_by_uuid(info.uuid) == info
        assert [s.name for s in client.list_sandboxes()] == ["test"]
        assert "already" in fails(ServerError, client.create_sandbox, "test")
        other = client.create_sandbox("other")

        # Commands.
        assert sandbox.run(["python3", "-c", "print(1 + 1)"]).output == "2\n"
        assert sandbox.run(["sh", "-c", "echo $A; pwd -P"], env=["A=b"], workdir="/tmp").output == "b\n/tmp\n"

        assert "sudo is not enabled" in fails(ServerError, sandbox.run, ["id"], sudo=True)
        fails(ValidationError, sandbox.run, ["true"], workdir="/" + "x" * 1024)

        # Files.
        assert client.write_file("test", "app/main.py", "print('hello')") == "Wrote 14 bytes to /app/main.py"
        file = client.read_file("test", "app/main.py")
        assert (file.content, file.encoding, file.size) == ("print('hello')", "utf8", 14)
        assert client.read_file("test", "/app/main.py") == file
        fails(NotFoundError, client.read_file, "test", "app")
        assert "not allowed" in fails(ValidationError, client.read_file, "test", "/etc/passwd")
        assert sandbox.run(["python3", "/app/main.py"]).output == "hello\n"
        assert sandbox.run(["python3", "main.py"], workdir="/app").output == "hello\n"
        client.write_file("test", "tmp/data.bin", "/wAB", encoding="base64")
        file = client.read_file("test", "tmp/data.bin")
        assert (file.content, file.encoding, file.size) == ("/wAB", "base64", 3)
        assert sandbox.write_files({"/app/a/b.js": "1", "/app/package.json": "{}"}).written == 2
        assert sandbox.run(["cat", "/app/a/b.js"]).output == "1"
        assert client.delete_file("test", "app/main.py") == "Deleted /app/main.py"
        fails(NotFoundError, client.read_file, "test", "app/main.py")
        fails(NotFoundError, client.read_file, "other", "app/a/b.js")

        # Detached commands.
        command = client.exec_detached("test", ["sh", "-c", "echo out; echo err >&2; exec sleep 1000"])
        assert command.status == "running" and command.pid > 0 and command.sandbox == "test"
        while "err" not in client.detached_logs("test", command.id, stream="stderr").stderr:
            time.sleep(0.05)
        logs = client.detached_logs("test", command.id)
        assert logs.stdout == "out\n" and logs.stderr is None, logs
        assert [c.id for c in client.detached_list("test")] == [command.id]
        fails(NotFoundError, client.detached_status, "other", command.id)
        assert client.detached_kill("test", command.id) == "Command killed"
        status = client.detached_status("test", command.id)
        assert (status.status, status.exit_code) == ("failed", 137), status
        command = client.exec_detached("test", ["true"])
        while client.detached_status("test", command.id).status == "running":
            time.sleep(0.05)
        assert client.detached_status("test", command.id).exit_code == 0
        fails(NotFoundError, client.detached_logs, "test", "nonesuch")

        # What was not detached is no detached command.
        assert len(client.detached_list("test")) == 2

        # Snapshots: the files of one moment, of a sandbox whose commands go on.
        assert client.list_snapshots() == []
        sandbox.run(["sh", "-c", "mkdir /app/d; echo one > /app/d/f; ln -s f /app/d/l; ln -s /etc/passwd /app/away; chmod 500 /app/d"])
        ticking = client.exec_detached("test", ["sh", "-c", "n=0; while :; do n=$((n+1)); echo $n > /app/tick; sleep .05; done"])
        # It was started, and may not have come that far.
        sandbox.run(["sh", "-c", "until [ -s /app/tick ]; do sleep .02; done"])
        taken = client.take_snapshot("test", snapshot_name="first")
        assert (taken.name, taken.sandbox, taken.backend, taken.base_image, taken.memory_mb) == (
            "first", "test", "ringfence", "python:3.12-alpine", 256), taken
        before = client.read_file("test", "app/tick").content
        while client.read_file("test", "app/tick").content == before:
            time.sleep(0.05)
        assert client.detached_status("test", ticking.id).status == "running"
        unnamed = client.take_snapshot("test")
        assert unnamed.name.startswith("test-")
        assert client.get_snapshot("first") == taken
        assert [s.name for s in client.list_snapshots()] == ["first", unnamed.name]
        assert "already" in fails(ServerError, client.take_snapshot, "test", snapshot_name="first")
        assert fails(NotFoundError, client.take_snapshot, "nonesuch") == "Sandbox not found"
        assert fails(NotFoundError, client.get_snapshot, "nonesuch") == "Snapshot not found"
        fails(ValidationError, client.take_snapshot, "test", snapshot_name="../x")
        sandbox.run(["sh", "-c", "chmod 700 /app/d; echo two > /app/d/f"])
        restored = client.restore_snapshot("first")
        assert (restored.name, restored.status, restored.image) == ("test-restored", "stopped", "python:3.12-alpine")
        assert restored.uuid != info.uuid
        assert "already" in fails(ServerError, client.restore_snapshot, "first")
        assert "not running" in fails(ServerError, client.exec_in_sandbox, "test-restored", ["true"])
        # Their client has no word for it.
        assert client._request("POST", "/sandboxes/test-restored/start") == "Sandbox started"
        assert client.exec_in_sandbox("test-restored", ["sh", "-c", "cat /app/d/l; stat -c %a /app/d; readlink /app/away"]).output == "one\n500\n/etc/passwd\n"
        assert client.read_file("test", "app/d/f").content == "two\n"
        # What is done to one changes neither the other nor the snapshot.
        client.exec_in_sandbox("test-restored", ["sh", "-c", "chmod 700 /app/d; rm -rf /app/*"])
        assert client.read_file("test", "app/d/f").content == "two\n"
        client.remove_sandbox("test-restored")
        again = client._request("POST", "/snapshots/first/restore", json={"as_name": "again"})
        assert again["status"] == "stopped"
        client._request("POST", "/sandboxes/again/start")
        assert client.read_file("again", "app/d/f").content == "one\n"
        client.remove_sandbox("again")
        client.detached_kill("test", ticking.id)
        client.delete_snapshot(unnamed.name)
        fails(NotFoundError, client.delete_snapshot, unnamed.name)
        assert [s.name for s in client.list_snapshots()] == ["first"]

        # Its life.
        life = lambda what: client._request("POST", f"/sandboxes/test/{what}")
        assert "already running" in fails(ServerError, life, "start")
        assert "not paused" in fails(ServerError, life, "resume")
        assert life("pause") == "Sandbox paused" and client.get_sandbox("test").status == "paused"
        assert "not running" in fails(ServerError, life, "pause")
        # What stands still already is taken as it is, and goes on standing still.
        assert client.take_snapshot("test", snapshot_name="still").name == "still"
        assert client.get_sandbox("test").status == "paused"
        client.delete_snapshot("still")
        assert life("resume") == "Sandbox resumed"
        assert life("stop") == "Sandbox stopped"
        assert "not running" in fails(ServerError, life, "stop")
        assert client.take_snapshot("test", snapshot_name="off").name == "off"
        client.delete_snapshot("off")
        assert life("start") == "Sandbox started"
        for what in ["fork", "resize", "recover"]:
            assert "does not support" in fails(ServerError, life, what)

        # The rest.
        assert client.extend_ttl("test", by="1h").endswith("Z")
        assert client.extend_ttl("test", by="1h30m").endswith("Z")
        assert client._request("POST", "/sandboxes/test/extend", content=b"no json")["expires_at"]
        assert "time format" in fails(ValidationError, client.extend_ttl, "test", by="soon")
        logs = client.get_sandbox_logs("test")
        assert logs[0]["type"] == "sandbox_created" and logs[0]["name"] == "test" and logs[0]["pid"] > 0, logs[0]
        kinds = [entry["type"] for entry in logs]
        for kind in ["command_executed", "file_read", "file_written", "sandbox_started", "sandbox_stopped"]:
            assert kind in kinds, kinds
        ran = [entry for entry in logs if entry["type"] == "command_executed"]
        assert ran[0]["command"] == ["python3", "-c", "print(1 + 1)"] and ran[0]["exit_code"] == 0, ran[0]
        assert client._request("GET", "/audit?last=1")[0]["type"] == logs[-1]["type"]
        assert client.get_backends().default_backend == "ringfence"
        client.remove_sandbox("other")
    assert client.list_sandboxes() == []
    # A snapshot outlives its sandbox.
    assert client.restore_snapshot("first").status == "stopped"
    client.delete_snapshot("first")
    client.remove_sandbox("test-restored")
    assert client.list_snapshots() == []
    assert fails(NotFoundError, client.get_sandbox, "test") == "Sandbox not found"
    fails(NotFoundError, client.exec_in_sandbox, "test", ["true"])
    fails(NotFoundError, client.remove_sandbox, "test")
    assert "hyphens" in fails(ValidationError, client.create_sandbox, "a--b")
    assert "volumes" in fails(ValidationError, client.create_sandbox, "a", volumes=["x:/y"])
    assert "not available" in fails(ServerError, client.create_sandbox, "a", backend="docker")
    assert client.create_sandbox("auto", backend="auto", profile="permissive").memory_mb is None
    client.remove_sandbox("auto")
    assert client.create_sandbox("tight", profile="restrictive").memory_mb == 256
    client.remove_sandbox("tight")
    assert "init_script" in fails(ValidationError, lambda: client._request("POST", "/sandboxes", json={"name": "a", "init_script": "x"}))
    assert "orchestrations" in fails(ServerError, client.list_orchestrations)


async def asynchronous():
    async with AsyncAgentKernel() as client:
        assert (await client.run(["echo", "hello"])).output == "hello\n"
        outputs = await asyncio.gather(*[client.run(["echo", str(n)]) for n in range(8)])
        assert [o.output for o in outputs] == [f"{n}\n" for n in range(8)]
        events = [event async for event in await client.run_stream(["echo", "x"])]
        assert [e.type for e in events] == ["started", "output", "done"], events


asyncio.run(asynchronous())
print("all is well")
