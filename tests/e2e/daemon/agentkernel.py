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
    assert said == "Command exited with code 3: out\nerr\n", said
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
        assert sandbox.run(["sh", "-c", "echo $A; pwd -P"], env=["A=b"], workdir="/tmp", sudo=True).output == "b\n/tmp\n"

        # Files.
        assert client.write_file("test", "app/main.py", "print('hello')") == "Wrote 14 bytes to /app/main.py"
        file = client.read_file("test", "app/main.py")
        assert (file.content, file.encoding, file.size) == ("print('hello')", "utf8", 14)
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

        # The rest.
        assert client.extend_ttl("test", by="1h").endswith("Z")
        assert "time format" in fails(ValidationError, client.extend_ttl, "test", by="soon")
        assert client.get_sandbox_logs("test")[0]["event"] == "sandbox_created"
        assert client.get_backends().default_backend == "ringfence"
        client.remove_sandbox("other")
    assert client.list_sandboxes() == []
    assert fails(NotFoundError, client.get_sandbox, "test") == "Sandbox not found"
    fails(NotFoundError, client.exec_in_sandbox, "test", ["true"])
    fails(NotFoundError, client.remove_sandbox, "test")
    assert "hyphens" in fails(ValidationError, client.create_sandbox, "a--b")
    assert "volumes" in fails(ValidationError, client.create_sandbox, "a", volumes=["x:/y"])
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
