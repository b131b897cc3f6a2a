"""Endpoints as they were asked for."""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.nearest import did_you_mean
from mlflow_deploy_plugin.spec import EndpointSpec, load_specs
from mlflow_deploy_plugin.store.tables import EndpointRow


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that was asked for: where, and as what.

    Attributes:
        rows_since: captured rows that were received earlier are those of a deleted endpoint of its name; None: there
            was none, and whatever was captured under the name is its own.
    """

    name: str
    target: str
    spec: EndpointSpec
    created_at: datetime
    updated_at: datetime
    rows_since: datetime | None = None


@dataclass(frozen=True)
class UnreadableEndpoint:
    """An endpoint whose spec is none to this onnxserve: another version wrote it, or a person did.

    Attributes:
        text: the spec as it stands there.
    """

    name: str
    target: str
    text: str
    reason: str


def unknown_endpoint(name: str, known: Iterable[str]) -> NotFound:
    """The error for a name that is none of those that are known."""
    names = sorted(known)
    others = f"there are {', '.join(names)}" if names else ""
    return NotFound(f"there is no endpoint {name!r}{did_you_mean(name, names, others)}")


def endpoint_from_row(row: EndpointRow, deleted: Container[str]) -> Endpoint:
    """Raises InvalidConfig where its spec cannot be read.

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
    """Those that can be read, and those that cannot."""
    endpoints, unreadable = [], []
    for row in rows:
        try:
            endpoints.append(endpoint_from_row(row, deleted))
        except InvalidConfig as error:
            unreadable.append(UnreadableEndpoint(row.name, row.target, row.spec, error.message))
    return endpoints, unreadable


@lru_cache(maxsize=1024)
def _read_once(text: str) -> EndpointSpec:
    """The controller looks at every endpoint every few seconds; a spec is never changed in place."""
    (spec,) = load_specs(text, may_be_empty=True)
    return spec
