"""Tests of `onnxserve audit history` and `adopt`."""

import json
import shutil
import sqlite3
from contextlib import closing
from datetime import timedelta

import pytest
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.audit_keys import read_key_file
from mlflow_deploy_plugin.core.store.audit_seal import seal
from mlflow_deploy_plugin.promote.evidence.proof import make_proof
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from tests.support.commands import done, onnxserve, said
from tests.support.refusals import mentions
from tests.support.stores import own_store

AUTH_OPTIONS = "default_permission = READ\nadmin_username = admin\nadmin_password = password1234"
OF_VERSION_8 = {"model": "delay", "version": "8", "actor": "ann"}


@pytest.fixture
def trail(store):
    """Record events of an endpoint and its model, and of another endpoint and model."""
    store.add_endpoint("onnxserve", new_endpoint("flights", "models:/delay/Production"))
    moved = {"version": "7", "before": "None", "after": "Production", "why": "gate passed"}
    store.record("transition", model="delay", actor="ann", **moved)
    traffic = {"before": "a 100", "after": "a 95, b 5", "detail": {"seconds": 0.4}}
    store.record("traffic", endpoint="flights", actor="ben", **traffic)
    store.record("rollout.end", endpoint="other", model="delay", version="8", actor="controller")
    store.record("transition", model="unrelated", version="1", after="Staging", actor="ann")
    return store


def history(options):
    return onnxserve(f"audit history {options}")


def documents(options):
    return [json.loads(line) for line in history(f"{options} -o jsonl").output.splitlines()]


def entries(lines):
    """Return the lines of events without their times."""
    return [line.partition("Z  ")[2] for line in lines if not line.startswith(" ")]


def test_endpoint_history_includes_its_model(trail):
    lines = history("flights").output.splitlines()
    assert entries(lines)[1:] == [
        "ann  transition  delay version 7: None → Production",
        "ben  traffic  flights: a 100 → a 95, b 5",
    ]
    assert "    why: gate passed" in lines
    assert "    seconds 0.4 s" in lines


def test_promotion_with_its_act_id_is_one_line(trail):
    # The gate ran separately, an hour earlier.
    trail.record("gate", after="passed", **OF_VERSION_8)
    act = {"act": "0123456789abcdef"}
    trail.record("gate", after="passed", detail=act, **OF_VERSION_8)
    trail.record("tag", model="delay", version="6", before="passed", detail={"tag": "x"})
    moved = act | {"moved": {"place": "Production", "before": "7"}}
    trail.record("transition", before="None", after="Production", detail=moved, **OF_VERSION_8)
    detail = {"to": "Production", "gate": "passed", "report": "http://mlflow/2", **moved}
    promoted = {"before": "version 7", "after": "version 8 in Production", "detail": detail}
    trail.record("promote", **promoted, **OF_VERSION_8)

    lines = history("flights").output.splitlines()

    gate, tag, promotion = entries(lines)[3:]
    assert gate == "ann  gate  delay version 8: – → passed"
    assert mentions(tag, "delay version 6")
    assert promotion == "ann  promote  delay version 8: version 7 → version 8 in Production"
    report = "report http://mlflow/2"
    assert lines[-1].strip().split(", ") == ["to Production", "gate passed", report]
    acts = [(entry["action"], entry["detail"].get("act")) for entry in documents("flights")[3:]]
    number = act["act"]
    assert acts == [
        ("gate", None),
        ("gate", number),
        ("tag", None),
        ("transition", number),
        ("promote", number),
    ]


def test_traffic_is_shown_whatever_its_reason(trail):
    trail.record("traffic", endpoint="flights", after="b 100", why="step 10 % of a rollout")
    assert mentions(history("flights").output, "b 100", "step 10 % of a rollout")


def test_json_has_every_field(trail):
    *_, traffic = documents("flights")
    assert traffic.pop("at").endswith("+00:00")
    assert traffic == {
        "actor": "ben",
        "action": "traffic",
        "endpoint": "flights",
        "model": "",
        "version": "",
        "before": "a 100",
        "after": "a 95, b 5",
        "why": "",
        "detail": {"seconds": 0.4},
    }


def test_events_are_filtered(trail):
    newest = json.loads(history("flights -o json --limit 2").output)
    assert [event["action"] for event in newest] == ["transition", "traffic"]
    assert [event["version"] for event in documents("--model delay")] == ["7", "8"]
    assert len(documents("")) == 5
    assert documents("--model tides") == []
    assert mentions(history("--model tides").output, "tides")


def tamper(tmp_path, statement):
    with closing(sqlite3.connect(tmp_path / "onnxserve.db")) as connection:
        connection.isolation_level = None
        connection.execute(statement)


DELETE = "DELETE FROM onnxserve_audit_events WHERE model = 'unrelated'"


def test_verify_finds_tampering(trail, tmp_path):
    unsigned = history("--verify")
    assert unsigned.exit_code == 1
    assert mentions(unsigned.stdout, "unsigned", "0 events", "0 of them")
    assert mentions(unsigned.stderr, "no event", "signed")
    sealed(read_key_file(tmp_path / "audit.pem"))
    assert history("--verify").exit_code == 0

    tamper(tmp_path, "UPDATE onnxserve_audit_events SET why = 'x' WHERE actor = 'ben'")
    changed = history("--verify")
    document = json.loads(history("--verify -o json").stdout)

    assert changed.exit_code == 1
    assert mentions(changed.stdout, "event 2", "traffic of flights by ben", "was changed")
    assert changed.stderr.count("\n") == 1
    assert document["state"] == "changed"
    assert len(document["faults"]) == 1
    assert history("--verify --model delay").exit_code == 2


@pytest.fixture
def keys(trail, tmp_path):
    """The keys with which the trail is signed, in `audit.pem`."""
    return read_key_file(tmp_path / "audit.pem")


def sealed(keys):
    """Sign the trail, and return its checkpoint."""
    with own_store(keys=keys) as store:
        seal(store)
        return store.trail_record.newest().checkpoint.text


def test_verify_names_unused_keys(keys, tmp_path):
    other = read_key_file(tmp_path / "other.pem")
    sealed(keys)
    (tmp_path / "public.pem").write_text(keys.public_pem() + other.public_pem())
    result = history(f"--verify --keys {tmp_path}/public.pem")
    assert result.exit_code == 1
    assert mentions(result.stdout, "intact", f"the key {other.key_id} has signed no event")


def test_verify_uses_keys_and_a_checkpoint(keys, tmp_path):
    (tmp_path / "checkpoint").write_text(sealed(keys))
    (tmp_path / "public.pem").write_text(keys.public_pem())
    options = f"--verify --keys {tmp_path}/public.pem --checkpoint {tmp_path}/checkpoint"
    intact = history(options)
    assert intact.exit_code == 0
    assert mentions(intact.stdout, "intact", "public.pem", "6 of them", "checkpoint: of 6 events")

    # The holder of the key writes another trail.
    for table in ("events", "leaves", "tree"):
        tamper(tmp_path, f"DELETE FROM onnxserve_audit_{table}")
    shutil.rmtree(tmp_path / "audit.record")
    sealed(keys)

    assert mentions(history(options).stdout, "changed", "6 events of an earlier checkpoint")
    assert history("--verify").exit_code == 0


def test_adopt_accepts_removed_events(keys, tmp_path, monkeypatch):
    adopt = "audit adopt --why restored"
    assert mentions(said(onnxserve(adopt)), "ONNXSERVE_AUDIT_KEY_FILE")
    monkeypatch.setenv("ONNXSERVE_AUDIT_KEY_FILE", str(tmp_path / "audit.pem"))
    sealed(keys)
    assert mentions(onnxserve(adopt).stdout, "nothing")
    tamper(tmp_path, DELETE)
    monkeypatch.chdir(tmp_path)
    address = "sqlite:///accounts.db"
    (tmp_path / "auth.ini").write_text(f"[mlflow]\ndatabase_uri = {address}\n{AUTH_OPTIONS}")
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(tmp_path / "auth.ini"))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "eva")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-password")
    assert mentions(said(onnxserve(adopt)), "eva", "accounts.db", "MLFLOW_AUTH_CONFIG_PATH")
    assert not (tmp_path / "accounts.db").exists()
    accounts = SqlAlchemyStore()
    accounts.init_db(address)
    accounts.create_user("eva", "correct-password")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another-password")
    assert mentions(said(onnxserve(adopt)), "eva", "MLFLOW_TRACKING_PASSWORD")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-password")

    accepted = done(adopt)

    assert mentions(accepted, "by eva", "removed (1)")
    assert mentions(onnxserve(adopt).stdout, "nothing")
    assert mentions(history("").stdout, "eva", "adopt", "restored")


def test_adopt_names_missing_events(keys, tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_AUDIT_KEY_FILE", str(tmp_path / "audit.pem"))
    sealed(keys)
    tamper(tmp_path, f"VACUUM INTO '{tmp_path}/backup.db'")
    with own_store(keys=keys) as store:
        for actor in ("ada", "ben"):
            store.record("traffic", endpoint="flights", actor=actor)
        period = Window(store.now() - timedelta(days=1), store.now() + timedelta(days=1))
        proof = make_proof(store, "flights", period, "", "eva")
        (tmp_path / "dossier.json").write_text(json.dumps({"proof": proof}))
        store.trail_record.spool(AuditEvent(store.now(), "eva", "alias", model="m"))
        store.record("update", actor="ada")
    for file in tmp_path.glob("onnxserve.db*"):
        file.unlink()
    shutil.copy(tmp_path / "backup.db", tmp_path / "onnxserve.db")

    lines = done(f"audit adopt --why restored --dossier {tmp_path}/dossier.json").splitlines()

    assert mentions(lines[0], "the last 3 of 9 events", "missing")
    assert lines[1] == "missing: 3 events, from 6 to 8"
    assert mentions(lines[2], "beside the key: 1 events")
    with own_store(keys=keys) as store:
        log = keys.signer_of(store.trail_record.newest().checkpoint)
    assert mentions(lines[3], log.text, "404")
    assert [mentions(line, "dossier.json", "traffic", "flights") for line in lines[4:]] == [
        True
    ] * 2


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--keys none.pem", ["none.pem", "--keys"]),
        ("--checkpoint none.json", ["none.json", "--checkpoint"]),
        (f"--keys {__file__}", ["Ed25519"]),
        (f"--checkpoint {__file__}", ["not a checkpoint"]),
    ],
)
def test_verify_refuses_unusable_files(trail, option, words):
    assert mentions(said(history(f"--verify {option}")), *words)
