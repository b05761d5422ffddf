"""A child server with real processes and real kills: nothing is left over, whoever dies first."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import aiohttp
import psutil
import pytest

from synthgen.engines.base import EngineSpec
from synthgen.engines.child_server import ChildServer, Patience, ServerState
from synthgen.engines.lane import new_loop
from synthgen.engines.openai import OpenAIEngine
from synthgen.errors import FatalError
from synthgen.request import LineRules, Request, parse_line
from tests.stub_llm import answer_to

ROOT = Path(__file__).parents[2]
ENGINE = [sys.executable, "-S", str(ROOT / "tests/fakes/engine_process.py"), "--port", "{port}"]
QUICK = Patience(start=20, silence=30, stop=5, deaths=3, within=600, first_wait=0.05, longest_wait=0.05)
LIMIT = 30.0


async def get(server: ChildServer, path: str) -> dict[str, int]:
    async with aiohttp.ClientSession() as session, session.get(server.base_url + path) as reply:
        value: dict[str, int] = json.loads(await reply.read())
        return value


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():  # noqa: ASYNC110 # the condition is of other processes
            await asyncio.sleep(0.02)


async def running(
    test: Callable[[ChildServer], Awaitable[None]], *options: str, patience: Patience = QUICK, port: int | None = None
) -> None:
    server = ChildServer([*ENGINE, *options], patience=patience, port=port)
    try:
        await server.start()
        await test(server)
    finally:
        await server.stop()


def test_what_the_server_prints_is_logged_line_by_line_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    async def test(server: ChildServer) -> None:
        await get(server, "/words")
        await until(lambda: "x" * 4_000 in caplog.text)

    with caplog.at_level(logging.INFO, "synthgen.engine"):
        asyncio.run(running(test))

    words = [record.getMessage() for record in caplog.records if record.name == "synthgen.engine"]
    assert "[engine] loading weights" in words
    assert [word for word in words if word.endswith("%")] == ["[engine] 0%", "[engine] 50%", "[engine] 100%"]
    assert max(map(len, words)) < 4_100


def test_a_server_that_ends_before_it_is_ready_is_told_with_its_last_lines_and_not_started_again(
    tmp_path: Path,
) -> None:
    lives = tmp_path / "lives"

    async def test(server: ChildServer) -> None: ...

    with pytest.raises(FatalError) as caught:
        asyncio.run(running(test, "--fail", "3", "--lives", str(lives)))

    assert "The engine server ended with code 3 before it was ready. What it said of it:" in caught.value.message
    assert "ValueError: no such model" in caught.value.message
    assert len(lives.read_text().splitlines()) == 1


def test_a_command_that_does_not_exist_is_named() -> None:
    server = ChildServer(["/nowhere/server", "{port}"], patience=QUICK)

    async def start() -> None:
        try:
            await server.start()
        finally:
            await server.stop()

    with pytest.raises(FatalError, match=r"could not be started \(No such file or directory: /nowhere/server\)"):
        asyncio.run(start())


def test_a_server_that_is_not_ready_in_time_is_ended() -> None:
    async def test(server: ChildServer) -> None: ...

    with pytest.raises(FatalError, match=r"was not ready within 0\.3 s\."):
        asyncio.run(running(test, "--delay", "600", patience=replace(QUICK, start=0.3)))


def test_a_port_that_is_taken_is_told_at_once() -> None:
    async def test(server: ChildServer) -> None: ...

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FatalError, match=f"port {port}"):
            asyncio.run(running(test, port=port))


def test_a_killed_server_takes_its_engine_with_it_and_comes_back_at_the_same_address() -> None:
    async def test(server: ChildServer) -> None:
        pids, address = await get(server, "/pids"), server.base_url
        assert pids["server"] == server.pid
        os.kill(pids["server"], signal.SIGKILL)
        assert await server.lost(1, patience=LIMIT)
        await server.healthy()
        assert is_gone(pids["server"])
        assert is_gone(pids["engine"])
        assert (server.base_url, server.incarnation) == (address, 2)
        assert not await server.lost(2, patience=0.0)
        assert (await get(server, "/pids"))["server"] == server.pid != pids["server"]

    asyncio.run(running(test))


def test_a_killed_guardian_takes_the_server_and_its_engine_with_it() -> None:
    async def test(server: ChildServer) -> None:
        pids = await get(server, "/pids")
        os.kill(psutil.Process(pids["server"]).ppid(), signal.SIGKILL)
        assert await server.lost(1, patience=LIMIT)
        await server.healthy()
        await until(lambda: is_gone(pids["server"]) and is_gone(pids["engine"]))

    asyncio.run(running(test))


def test_a_server_that_hangs_is_ended_and_started_again() -> None:
    async def test(server: ChildServer) -> None:
        pids = await get(server, "/pids")
        await get(server, "/mute")
        assert await server.lost(1, patience=LIMIT)
        await server.healthy()
        assert is_gone(pids["engine"])

    asyncio.run(running(test, patience=replace(QUICK, silence=0.3)))


def test_a_server_that_dies_again_and_again_is_given_up_with_a_sentence() -> None:
    async def test(server: ChildServer) -> None:
        for _ in range(QUICK.deaths):
            await server.healthy()
            incarnation = server.incarnation
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            assert await server.lost(incarnation, patience=LIMIT)
        with pytest.raises(
            FatalError, match=r"died 3 times within 10 minutes; the last time it was ended by SIGKILL\."
        ):
            await server.healthy()
        assert server.state is ServerState.FAILED

    asyncio.run(running(test))


def test_deaths_that_are_explained_count_no_longer() -> None:
    async def test(server: ChildServer) -> None:
        for _ in range(2 * QUICK.deaths):
            await server.healthy()
            incarnation = server.incarnation
            server.forgive()
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            assert await server.lost(incarnation, patience=LIMIT)
        await server.healthy()

    asyncio.run(running(test))


def test_stop_ends_what_does_not_listen_to_sigterm() -> None:
    pids: dict[str, int] = {}

    async def test(server: ChildServer) -> None:
        pids.update(await get(server, "/pids"))

    asyncio.run(running(test, "--deaf", patience=replace(QUICK, stop=0.2)))
    assert is_gone(pids["server"])
    assert is_gone(pids["engine"])


def test_whoever_waits_for_a_stopped_server_is_told() -> None:
    async def test(server: ChildServer) -> None:
        await server.stop()
        assert await server.lost(1)
        with pytest.raises(FatalError, match="was stopped"):
            await server.healthy()

    asyncio.run(running(test))


def test_the_server_has_a_session_of_its_own_so_that_ctrl_c_does_not_reach_it() -> None:
    async def test(server: ChildServer) -> None:
        pids = await get(server, "/pids")
        sessions = {os.getsid(pid) for pid in pids.values()}
        assert len(sessions) == 1
        assert os.getsid(0) not in sessions

    asyncio.run(running(test))


def test_it_works_on_the_lanes_loop_in_a_thread_that_is_not_the_main_one() -> None:
    failures: list[BaseException] = []

    async def test(server: ChildServer) -> None:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        assert await server.lost(1, patience=LIMIT)
        await server.healthy()

    def run() -> None:
        loop = new_loop()
        try:
            loop.run_until_complete(running(test))
        except BaseException as error:  # noqa: BLE001 # carried to the test's own thread
            failures.append(error)
        finally:
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failures


_PARENT = """
import asyncio, sys, urllib.request
from synthgen.engines.child_server import ChildServer

async def main():
    server = ChildServer(sys.argv[1:])
    await server.start()
    print(urllib.request.urlopen(server.base_url + "/pids").read().decode(), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("together", [False, True], ids=["alone", "with_the_server"])
def test_nothing_outlives_a_worker_that_is_killed(*, together: bool) -> None:
    command = [sys.executable, "-c", _PARENT, *ENGINE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as worker:
        assert worker.stdout is not None
        pids = json.loads(worker.stdout.readline())
        guardian = psutil.Process(pids["server"]).ppid()
        if together:
            os.kill(pids["server"], signal.SIGKILL)
        worker.kill()
    deadline = time.monotonic() + LIMIT
    while not all(is_gone(pid) for pid in (*pids.values(), guardian)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_any_openai_compatible_command_can_be_asked_through_it() -> None:
    server = ChildServer(
        [sys.executable, "-m", "tests.stub_llm", "--port", "{port}"], ready_path="/v1/models", patience=QUICK
    )

    async def ask() -> bytes:
        await server.start()
        engine = OpenAIEngine(EngineSpec("openai", model="any", base_url=server.base_url))
        try:
            await engine.start()
            request = parse_line(b'{"prompt": "Hello?"}', 1, LineRules(model="any"))
            assert isinstance(request, Request)
            return (await engine.generate(request)).body
        finally:
            await engine.close()
            await server.stop()

    assert answer_to("Hello?").encode() in asyncio.run(ask())
