"""The private PostgreSQL: one for all processes, and none of the ways in which processes die may hurt it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from storage import embedded_postgres
from synthgen.errors import ServiceUnavailable
from synthgen.owner import current_owner

START = "import sys, pathlib; from storage import embedded_postgres as e; print(e.start(pathlib.Path(sys.argv[1])))"


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "state"
    yield folder
    embedded_postgres.stop(folder)


def run_python(code: str, state: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, str(state)], stdout=subprocess.PIPE, text=True)


def postmaster(state: Path) -> psutil.Process:
    return psutil.Process(int((state / "postgres" / "postmaster.pid").read_text().splitlines()[0]))


def kill(process: psutil.Process) -> None:
    process.send_signal(signal.SIGKILL)
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


def test_it_starts_once_answers_and_stops(state: Path) -> None:
    assert not embedded_postgres.is_running(state)
    url = embedded_postgres.start(state)
    assert embedded_postgres.is_running(state)
    with psycopg.connect(url) as connection:
        connection.execute("create table kept as select 42 as answer")
    assert embedded_postgres.start(state) == url
    assert embedded_postgres.stop(state)
    assert not embedded_postgres.is_running(state)
    assert not embedded_postgres.stop(state)
    with psycopg.connect(embedded_postgres.start(state)) as connection:
        assert connection.execute("select answer from kept").fetchone() == (42,)


def test_stopping_what_never_was_makes_no_folder(state: Path) -> None:
    assert not embedded_postgres.stop(state)
    assert not state.exists()


def test_it_has_room_for_many_and_keeps_what_is_committed(state: Path) -> None:
    with psycopg.connect(embedded_postgres.start(state)) as connection:
        settings = dict(connection.execute("select name, setting from pg_settings").fetchall())
    assert int(settings["max_connections"]) >= 200
    assert settings["fsync"] == settings["synchronous_commit"] == settings["full_page_writes"] == "on"
    assert settings["listen_addresses"] == ""


def test_processes_that_start_it_at_the_same_moment_share_one(state: Path) -> None:
    processes = [run_python(START, state) for _ in range(4)]
    urls = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    assert urls == {embedded_postgres.start(state) + "\n"}


def test_it_outlives_a_killed_owner_and_others_attach(state: Path) -> None:
    owner = run_python(START + "; import os, signal; sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)", state)
    url = owner.communicate(timeout=60)[0].strip()
    assert owner.returncode == -signal.SIGKILL
    server = postmaster(state)
    assert embedded_postgres.start(state) == url
    assert postmaster(state) == server


def test_it_comes_back_with_all_that_was_committed_when_it_was_killed(state: Path) -> None:
    with psycopg.connect(embedded_postgres.start(state), autocommit=True) as connection:
        connection.execute("create table kept (n int)")
        for n in range(100):
            connection.execute("insert into kept values (%s)", (n,))
        kill(postmaster(state))
    assert not embedded_postgres.is_running(state)
    with psycopg.connect(embedded_postgres.start(state)) as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (100,)


def test_a_process_id_that_another_program_has_now_does_not_deceive_it(state: Path) -> None:
    embedded_postgres.start(state)
    pid_file = state / "postgres" / "postmaster.pid"
    before = pid_file.read_text()
    kill(postmaster(state))
    pid_file.write_text(before.replace(before.split()[0], str(os.getpid()), 1))
    assert not embedded_postgres.is_running(state)
    assert not embedded_postgres.stop(state)
    embedded_postgres.start(state)
    assert embedded_postgres.is_running(state)


def test_a_program_that_stands_in_the_data_folder_is_not_taken_for_the_server(state: Path) -> None:
    embedded_postgres.start(state)
    shell = subprocess.Popen(["sleep", "600"], cwd=state / "postgres")
    try:
        kill(postmaster(state))
        embedded_postgres.start(state)
        assert embedded_postgres.stop(state)
    finally:
        shell.kill()
        shell.wait()


def test_a_server_in_another_container_is_left_alone(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded_postgres.start(state)
    server = postmaster(state)
    with monkeypatch.context() as unseen:
        unseen.setattr(embedded_postgres, "_url_if_answering", lambda _: None)
        unseen.setattr(embedded_postgres, "_someone_works_in", lambda _: False)
        with pytest.raises(ServiceUnavailable, match=f"postgres runs on {socket.gethostname()}, out of reach"):
            embedded_postgres.start(state)
    assert embedded_postgres.is_running(state)
    assert postmaster(state) == server


def leave_as_if_started_by(state: Path, owner: str) -> Path:
    """A server that was killed on the machine of this name; the file that says so."""
    embedded_postgres.start(state)
    before = (state / "postgres" / "postmaster.pid").read_text()
    kill(postmaster(state))
    while embedded_postgres._someone_works_in(state / "postgres"):
        time.sleep(0.01)
    (state / "postgres" / "postmaster.pid").write_text(before)
    place = state / "postgres.place"
    place.write_text(owner)
    return place


def test_a_server_that_another_machine_never_stopped_is_named_with_the_way_out(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_postgres, "_LOCAL", ())  # as on a file system that machines share
    place = leave_as_if_started_by(state, "far-away/other-boot/ns/7/1")
    with pytest.raises(ServiceUnavailable, match=r"started on far-away and never stopped.*synthgen db stop") as told:
        embedded_postgres.start(state)
    assert f"remove {place} and try again" in str(told.value)
    place.unlink()
    embedded_postgres.start(state)


@pytest.mark.parametrize("which", ["this machine before its restart", "this machine before it was renamed"])
def test_a_killed_server_of_this_machine_is_followed_by_the_next(state: Path, which: str) -> None:
    host, boot = current_owner().split("/")[:2]
    owner = f"{host}/other-boot" if "restart" in which else f"earlier-name/{boot}"
    leave_as_if_started_by(state, f"{owner}/ns/7/1")
    embedded_postgres.start(state)


def test_on_a_disk_of_this_machine_the_lock_says_enough(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = {mount.fstype for mount in psutil.disk_partitions(all=True)}
    monkeypatch.setattr(embedded_postgres, "_LOCAL", tuple(here))
    leave_as_if_started_by(state, "an-earlier-container/other-boot/ns/7/1")
    embedded_postgres.start(state)


def test_a_server_that_ended_in_good_order_on_another_machine_is_followed_by_the_next(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_postgres, "_LOCAL", ())
    leave_as_if_started_by(state, "far-away/other-boot/ns/7/1")
    (state / "postgres" / "postmaster.pid").unlink()
    embedded_postgres.start(state)


def test_a_setting_up_that_was_killed_is_begun_anew(state: Path) -> None:
    half_made = state / "postgres.new"
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").write_text("18\n")
    embedded_postgres.start(state)
    assert not half_made.exists()


@pytest.mark.parametrize("name", ["with a space and 'quotes'", "long" * 40, "ünï%41"], ids=["space", "long", "wide"])
def test_any_path_will_do(tmp_path: Path, name: str) -> None:
    state = tmp_path / name
    url = embedded_postgres.start(state)
    try:
        with psycopg.connect(url) as connection:
            assert connection.execute("show data_directory").fetchone() == (str(state / "postgres"),)
    finally:
        assert embedded_postgres.stop(state)


def test_the_folders_above_are_not_opened_for_reading(state: Path) -> None:
    state.mkdir()
    state.chmod(0o700)
    embedded_postgres.start(state)
    assert not state.stat().st_mode & 0o066


def test_a_server_that_cannot_start_is_a_sentence_with_its_reason(state: Path) -> None:
    embedded_postgres.start(state)
    embedded_postgres.stop(state)
    with (state / "postgres" / "postgresql.conf").open("a") as configuration:
        configuration.write("\nshared_buffers = plenty\n")
    with pytest.raises(ServiceUnavailable, match=r"does not start .*FATAL.*its log is"):
        embedded_postgres.start(state)


def test_a_folder_of_another_postgres_is_left_alone(state: Path) -> None:
    folder = state / "postgres"
    folder.mkdir(parents=True)
    (folder / "PG_VERSION").write_text("16\n")
    with pytest.raises(ServiceUnavailable, match="another PostgreSQL"):
        embedded_postgres.start(state)
    assert [path.name for path in folder.iterdir()] == ["PG_VERSION"]
