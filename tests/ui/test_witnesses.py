"""Checkpoints of the audit trail at witnesses and in a folder."""

import multiprocessing
import os
import shutil
import threading
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import delete, select

from mlflow_deploy_plugin.core.errors import InvalidConfig, StoreUnavailable
from mlflow_deploy_plugin.core.store.audit import AuditEvent, event_row
from mlflow_deploy_plugin.core.store.audit_keys import read_key_file
from mlflow_deploy_plugin.core.store.audit_seal import verify_trail
from mlflow_deploy_plugin.core.store.audit_tree import add_events, new_tree
from mlflow_deploy_plugin.core.store.checkpoints import (
    NoteSigner,
    decoded,
    encoded,
    parse_checkpoint,
    parse_signer,
)
from mlflow_deploy_plugin.core.store.database import utc_now
from mlflow_deploy_plugin.core.store.tables import AuditRow
from mlflow_deploy_plugin.ui import witnesses
from mlflow_deploy_plugin.ui.witnesses import (
    configured_witnesses,
    cosigned_checkpoint,
    require_cosignatures,
    send_checkpoints,
    trail_faults,
    witness_states,
)
from tests.support.approvals import approve_all
from tests.support.audit_trail import store_of_server
from tests.support.clocks import Clock
from tests.support.console import POLICY
from tests.support.refusals import mentions, refused
from tests.support.tlog import FOLDER, NEEDS_TLOG
from tests.support.waiting import wait_until
from tests.support.witnesses import ForeignWitness, OwnWitness, scripted_witness

TRAIL = "/onnxserve/audit-trail"
SETTING = "ONNXSERVE_AUDIT_WITNESSES"


@pytest.fixture
def server(tmp_path):
    """The store of MLflow's server, with one event."""
    with store_of_server(f"sqlite:///{tmp_path}/store.db", tmp_path) as store:
        yield store


@pytest.fixture
def clock():
    return Clock(utc_now())


@pytest.fixture
def timed(tmp_path, clock):
    """The store of a server with this clock."""
    with store_of_server(f"sqlite:///{tmp_path}/store.db", tmp_path, clock) as store:
        yield store


@pytest.fixture
def scripted():
    with scripted_witness() as witness:
        yield witness


@pytest.fixture(params=[OwnWitness, pytest.param(ForeignWitness, marks=NEEDS_TLOG)])
def witness(tmp_path, request):
    (tmp_path / "witness").mkdir()
    running = request.param(tmp_path / "witness")
    yield running
    running.close()


@pytest.fixture
def send(monkeypatch):
    """Return a function that sends the checkpoints of a store to witnesses."""
    with ExitStack() as ends:

        def start(store, *receivers):
            monkeypatch.setenv(SETTING, " ".join(witness.setting for witness in receivers))
            ended = send_checkpoints(store)
            ends.callback(ended.set)
            return ended

        yield start


def newest(store):
    return store.trail_record.newest().checkpoint


def log_key(store):
    return store.keys.signer_of(newest(store)).text


def state(store, witness):
    return witness_states(store)[witness.name]


def fault(store, witness):
    """Wait until the witness has a fault, and return it."""
    return wait_until(lambda: state(store, witness)["fault"], what="a fault")


def cosigned(store, witness):
    """Wait until the witness has cosigned all events."""
    wait_until(lambda: state(store, witness)["size"] == newest(store).size, what="cosigned")


def test_witness_cosigns_each_growth(server, witness, send, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    tlog = pytest.importorskip("aics_tlog", reason="make install")
    witness.accept(log_key(server))
    send(server, witness)
    for _ in range(2):
        cosigned(server, witness)
        checkpoint = cosigned_checkpoint(server)
        verified = tlog.verify_checkpoint(
            tlog.parse_note(checkpoint.text),
            tlog.parse_vkey(log_key(server)),
            [tlog.parse_vkey(witness.vkey)],
            quorum=1,
        )
        assert verified.log_ok
        assert checkpoint.size == newest(server).size
        assert trail_faults(server) == []
        server.record("approve", model="fraud")


@NEEDS_TLOG
def test_unknown_log_is_a_fault_until_configured(server, tmp_path, send):
    with closing(ForeignWitness(tmp_path)) as witness:
        witness.start()
        send(server, witness)
        assert mentions(fault(server, witness), "404", "log")
        assert mentions(*trail_faults(server), witness.name)
        assert cosigned_checkpoint(server) == newest(server)
        witness.accept(log_key(server))
        cosigned(server, witness)
        assert trail_faults(server) == []


def write_again(server, growth):
    """Remove the approvals and write the trail again with the key, under the name of
    the log, as somebody on the server's machine.
    """
    record = server.trail_record
    with server.transaction() as session:
        session.execute(delete(AuditRow).where(AuditRow.action == "approve"))
        signers = {row.id: server.keys.key_id for row in session.scalars(select(AuditRow))}
        head = replace(record.newest(), edge=new_tree(session, signers))
        events = [AuditEvent(utc_now(), "eve", "update") for _ in range(growth)]
        rows = [event_row(session, event) for event in events]
        head = add_events(session, head, rows, server.keys)
    record.replace(head)


@pytest.mark.parametrize("growth", [2, 4, 9])
@pytest.mark.parametrize("is_state_removed", [False, True])
def test_rewritten_trail_is_refused_by_witness(
    tmp_path, witness, send, growth, is_state_removed, monkeypatch
):
    monkeypatch.setattr(witnesses, "_WAIT_SECONDS", 0.5)
    url = f"sqlite:///{tmp_path}/store.db"
    with store_of_server(url, tmp_path) as server:
        witness.accept(log_key(server))
        for _ in range(4):
            server.record("approve", model="fraud")
        ended = send(server, witness)
        cosigned(server, witness)
        ended.set()
        write_again(server, growth)
        if is_state_removed:
            shutil.rmtree(server.trail_record.folder / "witnesses")
    with store_of_server(url, tmp_path) as server:
        assert verify_trail(server).state == "intact"
        send(server, witness)
        server.record("approve", model="fraud")
        wait_until(lambda: trail_faults(server))
        assert mentions(*trail_faults(server), witness.name, "removed")
        assert cosigned_checkpoint(server) == newest(server)
        with refused(StoreUnavailable, witness.name):
            require_cosignatures(server, 1)


def test_lost_state_is_asked_from_the_witness(server, scripted, send):
    ended = send(server, scripted)
    cosigned(server, scripted)
    ended.set()
    for file in (server.trail_record.folder / "witnesses").iterdir():
        file.unlink()
    scripted.sizes = {newest(server).origin: 1}
    server.record("approve", model="fraud")
    send(server, scripted)
    cosigned(server, scripted)
    assert [old for old, _, _ in scripted.asked] == [0, 0, 1]


def test_trail_without_its_record_is_sent(server, scripted, send):
    checkpoint = newest(server)
    (server.trail_record.folder / "checkpoint.json").unlink()
    send(server, scripted)
    wait_until(lambda: state(server, scripted)["size"] == checkpoint.size)
    assert cosigned_checkpoint(server).body == checkpoint.body


LONG = "— witness.example/scripted " + "A" * 100_000 + "\n"


@pytest.mark.parametrize(
    ("answer", "is_reported", "names"),
    [
        ((400, "text/plain", ""), False, ("400",)),
        ((403, "text/plain", ""), True, ("403", "log")),
        ((404, "text/plain", ""), True, ("404", "log")),
        ((409, "text/x.tlog.size", "1\n"), True, ("409",)),
        ((409, "text/x.tlog.size", "999\n"), True, ("more",)),
        ((409, "text/x.tlog.size", "-1\n"), False, ("ValueError",)),
        ((409, "text/x.tlog.size", "9" * 5000), False, ("ValueError",)),
        ((422, "text/plain", ""), True, ("422",)),
        ((429, "text/plain", "", ("Retry-After", "99999")), False, ("429",)),
        ((500, "text/plain", "<script>"), False, ("500",)),
        ((200, "text/plain", ""), True, (SETTING,)),
        ((200, "text/plain", "— \n—\n\0\n— a b c\n"), False, ("ValueError",)),
        ((200, "text/plain", LONG), False, ("ChunkedEncodingError",)),
        ((307, "text/plain", "", ("Location", "http://127.0.0.1:1/")), False, ("307",)),
    ],
)
def test_answer_of_witness_is_a_fault(server, scripted, send, answer, is_reported, names):
    scripted.answer = answer
    send(server, scripted)
    assert mentions(fault(server, scripted), *names)
    assert any(scripted.name in line for line in trail_faults(server)) is is_reported
    assert (state(server, scripted)["size"], state(server, scripted)["at"]) == (0, "")
    scripted.answer = None
    cosigned(server, scripted)
    assert state(server, scripted)["fault"] == ""


def forged(witness, server):
    """Return a cosignature whose last bit is wrong."""
    line = witness.cosignature(newest(server)).removesuffix("\n")
    name, _, signature = line.rpartition(" ")
    content = bytearray(decoded(signature))
    content[-1] ^= 1
    return f"{name} {encoded(bytes(content))}\n"


def of_another_checkpoint(witness, server):
    return witness.cosignature(replace(newest(server), size=99))


@pytest.mark.parametrize("make", [forged, of_another_checkpoint])
def test_invalid_cosignature_is_not_kept(server, scripted, send, make):
    scripted.answer = (200, "text/plain", make(scripted, server))
    send(server, scripted)
    assert mentions(fault(server, scripted), SETTING)
    assert cosigned_checkpoint(server) == newest(server)


def test_only_the_cosignature_of_the_witness_is_kept(server, scripted, send):
    with scripted_witness("witness.example/other") as other:
        lines = other.cosignature(newest(server)) + scripted.cosignature(newest(server))
        scripted.answer = (200, "text/plain", lines)
        send(server, scripted)
        cosigned(server, scripted)
    checkpoint = cosigned_checkpoint(server)
    assert [line.partition(" ")[0] for line in checkpoint.signatures] == [
        checkpoint.origin,
        scripted.name,
    ]


def test_hanging_witness_delays_no_other(server, scripted, send):
    with scripted_witness("witness.example/hangs") as slow:
        slow.hangs = threading.Event()
        send(server, slow, scripted)
        for _ in range(2):
            cosigned(server, scripted)
            require_cosignatures(server, 1)
            server.record("approve", model="fraud")
        assert len(slow.asked) == 1


def test_drip_of_bytes_is_cut(server, scripted, send, monkeypatch):
    monkeypatch.setattr(witnesses, "_ANSWER_SECONDS", 0.5)
    scripted.drips = True
    send(server, scripted)
    assert mentions(fault(server, scripted), "ConnectionError")
    scripted.drips = False
    cosigned(server, scripted)


def test_missing_witness_is_a_fault_after_an_hour(timed, clock, scripted, send):
    scripted.answer = (503, "text/plain", "")
    since = clock.now
    send(timed, scripted)
    fault(timed, scripted)
    clock.now += timedelta(minutes=59)
    assert trail_faults(timed) == []
    clock.now += timedelta(minutes=1)
    assert mentions(*trail_faults(timed), scripted.name, f"{since:%H:%M}Z")
    scripted.answer = None
    cosigned(timed, scripted)
    assert trail_faults(timed) == []


def test_failing_witness_is_asked_less_often(timed, clock, scripted, send, monkeypatch):
    monkeypatch.setattr(witnesses, "_LOOK_SECONDS", 0.01)
    scripted.answer = (503, "text/plain", "")
    ended = send(timed, scripted)
    fault(timed, scripted)
    tried = []
    while (clock.now - scripted.asked[0][2]).total_seconds() < 200:
        clock.now += timedelta(seconds=2)
        if len(scripted.asked) > len(tried) + 1:
            tried.append(clock.now)
        threading.Event().wait(0.03)
    ended.set()
    pauses = [(later - at).total_seconds() for at, later in pairwise(tried)]
    assert pauses[0] <= 4
    assert 56 <= pauses[-1] <= 66


def test_growth_is_sent_at_most_once_per_second(server, scripted, send):
    send(server, scripted)
    for _ in range(30):
        server.record("approve", model="fraud")
        threading.Event().wait(0.05)
    cosigned(server, scripted)
    times = [at for _, _, at in scripted.asked]
    pauses = [later - at for at, later in pairwise(times)]
    assert min(pauses) >= timedelta(seconds=0.9)
    cosigned(server, scripted)
    assert len(scripted.asked) == len(times)


def work(folder, setting, ready, ended):
    """Send checkpoints like a worker of the server."""
    os.environ[SETTING] = setting
    with store_of_server(f"sqlite:///{folder}/store.db", folder) as store:
        send_checkpoints(store)
        ready.set()
        ended.wait()


def test_two_workers_send_each_checkpoint_once(tmp_path, server, scripted):
    context = multiprocessing.get_context("spawn")
    ended = context.Event()
    workers = []
    try:
        for _ in range(2):
            ready = context.Event()
            arguments = (tmp_path, scripted.setting, ready, ended)
            workers.append(context.Process(target=work, args=arguments))
            workers[-1].start()
            ready.wait()
        for _ in range(4):
            server.record("approve", model="fraud")
            size = newest(server).size
            wait_until(lambda size=size: scripted.asked and scripted.asked[-1][1].size >= size)
    finally:
        ended.set()
        for worker in workers:
            worker.join()
    sizes = [checkpoint.size for _, checkpoint, _ in scripted.asked]
    assert sizes == sorted({*sizes})


def test_checkpoint_with_most_cosignatures_is_published(server, scripted, send):
    with scripted_witness("witness.example/second") as second:
        send(server, scripted, second)
        cosigned(server, scripted)
        cosigned(server, second)
        both = cosigned_checkpoint(server)
        assert len(both.signatures) == 3
        for witness in (scripted, second):
            witness.answer = (503, "text/plain", "")
        assert cosigned_checkpoint(server) == both
        server.record("approve", model="fraud")
        assert cosigned_checkpoint(server) == both
        fault(server, second)
        fault(server, scripted)
        assert cosigned_checkpoint(server) == newest(server)
        scripted.answer = None
        waited = cosigned_checkpoint(server, 30)
        assert waited.size == newest(server).size


def test_new_key_of_the_log_begins_at_zero(tmp_path, scripted, send):
    url = f"sqlite:///{tmp_path}/store.db"
    with store_of_server(url, tmp_path) as server:
        ended = send(server, scripted)
        cosigned(server, scripted)
        ended.set()
        public = server.keys.public_pem()
    (tmp_path / "audit.key").unlink()
    key = read_key_file(tmp_path / "audit.key")
    with (tmp_path / "audit.key").open("a") as file:
        file.write(public)
    with store_of_server(url, tmp_path) as server:
        send(server, scripted)
        cosigned(server, scripted)
        assert newest(server).origin.endswith(key.key_id)
    assert [old for old, _, _ in scripted.asked] == [0, 0]


KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([number] * 32)) for number in range(2)]
SIGNER = NoteSigner("witness.example/1", KEYS[0].public_key(), NoteSigner.WITNESS)
OF_LOG = replace(SIGNER, kind=NoteSigner.LOG).text
OTHER_NAME = replace(SIGNER, name="witness.example/2").text
OTHER_KEY = replace(SIGNER, key=KEYS[1].public_key()).text


@pytest.mark.parametrize(
    "setting",
    [
        "https://witness.example",
        SIGNER.text,
        f"ftp://witness.example#{SIGNER.text}",
        f"file:///etc/passwd#{SIGNER.text}",
        f"https://#{SIGNER.text}",
        f"https://ada:secret@witness.example#{SIGNER.text}",
        f"https://witness.example/?a=b#{SIGNER.text}",
        f"https://witness.example#{OF_LOG}",
        f"https://witness.example#{SIGNER.text[:-4]}AAA=",
        f"https://witness.example#{SIGNER.text} https://two.example#{SIGNER.text}",
        f"https://witness.example#{SIGNER.text} https://two.example#{OTHER_NAME}",
        f"https://witness.example#{SIGNER.text} https://two.example#{OTHER_KEY}",
    ],
)
def test_invalid_witnesses_are_refused(setting, monkeypatch):
    monkeypatch.setenv(SETTING, setting)
    with refused(InvalidConfig, SETTING) as raised:
        configured_witnesses()
    assert "\n" not in str(raised.value)


def test_witnesses_are_read_from_the_setting(monkeypatch):
    monkeypatch.setenv(SETTING, f" https://witness.example/path/#{SIGNER.text}\n")
    ((name, witness),) = configured_witnesses().items()
    assert (name, witness.url) == (SIGNER.name, "https://witness.example/path")
    assert witness.signer == parse_signer(SIGNER.text, "it")


@pytest.fixture
def worm(tmp_path, monkeypatch):
    """The folder of the checkpoints."""
    monkeypatch.setenv("ONNXSERVE_AUDIT_CHECKPOINTS", str(tmp_path / "worm"))
    return tmp_path / "worm"


def test_checkpoint_is_written_once_per_hour(timed, clock, worm, send):
    for _ in range(2):  # a worker that starts later
        ended = send(timed)
        wait_until(lambda: worm.is_dir() and [*worm.iterdir()])
        timed.record("approve", model="fraud")
        ended.set()
    first = newest(timed)
    clock.now += timedelta(hours=1)
    ended = send(timed)
    wait_until(lambda: len([*worm.iterdir()]) == 2)
    ended.set()
    assert max(worm.iterdir()).read_text() == first.text
    assert parse_checkpoint(min(worm.iterdir()).read_text()).size < first.size


def test_checkpoint_is_written_to_a_bucket(server, bucket, send, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_AUDIT_CHECKPOINTS", "s3://worm/trail")
    send(server)
    wait_until(lambda: bucket.objects)
    ((name, content),) = bucket.objects.items()
    assert name.startswith("worm/trail/20")
    assert content.decode() == newest(server).text
    (headers,) = bucket.headers_of("PUT", name)
    assert headers["if-none-match"] == "*"  # An older checkpoint is never replaced.


def test_folder_that_cannot_be_written_is_a_fault(timed, clock, send, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_AUDIT_CHECKPOINTS", "/proc/no/folder")
    send(timed)
    folder = timed.trail_record.folder / "witnesses"
    wait_until(lambda: folder.is_dir() and [*folder.glob("*.json")])
    clock.now += timedelta(hours=1)
    assert mentions(*trail_faults(timed), "ONNXSERVE_AUDIT_CHECKPOINTS")


@pytest.fixture
def app_witness(mlflow_app, scripted, send):
    """A witness of the app's server."""
    send(mlflow_app.store, scripted)
    return scripted


def test_witnesses_are_published(mlflow_app, app_witness):
    cosigned(mlflow_app.store, app_witness)
    published = mlflow_app.client.get(TRAIL).json
    checkpoint = parse_checkpoint(published["checkpoint"])
    assert checkpoint.size == newest(mlflow_app.store).size
    assert len(checkpoint.signatures) == 2
    assert published["keys"] == mlflow_app.store.keys.public_pem()
    assert "PRIVATE" not in str(published)
    assert parse_signer(published["log"], "it").signed_at(checkpoint)
    witness = published["witnesses"][app_witness.name]
    assert (witness["size"], witness["fault"]) == (checkpoint.size, "")
    assert witness["at"] == app_witness.signer.signed_at(checkpoint).isoformat()
    page = mlflow_app.client.get("/onnxserve/history").text
    assert app_witness.name in page


def test_app_sends_checkpoints_of_its_stores(mlflow_app, scripted, tmp_path, monkeypatch):
    monkeypatch.setenv(SETTING, scripted.setting)
    monkeypatch.setenv("ONNXSERVE_STORE_URI", f"sqlite:///{tmp_path}/store.db")
    with mlflow_app.app.app_context():
        store = mlflow_app.app.extensions["onnxserve"].store()
    cosigned(store, scripted)


def test_page_escapes_a_witness(mlflow_app, send):
    with scripted_witness("<script>alert(1)</script>") as witness:
        send(mlflow_app.store, witness)
        cosigned(mlflow_app.store, witness)
        page = mlflow_app.client.get("/onnxserve/history").text
    assert "&lt;script&gt;alert" in page
    assert "<script>alert" not in page


WITNESSED = f"{POLICY}\nwitnessed: 1"


@pytest.fixture
def model(mlflow_app):
    """A model that requires a witness, and whose version 1 has passed the gate."""
    model = mlflow_app.model(WITNESSED)
    model.passed("1")
    return model


def actions(model):
    events = model.mlflow.store.events(model=model)
    return [event.action for event in events if event.action in ("intend", "failed", "transition")]


def test_move_waits_for_a_witness(model, app_witness):
    assert model.enter("1") == 200
    assert actions(model) == ["intend", "intend", "transition"]
    store = model.mlflow.store
    intended = select(AuditRow.place).where(AuditRow.model == model, AuditRow.action == "intend")
    with store.reading() as session:
        place = session.scalar(intended)
    assert any(checkpoint.size > place for _, checkpoint, _ in app_witness.asked)


def enter(model):
    assert model.enter("1") == 200


def approve(model):
    assert model.set_policy(f"{WITNESSED}\napprovals: {{count: 2, groups: [risk]}}") == 200
    approve_all(model.mlflow.store, model.promotion())


def move_past_app(model):
    model.mlflow.registry.set_registered_model_alias(model, "champion", "1")


def promote_later_version(model):
    model.passed("2")
    for version in ("1", "2"):
        assert model.enter(version, "@champion") == 200
    model.passed("1", gate="failed")


@pytest.mark.parametrize(
    ("prepare", "place"),
    [
        (enter, "Archived"),
        (approve, "Production"),
        (move_past_app, "@champion"),
        (promote_later_version, "@champion"),
    ],
)
def test_gated_move_waits_for_a_witness(model, app_witness, prepare, place, monkeypatch):
    prepare(model)
    model.mlflow.store.record("approve", model="other")
    monkeypatch.setattr(witnesses, "_WAIT_SECONDS", 1.0)
    app_witness.answer = (503, "text/plain", "")
    assert model.enter("1", place) == 503
    app_witness.answer = None
    wait_until(lambda: model.enter("1", place) == 200)


def test_move_without_a_witness_is_refused(model, app_witness, monkeypatch):
    monkeypatch.setattr(witnesses, "_WAIT_SECONDS", 1.0)
    app_witness.answer = (503, "text/plain", "")
    answer = model.ask("1")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert mentions(answer.json["message"], app_witness.name, "witnessed")
    assert model.stage("1") == "None"
    assert actions(model) == ["intend", "failed"]
    assert model.mlflow.store.counted_events(model, ("transition",)) == []
    app_witness.answer = None
    wait_until(lambda: model.enter("1") == 200)


def test_more_witnesses_than_configured_is_refused(mlflow_app, app_witness):
    model = mlflow_app.model(f"{POLICY}\nwitnessed: 2")
    model.passed("1")
    assert mentions(model.refusal("1"), SETTING, "2", "1")
    assert actions(model) == []
    assert model.set_policy(WITNESSED) == 200
    model.passed("1")
    assert model.enter("1") == 200


def test_files_changed_while_waiting_are_refused(model, app_witness):
    app_witness.hangs = threading.Event()
    asked = len(app_witness.asked)
    answer = []
    move = threading.Thread(target=lambda: answer.append(model.ask("1")))
    move.start()
    wait_until(lambda: "intend" in actions(model) and len(app_witness.asked) > asked)
    (model.files("1") / "MLmodel").write_text("model_id: another")
    app_witness.hangs.set()
    move.join()
    assert (answer[0].status_code, model.stage("1")) == (503, "None")
    assert actions(model) == ["intend", "failed"]


def test_ungated_moves_do_not_wait(model, monkeypatch):
    monkeypatch.setenv(SETTING, "")
    assert model.enter("1", "Staging") == 200
