"""Makes `src/ringfence/_sync.py` of `_async.py`. With `--check` it only says whether that is done."""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent / "src" / "ringfence"
WORDS = [
    (r"The client, asynchronous. `_sync.py` is made .*", "The client. Made from `_async.py` by `unasync.py`; do not edit.\"\"\""),
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsyncIterator\b", "Iterator"),
    (r"\bhttpx\.Async(HTTPTransport|Client)\b", r"httpx.\1"),
    (r"\b(_?)Async(Client|Codebase|Exec|Files|Layer|Sandbox|Session|Tree)\b", r"\1\2"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\baclose\b", "close"),
    (r"\baread\b", "read"),
    (r"\baiter_(lines|bytes)\b", r"iter_\1"),
]


def made() -> str:
    text = (HERE / "_async.py").read_text()
    for pattern, to in WORDS:
        text = re.sub(pattern, to, text)
    return text


if __name__ == "__main__":
    target = HERE / "_sync.py"
    if "--check" in sys.argv:
        sys.exit(0 if target.read_text() == made() else f"{target} is not what unasync.py makes")
    target.write_text(made())
