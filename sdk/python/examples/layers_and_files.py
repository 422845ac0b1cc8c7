"""An agent changes a project without changing it: look at what it did, take a part of it, throw away the rest."""

import tempfile
from pathlib import Path

from ringfence import BatchItem, Client, NotFound

with tempfile.TemporaryDirectory(dir=Path.home()) as project, Client() as client:
    Path(project, "main.py").write_text("print('before')\n")
    with client.create(project, layer=True) as box:
        box.write_file("main.py", "print('after')\n")
        box.write_file("notes.txt", "what I found\n")
        box.chmod("notes.txt", 0o600)
        for hit in box.search(name="*.py", content="after").found:
            print(f"{hit.path}:{hit.line}: {hit.text}")
        commands = ["python3 main.py", "cat notes.txt", "ls"]
        for result in client.run_batch([BatchItem(box.id, command) for command in commands]):
            if isinstance(result, Exception):
                raise result
            print(result.stdout, end="")
        # The real file is as it was.
        assert Path(project, "main.py").read_text() == "print('before')\n"
        print(sorted(change.path for change in box.layer.diff()))
        box.stop()
        applied = box.layer.apply(["notes.txt"])
        print("applied:", [line.path for line in applied.applied])
        box.layer.discard()
    assert Path(project, "notes.txt").read_text() == "what I found\n"
    assert Path(project, "main.py").read_text() == "print('before')\n"
    try:
        client.get(box.id)
    except NotFound as e:
        print("gone:", e.reason)
