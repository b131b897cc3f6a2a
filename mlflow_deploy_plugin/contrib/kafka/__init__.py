"""Endpoints that answer the messages of Kafka topics."""
