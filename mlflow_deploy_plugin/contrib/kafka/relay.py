"""The messages of a Kafka topic, answered by the server of an endpoint: `onnxserve
consume`.

Messages are answered in rounds: at most `in_flight` messages are requested at once, and
their answers are written in the order of the messages. An offset is stored after the
brokers have confirmed the answers up to it, so no crash loses a message. A message that
is answered again has the same X-Request-Id.

While the server does not answer, the consumer does not poll. After
`max.poll.interval.ms`, its group continues without it: its late answers are
repetitions, and its offsets are ignored.
"""

import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from operator import methodcaller
from pathlib import Path
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

from mlflow_deploy_plugin.core.errors import InvalidConfig, InvalidRequest, OnnxserveError
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.text_files import read_text
from mlflow_deploy_plugin.serve.client.client import Client
from mlflow_deploy_plugin.serve.client.rows import encode_json

_TOPIC = re.compile(r"kafka://([\w.:,\[\]-]+)/([\w.-]{1,249})", re.ASCII)
_DEFAULTS = {
    "auto.offset.reset": "earliest",
    "auto.commit.interval.ms": 1000,
    "log_level": 0,
    # Java's clients write a key to this partition; librdkafka's default is another one.
    "partitioner": "murmur2_random",
}
_OWN = {"enable.auto.offset.store": False, "enable.idempotence": True}
"""The properties on which the guarantees depend."""
_START_SECONDS = 10.0
_IDLE_SECONDS = 0.5
_LINE_SECONDS = 60.0
_END_SECONDS = 10.0
"""The time for the last confirmations after the end was requested."""
_TRIES = 5
_UNANSWERABLE = (400, 413, 415, 422)
"""The statuses of a message that no repetition would make valid."""
_BROKEN = (500, 504)
"""The statuses of a message that is sent `_TRIES` times, because it may be the
reason.
"""
_LATER = (408, 429)
"""The statuses after which a message is sent until it is answered."""
_DOWN = (None, 502, 503)
"""The statuses after which a message is sent until it is answered, or has failed
`_TRIES` times at a server that was ready. None means that no server has answered.
"""
_READY_SECONDS = 5.0
"""The additional pause per failure at a ready server, which may be busy."""
_ID = "X-Request-Id"
_OF_ANSWER = ("X-Prediction-Id", "X-Model-Name", "X-Model-Version")
_OURS = (_ID, "X-Endpoint", "X-Error", *_OF_ANSWER)
_headers = methodcaller("headers")
"""Python's faster calls of `message.headers()` do not check for its errors, and end the
process.
"""
_log = logging.getLogger(__name__)


def _read_properties(path: Path) -> dict[str, str]:
    """Return the properties in a file of lines `NAME=VALUE` and comments (#). Raises
    InvalidConfig without the line, which may contain a password.
    """
    properties = {}
    for line in read_text(path, "--config-file").splitlines():
        if line.strip() and not line.startswith("#"):
            name, equals, value = map(str.strip, line.partition("="))
            if not equals:
                raise InvalidConfig(f"--config-file {path}: a line is not NAME=VALUE")
            properties[name] = value
    return properties


class TopicRelay:
    """A consumer of a topic whose messages an endpoint answers. Raises InvalidConfig
    for an invalid topic or file.

    Args:
        client: the client of the endpoint, without retries.
        ended: an event that ends `run`.
        source: the topic of the messages, `kafka://HOST:PORT[,HOST:PORT]/NAME`.
        destination: the topic of the answers, at the same brokers.
        dead_letter: the name of the topic of messages that cannot be answered.
        config_file: a file of librdkafka's properties.
        in_flight: the maximum number of messages whose answers are not written.
    """

    def __init__(
        self,
        client: Client,
        ended: threading.Event,
        source: str,
        destination: str,
        dead_letter: str | None,
        config_file: Path | None,
        in_flight: int,
    ) -> None:
        self._client = client
        self._ended = ended
        self._in_flight = in_flight
        self._turn = threading.Lock()
        start, end = map(_TOPIC.fullmatch, (source, destination))
        if not start or not end or start[1] != end[1]:
            # A URI may contain a password.
            raise InvalidConfig(
                "--from and --to are kafka://HOST:PORT/NAME at the same brokers; passwords belong "
                "in --config-file"
            )
        self._brokers, self._source = start.groups()
        self._destination = end[2]
        self._dead_letter = dead_letter or f"{self._source}.dead-letter"
        self._topics = {self._source, self._destination, self._dead_letter}
        if len(self._topics) < 3:
            raise InvalidConfig("--from, --to and --dead-letter need three different topics")
        self._properties: dict[str, Any] = {
            "group.id": f"onnxserve-{client.endpoint}",
            # The number of milliseconds would make each line another line.
            "error_cb": lambda error: _log.warning("Kafka: %s", error.str().split(" (after ")[0]),
            **_DEFAULTS,
            **(_read_properties(config_file) if config_file else {}),
            **_OWN,
            "bootstrap.servers": self._brokers,
        }

    def run(self) -> None:
        """Answer messages until `ended`, then finish the round and commit.

        Raises OnnxserveError if a property is invalid, no broker answers, a topic does
        not exist, or the server refuses every request.
        """
        try:
            with closing(Consumer(self._properties)) as consumer:  # `close` commits.
                missing = self._topics - consumer.list_topics(timeout=_START_SECONDS).topics.keys()
                if missing:
                    names = ", ".join(sorted(missing))
                    raise InvalidConfig(f"Kafka at {self._brokers} has no topic {names}: create it")
                consumer.subscribe([self._source])
                producer = Producer(self._properties)
                pool = ThreadPoolExecutor(self._in_flight)
                count = 0
                line_at = 0.0
                while not self._ended.is_set():
                    count += self._answer_round(consumer, producer, pool)
                    if time.monotonic() > line_at or self._ended.is_set():
                        _log.info("%s: %d messages answered", self._source, count)
                        line_at = time.monotonic() + _LINE_SECONDS
        except KafkaException as error:
            raise OnnxserveError(f"Kafka at {self._brokers}: {error.args[0].str()}") from None
        finally:
            self._ended.set()  # It ends the pauses of the pool's threads.

    def _answer_round(
        self, consumer: Consumer, producer: Producer, pool: ThreadPoolExecutor
    ) -> int:
        """Answer the messages that have arrived, and return their number. Wait a moment
        for the first message.
        """
        first = consumer.poll(_IDLE_SECONDS)
        if first is None:  # A message without a value is false.
            return 0
        messages = []
        for message in (first, *consumer.consume(self._in_flight - 1, 0)):
            error = message.error()
            if error is None:
                messages.append(message)
            elif error.code() != KafkaError._MAX_POLL_EXCEEDED:
                raise KafkaException(error)
        written = []
        for message, record in zip(messages, pool.map(self._answer, messages), strict=True):
            if record is None:
                break
            topic, value, ours = record
            headers: list[tuple[str, bytes | None]] = []
            with suppress(SystemError):  # The name of a header is not UTF-8.
                # A dead letter that is sent again has headers of its first answer.
                headers += [pair for pair in _headers(message) or () if pair[0] not in _OURS]
            # A lone surrogate would end the process in confluent-kafka.
            headers += [(name, ours[name].encode(errors="replace")) for name in ours]
            # A message that fits may be too large with the headers of a dead letter.
            try:
                producer.produce(topic, value, message.key(), headers=headers, on_delivery=_confirm)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    raise
                headers.append(("X-Error", error.args[0].str().encode()))
                topic = self._dead_letter
                producer.produce(topic, None, message.key(), headers=headers, on_delivery=_confirm)
            written.append(message)
        while not self._ended.is_set() and producer.flush(_IDLE_SECONDS):
            pass
        if count := producer.flush(_END_SECONDS):
            raise OnnxserveError(
                f"Kafka at {self._brokers} has not confirmed {count} answers, which the next start "
                "repeats"
            )
        for message in written:
            with suppress(KafkaException):  # Another member of the group has the partition now.
                consumer.store_offsets(message)
        return len(written)

    def _answer(self, message: Message) -> tuple[str, bytes | None, dict[str, str]] | None:
        """Return the topic, value and headers of the answer or of the dead letter; None
        if the command ended before the answer.
        """
        id_ = f"{message.topic()}-{message.partition()}-{message.offset()}"
        headers = {_ID: id_, "X-Endpoint": self._client.endpoint or ""}
        reason = "the value is not a JSON object or list"
        body = None
        with suppress(orjson.JSONDecodeError, InvalidRequest):  # It may be nested too deeply.
            document = orjson.loads(message.value() or b"")
            if isinstance(document, dict | list):
                body = encode_json(document)
        client = self._client
        attempt = failures = 0
        is_suspect = False
        while body is not None:
            try:
                with self._turn if is_suspect else nullcontext():
                    was_ready = is_suspect and client.ready()
                    if is_suspect and self._ended.is_set():
                        return None
                    response = client.invoke(body, {_ID: id_})
            except OnnxserveError as error:
                attempt += 1
                reason = error.message
                if error.status in _DOWN:
                    failures += was_ready
                    is_suspect = True  # It may end the server's process, and is sent alone.
                if (
                    error.status in _UNANSWERABLE
                    or (error.status in _BROKEN and attempt == _TRIES)
                    or failures == _TRIES
                ):
                    break
                if error.status not in (*_LATER, *_DOWN, *_BROKEN):
                    raise
                _log.warning("%s; the message is sent again", reason)
                pause = client.retries.pause_seconds(attempt, error.retry_after, client.generator)
                if self._ended.wait(pause + failures * _READY_SECONDS):
                    return None
            else:
                headers |= {name: response.headers.get(name, "") for name in _OF_ANSWER}
                return self._destination, response.data, headers
        _log.warning("the message %s is a dead letter", id_)
        return self._dead_letter, message.value(), headers | {"X-Error": one_line(reason, 1000)}


def _confirm(error: KafkaError | None, _: Message) -> None:
    if error is not None:
        raise KafkaException(error)
