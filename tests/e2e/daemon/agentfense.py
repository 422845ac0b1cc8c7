import asyncio
import hashlib
import os
import time

import grpc
from datetime import timedelta

from agentfense import (
    AsyncSandbox, CommandExecutionError, CommandTimeoutError, InvalidConfigurationError, PatternType, Permission,
    PermissionRule,
    ResourceLimits, RuntimeType, Sandbox, SandboxClient, SandboxError, SandboxStatus, extend_preset, list_presets,
)

PORT = os.environ["PORT"]
ENDPOINT = f"localhost:{PORT}"


def fails(error, call, *args, **named):
    try:
        call(*args, **named)
    except error as e:
        return str(e)
    raise AssertionError(f"{args} should fail")


os.makedirs("my-project/src", exist_ok=True)
for name, text in {
    "main.py": "print('Hello')\n", "app.key": "KEY\n", "src/a.py": "A = 1\n", "credentials.json": "{}\n",
}.items():
    with open(f"my-project/{name}", "w") as file:
        file.write(text)

# The README's first example, with the preset that it says is the default; and the one that is.
with Sandbox.from_local("./my-project", preset="agent-safe", endpoint=ENDPOINT) as sandbox:
    assert sandbox.status == SandboxStatus.RUNNING and sandbox.runtime == RuntimeType.BWRAP
    result = sandbox.run("python3 main.py")
    assert (result.stdout, result.stderr, result.exit_code) == ("Hello\n", "", 0), result
    assert result.duration > timedelta(0)
    # All is read, secrets are not there, only output is written.
    assert sandbox.run("ls").stdout == "main.py\nsrc\n"
    assert sandbox.run("cat app.key").exit_code != 0
    assert sandbox.run("echo no > main.py").exit_code != 0
    assert sandbox.run("mkdir output; echo hi > output/x; cat output/x").stdout == "hi\n"
    assert sandbox.run("echo t > /tmp/t; cat /tmp/t").stdout == "t\n"
    # What the sandbox wrote is seen at once; what it does not see is still the owner's.
    assert sandbox.read_file("/workspace/output/x") == "hi\n"
    assert sandbox.read_file("app.key") == "KEY\n"
    assert sandbox.list_files(recursive=True) == [
        "app.key", "credentials.json", "main.py", "output", "output/x", "src", "src/a.py"]
    assert "output" in sandbox.list_files() and sandbox.list_files("/workspace/output") == ["output/x"]
    sandbox.write_file("/workspace/output/new/y", "there")
    assert sandbox.run("cat output/new/y").stdout == "there"
    # The owner's side writes into the codebase, and into what runs as far as its rules allow.
    sandbox.write_file("main.py", "print('other')\n")
    assert sandbox.read_file("main.py") == "print('other')\n"
    assert sandbox.run("cat main.py").stdout == "print('Hello')\n"
    # What a command removed is gone, though the codebase has it.
    assert sandbox.run("rm output/new/y").exit_code == 0
    fails(SandboxError, sandbox.read_file, "output/new/y")
    assert "output/new/y" not in sandbox.list_files(recursive=True)
    sandbox.write_file("output/kept", "kept")
    big = os.urandom(5_000_000)
    sandbox.write_file("output/big", big.hex())
    assert sandbox.run("wc -c < output/big").stdout.strip() == "10000000"
    assert sandbox.read_file("output/big") == big.hex()
    sandbox.run("rm output/big")
    error = None
    try:
        sandbox.run("echo bad >&2; exit 7", raise_on_error=True)
    except CommandExecutionError as e:
        error = e
    assert error and error.exit_code == 7 and error.stderr == "bad\n"
    fails(CommandTimeoutError, sandbox.run, "sleep 100", timeout=1)
    result = sandbox.exec("cat; echo $DEBUG; pwd", stdin="input data", env={"DEBUG": "1"}, workdir="/workspace/src",
                          timeout=timedelta(seconds=30))
    assert result.stdout == "input data1\n/workspace/src\n", result
    # A second one over the same codebase sees nothing of it.
    with Sandbox.from_codebase(sandbox.codebase_id, preset="development", endpoint=ENDPOINT) as other:
        assert other.run("find . -type f | sort").stdout == "./credentials.json\n./main.py\n./output/big\n./output/kept\n./output/new/y\n./src/a.py\n"
        assert other.run("cat main.py").stdout == "print('other')\n"
        assert other.run("echo changed > main.py; cat main.py").stdout == "changed\n"
        assert sandbox.run("cat main.py").stdout == "print('Hello')\n"
        # With two that run, a file of the owner goes to both; one that only one has is that one's.
        sandbox.write_file("output/z", "both")
        assert [s.run("cat output/z").stdout for s in (sandbox, other)] == ["both", "both"]
        assert other.run("echo mine > own").exit_code == 0
        assert other.read_file("own") == "mine\n"
    again = Sandbox.connect(sandbox.id, endpoint=ENDPOINT)
    assert again.run("cat output/x").stdout == "hi\n"
    again._client.close()
    sandbox.stop()
    assert sandbox.status == SandboxStatus.STOPPED
    info = sandbox.refresh().info
    assert info.stopped_at >= info.started_at >= info.created_at, info
    fails(SandboxError, sandbox.run, "true")
    sandbox.start()
    assert sandbox.run("cat output/x").stdout == "hi\n"
    assert sandbox.run("cat main.py output/kept").stdout == "print('other')\nkept"
    # What the owner put there meanwhile is the codebase's, also where a command removed its copy.
    result = sandbox.run("ls output/new")
    assert result.stdout == "y\n", result
    # Nothing that is larger than what their client takes.
    result = sandbox.run("head -c 6000000 /dev/zero | tr '\\0' x; echo end")
    assert result.exit_code == 0 and result.stdout.endswith("xend\n") and 4_000_000 < len(result.stdout) < 4 << 20
    assert "are left out" in result.stderr, result.stderr

with Sandbox.from_local("./my-project", endpoint=ENDPOINT) as sandbox:
    result = sandbox.run("ls; cat main.py")
    assert result.stdout == "app.key\ncredentials.json\nmain.py\nsrc\n" and result.exit_code != 0, result
    assert sandbox.run("echo x > main.py").exit_code != 0
    # The rules bind commands, not the owner.
    sandbox.write_file("new.txt", "new")
    assert sandbox.read_file("new.txt") == "new" and "new.txt" in sandbox.list_files()

# Any name of a directory will do.
for name in ["my_agent_project_for_a_big_customer_2026_again_and_again", "\u043f\u0440\u043e\u0435\u043a\u0442" * 5]:
    os.makedirs(name, exist_ok=True)
    with open(f"{name}/x", "w") as file:
        file.write("x")
    with Sandbox.from_local(name, preset="full-access", endpoint=ENDPOINT) as sandbox:
        assert sandbox.run("cat x").stdout == "x"

# Another runtime and an image are said and make no difference; limits are kept where they can be.
with Sandbox.from_local(
    "./my-project", preset="full-access", runtime=RuntimeType.DOCKER, image="python:3.11-slim",
    resources=ResourceLimits(memory_bytes=512 * 1024 * 1024, pids_limit=100), labels={"a": "b"}, endpoint=ENDPOINT,
) as sandbox:
    info = sandbox.refresh().info
    assert (info.runtime, info.image, info.labels) == (RuntimeType.DOCKER, "python:3.11-slim", {"a": "b"})
    assert info.resources.pids_limit == 100
    # Sessions keep what they are.
    with sandbox.session() as session:
        session.exec("cd /workspace/src")
        session.exec("export DEBUG=1; f() { echo f $1; }")
        assert session.exec("pwd; echo $DEBUG; f 2").stdout == "/workspace/src\n1\nf 2"
        result = session.exec("echo out; echo err >&2; false")
        assert (sorted(result.stdout.split()), result.stderr, result.exit_code) == (["err", "out"], "", 1), result
        fails(CommandTimeoutError, session.exec, "sleep 100", timeout=timedelta(seconds=1))
        assert session.exec("pwd").stdout == "/workspace/src"
        fails(InvalidConfigurationError, session.exec, "")
        identity = session.id
        assert [s.id for s in sandbox._client.list_sessions(sandbox.id)] == [identity]
    fails(SandboxError, sandbox._client.get_session, identity)
    assert sandbox._client.list_sessions(sandbox.id) == []
    assert b"".join(sandbox.exec_stream("echo a; sleep .2; echo b >&2")) == b"a\nb\n"
    # A stream is a stream, and one of a command that fails says so.
    began, parts = None, []
    try:
        for part in sandbox.exec_stream("echo a; sleep 2; exit 3"):
            began = began or time.monotonic()
            parts.append(part)
        raise AssertionError("it should fail")
    except grpc.RpcError as e:
        assert e.code() == grpc.StatusCode.INTERNAL and "exit code 3" in e.details(), e
    assert parts == [b"a\n"] and time.monotonic() - began > 1, parts

# The low-level client.
with SandboxClient(endpoint=ENDPOINT) as client:
    codebase = client.create_codebase(name="my project", owner_id="user_123")
    twin = client.create_codebase(name="my project", owner_id="user_456")
    assert codebase.name == "my project" and codebase.id != twin.id
    assert [c.id for c in client.list_codebases("user_456")] == [twin.id]
    client.delete_codebase(twin.id)
    fails(SandboxError, client.get_codebase, twin.id)
    uploaded = client.upload_file(codebase.id, "hello.py", b'print("Hello, World!")')
    assert uploaded.size == 22 and uploaded.checksum == hashlib.md5(b'print("Hello, World!")').hexdigest()
    big = os.urandom(3_000_000)
    client.upload_file(codebase.id, "docs/big", big)
    assert client.download_file(codebase.id, "docs/big") == big
    info = client.get_codebase(codebase.id)
    assert (info.file_count, info.size) == (2, 3_000_022), info
    assert [(f.path, f.size) for f in client.list_files(codebase.id, path="/docs")] == [("docs/big", 3_000_000)]
    assert client.list_files(codebase.id, path="nonesuch") == []
    assert client.list_sessions("sb_nonesuch") == []
    for wanted in [client.get_sandbox, client.get_codebase, client.get_session, client.list_files]:
        assert "is required" in fails(InvalidConfigurationError, wanted, "")
    for path in ["../x", "/../x", "docs/../../x"]:
        fails(SandboxError, client.upload_file, codebase.id, path, b"x")
        fails(SandboxError, client.download_file, codebase.id, path)
    sandbox = client.create_sandbox(
        codebase_id=codebase.id,
        permissions=[
            {"pattern": "**/*.py", "permission": "read"},
            PermissionRule(pattern="/docs/", permission=Permission.WRITE, type=PatternType.DIRECTORY),
        ],
        expires_in=timedelta(hours=1),
    )
    assert sandbox.status == SandboxStatus.PENDING and sandbox.expires_at > sandbox.created_at
    assert [s.id for s in client.list_sandboxes(codebase.id)] == [sandbox.id]
    fails(SandboxError, client.exec, sandbox.id, command="true")
    assert client.start_sandbox(sandbox.id).status == SandboxStatus.RUNNING
    assert "already running" in fails(SandboxError, client.start_sandbox, sandbox.id)
    assert client.exec(sandbox.id, command="python3 hello.py").stdout == "Hello, World!\n"
    assert client.exec(sandbox.id, command="echo x > docs/new; cat docs/new").stdout == "x\n"
    assert client.exec(sandbox.id, command="echo x > new").exit_code != 0
    fails(SandboxError, client.delete_codebase, codebase.id)
    assert client.stop_sandbox(sandbox.id).status == SandboxStatus.STOPPED
    assert "not running" in fails(SandboxError, client.stop_sandbox, sandbox.id)
    assert "not running" in fails(SandboxError, client.exec, sandbox.id, command="true")
    client.destroy_sandbox(sandbox.id)
    fails(SandboxError, client.get_sandbox, sandbox.id)
    fails(SandboxError, client.destroy_sandbox, sandbox.id)
    client.delete_codebase(codebase.id)
    assert client.list_sandboxes() == [] and client.list_codebases() == []

assert "agent-safe" in list_presets()
rules = extend_preset("read-only", overrides=[{"pattern": "/src/**", "permission": "none"}])
with Sandbox.from_local("./my-project", preset="read-only", permissions=rules, endpoint=ENDPOINT) as sandbox:
    assert "src" not in sandbox.run("ls").stdout


async def asynchronous():
    async with await AsyncSandbox.from_local("./my-project", preset="full-access", endpoint=ENDPOINT) as sandbox:
        results = await asyncio.gather(*[sandbox.run(f"echo {n}") for n in range(8)])
        assert [r.stdout for r in results] == [f"{n}\n" for n in range(8)]
        await sandbox.run("echo x > new")
        assert await sandbox.read_file("new") == "x\n"
        async with await sandbox.session() as session:
            await session.exec("cd src")
            assert (await session.exec("pwd")).stdout == "/workspace/src"
        parts = [part async for part in sandbox.exec_stream("echo a; echo b")]
        assert b"".join(parts) == b"a\nb\n", parts


asyncio.run(asynchronous())
print("all is well")
