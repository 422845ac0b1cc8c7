"""Many commands at a time in one sandbox."""

import asyncio
import tempfile
from pathlib import Path

from ringfence import AsyncSandbox


async def main() -> None:
    with tempfile.TemporaryDirectory(dir=Path.home()) as project:
        async with await AsyncSandbox.create(project) as box:
            results = await asyncio.gather(*(box.run(f"echo $(({n} * {n}))") for n in range(8)))
            print([int(result.stdout) for result in results])


asyncio.run(main())
