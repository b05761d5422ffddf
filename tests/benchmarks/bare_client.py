"""The reference: a bare aiohttp loop, nothing stored but an output file; what a good script of fifty lines does.

``python -m tests.benchmarks.bare_client INPUT BASE_URL IN_FLIGHT OUTPUT`` prints ``{"requests": n, "seconds": s}`` of
the loop alone, start-up not counted.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import IO

import aiohttp
import orjson
import uvloop


async def _work(lines: IO[bytes], session: aiohttp.ClientSession, url: str, output: IO[bytes]) -> int:
    done = 0
    for line in lines:  # one iterator for all workers: each takes the next line
        row = orjson.loads(line)
        async with session.post(
            url, data=orjson.dumps(row["body"]), headers={"Content-Type": "application/json"}
        ) as reply:
            body = await reply.read()
        orjson.loads(body)
        result = {"custom_id": row["custom_id"], "response": {"status_code": 200, "body": orjson.Fragment(body)}}
        output.write(orjson.dumps(result, option=orjson.OPT_APPEND_NEWLINE))
        done += 1
    return done


async def _main(lines: IO[bytes], base_url: str, in_flight: int, output: IO[bytes]) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        started = time.perf_counter()
        url = f"{base_url}/chat/completions"
        done = await asyncio.gather(*(_work(lines, session, url, output) for _ in range(in_flight)))
        seconds = time.perf_counter() - started
    print(orjson.dumps({"requests": sum(done), "seconds": seconds}).decode())


if __name__ == "__main__":
    with Path(sys.argv[1]).open("rb") as source, Path(sys.argv[4]).open("wb") as target:
        uvloop.run(_main(source, sys.argv[2], int(sys.argv[3]), target))
