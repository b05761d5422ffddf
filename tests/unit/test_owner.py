"""Who holds a lease: this process lives, one that is gone does not, and of other machines nothing is known."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from synthgen import owner
from synthgen.owner import current_owner, dead_owners


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Another process; whoever ends it has not waited for it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A system that has no /proc."""
    monkeypatch.setattr(owner, "_PROC", tmp_path)
    owner._owner_with.cache_clear()
    yield
    owner._owner_with.cache_clear()


def with_pid(pid: int) -> str:
    place, _, started = current_owner().rsplit("/", 2)
    return f"{place}/{pid}/{started}"


def named(pid: int) -> str:
    """What that process calls itself."""
    return owner._owner_with(pid)


def test_the_name_of_this_process_is_stable_and_alive() -> None:
    assert current_owner() == current_owner()
    assert f"/{os.getpid()}/" in current_owner()
    assert dead_owners([current_owner()]) == []


def test_another_process_lives_until_it_has_ended(sleeper: subprocess.Popen[bytes]) -> None:
    other = named(sleeper.pid)
    assert dead_owners([other]) == []
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert dead_owners([other]) == [other]
    sleeper.wait()
    assert dead_owners([other]) == [other]


def test_a_step_of_the_wall_clock_kills_nobody(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [current_owner(), named(sleeper.pid)]
    began = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: began(process) + 3600)
    assert dead_owners(names) == []


@pytest.mark.usefixtures("without_proc")
def test_where_only_the_wall_clock_is_told_a_small_step_is_overlooked_and_we_never_die(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    other, began = named(sleeper.pid), psutil.Process.create_time
    assert dead_owners([other, current_owner()]) == []
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: began(process) + 1)
    assert dead_owners([other, current_owner()]) == []
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: began(process) + 3600)
    assert dead_owners([other, current_owner()]) == [other]


def test_a_process_that_does_not_exist_is_dead() -> None:
    gone = with_pid(2**31 - 1)
    assert dead_owners([gone, current_owner()]) == [gone]


def test_a_new_process_with_an_old_number_is_another_process() -> None:
    place, pid, _ = current_owner().rsplit("/", 2)
    reborn = f"{place}/{pid}/1.00"
    assert dead_owners([reborn]) == [reborn]


def test_owners_elsewhere_are_not_judged() -> None:
    host, boot, namespace, pid, _ = current_owner().rsplit("/", 4)
    elsewhere = [
        f"other-host/{boot}/{namespace}/{pid}/1.00",
        f"{host}/another-boot/{namespace}/{pid}/1.00",
        f"{host}/{boot}/pid:[1]/{pid}/1.00",
        f"{host}/{namespace}/{pid}/1.00",
        "",
        "x",
    ]
    assert dead_owners(elsewhere) == []


def test_a_name_of_this_place_that_makes_no_sense_is_dead() -> None:
    place = current_owner().rsplit("/", 2)[0]
    assert dead_owners([f"{place}/no-number/1.00"]) == [f"{place}/no-number/1.00"]


@pytest.mark.usefixtures("without_proc")
def test_a_process_that_may_not_be_looked_at_counts_as_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_: int) -> None:
        raise psutil.AccessDenied

    other = with_pid(1)
    monkeypatch.setattr(psutil, "Process", forbidden)
    assert dead_owners([other]) == []
