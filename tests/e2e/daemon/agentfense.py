import asyncio
import os
from datetime import timedelta

from agentfense import (
    AsyncSandbox, CommandExecutionError, CommandTimeoutError, PatternType, PermissionDeniedError, Permission, PermissionRule,
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
    fails(PermissionDeniedError, sandbox.write_file, "main.py", "print('other')")
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
        assert other.run("find . -type f | sort").stdout == "./credentials.json\n./main.py\n./src/a.py\n"
        assert other.run("echo changed > main.py; cat main.py").stdout == "changed\n"
        assert sandbox.run("cat main.py").stdout == "print('Hello')\n"
        fails(SandboxError, sandbox.write_file, "output/z", "whose?")
    again = Sandbox.connect(sandbox.id, endpoint=ENDPOINT)
    assert again.run("cat output/x").stdout == "hi\n"
    again._client.close()
    sandbox.stop()
    assert sandbox.status == SandboxStatus.STOPPED
    fails(SandboxError, sandbox.run, "true")
    sandbox.start()
    assert sandbox.run("cat output/x").stdout == "hi\n"

with Sandbox.from_local("./my-project", endpoint=ENDPOINT) as sandbox:
    result = sandbox.run("ls; cat main.py")
    assert result.stdout == "app.key\ncredentials.json\nmain.py\nsrc\n" and result.exit_code != 0, result
    assert sandbox.run("echo x > main.py").exit_code != 0

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
        assert session.exec("pwd; echo $DEBUG; f 2").stdout == "/workspace/src\n1\nf 2\n"
        result = session.exec("echo out; echo err >&2; false")
        assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 1), result
        fails(CommandTimeoutError, session.exec, "sleep 100", timeout=timedelta(seconds=1))
        assert session.exec("pwd").stdout == "/workspace/src\n"
        identity = session.id
    assert sandbox._client.get_session(identity).status.value == "closed"
    assert [s.id for s in sandbox._client.list_sessions(sandbox.id)] == [identity]
    assert b"".join(sandbox.exec_stream("echo a; sleep .2; echo b >&2; exit 3")) == b"a\nb\n"

# The low-level client.
with SandboxClient(endpoint=ENDPOINT) as client:
    codebase = client.create_codebase(name="my project", owner_id="user_123")
    twin = client.create_codebase(name="my project", owner_id="user_456")
    assert codebase.name == "my project" and codebase.id != twin.id
    assert [c.id for c in client.list_codebases("user_456")] == [twin.id]
    client.delete_codebase(twin.id)
    fails(SandboxError, client.get_codebase, twin.id)
    uploaded = client.upload_file(codebase.id, "hello.py", b'print("Hello, World!")')
    assert uploaded.size == 22 and len(uploaded.checksum) == 64
    big = os.urandom(3_000_000)
    client.upload_file(codebase.id, "docs/big", big)
    assert client.download_file(codebase.id, "docs/big") == big
    info = client.get_codebase(codebase.id)
    assert (info.file_count, info.size) == (2, 3_000_022), info
    assert [(f.path, f.size) for f in client.list_files(codebase.id, path="/docs")] == [("docs/big", 3_000_000)]
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
    assert client.exec(sandbox.id, command="python3 hello.py").stdout == "Hello, World!\n"
    assert client.exec(sandbox.id, command="echo x > docs/new; cat docs/new").stdout == "x\n"
    assert client.exec(sandbox.id, command="echo x > new").exit_code != 0
    fails(SandboxError, client.delete_codebase, codebase.id)
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
            assert (await session.exec("pwd")).stdout == "/workspace/src\n"


asyncio.run(asynchronous())
print("all is well")
