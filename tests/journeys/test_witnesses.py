"""A record that strangers can check: two witnesses, one of them by other people, and a
trail that the holder of the key writes again.
"""

from dataclasses import replace

import pytest
import requests
from mlflow import MlflowClient
from sqlalchemy import delete, select

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.alerts import Alerts
from mlflow_deploy_plugin.core.store.audit import AuditEvent, event_row
from mlflow_deploy_plugin.core.store.audit_keys import read_key_file
from mlflow_deploy_plugin.core.store.audit_tree import add_events, new_tree
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.tables import AuditRow
from mlflow_deploy_plugin.watch.controller.service import announce_trail_faults
from tests.support.moves import MODEL, POLICY, judged_model
from tests.support.refusals import mentions
from tests.support.tlog import NEEDS_TLOG
from tests.support.tracking import tracking_at
from tests.support.waiting import wait_until
from tests.support.witnesses import ForeignWitness, OwnWitness

pytestmark = [pytest.mark.long, NEEDS_TLOG]


@pytest.fixture
def witnesses(tmp_path):
    folders = [tmp_path / name for name in ("ours", "theirs")]
    for folder in folders:
        folder.mkdir()
    started = [OwnWitness(folders[0]), ForeignWitness(folders[1], "witness.example/2")]
    yield started
    for witness in started:
        witness.close()


def published(model):
    return requests.get(f"{model.server.url}/onnxserve/audit-trail", timeout=30).json()


def demand_witnesses(model, witnesses):
    """Let the server and the policy of the model name the witnesses."""
    log = published(model)["log"]
    for witness in witnesses:
        witness.accept(log)
    server = model.server
    server.variables["ONNXSERVE_AUDIT_WITNESSES"] = " ".join(
        witness.setting for witness in witnesses
    )
    server.kill()
    server.start()
    policy = f"{POLICY}\nwitnessed: 2"
    MlflowClient(server.url, server.url).set_registered_model_tag(
        MODEL, "onnxserve.gate.policy", policy
    )
    for version in ("1", "2"):
        judged = model.run("gate", f"models:/{MODEL}/{version}")
        assert judged.returncode == 0, judged.stderr


def write_again(store, keys):
    """Remove a move from the trail, and sign another tree of the same log."""
    with store.transaction() as session:
        session.execute(delete(AuditRow).where(AuditRow.action == "alias"))
        signers = dict.fromkeys(session.scalars(select(AuditRow.id)), keys.key_id)
        head = replace(store.trail_record.newest(), edge=new_tree(session, signers))
        event = AuditEvent(store.now(), "eva", "alias", model=MODEL, version="2")
        head = add_events(session, head, [event_row(session, event)], keys)
    store.trail_record.replace(head)


def test_witnesses_refuse_rewritten_trail(tmp_path, witnesses):
    with judged_model(tmp_path) as model:
        demand_witnesses(model, witnesses)
        keys = read_key_file(tmp_path / "key" / "audit.pem")
        store = open_store(f"sqlite:///{tmp_path}/home/onnxserve.db", keys=keys)
        store.add_endpoint("onnxserve", new_endpoint("flights", f"models:/{MODEL}@champion"))
        assert model.move("@champion", "1") == 200
        expected = [argument for each in witnesses for argument in ("--witness", each.vkey)]

        def dossier(name):
            """Write a dossier, and return the command that verifies it."""
            folder = str(tmp_path / name)
            period = f"{store.now():%Y}"
            made = model.run("audit", "dossier", "flights", "--period", period, "--folder", folder)
            assert made.returncode == 0, made.stderr
            return ("audit", "verify-dossier", f"{folder}/dossier.json", *expected)

        yesterday = dossier("yesterday")
        assert model.run(*yesterday).returncode == 0

        model.server.kill()
        write_again(store, keys)
        model.server.start()

        assert model.move("@champion", "2") == 503
        faults = wait_until(lambda: published(model)["faults"], 60, "the server reports a fault")
        assert mentions(" ".join(faults), *(witness.name for witness in witnesses))
        with tracking_at(model.server.url):
            announce_trail_faults(store)
        lines = [line for alert in Alerts(store).recent() for line in alert.detail["lines"]]
        assert mentions(" ".join(lines), *(witness.name for witness in witnesses))
        assert model.run(*yesterday).returncode == 0
        assert model.run(*dossier("today")).returncode == 1
        store.close()
