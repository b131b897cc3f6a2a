"""The witness of audit trails: each answer of tlog-witness, its state on the disk, and
another implementation as its client.
"""

import http.client
import os
import socket
import stat
import threading
import time
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256

import pytest
import requests
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from hypothesis import example, given
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.store.checkpoints import (
    NoteSigner,
    encoded,
    parse_checkpoint,
    parse_signature,
    parse_signer,
)
from mlflow_deploy_plugin.core.store.merkle import Edge
from mlflow_deploy_plugin.promote.evidence.witness import Witness
from tests.support.clocks import Clock
from tests.support.refusals import refused
from tests.support.tlog import FOLDER, NEEDS_TLOG, Log
from tests.support.waiting import free_port, wait_until
from tests.support.witnesses import OwnWitness

NAME = "witness.example/1"
NOW = datetime(2026, 12, 1, 9, 30, tzinfo=UTC)
OTHER = bytes(32)


@pytest.fixture
def log():
    return Log().grow(9)


@pytest.fixture
def clock():
    return Clock(NOW)


@pytest.fixture
def witness(tmp_path, log, clock):
    return Witness(tmp_path, NAME, [log.signer.text], clock)


def add(witness, body):
    answer = witness.respond("POST", "/add-checkpoint", body)
    return answer.status, answer.body


def path_of(log):
    return f"/{sha256(log.name.encode()).hexdigest()}/checkpoint"


def cosigned(witness, log):
    """Return the last cosigned checkpoint, as the witness serves it."""
    answer = witness.respond("GET", path_of(log), b"")
    return answer.status == 200 and parse_checkpoint(answer.body.decode())


def test_witness_cosigns_growing_checkpoints_with_the_time(witness, log, clock):
    for old, size in [(0, 0), (0, 3), (3, 4), (4, 4), (4, 9)]:
        clock.pass_by(minutes=1)
        status, body = add(witness, log.request(old, size))
        checkpoint = log.checkpoint(size)
        line = parse_signature(body.decode().removesuffix("\n"))
        signed = checkpoint.with_signatures(line)
        assert (status, witness.signer.signed_at(signed)) == (200, clock.now)
        assert cosigned(witness, log) == signed
    assert len(signed.signatures) == 2


def test_witness_serves_no_checkpoint_before_the_first(witness, log):
    assert not cosigned(witness, log)
    assert not cosigned(witness, Log("other"))
    assert witness.respond("POST", path_of(log), b"").status == 404
    assert witness.respond("GET", "/add-checkpoint", b"").status == 404


ANSWERS = {
    "old size too small": (409, lambda log: log.request(2)),
    "old size zero": (409, lambda log: log.request(0)),
    "old size of another checkpoint": (409, lambda log: log.request(5)),
    "older checkpoint": (409, lambda log: log.request(2, 3)),
    "fork with another old size": (409, lambda log: log.fork(4).request(0)),
    "old size above the checkpoint": (400, lambda log: log.request(4, 3)),
    "same size with another root": (422, lambda log: log.fork(4).request(4)),
    "same size with a proof": (422, lambda log: log.request(4, 4, [OTHER])),
    "longer fork": (422, lambda log: log.fork(9).request(4)),
    "no proof": (422, lambda log: log.request(4, proof=[])),
    "another proof": (422, lambda log: log.request(4, proof=[OTHER] * 3)),
    "unknown log": (404, lambda log: Log("unknown", log.key).grow(9).request(4)),
    "another key": (403, lambda log: Log(log.name).grow(9).request(4)),
    "64 hashes": (400, lambda log: log.request(4, proof=[OTHER] * 64)),
    "short hash": (400, lambda log: log.request(4, proof=[b"short"])),
    "empty body": (400, lambda log: b""),
    "no old size": (400, lambda log: log.request(4).partition(b"\n")[2]),
    "leading zero": (400, lambda log: log.request(4).replace(b"old 4", b"old 04")),
    "negative old size": (400, lambda log: log.request(4).replace(b"old 4", b"old -4")),
    "carriage returns": (400, lambda log: log.request(4).replace(b"\n", b"\r\n")),
    "no signature": (400, lambda log: log.request(4).rpartition(b"\n\n")[0] + b"\n\n"),
    "no end of the last line": (400, lambda log: log.request(4)[:-1]),
    "not UTF-8": (400, lambda log: log.request(4) + b"\xff"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_witness_answers_a_refused_checkpoint(witness, log, case):
    status, make = ANSWERS[case]
    add(witness, log.request(0, 4))
    before = cosigned(witness, log)
    answer = witness.respond("POST", "/add-checkpoint", make(log))
    assert answer.status == status
    if status == 409:
        assert (answer.body, answer.content_type) == (b"4\n", "text/x.tlog.size")
    assert cosigned(witness, log) == before
    assert add(witness, log.request(4, 9))[0] == 200


def test_witness_refuses_a_first_checkpoint_with_a_proof(witness, log):
    assert add(witness, log.request(0, 4, [OTHER]))[0] == 422
    assert add(witness, log.request(0, 0, root=OTHER))[0] == 422
    assert not cosigned(witness, log)


def test_witness_refuses_a_checkpoint_with_an_invalid_log_signature(witness, log):
    """Signatures of unknown keys do not count; each of a known key must be valid."""
    body = log.request(0, 4).decode()
    unknown = Log("unknown").signer
    line = unknown.sign("", Log("unknown").key.sign)
    assert add(witness, f"{body}— {line}\n".encode())[0] == 200
    names = [line.partition(" ")[0] for line in cosigned(witness, log).signatures]
    assert names == [log.name, NAME]
    body = log.request(4, 9).decode()
    forged = encoded(log.signer.key_id + bytes(64))
    assert add(witness, f"{body}— {log.name} {forged}\n".encode())[0] == 403


def test_witness_keeps_refused_checkpoints_as_evidence(witness, log, tmp_path, caplog):
    add(witness, log.request(0, 4))
    for _ in range(3):
        add(witness, log.fork(4).request(4))
        add(witness, log.fork(4).request(0))
    [kept] = tmp_path.glob("refused/*/*")
    notes = f"{log.fork(4).checkpoint().text}\n{cosigned(witness, log).text}"
    assert kept.read_text() == notes
    assert len(caplog.records) == 1
    assert f"{log.name} has signed size 4" in caplog.text
    for number in range(150):
        add(witness, log.fork(9, f"fork {number}").request(4))
    assert len([*tmp_path.glob("refused/*/*")]) == 101
    add(witness, log.fork(4, "another fork").request(4))
    assert len([*tmp_path.glob("refused/*/fork-*")]) == 2


def test_witness_keeps_nothing_that_the_log_has_not_signed(witness, log, tmp_path):
    add(witness, log.request(0, 4))
    for case in ("another key", "unknown log", "older checkpoint", "same size with a proof"):
        add(witness, ANSWERS[case][1](log))
    assert not (tmp_path / "refused").exists()


def test_witness_signs_no_checkpoint_while_its_clock_is_behind(witness, log, clock):
    add(witness, log.request(0, 4))
    clock.pass_by(seconds=-1)
    assert add(witness, log.request(4, 9))[0] == 503
    assert cosigned(witness, log).size == 4
    clock.now = NOW
    assert add(witness, log.request(4, 9))[0] == 200
    clock.now = datetime.fromtimestamp(0, UTC)
    assert add(witness, log.request(9, 9))[0] == 503


def test_witness_writes_a_repeated_checkpoint_once_a_second(witness, log, tmp_path, clock):
    first = add(witness, log.request(0, 4))
    [file] = tmp_path.glob("*.checkpoint")
    written = file.stat().st_ino
    assert add(witness, log.request(4, 4)) == first
    assert file.stat().st_ino == written
    clock.pass_by(seconds=1)
    assert add(witness, log.request(4, 4)) != first
    assert file.stat().st_ino != written


def test_witness_writes_other_signatures_of_p256_once_a_second(tmp_path, clock):
    """ECDSA has many signatures of one checkpoint, of which strangers can make one."""
    log = Log(key=generate_private_key(SECP256R1())).grow(4)
    witness = Witness(tmp_path, NAME, [log.signer.text], clock)
    first = add(witness, log.request(0))
    [file] = tmp_path.glob("*.checkpoint")
    written = file.stat().st_ino
    assert add(witness, log.request(4)) == first
    assert (first[0], file.stat().st_ino) == (200, written)
    clock.pass_by(seconds=1)
    assert add(witness, log.request(4)) != first
    assert witness.signer.signed_at(cosigned(witness, log)) == clock()


def test_witness_continues_with_its_last_checkpoint(witness, log, tmp_path):
    add(witness, log.request(0, 4))
    again = Witness(tmp_path, "", [log.signer.text], Clock(NOW))
    assert again.signer.text == witness.signer.text
    assert cosigned(again, log) == cosigned(witness, log)
    assert add(again, log.fork(9).request(0))[0] == 409


@pytest.mark.parametrize(
    "damage",
    [
        lambda file, log: file.unlink(),
        lambda file, log: file.write_text(""),
        lambda file, log: file.write_text(log.fork(2).checkpoint().text),
        lambda file, log: file.write_text(file.read_text().replace("\n4\n", "\n3\n")),
        lambda file, log: file.with_name("witness.json").unlink(),
        lambda file, log: file.with_name("witness.json").write_text("{}"),
        lambda file, log: file.with_name("witness.json").write_text('{"name": "a", "key": "00"}'),
    ],
)
def test_witness_does_not_start_without_its_last_checkpoint(witness, log, tmp_path, damage):
    add(witness, log.request(0, 4))
    [file] = tmp_path.glob("*.checkpoint")
    damage(file, log)
    with refused(InvalidConfig, "another --folder for a new witness"):
        Witness(tmp_path, NAME, [log.signer.text])


def test_witness_starts_after_a_kill_between_its_checkpoint_and_key(witness, log, tmp_path):
    before = (tmp_path / "witness.json").read_bytes()
    add(witness, log.request(0, 4))
    (tmp_path / "witness.json").write_bytes(before)
    again = Witness(tmp_path, "", [log.signer.text], Clock(NOW))
    assert cosigned(again, log).size == 4
    add(again, log.request(4, 9))
    assert log.name in (tmp_path / "witness.json").read_text()


def test_witness_takes_a_new_log_and_keeps_checkpoints_of_others(witness, log, tmp_path):
    add(witness, log.request(0, 4))
    other = Log("other").grow(2)
    second = Witness(tmp_path, NAME, [other.signer.text], Clock(NOW))
    assert add(second, other.request(0))[0] == 200
    assert add(second, log.request(4, 9))[0] == 404
    both = Witness(tmp_path, "", [log.signer.text, other.signer.text])
    assert (cosigned(both, log).size, cosigned(both, other).size) == (4, 2)
    of_log, of_other = [tmp_path / f"{path_of(each)[1:65]}.checkpoint" for each in (log, other)]
    of_log.write_bytes(of_other.read_bytes())
    with refused(InvalidConfig, of_log.name):
        Witness(tmp_path, "", [log.signer.text])


def test_witness_key_is_secret_and_its_checkpoint_is_not(witness, log, tmp_path):
    for old, size in [(0, 4), (4, 9)]:
        add(witness, log.request(old, size))
        assert stat.S_IMODE((tmp_path / "witness.json").stat().st_mode) == 0o600
    assert parse_signer(witness.signer.text, "").kind == NoteSigner.WITNESS


@pytest.mark.parametrize("name", ["", "a b", "a+b", "ä", "a" * 256, "a\n"])
def test_witness_needs_a_name_for_a_new_key(tmp_path, log, name):
    with refused(InvalidConfig, "--name"):
        Witness(tmp_path, name, [log.signer.text])
    assert not [*tmp_path.iterdir()]


def test_witness_refuses_another_name_and_unfit_logs(witness, log, tmp_path):
    with refused(InvalidConfig, f"--name: the key in {tmp_path} has the name {NAME}"):
        Witness(tmp_path, "witness.example/2", [log.signer.text])
    for logs in (["text"], [witness.signer.text], [log.signer.text, Log(log.name).signer.text]):
        with refused(InvalidConfig, "--log"):
            Witness(tmp_path, NAME, logs)


def test_witness_cosigns_no_checkpoint_on_a_full_disk(witness, log, tmp_path, monkeypatch):
    add(witness, log.request(0, 4))

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fail)
        assert add(witness, log.fork(9).request(4))[0] == 422
        status, body = add(witness, log.request(4, 9))
    assert status == 503
    assert str(tmp_path).encode() not in body
    assert cosigned(witness, log).size == 4
    assert add(witness, log.request(4, 9))[0] == 200


LINES = st.sampled_from(
    [
        *("", "old 0", "old 1", "old 999999999999999999", "old 99999999999999999999", "old ٣"),
        *("onnxserve/store/key", "0", "4", "-1", "— ", "— onnxserve/store/key AAAAAAAAAAAA"),
        *(encoded(OTHER), encoded(Edge().root), "AAAA", "=", "\x00", "\ud7ff", "\u2028", "a" * 300),
    ]
)


@given(st.binary() | st.lists(LINES | st.text(max_size=5)).map(lambda all: "\n".join(all).encode()))
@example(b"old 0\n\n\n\n\n")
def test_other_body_is_an_error_for_the_witness(tmp_path_factory, body):
    folder = tmp_path_factory.getbasetemp() / "witness of bodies"
    witness = Witness(folder, NAME, [Log().signer.text])
    assert add(witness, body)[0] in (400, 403, 404)


@given(st.data())
def test_witness_changed_bytes_of_a_checkpoint_are_an_error(tmp_path_factory, data):
    log = Log().grow(9)
    witness = Witness(tmp_path_factory.mktemp("witness"), NAME, [log.signer.text])
    add(witness, log.request(0, 4))
    body = bytearray(log.request(4))
    place = data.draw(st.integers(0, len(body) - 1))
    old = body[place]
    body[place] = data.draw(st.integers(0, 255).filter(lambda new: new != old))
    assert add(witness, bytes(body))[0] in (400, 403, 404, 409, 422)


# The command, as a process.


@contextmanager
def running(folder, log, **options):
    with closing(OwnWitness(folder, NAME, **options)) as witness:
        witness.accept(log.signer.text)
        yield witness


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Yield a running witness of a log with nine entries."""
    log = Log().grow(9)
    with running(tmp_path_factory.mktemp("shared"), log) as server:
        server.log = log
        yield server


@NEEDS_TLOG
def test_witness_of_another_client_cosigns_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from aics_tlog import MerkleTree, parse_note, parse_vkey, verify_checkpoint, vkey_from_ed25519
    from aics_tlog.checkpoint import Checkpoint, sign_checkpoint
    from aics_witness.feeder import WitnessClient, WitnessRejected, merge_cosignatures

    log = Log("log.example/1")
    key = vkey_from_ed25519(log.name, log.key.public_key())
    tree = MerkleTree()
    with (
        running(tmp_path, log) as server,
        WitnessClient(server.url, server.vkey, state_path=tmp_path / "client.json") as client,
    ):
        witnesses = [parse_vkey(server.vkey)]
        for size in (1, 2, 7, 7, 100):
            tree.extend(b"%d" % number for number in range(tree.size, size))
            note = sign_checkpoint(Checkpoint(log.name, size, tree.root()), log.key, log.name)
            lines = client.submit(note.to_bytes(), tree.consistency_proof)
            merged = merge_cosignatures(note.to_bytes(), lines)
            assert verify_checkpoint(parse_note(merged), key, witnesses, 1).ok
        served = requests.get(server.url + path_of(log), timeout=60)
        assert verify_checkpoint(parse_note(served.content), key, witnesses, 1).ok
        fork = MerkleTree([b"changed"] * 101)
        forked = Checkpoint(log.name, 101, fork.root())
        note = sign_checkpoint(forked, log.key, log.name)
        with pytest.raises(WitnessRejected, match="422"):
            client.submit(note.to_bytes(), fork.consistency_proof)


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (400, b"POST /add-checkpoint HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"POST /add-checkpoint HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nold"),
        (411, b"POST /add-checkpoint HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0"),
        (413, b"POST /add-checkpoint HTTP/1.1\r\nHost: a\r\nContent-Length: 65537\r\n\r\n"),
        (413, b"POST /add-checkpoint HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n"),
        (400, b"POST /add-checkpoint HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n"),
        (400, b"hello\r\n\r\n"),
        (400, b"GET /../witness.json HTTP/1.1\r\nHost: a\r\n\r\n"),
        (404, b"GET /witness.json HTTP/1.1\r\nHost: a\r\n\r\n"),
        (404, b"DELETE /add-checkpoint HTTP/1.1\r\nHost: a\r\n\r\n"),
    ],
)
def test_witness_answers_hostile_requests_without_a_checkpoint(shared, status, request_):
    with socket.create_connection(("127.0.0.1", shared.port)) as client:
        client.sendall(request_)
        client.shutdown(socket.SHUT_WR)
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"Traceback" not in answer
    assert b"mlflow" not in answer


def test_witness_reads_a_large_body_to_its_end_before_the_answer(shared):
    body = b"a" * 4_000_000
    answer = requests.post(shared.url + "/add-checkpoint", data=body, timeout=60)
    assert answer.status_code == 413


def test_witness_answers_checkpoints_on_one_connection(shared):
    connection = http.client.HTTPConnection("127.0.0.1", shared.port)
    sockets = set()
    for _ in range(3):
        connection.request("POST", "/add-checkpoint", shared.log.request(0, 3))
        connection.getresponse().read()
        sockets.add(connection.sock)
    assert len(sockets) == 1
    connection.close()


def test_witness_cosigns_a_checkpoint_despite_idle_clients(shared):
    idle = [socket.create_connection(("127.0.0.1", shared.port)) for _ in range(300)]
    answer = requests.get(shared.url + path_of(Log("other")), timeout=60)
    assert answer.status_code == 404
    idle[0].settimeout(60)
    assert idle[0].recv(1) == b""
    for client in idle:
        client.close()


@pytest.mark.long
def test_witness_closes_a_client_that_sends_a_checkpoint_slowly(shared):
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", shared.port)) as client:
        client.sendall(b"POST /add-checkpoint HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n")
        client.settimeout(0.5)
        while time.monotonic() - begun < 60:
            with suppress(TimeoutError):
                client.sendall(b"a")
                if client.recv(1) == b"":
                    break
    assert 25 < time.monotonic() - begun < 45


def test_witness_cosigns_one_of_two_checkpoints_sent_at_once(tmp_path):
    """Forks of the same size race for the same old size."""
    log = Log().grow(3)
    forks = [log.request(0), *(log.fork(3, f"fork {number}").request(0) for number in range(15))]
    answers = []

    def send(url, body):
        answers.append(requests.post(url + "/add-checkpoint", data=body, timeout=60).status_code)

    with running(tmp_path, log) as server:
        senders = [threading.Thread(target=send, args=(server.url, body)) for body in forks]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
    assert sorted(answers) == [200] + [409] * 15


def test_killed_witness_keeps_each_cosigned_checkpoint(tmp_path):
    log = Log()
    port = free_port()
    sizes = [0]
    for round_ in range(3):
        with running(tmp_path, log, port=port) as server:
            killer = threading.Timer(0.2 + round_ / 10, server.process.kill)
            killer.start()
            with suppress(requests.ConnectionError):
                while True:
                    log.grow(log.tree.size + 1)
                    body = log.request(sizes[-1])
                    answer = requests.post(server.url + "/add-checkpoint", data=body, timeout=60)
                    if answer.status_code == 409:
                        # The last cosignature was lost with the process.
                        assert int(answer.text) >= sizes[-1]
                        sizes.append(int(answer.text))
                    else:
                        assert answer.status_code == 200
                        sizes.append(log.tree.size)
            killer.join()
    with running(tmp_path, log, port=port) as server:
        served = requests.get(server.url + path_of(log), timeout=60).text
        assert parse_checkpoint(served).size >= sizes[-1]
        assert parse_signer(server.vkey, "").signed_at(parse_checkpoint(served))


def test_second_witness_on_the_folder_of_checkpoints_does_not_start(shared, tmp_path):
    folder = tmp_path / "witness"
    with running(folder, shared.log) as first, running(folder, shared.log) as second:
        assert first.vkey
        assert (second.process.wait(60), second.vkey) == (1, "")
        assert second.process.stderr.read().count("\n") == 1
    with running(folder, shared.log) as third:
        assert third.vkey == first.vkey


def test_witness_ends_with_sigterm_and_frees_its_checkpoints(shared, tmp_path):
    with running(tmp_path, shared.log) as server:
        with socket.create_connection(("127.0.0.1", server.port)):
            server.process.terminate()
            assert server.process.wait(60) == 0
        assert server.process.stderr.read() == ""


def test_witness_names_a_port_that_is_taken(shared, tmp_path):
    with running(tmp_path, shared.log, port=shared.port) as server:
        assert server.process.wait(60) == 1
        error = server.process.stderr.read()
    assert f"--port {shared.port}" in error
    assert error.count("\n") == 1
    assert wait_until(lambda: requests.get(shared.url, timeout=60).status_code) == 404
