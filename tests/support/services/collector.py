"""An OpenTelemetry collector that stores the requests that it receives."""

import gzip
from contextlib import contextmanager
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.services.listener import answering


@dataclass
class Collector:
    """An OTLP server over HTTP on a free port."""

    endpoint: str = ""
    services: set[str] = field(default_factory=set)
    spans: list[Span] = field(default_factory=list)

    def take(self, body):
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource_attributes = {
                entry.key: entry.value.string_value for entry in resource.resource.attributes
            }
            self.services.add(resource_attributes["service.name"])
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)

    def named(self, name):
        return [span for span in self.spans if span.name == name]


def attributes(span):
    """Return the attributes of a span that are texts or integers."""
    return {
        entry.key: entry.value.string_value or entry.value.int_value for entry in span.attributes
    }


@contextmanager
def collector():
    state = Collector()

    def take(request, body):
        is_compressed = request.headers.get("Content-Encoding") == "gzip"
        state.take(gzip.decompress(body) if is_compressed else body)
        return 200, "application/x-protobuf", ""

    with answering(take) as state.endpoint:
        yield state
