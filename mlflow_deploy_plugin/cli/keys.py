"""`onnxserve keys` manages the API keys of servers with `server.api_keys`."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, get_args

import click

from mlflow_deploy_plugin.cli.options import (
    Commands,
    name_argument,
    opened_store,
    option,
    output_option,
    show_json,
    show_progress,
    show_table,
    usage_errors,
    why_option,
)
from mlflow_deploy_plugin.core.errors import NotFound
from mlflow_deploy_plugin.core.messages import did_you_mean
from mlflow_deploy_plugin.core.spec.document import empty_endpoint
from mlflow_deploy_plugin.core.spec.parts import RATE
from mlflow_deploy_plugin.core.spec.types import parse_duration
from mlflow_deploy_plugin.core.statedir.models import Scope

if TYPE_CHECKING:
    from mlflow_deploy_plugin.core.store.keys import ApiKey, ApiKeys

_SCOPES: tuple[Scope, ...] = get_args(Scope)


@contextmanager
def _opened_keys() -> Iterator["ApiKeys"]:
    from mlflow_deploy_plugin.core.store.keys import ApiKeys

    with opened_store() as store:
        yield ApiKeys(store)


@click.group(cls=Commands)
def keys() -> None:
    """Create, list and revoke API keys.

    A server with -C server.api_keys=true answers only callers that send a key
    (Authorization: Bearer KEY). A change reaches every server of the store within
    seconds.
    """


@keys.command()
@name_argument
@option(
    "--scope",
    "scopes",
    "Permission: predictions, explanations and feedback (infer); metrics, metadata and pages "
    "(read); loading and unloading models (admin); pushing the events of an observed endpoint "
    "(observe). May be repeated.",
    multiple=True,
    type=click.Choice(_SCOPES),
    default=("infer",),
)
@option(
    "--endpoint NAME",
    "endpoints",
    "Endpoint that the key is valid for. May be repeated.",
    multiple=True,
    show_default="all",
)
@option("--expires DURATION", "Lifetime of the key: 12h, 90d.", show_default="never")
@option(
    "--limit RATE",
    "limits",
    "Rate limit or quota of predictions, e.g. 100/second or 1000000/day. May be repeated. Each "
    "worker counts separately from its start, unless ONNXSERVE_REDIS_URL sets a shared counter.",
    multiple=True,
    show_default="none",
)
@output_option
def create(
    name: str,
    scopes: tuple[Scope, ...],
    endpoints: tuple[str, ...],
    expires: str | None,
    limits: tuple[str, ...],
    output: str,
) -> None:
    """Create the API key NAME, and print it once.

    NAME identifies the user of the key in logs and in the audit trail.

    \b
      onnxserve keys create shop --endpoint flights --expires 90d --limit 100/second \\
          --limit 1000000/day
      onnxserve keys create prometheus --scope read
    """
    for identifier in (name, *endpoints):
        empty_endpoint(identifier)  # This raises an error if the name is not valid.
    for rate in limits:
        if not re.fullmatch(RATE, rate):
            raise click.UsageError(
                f"--limit {rate}: a rate is expected, e.g. 100/second or 1000000/day"
            )
    lifetime = None
    if expires is not None:
        with usage_errors():
            lifetime = parse_duration(expires, "--expires")
    with _opened_keys() as stored:
        names = stored.store.names()
        try:
            key, text = stored.create(name, scopes, endpoints, lifetime, limits=limits)
        except OverflowError:
            raise click.UsageError(f"--expires {expires} ends after the year 9999") from None
    for identifier in endpoints:
        if identifier not in names:
            show_progress(
                f"the store has no endpoint {identifier!r} yet{did_you_mean(identifier, names)}"
            )
    if output == "json":
        show_json({**_document(key), "key": text})
        return
    click.echo("store this key now; it cannot be shown again:", err=True)
    click.echo(text)


@keys.command("list")
@output_option
def list_keys(output: str) -> None:
    """List all API keys, including expired and revoked keys."""
    with _opened_keys() as stored:
        api_keys = stored.created()
        now = stored.store.now()
    rows = [("NAME", "SCOPES", "ENDPOINTS", "LIMITS", "CREATED", "STATE")]
    for key in api_keys:
        created = f"{key.created_at:%Y-%m-%d} by {key.actor}"
        if key.revoked_at is not None:
            state = f"revoked {key.revoked_at:%Y-%m-%d %H:%M}Z"
        elif key.expires_at is None:
            state = "valid"
        elif key.expires_at <= now:
            state = "expired"
        else:
            state = f"valid until {key.expires_at:%Y-%m-%d %H:%M}Z"
        endpoints = ",".join(key.endpoints) or "all"
        limits = ", ".join(key.limits) or "none"
        rows.append((key.name, ",".join(key.scopes), endpoints, limits, created, state))
    empty = "there are no keys: run `onnxserve keys create NAME`"
    show_table(output, [*map(_document, api_keys)], rows, empty)


@keys.command()
def export() -> None:
    """Show the digests of the valid API keys as a JSON file.

    A server without a store reads this file (ONNXSERVE_KEYS_FILE).

    \b
      kubectl create secret generic keys --from-file keys.json=<(onnxserve keys export)
    """
    with _opened_keys() as stored:
        click.echo(stored.valid_entries().model_dump_json(indent=2))


@keys.command()
@name_argument
@why_option
def revoke(name: str, why: str) -> None:
    """Revoke the API key NAME. Servers refuse it within seconds."""
    with _opened_keys() as stored:
        if stored.revoke(name, why) is None:
            valid = [key.name for key in stored.valid()]
            hint = did_you_mean(name, valid, "onnxserve keys list shows them")
            raise NotFound(f"there is no valid key {name!r}{hint}")
    click.echo(f"the key {name} is revoked")


def _document(key: "ApiKey") -> dict[str, object]:
    """Return the JSON of a key, without its digest. `endpoints` is None for a key of
    all endpoints.
    """
    document = {**asdict(key), "endpoints": key.endpoints or None}
    del document["digest"]
    return document
