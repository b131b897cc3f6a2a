"""The commands of docs/operate.md for a backup and a restore, on a system that loses
its disk.
"""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import list_artifacts

from tests.support.guides import ROOT, blocks
from tests.support.moves import MODEL, JudgedModel
from tests.support.refusals import mentions
from tests.support.services.mlflow_server import MlflowServer
from tests.support.services.postgresql import postgresql_server
from tests.support.tracking import tracking_at

PAGE = (ROOT / "docs" / "operate.md").read_text().partition("## Backup and restore\n")[2]
BACKUP, RECORD, RESTORE, ACCEPT = blocks("sh", PAGE)[:4]
OTHERS = {"SQLite": "pg_|psql ", "PostgreSQL": "sqlite3 .*onnxserve.db"}
"""The lines of the page that are for the other kind of store."""
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        shutil.which("sqlite3") is None, reason="no sqlite3 here (apt-get install sqlite3)"
    ),
]


@pytest.fixture(params=["SQLite", pytest.param("PostgreSQL", marks=pytest.mark.postgresql)])
def kind(request):
    return request.param


@pytest.fixture
def store(kind):
    """The variables with which programs find the store: none for SQLite."""
    if kind == "SQLite":
        yield {}
        return
    with postgresql_server() as url:
        address = urlsplit(url)
        variables = {
            "ONNXSERVE_STORE_URI": url.removesuffix("postgres") + "onnxserve",
            "PGHOST": str(address.hostname),
            "PGPORT": str(address.port),
            "PGUSER": str(address.username),
            "PGPASSWORD": unquote(str(address.password)),
        }
        create = ["psql", "-c", "CREATE DATABASE onnxserve", "postgres"]
        subprocess.run(create, env={**os.environ, **variables}, check=True, capture_output=True)
        yield variables


@pytest.fixture
def copies(tmp_path):
    """The folders of the copies, which are on other disks."""
    folders = {f"/{name}/": f"{tmp_path}/{name}/" for name in ("backup", "vault")}
    for folder in folders.values():
        Path(folder).mkdir()
    return folders


class Machine:
    """A machine whose user has the home `folder`."""

    def __init__(self, folder, kind, store, copies):
        (folder / "mlflow").mkdir(parents=True)
        self.variables = {**store, "HOME": str(folder), "ONNXSERVE_HOME": f"{folder}/.onnxserve"}
        self.server = MlflowServer(folder / "mlflow", app="onnxserve", variables=self.variables)
        self.model = JudgedModel(self.server)
        self._left_out = OTHERS[kind]
        self._copies = copies

    def run(self, block):
        """Return the output of a block of the page. Each command must succeed."""
        lines = [line for line in block.splitlines() if not re.match(self._left_out, line)]
        code = "\n".join(lines)
        for folder, copy in self._copies.items():
            code = code.replace(folder, copy)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            env={**os.environ, **self.variables, "PATH": path},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, f"{code}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout


@contextmanager
def ending(machine):
    """End the server of the machine after a failure."""
    try:
        yield machine
    finally:
        machine.server.kill()


def use_and_back_up(old):
    """Move versions before, during and after a backup. Return the number of events by
    place and version.
    """
    attempts = []
    old.server.start()
    old.model.register()
    assert old.model.move("@champion", "1") == 200
    captured = old.server.folder.parent / ".onnxserve" / "inference_log" / "endpoint=flights"
    captured.mkdir(parents=True)
    (captured / "rows.parquet").write_bytes(b"rows")
    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(old.model.attempt_moves, "@champion", 10, attempts)
        old.run(BACKUP)
        moving.result()
    assert [attempt.status for attempt in attempts] == [200] * 10
    old.model.attempt_moves("@challenger", 2, attempts)
    old.run(RECORD)
    return old.model.recorded()


def test_restore_of_the_guide_names_the_lost_events(
    kind, store, copies, tmp_path, new_database, monkeypatch
):
    monkeypatch.delenv("ONNXSERVE_HOME", raising=False)
    with ending(Machine(tmp_path / "old", kind, store, copies)) as old:
        new_database(old.server.folder)
        before = use_and_back_up(old)
    shutil.rmtree(tmp_path / "old")

    with ending(Machine(tmp_path / "new", kind, store, copies)) as new:
        new.run(RESTORE)
        assert (tmp_path / "new/.onnxserve/inference_log/endpoint=flights/rows.parquet").exists()
        with pytest.raises(AssertionError, match="onnxserve audit adopt"):
            new.server.start()
        new.server.process = None  # It has ended.

        accepted = new.run(ACCEPT).splitlines()

        assert mentions(accepted[0], "accepted by", "events of the audit trail are missing")
        (missing,) = re.findall(
            r"^missing: (\d+) events, from \d+ to \d+$", "\n".join(accepted), re.M
        )
        assert mentions(accepted[-1], "intact"), accepted
        new.server.start()
        lost = before - new.model.recorded()
        assert lost["@challenger", "1"] == lost["@challenger", "2"] == 1
        assert int(missing) >= lost.total()
        with tracking_at(new.server.url):
            version = MlflowClient().get_model_version(MODEL, "1")
            assert list_artifacts(version.source)
        other = "2" if new.model.holder("@champion") == "1" else "1"
        assert new.model.move("@challenger", other) == 403  # The adoption ends the verdicts.
        judged = new.model.run("gate", f"models:/{MODEL}/{other}")
        assert judged.returncode == 0, judged.stderr
        assert new.model.move("@challenger", other) == 200
        assert mentions(new.run(ACCEPT.splitlines()[1]), "intact")
