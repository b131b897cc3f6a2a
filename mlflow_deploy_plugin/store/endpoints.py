"""Endpoints as they were asked for."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from mlflow_deploy_plugin.errors import NotFound
from mlflow_deploy_plugin.nearest import did_you_mean
from mlflow_deploy_plugin.spec import EndpointSpec, load_specs
from mlflow_deploy_plugin.store.tables import EndpointRow


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that was asked for: where, and as what."""

    name: str
    target: str
    spec: EndpointSpec
    created_at: datetime
    updated_at: datetime


def no_endpoint(name: str, known: Iterable[str]) -> NotFound:
    """The error for a name that is none of those that are known."""
    names = sorted(known)
    others = f"there are {', '.join(names)}" if names else ""
    return NotFound(f"there is no endpoint {name!r}{did_you_mean(name, names, others)}")


def endpoint_of(row: EndpointRow) -> Endpoint:
    (spec,) = load_specs(row.spec, may_be_empty=True)
    return Endpoint(row.name, row.target, spec, row.created_at, row.updated_at)
