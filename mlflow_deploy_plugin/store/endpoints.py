"""Endpoints in the store: the spec of each."""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, did_you_mean
from mlflow_deploy_plugin.spec import EndpointSpec, load_specs
from mlflow_deploy_plugin.store.tables import EndpointRow


@dataclass(frozen=True)
class Endpoint:
    """An endpoint: its deployment target and its spec.

    Attributes:
        rows_since: captured rows that were received earlier are those of a deleted endpoint of its name; None: there
            was none, and all rows captured under the name are its own.
    """

    name: str
    target: str
    spec: EndpointSpec
    created_at: datetime
    updated_at: datetime
    rows_since: datetime | None = None


@dataclass(frozen=True)
class UnreadableEndpoint:
    """An endpoint whose spec this onnxserve cannot read: another version wrote it, or a person did.

    Attributes:
        text: the spec as it is stored.
    """

    name: str
    target: str
    text: str
    reason: str


def unknown_endpoint(name: str, known: Iterable[str]) -> NotFound:
    """Return the error for a name that is not among the known ones."""
    names = sorted(known)
    others = f"there are {', '.join(names)}" if names else ""
    return NotFound(f"there is no endpoint {name!r}{did_you_mean(name, names, others)}")


def endpoint_from_row(row: EndpointRow, deleted: Container[str]) -> Endpoint:
    """Return the row's endpoint. Raises InvalidConfig if its spec cannot be read.

    Args:
        deleted: names of endpoints that were deleted once.
    """
    since = row.created_at if row.name in deleted else None
    try:
        return Endpoint(row.name, row.target, _read_once(row.spec), row.created_at, row.updated_at, since)
    except InvalidConfig as error:
        raise InvalidConfig(
            f"the spec of endpoint {row.name!r} in the store cannot be read: {error.message}; the onnxserve that wrote "
            f"it can read it, and `onnxserve endpoint delete {row.name}` makes room for a new one"
        ) from None


def read_endpoints(
    rows: Iterable[EndpointRow], deleted: Container[str] = ()
) -> tuple[list[Endpoint], list[UnreadableEndpoint]]:
    """Return the endpoints that can be read, and those that cannot."""
    endpoints, unreadable = [], []
    for row in rows:
        try:
            endpoints.append(endpoint_from_row(row, deleted))
        except InvalidConfig as error:
            unreadable.append(UnreadableEndpoint(row.name, row.target, row.spec, error.message))
    return endpoints, unreadable


@lru_cache(maxsize=1024)
def _read_once(text: str) -> EndpointSpec:
    """Return the spec, parsed once: the controller reads every endpoint every few seconds, and specs are frozen."""
    (spec,) = load_specs(text, may_be_empty=True)
    return spec
