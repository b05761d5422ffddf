"""Who holds a lease: this process lives, one that is gone does not, and of other machines nothing is known."""

from __future__ import annotations

import os

import psutil
import pytest

from synthgen.owner import current_owner, dead_owners


def with_pid(pid: int) -> str:
    place, _, started = current_owner().rsplit("/", 2)
    return f"{place}/{pid}/{started}"


def test_the_name_of_this_process_is_stable_and_alive() -> None:
    assert current_owner() == current_owner()
    assert f"/{os.getpid()}/" in current_owner()
    assert dead_owners([current_owner()]) == []


def test_a_process_that_does_not_exist_is_dead() -> None:
    gone = with_pid(2**31 - 1)
    assert dead_owners([gone, current_owner()]) == [gone]


def test_a_new_process_with_an_old_number_is_another_process() -> None:
    place, pid, _ = current_owner().rsplit("/", 2)
    reborn = f"{place}/{pid}/1.00"
    assert dead_owners([reborn]) == [reborn]


def test_owners_elsewhere_are_not_judged() -> None:
    host, namespace, pid, _ = current_owner().rsplit("/", 3)
    elsewhere = [f"other-host/{namespace}/{pid}/1.00", f"{host}/pid:[1]/{pid}/1.00", "", "x"]
    assert dead_owners(elsewhere) == []


def test_a_name_of_this_place_that_makes_no_sense_is_dead() -> None:
    place = current_owner().rsplit("/", 2)[0]
    assert dead_owners([f"{place}/no-number/1.00"]) == [f"{place}/no-number/1.00"]


def test_a_process_that_may_not_be_looked_at_counts_as_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_: int) -> None:
        raise psutil.AccessDenied

    other = with_pid(1)
    monkeypatch.setattr(psutil, "Process", forbidden)
    assert dead_owners([other]) == []
