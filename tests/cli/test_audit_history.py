"""Tests of the output of `onnxserve audit history`."""

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.audit_keys import read_key_file
from mlflow_deploy_plugin.core.store.audit_seal import seal
from mlflow_deploy_plugin.core.store.checkpoints import make_checkpoint
from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.clocks import Clock
from tests.support.commands import said
from tests.support.refusals import mentions


@pytest.fixture
def trail(tmp_path, monkeypatch):
    """Record events of an endpoint and its model, and of another endpoint and model."""
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path))
    store = open_store(load_settings().store_url)
    store.add_endpoint("onnxserve", new_endpoint("flights", "models:/delay/Production"))
    store.record(
        "transition",
        model="delay",
        version="7",
        before="None",
        after="Production",
        actor="ann",
        why="gate passed",
    )
    store.record(
        "traffic",
        endpoint="flights",
        before="a 100",
        after="a 95, b 5",
        detail={"seconds": 0.4},
        actor="ben",
    )
    store.record("rollout.end", endpoint="other", model="delay", version="8", actor="controller")
    store.record("transition", model="unrelated", version="1", after="Staging", actor="ann")
    store.close()


def audit(*arguments):
    return CliRunner().invoke(main, ["audit", *arguments])


def history(*arguments):
    return audit("history", *arguments)


def test_an_endpoint_has_its_own_history_and_that_of_its_model(trail):
    lines = history("flights").output.splitlines()
    entries = [line.partition("Z  ")[2] for line in lines if not line.startswith(" ")]
    assert entries[1:] == [
        "ann  transition  delay version 7: None → Production",
        "ben  traffic  flights: a 100 → a 95, b 5",
    ]
    assert "    why: gate passed" in lines
    assert "    seconds 0.4 s" in lines


def test_a_step_of_a_rollout_is_one_line(trail):
    store = open_store(load_settings().store_url)
    store.record(
        "traffic",
        endpoint="flights",
        before="a 100",
        after="a 90, b 10",
        why="step 10 % of a rollout",
    )
    figures = {"rollout": 1, "state": "stepping"}
    store.record(
        "rollout.step", endpoint="flights", version="7", before="0 %", after="10 %", detail=figures
    )
    store.close()
    lines = history("flights", "--limit", "2").output.splitlines()
    assert [line.partition("  rollout.step  ")[2] for line in lines] == [
        "flights version 7: 0 % → 10 %"
    ]


def test_a_promotion_is_one_line_with_all_that_was_done_for_it(trail):
    store = open_store(load_settings().store_url)
    verdict = {"model": "delay", "version": "8", "actor": "ann"}
    # The gate ran separately, an hour earlier.
    store.record("gate", after="passed", detail={"report": "http://mlflow/1"}, **verdict)
    begun = store.now().isoformat()
    store.record(
        "gate",
        before="models:/delay/7",
        after="passed",
        detail={"report": "http://mlflow/2"},
        **verdict,
    )
    for tag in ("onnxserve.gate", "onnxserve.gate_policy_digest"):
        store.record("tag", after="passed", detail={"tag": tag}, **verdict)
    store.record(
        "tag", model="delay", version="6", before="passed", detail={"tag": "onnxserve.gate"}
    )
    store.record(
        "transition", before="None", after="Production", detail={"stood_there": "7"}, **verdict
    )
    detail = {"to": "Production", "gate": "passed", "report": "http://mlflow/2", "begun": begun}
    store.record(
        "promote", before="version 7", after="version 8 in Production", detail=detail, **verdict
    )
    store.close()
    lines = history("flights").output.splitlines()
    assert [line.partition("Z  ")[2] for line in lines if not line.startswith(" ")][3:] == [
        "ann  gate  delay version 8: – → passed",
        next(line.partition("Z  ")[2] for line in lines if "delay version 6" in line),
        "ann  promote  delay version 8: version 7 → version 8 in Production",
    ]
    assert lines[-1].strip().split(", ") == [
        "to Production",
        "gate passed",
        "report http://mlflow/2",
    ]
    actions = [
        json.loads(line)["action"] for line in history("flights", "-o", "jsonl").output.splitlines()
    ]
    assert actions[3:] == ["gate", "gate", "tag", "tag", "tag", "transition", "promote"]


def test_control_characters_in_typed_text_stay_on_one_line(trail):
    store = open_store(load_settings().store_url)
    store.record("tag", model="delay", before="a: 1\nb: 2", why="\x1b[2J gone")
    store.close()
    assert history("--model", "delay", "--limit", "1").output.splitlines()[1:] == [
        "    why:  [2J gone"
    ]
    assert (
        history("--model", "delay", "--limit", "1")
        .output.splitlines()[0]
        .endswith("tag  delay: a: 1 b: 2 → –")
    )


def test_json_lines_hold_every_field(trail):
    lines = [json.loads(line) for line in history("flights", "-o", "jsonl").output.splitlines()]
    assert [line["action"] for line in lines] == ["create", "transition", "traffic"]
    assert lines[2] | {"at": ""} == {
        "at": "",
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
    assert lines[2]["at"].endswith("+00:00")


def test_json_is_one_document_and_the_newest_can_be_asked_for(trail):
    assert [
        event["action"]
        for event in json.loads(history("flights", "-o", "json", "--limit", "2").output)
    ] == ["transition", "traffic"]


def test_a_model_and_everything_can_be_asked_for(trail):
    assert [
        json.loads(line)["version"]
        for line in history("--model", "delay", "-o", "jsonl").output.splitlines()
    ] == ["7", "8"]
    assert len(history("-o", "jsonl").output.splitlines()) == 5


def test_deleted_endpoint_keeps_its_history_and_that_of_its_model(trail):
    store = open_store(load_settings().store_url)
    store.remove_endpoint("flights")
    store.close()
    actions = [
        json.loads(line)["action"] for line in history("flights", "-o", "jsonl").output.splitlines()
    ]
    assert actions == ["create", "transition", "traffic", "delete"]


def test_an_endpoint_that_never_was_is_one_line_and_exit_status_1(trail):
    result = history("flihgts", "-o", "jsonl")
    assert mentions(said(result), "'flihgts'", "'flights'")


def test_model_without_a_history_gets_a_message_naming_it(trail):
    assert mentions(history("--model", "tides").output, "tides")
    assert history("--model", "tides", "-o", "jsonl").output == ""


def tamper(tmp_path, statement):
    with closing(sqlite3.connect(tmp_path / "onnxserve.db")) as connection, connection:
        connection.execute(statement)


def test_verify_finds_tampering(trail, tmp_path):
    unsigned = history("--verify")
    assert unsigned.exit_code == 1
    assert mentions(unsigned.stdout, "unsigned", "5 events", "0 of them")
    assert mentions(unsigned.stderr, "no event", "signed")

    tamper(tmp_path, "UPDATE onnxserve_audit_events SET why = 'x' WHERE actor = 'ben'")
    changed = history("--verify")
    document = json.loads(history("--verify", "-o", "json").stdout)

    assert changed.exit_code == 1
    assert mentions(changed.stdout, "event 3", "traffic of flights by ben", "was changed")
    assert changed.stderr.count("\n") == 1
    assert document["state"] == "changed"
    assert len(document["faults"]) == 1
    assert json.loads(history("--verify", "--model", "delay", "-o", "json").stdout)["faults"] == []


def test_verify_names_keys_that_signed_nothing(trail, tmp_path):
    keys = read_key_file(tmp_path / "audit.pem")
    other = read_key_file(tmp_path / "other.pem")
    with closing(open_store(load_settings().store_url, keys=keys)) as store:
        seal(store)
    (tmp_path / "public.pem").write_text(keys.public_pem() + other.public_pem())
    result = history("--verify", "--keys", str(tmp_path / "public.pem"))
    assert result.exit_code == 1
    assert mentions(result.stdout, "intact", f"the key {other.key_id} has signed no event")


def test_verify_with_keys_and_a_checkpoint(trail, tmp_path):
    keys = read_key_file(tmp_path / "audit.pem")
    with closing(open_store(load_settings().store_url, keys=keys)) as store:
        seal(store)
        checkpoint = make_checkpoint(store, keys).model_dump_json()
    (tmp_path / "public.pem").write_text(keys.public_pem())
    (tmp_path / "latest.json").write_text(checkpoint)
    options = ("--keys", f"{tmp_path}/public.pem", "--checkpoint", f"{tmp_path}/latest.json")
    intact = history("--verify", *options)
    assert intact.exit_code == 0
    assert mentions(intact.stdout, "intact", "public.pem", "3 of them")

    tamper(tmp_path, "DELETE FROM onnxserve_audit_events WHERE model = 'unrelated'")

    assert mentions(history("--verify", *options).stdout, "changed", "checkpoint")


@pytest.mark.parametrize(
    ("sealed", "age", "words"),
    [
        (9, timedelta(hours=2), []),
        (9, timedelta(hours=4), ["newest checkpoint", "is late"]),
        (9, -timedelta(days=30_000), ["newest checkpoint", "is late"]),
        (9, None, ["newest checkpoint", "is missing"]),
        (1, None, []),
    ],
)
def test_verify_needs_a_timely_checkpoint(trail, tmp_path, sealed, age, words):
    keys = read_key_file(tmp_path / "audit.pem")
    options = ["--verify"]
    start = Clock(datetime.now(UTC) - timedelta(hours=sealed))
    with closing(open_store(load_settings().store_url, start, keys=keys)) as store:
        seal(store)
    if age is not None:
        clock = Clock(datetime.now(UTC) - age)
        with closing(open_store(load_settings().store_url, clock, keys=keys)) as store:
            checkpoint = make_checkpoint(store, keys).model_dump_json()
        (tmp_path / "latest.json").write_text(checkpoint)
        options += ["--checkpoint", f"{tmp_path}/latest.json"]
    verified = history(*options)
    assert (verified.exit_code, mentions(verified.stdout, *words)) == (int(bool(words)), True)


def test_adopt_accepts_removed_events(trail, tmp_path, monkeypatch):
    adopt = ("adopt", "--why", "restored")
    assert mentions(said(audit(*adopt)), "ONNXSERVE_AUDIT_KEY_FILE")
    monkeypatch.setenv("ONNXSERVE_AUDIT_KEY_FILE", str(tmp_path / "audit.pem"))
    keys = read_key_file(tmp_path / "audit.pem")
    with closing(open_store(load_settings().store_url, keys=keys)) as store:
        seal(store)
    assert mentions(audit(*adopt).stdout, "nothing")
    tamper(tmp_path, "DELETE FROM onnxserve_audit_events WHERE model = 'unrelated'")

    accepted = audit(*adopt)

    assert (accepted.exit_code, mentions(accepted.stdout, "unrelated")) == (0, True)
    assert mentions(audit(*adopt).stdout, "nothing")
    assert "restored" in history("--model", "unrelated").stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--keys", "none.pem"], ["none.pem", "--keys"]),
        (["--checkpoint", "none.json"], ["none.json", "--checkpoint"]),
        (["--keys", __file__], ["Ed25519"]),
        (["--checkpoint", __file__], ["not a checkpoint"]),
    ],
)
def test_verify_refuses_files_that_it_cannot_use(trail, options, words):
    assert mentions(said(history("--verify", *options)), *words)


def test_verify_checks_no_single_endpoint(trail):
    assert history("flights", "--verify").exit_code == 2
