"""The exported log, as a foreign verifier reads it."""

import hashlib
import importlib
import json
from contextlib import closing

import pytest
from sqlalchemy import insert, select

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.store.checkpoints import NoteSigner, parse_checkpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.tables import AuditLeafRow, AuditRow
from mlflow_deploy_plugin.promote.evidence.tiles import write_tiles
from tests.support.audit_trail import store_of_server
from tests.support.commands import onnxserve, said
from tests.support.refusals import mentions, refused
from tests.support.tlog import FOLDER, NEEDS_TLOG

pytestmark = NEEDS_TLOG


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    with store_of_server(f"sqlite:///{tmp_path}/store.db", tmp_path) as store:
        yield store


def record(server, count):
    with server.transaction() as session:
        for number in range(count):
            server.write_event(session, "approve", "ada", model=f"m{number % 7}")


def verify(folder, server):
    """Check all files with the foreign library. Return the note."""
    tlog = importlib.import_module("aics_tlog")
    checkpoint = parse_checkpoint((folder / "checkpoint").read_text())
    key_id = checkpoint.origin.rpartition("/")[2]
    signer = NoteSigner(checkpoint.origin, server.keys.public[key_id], NoteSigner.LOG)
    note = tlog.parse_note(checkpoint.text)
    assert tlog.verify_checkpoint(note, tlog.parse_vkey(signer.text), [], quorum=0).log_ok
    reader = tlog.FileSystemTileReader(folder)
    tlog.audit_tiles(reader, checkpoint.size, checkpoint.root)
    verified = tlog.VerifiedTileReader(reader, checkpoint.size, checkpoint.root)
    lines = (folder / "events.jsonl").read_text().splitlines()
    for place in (0, checkpoint.size // 2, checkpoint.size - 1):
        entry = json.loads(verified.entry(place))
        assert hashlib.sha256(lines[place].encode()).hexdigest() == entry["event"]
    return checkpoint


def test_foreign_verifier_reads_exported_tree(server, tmp_path):
    folder = tmp_path / "log"
    for count in (3, 252, 1, 300):
        record(server, count)
        write_tiles(server, server.keys, None, folder)
        assert verify(folder, server).size == server.trail_view.tree.size
    assert (folder / "tile/entries/001").stat().st_size > 256 * 100


def test_export_leaves_inserted_rows_out(server, tmp_path):
    record(server, 5)
    with server.transaction() as session:
        query = select(AuditRow.__table__).where(AuditRow.place == 3)
        row = session.execute(query).one()._asdict()
        session.execute(insert(AuditRow).values({**row, "id": 100, "actor": "forged"}))
        session.execute(insert(AuditLeafRow).values(place=-1, entry="{}"))
    write_tiles(server, server.keys, None, tmp_path / "log")
    verify(tmp_path / "log", server)


def test_export_refuses_tree_without_exported_checkpoint(server, tmp_path):
    record(server, 5)
    with store_of_server(f"sqlite:///{tmp_path}/other.db", tmp_path / "other") as other:
        record(other, 9)
        write_tiles(other, other.keys, None, tmp_path / "log")
    with refused(InvalidConfig, "does not contain the 10 events", "keep"):
        write_tiles(server, server.keys, None, tmp_path / "log")


def test_export_command_names_its_log(server, tmp_path, monkeypatch):
    record(server, 5)
    monkeypatch.setenv("ONNXSERVE_STORE_URI", f"sqlite:///{tmp_path}/store.db")
    exported = onnxserve("audit export", f"{tmp_path}/log")
    assert (exported.exit_code, mentions(exported.stdout, "6 events")) == (0, True)
    verify(tmp_path / "log", server)


def test_unsigned_trail_has_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_STORE_URI", f"sqlite:///{tmp_path}/store.db")
    with closing(open_store(f"sqlite:///{tmp_path}/store.db")) as store:
        store.record("approve", model="m")
    assert mentions(said(onnxserve("audit export", f"{tmp_path}/log")), "no checkpoint")
