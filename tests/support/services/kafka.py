"""Brokers of librdkafka's mock cluster, which speak Kafka's protocol over sockets.

The brokers live as long as the producer that created them. Any process can use them.
"""

import ctypes
from pathlib import Path

import confluent_kafka
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from tests.support.waiting import wait_until


class MockBrokers:
    """One broker; topics that are written to are created with four partitions."""

    def __init__(self):
        self._producer = Producer({"test.mock.num.brokers": 1, "log_level": 0})
        (broker,) = self._producer.list_topics(timeout=10).brokers.values()
        self.servers = f"{broker.host}:{broker.port}"

    def close(self):
        """End the brokers."""
        del self._producer

    def create(self, *topics):
        for topic in topics:
            self._producer.list_topics(topic, 10)

    def send(self, topic, entries, headers=None):
        """Write messages: pairs of a key and a value."""
        for key, value in entries:
            self._producer.produce(topic, value, key, headers=headers)
        assert self._producer.flush(10) == 0

    def send_header(self, topic, name, value):
        """Write a message with a header, whose name may be any bytes."""
        (path,) = Path(confluent_kafka.__file__).parents[1].glob("confluent_kafka.libs/librdkafka*")
        library = ctypes.CDLL(str(path))
        library.rd_kafka_conf_new.restype = library.rd_kafka_new.restype = ctypes.c_void_p
        conf = ctypes.c_void_p(library.rd_kafka_conf_new())
        library.rd_kafka_conf_set(conf, b"bootstrap.servers", self.servers.encode(), None, 0)
        producer = ctypes.c_void_p(library.rd_kafka_new(0, conf, None, 0))
        # RD_KAFKA_V_TOPIC, _MSGFLAGS (copy), _VALUE, _HEADER and _END
        size = ctypes.c_size_t
        arguments = [1, topic.encode(), 7, 2, 4, value, size(len(value)), 9, name, b"", size(0), 0]
        assert library.rd_kafka_producev(producer, *arguments) == 0
        assert library.rd_kafka_flush(producer, 10_000) == 0
        library.rd_kafka_destroy(producer)

    def read(self, topic, count):
        """Return all messages of a topic once it has at least `count` messages."""
        reader = Consumer({"bootstrap.servers": self.servers, "group.id": "readers"})
        partitions = [TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(4)]

        def length():
            return sum(reader.get_watermark_offsets(partition)[1] for partition in partitions)

        wait_until(lambda: length() >= count, 60, f"{count} messages in {topic}")
        reader.assign(partitions)
        messages = reader.consume(length(), 30)
        reader.close()
        return messages
