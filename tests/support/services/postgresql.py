"""A PostgreSQL server, started from Debian's programs."""

import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.waiting import free_port

_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))


@dataclass
class Postgresql:
    """A PostgreSQL server that can be stopped and started again.

    Attributes:
        url: the URL of an empty database, with the password of its user.
        control: the command `pg_ctl` with the options of this server.
        options: the options of the program `postgres`.
    """

    url: str
    control: list[str]
    options: str

    def start(self):
        self._run("-o", self.options, "start")

    def stop(self, mode="immediate"):
        """Stop the server. The mode is one of `pg_ctl`: smart, fast or immediate."""
        self._run("-m", mode, "stop")

    def restart(self, mode, down_seconds):
        self.stop(mode)
        time.sleep(down_seconds)
        self.start()

    def _run(self, *arguments):
        command = [*self.control, *arguments]
        # The server's user may have no access to the folder of this process.
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")


@contextmanager
def postgresql_server(host="127.0.0.1", port=0, user="onnx", password="s3cr:t/@"):
    """Yield the URL of an empty database whose user needs a password. Only networks of
    this machine may connect.
    """
    with running_postgresql(host, port, user, password) as server:
        yield server.url


@contextmanager
def running_postgresql(host="127.0.0.1", port=0, user="onnx", password="s3cr:t/@"):
    """Yield a server like `postgresql_server`, for a test that stops it."""
    if not _PROGRAMS:
        pytest.skip("PostgreSQL's server programs are not installed (apt-get install postgresql)")
    programs = _PROGRAMS[-1].parent
    # PostgreSQL refuses to run as root. As root, start it as the user that Debian has
    # created.
    as_server = (
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        if os.geteuid() == 0
        else []
    )
    # Other users cannot read tmp_path.
    folder = Path(tempfile.mkdtemp(prefix="onnxserve-postgresql-"))
    port = port or free_port(host)
    try:
        if as_server:
            shutil.chown(folder, "postgres", "postgres")
        password_file = folder / "password"
        password_file.write_text(password)
        password_file.chmod(0o644)
        data = folder / "data"
        initdb = [
            str(programs / "initdb"),
            "-D",
            str(data),
            "-U",
            user,
            "-A",
            "scram-sha-256",
            f"--pwfile={password_file}",
            "-N",
        ]
        subprocess.run([*as_server, *initdb], check=True, capture_output=True, cwd=folder)
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all samenet scram-sha-256\n")
        control = [
            *as_server,
            str(programs / "pg_ctl"),
            "-D",
            str(data),
            "-w",
            "-l",
            str(folder / "log"),
        ]
        options = (
            f"-p {port} -c listen_addresses={host} -c unix_socket_directories={folder} -c fsync=off"
        )
        url = f"postgresql+psycopg://{user}:{quote(password, safe='')}@{host}:{port}/postgres"
        server = Postgresql(url, control, options)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
