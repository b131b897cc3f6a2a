"""Content negotiation: the weights of Accept and Accept-Encoding, and the response format of `/invocations`.

A request to `/invocations` is answered in its own format, unless Accept asks for another. JSON and CSV are MLflow's and
go the short way; Arrow, Parquet, JSON Lines and numpy's arrays are ours.
"""

from functools import lru_cache

from mlflow_deploy_plugin.server.protocols.content import CSV, JSON, media_name
from mlflow_deploy_plugin.server.protocols.protocol_table import (
    INVOCATIONS,
    TABLE_FORMATS,
    Protocol,
    invocations_as,
)

_MAX_HEADER_CHARACTERS = 2000


@lru_cache(maxsize=256)
def negotiate_protocol(content_type: str | None, accept: str | None, limit: int) -> Protocol:
    """Return the protocol of a request to `/invocations` with these headers.

    Args:
        limit: bytes that a compressed table may take when decompressed.
    """
    given, preferred = media_name(content_type), _preferred_format(accept)
    if given in (JSON, CSV) and preferred in (None, JSON):
        return INVOCATIONS
    return invocations_as(preferred or (given if given in TABLE_FORMATS else JSON), limit)


def _preferred_format(accept: str | None) -> str | None:
    """Return the format that Accept prefers among those that we write, or None if it prefers none."""
    if accept is None or accept == "*/*":
        return None
    weights = {name: q for name, q in quality_values(accept).items() if name in (JSON, *TABLE_FORMATS) and q > 0}
    return max(weights, key=lambda name: weights[name]) if weights else None


def quality_values(header: str) -> dict[str, float]:
    """Return the entries of a weighted list (RFC 9110, 12.4.2), in lower case and without parameters, with their `q`.

    An entry without `q` has 1, and one whose `q` cannot be read has 0. A header that is longer than any client writes
    counts as empty.
    """
    weights: dict[str, float] = {}
    if len(header) > _MAX_HEADER_CHARACTERS:
        return weights
    for entry in header.lower().split(","):
        name, *parameters = entry.split(";")
        weights[name.strip()] = min((_quality(parameter) for parameter in parameters), default=1.0)
    return weights


def _quality(parameter: str) -> float:
    name, _, value = parameter.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        quality = float(value)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0
