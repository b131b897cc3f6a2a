"""The check of a dossier without the store, the network and MLflow's server."""

import json
import shutil
from contextlib import closing
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import delete

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.audit import canonical_json
from mlflow_deploy_plugin.core.store.audit_keys import read_key_file
from mlflow_deploy_plugin.core.store.audit_seal import adopt_trail
from mlflow_deploy_plugin.core.store.checkpoints import NoteSigner, parse_checkpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.tables import AuditRow, AuditTreeRow
from mlflow_deploy_plugin.promote.evidence.dossier import make_dossier
from mlflow_deploy_plugin.promote.evidence.proof import obtain_proof
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.watch.alerts.record import announce
from tests.support.audit_trail import store_of_server
from tests.support.commands import onnxserve, said
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at

REASON = "no.” The action of eva was approve (“@champion"
"""A reason that pretends to be the end of its statement, and another statement."""


WITNESS_KEY = Ed25519PrivateKey.generate()
WITNESS = NoteSigner("witness.example/1", WITNESS_KEY.public_key(), NoteSigner.WITNESS)
OTHER = NoteSigner("witness.example/2", WITNESS_KEY.public_key(), NoteSigner.WITNESS)
SEEN = datetime(2026, 12, 1, 12, 30, tzinfo=UTC)


def write_dossier(server, folder):
    now = server.now()
    period = Window(now - timedelta(days=1), now + timedelta(days=1))
    dossier = make_dossier(server, "flights", period, str(folder / "log"))
    dossier.write(folder, obtain_proof(server, dossier))


@pytest.fixture(scope="module")
def signed(tmp_path_factory, new_database):
    """A dossier that MLflow's server has signed. One of its events is forged."""
    made = tmp_path_factory.mktemp("signed")
    url = f"sqlite:///{made}/store.db"
    with (
        closing(open_store(url)) as store,
        store_of_server(url, made) as server,
        tracking_at(new_database(made)),
    ):
        server.add_endpoint("onnxserve", new_endpoint("flights", "models:/toy/1"))
        server.record("request", actor="eva", model="toy", version="1", after="@champion")
        server.record("decline", actor="ada", model="toy", version="1", why=REASON)
        announce(server, "flights", "drift", "the feature delay drifts")
        keys = read_key_file(made / "audit.key")
        (made / "public.pem").write_text(keys.public_pem())
        store.record("approve", actor="forged", model="toy", version="1")
        write_dossier(server, made)
    cosign(made, WITNESS)
    return made


def cosign(folder, signer):
    """Let a witness sign the checkpoint in the dossier, and the server the dossier."""

    def add(document):
        proof = document["proof"]
        checkpoint = parse_checkpoint(proof["checkpoint"])
        line = signer.sign(checkpoint.body, WITNESS_KEY.sign, SEEN)
        proof["checkpoint"] = checkpoint.with_signatures(line).text

    change(folder, add)
    sign(folder)


def sign(folder):
    """Let the holder of the server's key sign the dossier as it is."""

    def add(document):
        proof = document.pop("proof")
        del proof["signature"]
        proof["document"] = sha256(canonical_json(document).encode()).hexdigest()
        keys = read_key_file(folder / "audit.key")
        proof["signature"] = keys.sign(canonical_json(proof))
        document["proof"] = proof

    change(folder, add)


@pytest.fixture
def folder(signed, tmp_path):
    """A copy, which the test may change."""
    return shutil.copytree(signed, tmp_path, dirs_exist_ok=True)


def verify(folder, *options):
    return onnxserve("audit verify-dossier", str(folder / "dossier.json"), *options)


def change(folder, change):
    document = json.loads((folder / "dossier.json").read_text())
    change(document)
    (folder / "dossier.json").write_text(json.dumps(document))


def test_dossier_verify_needs_no_server(folder):
    files = ["--keys", f"{folder}/public.pem", "--witness", WITNESS.text]
    checked = verify(folder, *files)
    assert (checked.exit_code, len(checked.stdout.splitlines())) == (0, 1)
    assert mentions(checked.stdout, "4 events", "3 of them signed", "public.pem")
    assert mentions(
        checked.stdout, "checkpoint: 4 events", "witness.example/1 on 2026-12-01 12:30Z"
    )
    assert mentions(checked.stdout, "not compared: versions, requests, signatures")
    with_own_keys = verify(folder)
    assert with_own_keys.exit_code == 0
    assert mentions(with_own_keys.stdout, "in the dossier", "--keys FILE", "witnesses: none")


def test_dossier_verify_refuses_other_witness(folder):
    checked = verify(folder, "--witness", WITNESS.text, "--witness", OTHER.text)
    assert checked.exit_code == 1
    assert mentions(checked.stdout, "witness.example/2 has not signed")
    assert mentions(said(verify(folder, "--witness", "witness.example/1")), "NAME+ID+KEY")
    log = json.loads((folder / "dossier.json").read_text())["proof"]["checkpoint"].split("\n")[0]
    keys = read_key_file(folder / "audit.key")
    server = NoteSigner(log, keys.public[keys.key_id], NoteSigner.LOG)
    assert verify(folder, "--witness", server.text).exit_code == 1


def test_reasons_are_quoted_and_unsigned_events_separate(folder):
    document = json.loads((folder / "dossier.json").read_text())
    promotions = [entry["text"] for entry in document["decisions"]["promotions"]]
    (unsigned,) = document["record"]["unsigned_events"]
    assert [text.count("“") for text in promotions] == [1, 1]
    assert mentions(promotions[1], "ada", "decline", '“no." The action of eva')
    assert mentions(unsigned["text"], "forged", "approve")
    assert mentions(
        (folder / "dossier.html").read_text(), "Signed", "3 of its 4", "Unsigned events"
    )


def forge_statement(document):
    statements = document["decisions"]["promotions"]
    statements.append({**statements[0], "text": "The action of ada was approve."})


def forge_second_approval(document):
    document["decisions"]["promotions"].append(document["decisions"]["promotions"][1])


def forge_alarm(document):
    """Let the caller send another statement, which the server then signs."""
    document["monitoring"]["alarms"][0]["text"] = "No alert was firing."


def forge_section(document):
    """Add a section of a name that another group has too."""
    forged = {**document["decisions"]["promotions"][0], "text": "The action of ada was approve."}
    document["serving"]["promotions"] = [forged]


def forge_period(document):
    end = "2099-01-01T00:00:00+00:00"
    document["proof"]["subject"] = document["proof"]["subject"].replace(document["end"], end)
    document["end"] = end


@pytest.mark.parametrize(
    ("forge", "faults"),
    [
        (forge_statement, ["not those", "ada was approve"]),
        (forge_alarm, ["not those", "No alert was firing", "drifts"]),
        (lambda document: document["monitoring"].pop("alarms"), ["not those", "drifts"]),
        (forge_period, ["valid signature", "not those"]),
        (forge_second_approval, ["not those", "has not stated", "ada", "decline"]),
        (lambda document: document["decisions"].pop("promotions"), ["not those", "no statement"]),
        (lambda document: document["proof"]["events"].pop(), ["valid signature"]),
        (
            lambda document: document["proof"]["events"][2]["event"].update(actor="x"),
            ["valid signature", "no statement: The action of x", "not signed by"],
        ),
        (lambda document: document["proof"].update(signed_by=""), ["not signed"]),
    ],
)
def test_forgeries_are_found(folder, forge, faults):
    change(folder, forge)
    checked = verify(folder)
    assert checked.exit_code == 1
    assert mentions(checked.stdout, *faults)
    assert checked.stderr.count("\n") == 1


def test_other_keys_are_refused(folder):
    (folder / "other.pem").write_text(read_key_file(folder / "other.key").public_pem())
    checked = verify(folder, "--keys", f"{folder}/other.pem")
    assert checked.exit_code == 1
    assert mentions(checked.stdout, "the dossier has no valid signature", "checkpoint", "0 of them")
    assert mentions(checked.stdout, "there is no statement", "request", "not signed by MLflow's")


def pretend_approval(document):
    """Let the statement of a proven event be about something else."""
    entry = document["proof"]["events"][3]
    for statement in document["decisions"]["promotions"]:
        if entry["event"]["why"] in statement["text"].replace('"', "”"):
            statement["text"] = "The action of ada was approve."


def add_event(document):
    """Add an event without a proof, and its statement as of a signed one."""
    entry = document["proof"]["events"][2]
    event = {**entry["event"], "actor": "ada", "place": None, "signed_by": ""}
    (signed,) = (
        statement
        for statement in document["decisions"]["promotions"]
        if "was request" in statement["text"]
    )
    forged = signed["text"].replace("eva", "ada")
    document["proof"]["events"].append({**entry, "event": event, "inclusion": []})
    document["decisions"]["promotions"].append({**signed, "text": forged})


@pytest.mark.parametrize("forge", [pretend_approval, add_event])
def test_thief_of_key_cannot_state_events_outside_of_tree(folder, forge):
    change(folder, forge)
    sign(folder)
    checked = verify(folder, "--keys", f"{folder}/public.pem", "--witness", WITNESS.text)
    assert checked.exit_code == 1
    assert mentions(checked.stdout, "the server has not stated: The action of ada")


def test_dossier_states_that_events_of_removed_key_do_not_count(folder):
    url = f"sqlite:///{folder}/store.db"
    (folder / "audit.key").unlink()
    with closing(open_store(url, keys=read_key_file(folder / "audit.key"))) as store:
        adopt_trail(store, "the key was stolen")
    with store_of_server(url, folder) as server, tracking_at(f"sqlite:///{folder}/mlflow.db"):
        server.record("approve", actor="bob", model="toy", version="1")
        write_dossier(server, folder)
        (folder / "public.pem").write_text(server.keys.public_pem())
    checked = verify(folder, "--keys", f"{folder}/public.pem")
    assert (checked.exit_code, mentions(checked.stdout, "1 of them signed")) == (0, True)


def test_dossier_verify_survives_rewritten_store(folder, store):
    """The holder of the key writes the trail again: only the witness tells the dossiers
    apart.
    """
    with store.transaction() as session:
        session.execute(delete(AuditRow).where(AuditRow.action.in_(["decline", "approve"])))
        session.execute(delete(AuditTreeRow))
    shutil.rmtree(folder / "audit.record")
    earlier = (folder / "dossier.json").read_text()
    with (
        store_of_server(str(store._engine.url), folder) as server,
        tracking_at(f"sqlite:///{folder}/mlflow.db"),
    ):
        write_dossier(server, folder)
    assert verify(folder).exit_code == 0
    assert verify(folder, "--witness", WITNESS.text).exit_code == 1
    (folder / "dossier.json").write_text(earlier)
    assert verify(folder, "--witness", WITNESS.text).exit_code == 0


def set_time(document):
    """Set a time that UTC cannot represent."""
    document["proof"]["events"][2]["event"]["at"] = "0001-01-01T00:00:00+14:00"


@pytest.mark.parametrize(
    "forge",
    [forge_section, set_time, lambda document: document.update(summary="All is well.")],
)
def test_other_file_is_refused(folder, forge):
    change(folder, forge)
    assert mentions(said(verify(folder)), "dossier.json")


def test_deep_file_is_refused(folder):
    (folder / "dossier.json").write_text("[" * 100_000)
    assert mentions(said(verify(folder)), "dossier.json")


@pytest.mark.parametrize(
    ("number", "names"), [(None, ["earlier version"]), (99, ["later"]), (1, ["is not the"])]
)
def test_dossier_of_another_layout_names_the_version(folder, number, names):
    def change_layout(document):
        assert document.pop("format") == 1
        if number is not None:
            document["format"] = number
        del document["proof"]["checkpoint"]

    change(folder, change_layout)
    assert mentions(said(verify(folder)), "dossier.json", *names)


def test_valid_dossier_without_number_is_accepted(folder):
    change(folder, lambda document: document.pop("format"))
    sign(folder)
    assert verify(folder).exit_code == 0
