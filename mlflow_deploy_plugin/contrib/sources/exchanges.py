"""The records of other servers' logs as exchanges.

- SageMaker's data capture, JSON Lines:
  https://docs.aws.amazon.com/sagemaker/latest/dg/model-monitor-data-capture-endpoint.html
  and, for the ids of labels,
  https://docs.aws.amazon.com/sagemaker/latest/dg/model-monitor-model-quality-merge.html
- Databricks' inference tables of the AI Gateway, and the older ones:
  https://docs.databricks.com/aws/en/ai-gateway/inference-tables-serving-endpoints and
  https://docs.databricks.com/aws/en/machine-learning/model-serving/inference-tables
- Pairs of the events that KServe's logger sends:
  https://kserve.github.io/website/docs/model-serving/predictive-inference/logger
- The files of `bentoml.monitor`, `monitoring/NAME/data/*.log*`, JSON Lines:
  https://docs.bentoml.com/en/latest/build-with-bentoml/observability/monitoring-and-data-collection.html

Each function returns None for a record without a prediction, and raises InvalidRequest
for a record that it cannot read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_deploy_plugin.contrib.sources.bodies import make_exchange, read_exchange, read_head
from mlflow_deploy_plugin.core.errors import InvalidRequest
from mlflow_deploy_plugin.serve.protocols.content import base64_text
from mlflow_deploy_plugin.serve.runtime.values import short_repr
from mlflow_deploy_plugin.watch.observed.exchange import Exchange

_BENTOML_FIELDS = {"request_id", "timestamp", "trace_id"}


def sagemaker_exchange(record: Mapping[str, Any], names: Sequence[str]) -> Exchange | None:
    """Return the exchange of a line; None if no response was captured. The id is the
    caller's `inferenceId`, or `eventId`.
    """
    event = read_object(record, "eventMetadata")
    bodies: list[object] = []
    for side in "endpointInput", "endpointOutput":
        captured = read_object(read_object(record, "captureData"), side)
        body = captured.get("data")
        if captured.get("encoding") == "BASE64":
            body = base64_text(body, side)
        bodies.append(body)
    head = read_head(event.get("inferenceId") or event.get("eventId"), event.get("inferenceTime"))
    return read_exchange(head, names, *bodies)


def databricks_exchange(record: Mapping[str, Any], names: Sequence[str]) -> Exchange | None:
    """Return the exchange of a row; None if its status is not 200. Only older tables
    have the version. A body that is too large for Databricks is missing.
    """
    status = record.get("status_code")
    if not isinstance(status, int):
        raise InvalidRequest(f"status_code is {short_repr(status)}; a number is expected")
    if status != 200:
        return None
    if errors := record.get("logging_error_codes"):
        raise InvalidRequest(f"Databricks has not logged the bodies: {short_repr(errors)}")
    try:
        metadata = dict(record.get("request_metadata") or {})  # A map of Arrow is pairs.
    except (TypeError, ValueError):
        raise InvalidRequest("request_metadata is not an object") from None
    time = record.get("request_time") or record.get("timestamp_ms")
    head = read_head(record.get("databricks_request_id"), time, metadata.get("model_version"))
    return read_exchange(head, names, record.get("request"), record.get("response"))


def kserve_exchange(record: Mapping[str, Any], names: Sequence[str]) -> Exchange | None:
    """Return the exchange of a record with the keys `id`, `time` of the request,
    `request` and `response`; None if it has no response.
    """
    head = read_head(record.get("id"), record.get("time"))
    return read_exchange(head, names, record.get("request"), record.get("response"))


def bentoml_exchange(record: Mapping[str, Any], names: Sequence[str]) -> Exchange:
    """Return the exchange of a line, which is one row. Values with a name in `names`
    are inputs, and the others outputs, because a line does not have the roles.

    BentoML writes times without a time zone, and the rows of one `log_batch` have the
    same id.
    """
    if not names or not record.keys() >= set(names):
        raise InvalidRequest(f"the line lacks inputs of the model, which are {short_repr(names)}")
    columns = {name: [value] for name, value in record.items() if name not in _BENTOML_FIELDS}
    inputs = {name: columns.pop(name, []) for name in names}
    request_id = record.get("request_id")
    if request_id == "None":
        raise InvalidRequest("request_id is None: the line was logged outside of a request")
    head = read_head(request_id, record.get("timestamp"))
    return make_exchange(head, inputs, columns)


def read_object(owner: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a field that is an object; empty if it is missing or anything else."""
    value = owner.get(name)
    return value if isinstance(value, Mapping) else {}
