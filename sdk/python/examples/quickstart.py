"""A project's tests, confined: what they write outside of the project stays away from the machine."""

import tempfile
from pathlib import Path

from ringfence import Ended, Output, PermissionDenied, ResourceLimits, Sandbox

with tempfile.TemporaryDirectory(dir=Path.home()) as project:
    Path(project, "main.py").write_text("print('hello from', __file__)\n")
    Path(project, ".env").write_text("TOKEN=secret\n")
    with Sandbox.create(project, limits=ResourceLimits(timeout="60s")) as box:
        print(box.run(["python3", "main.py"], check=True).stdout, end="")
        # The default policy hides what looks like a secret.
        assert box.run("cat .env").exit_code != 0
        for event in box.stream("for i in 1 2 3; do echo line $i; done"):
            if isinstance(event, Output):
                print(event.text, end="")
            elif isinstance(event, Ended):
                print("ended with", event.exec.exit_code)
        try:
            box.write_file("/etc/motd", "mine")
        except PermissionDenied as e:
            print("refused:", e.reason)
