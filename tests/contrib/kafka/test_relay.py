"""Messages of librdkafka's mock brokers, answered by the server of a deployment."""

import json
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.serve.client.client import Client, RetryPolicy
from tests.support.deployments import empty_home, save_models
from tests.support.pyfuncs import save_pyfuncs
from tests.support.refusals import refused
from tests.support.servers import single_model
from tests.support.waiting import wait_until

pytest.importorskip("confluent_kafka")

from mlflow_deploy_plugin.contrib.kafka import relay
from tests.support.services.kafka import MockBrokers

PROPERTIES = """# The mock brokers wait this long for a member that has left the group,
# and need three seconds to form a group.

session.timeout.ms = 4000
heartbeat.interval.ms=500
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Yield a client with the deployment `sum`."""
    models = save_models(tmp_path_factory.mktemp("models"))
    with empty_home(tmp_path_factory.mktemp("served")) as opened:
        opened.create_deployment("sum", models.once)
        yield opened


@pytest.fixture(scope="module")
def brokers():
    return MockBrokers()


@dataclass
class Topics:
    """The topics of a test, and the relays between them."""

    brokers: MockBrokers
    url: str
    folder: Path

    def __post_init__(self):
        self.name = self.folder.name
        self.brokers.create(self.name, f"{self.name}.out", f"{self.name}.dead-letter")

    def send(self, numbers, **more):
        """Write a row for each number, with the number modulo 3 as its key."""
        entries = [(str(a % 3), json.dumps({"a": a, "b": 0.5, "c": 0})) for a in numbers]
        self.brokers.send(self.name, entries, **more)

    def arguments(self, more="", to=""):
        file = self.folder / "client.properties"
        file.write_text(f"{PROPERTIES}group.id={self.name}\n{more}")
        uri = f"kafka://{self.brokers.servers}/{self.name}"
        return uri, f"{uri}.out{to}", None, file

    def relay(self, ended, url="", endpoint="sum", **more):
        client = Client(url or self.url, endpoint, retries=RetryPolicy(tries=1))
        source, destination, dead_letter, file = self.arguments(**more)
        return relay.TopicRelay(client, ended, source, destination, dead_letter, file, 8)

    @contextmanager
    def running(self, **options):
        ended = threading.Event()
        thread = threading.Thread(target=self.relay(ended, **options).run)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def answers(self, count):
        """Return `count` answers as pairs of the request id and the sum."""
        messages = self.brokers.read(f"{self.name}.out", count)
        return [(headers(message)["X-Request-Id"], total(message)) for message in messages]


@pytest.fixture
def topics(brokers, served, tmp_path):
    return Topics(brokers, served.get_deployment("sum")["url"], tmp_path)


def headers(message):
    return {name: value and value.decode(errors="replace") for name, value in message.headers()}


def total(message):
    return json.loads(message.value())["predictions"][0]["y"]


def assert_answered(answers, count):
    """Each row has one id, and the first answers of a key are in the order of its
    rows.
    """
    ids = dict(answers)
    assert sorted(ids.values()) == [number + 0.5 for number in range(count)]
    assert set(answers) == set(ids.items())
    sums = list(dict.fromkeys(value for _, value in answers))
    for key in range(3):
        of_key = [value for value in sums if value // 1 % 3 == key]
        assert of_key == sorted(of_key)


def test_answers_are_in_order_and_not_repeated(topics):
    for numbers in (range(20), range(20, 30)):
        topics.send(numbers, headers={"trace": "t"})
        with topics.running():
            answers = topics.answers(numbers.stop)
    messages = topics.brokers.read(f"{topics.name}.out", 30)
    message = messages[0]

    assert len(answers) == 30
    assert_answered(answers, 30)
    # The partitions of these keys in Java's clients: murmur2 modulo 4.
    partitions = {message.key(): message.partition() for message in messages}
    assert partitions == {b"0": 0, b"1": 3, b"2": 0}
    assert message.key() == b"%d" % (total(message) % 3)
    sent = headers(message)
    assert re.fullmatch(rf"{topics.name}-\d-\d+", sent["X-Request-Id"])
    assert all((sent["X-Prediction-Id"], sent["X-Model-Version"]))
    assert (sent["X-Endpoint"], sent["trace"]) == ("sum", "t")


def test_unanswerable_messages_are_dead_letters(topics):
    names = {b"{": "JSON", None: "JSON", b"7": "JSON", b"[{}]": "'a'", b'{"a": "x", "b": 1}': "'a'"}
    names[b"[" * 500 + b"]" * 500] = "JSON"
    topics.brokers.send(topics.name, [("0", value) for value in names])
    topics.send([0], headers={"X-Error": "before"})

    with topics.running():
        (answer,) = topics.brokers.read(f"{topics.name}.out", 1)
        assert "X-Error" not in headers(answer)
        letters = topics.brokers.read(f"{topics.name}.dead-letter", len(names))

    reasons = {letter.value(): headers(letter)["X-Error"] for letter in letters}
    assert [names[value] in reasons[value] for value in names] == [True] * len(names)


def test_dead_letter_above_the_limit_has_no_value(topics):
    topics.brokers.send(topics.name, [("0", b"[" * 999_950)])
    topics.send([0])
    with topics.running():
        topics.answers(1)
        (letter,) = topics.brokers.read(f"{topics.name}.dead-letter", 1)
    assert letter.value() is None
    assert re.fullmatch(rf"{topics.name}-\d-0", headers(letter)["X-Request-Id"])
    assert "size" in headers(letter)["X-Error"]


def test_header_with_name_outside_utf_8(topics):
    topics.brokers.send_header(topics.name, b"k\xff", b'{"a": 1, "b": 0.5, "c": 0}')
    topics.send([2], headers={"модель": b"\xff", "none": None})

    with topics.running():
        assert sorted(total for _, total in topics.answers(2)) == [1.5, 2.5]


@pytest.mark.long
def test_absent_or_busy_server_is_awaited(topics, serve, free_port, tmp_path):
    topics.send(range(15))

    with topics.running(url=f"http://127.0.0.1:{free_port}", endpoint="m"):
        options = ["--name", "m", "--port", str(free_port), "-C", "server.rate_limit=5/second"]
        serve(str(single_model(tmp_path / "model")), *options)
        assert len(topics.brokers.read(f"{topics.name}.out", 15)) == 15


@pytest.mark.long
def test_message_that_kills_the_model_is_dead(topics, serve, monkeypatch, tmp_path):
    monkeypatch.setattr(relay, "_TRIES", 2)
    served = serve(str(save_pyfuncs(tmp_path, ["troubled"])["troubled"]), "--name", "m")
    served.wait_ready()
    entries = [("0", json.dumps({"do": row})) for row in ("a", "exit", "b", "c")]
    topics.brokers.send(topics.name, entries)
    with topics.running(url=served.url, endpoint="m"):
        answers = topics.brokers.read(f"{topics.name}.out", 3)
        (letter,) = topics.brokers.read(f"{topics.name}.dead-letter", 1)
    assert [json.loads(answer.value())["predictions"][0]["do"] for answer in answers] == [*"abc"]
    assert json.loads(letter.value()) == {"do": "exit"}
    assert "status 7" in headers(letter)["X-Error"]


@pytest.mark.long
def test_end_does_not_await_absent_brokers(served, monkeypatch, tmp_path):
    topics = Topics(MockBrokers(), served.get_deployment("sum")["url"], tmp_path)
    topics.send([0])
    ended = threading.Event()
    invoke = Client.invoke

    def answer(*arguments):
        response = invoke(*arguments)
        topics.brokers.close()
        ended.set()
        return response

    monkeypatch.setattr(Client, "invoke", answer)
    monkeypatch.setattr(relay, "_END_SECONDS", 0.5)
    began = time.monotonic()
    with refused(OnnxserveError, "1 answers"):
        topics.relay(ended).run()
    assert time.monotonic() - began < 60


@pytest.mark.long
def test_killed_consumers_lose_nothing(topics):
    topics.send(range(2000))
    source, destination, _, file = topics.arguments()
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "consume", "sum", "--from", source]
    command += ["--to", destination, "--config-file", str(file), "--in-flight", "2"]
    for count in (1, 300, 900, 1500):
        process = subprocess.Popen(command)
        topics.answers(count)
        process.kill()
        process.wait(60)
    assert len(set(topics.answers(1))) < 2000
    group = [subprocess.Popen(command) for _ in range(2)]
    wait_until(lambda: len(set(topics.answers(1))) == 2000)
    for process in group:
        process.terminate()

    assert [process.wait(60) for process in group] == [0, 0]
    assert_answered(topics.answers(2000), 2000)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"more": "sasl.pasword=secret"}, "sasl.pasword"),
        ({"more": "security.protocol=ssl"}, "127.0.0.1"),
        ({"endpoint": "nope"}, "nope"),
        ({"to": ".missing"}, "missing"),
    ],
)
def test_unusable_brokers_or_servers_end_it(topics, monkeypatch, options, name):
    monkeypatch.setattr(relay, "_START_SECONDS", 0.5)
    topics.send([0])
    with refused(OnnxserveError, name):
        topics.relay(threading.Event(), **options).run()


@pytest.mark.parametrize(
    ("uris", "more", "name"),
    [
        (["kafka://h:1/in", "kafka://me:secret@h:1/out"], "", "kafka://HOST:PORT/NAME"),
        (["kafka://h:1/in", "kafka://h:1/in"], "", "topics"),
        (["kafka://h:1/in", "kafka://h:1/out"], "sasl.password secret", "client.properties"),
    ],
)
def test_invalid_arguments_are_refused_without_secrets(tmp_path, uris, more, name):
    file = tmp_path / "client.properties"
    file.write_text(more)
    with refused(InvalidConfig, name) as refusal:
        relay.TopicRelay(Client("http://h"), threading.Event(), uris[0], uris[1], None, file, 8)
    assert "secret" not in str(refusal.value)
