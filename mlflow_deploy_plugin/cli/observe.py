"""`onnxserve observe`: endpoints whose model another server serves."""

from dataclasses import asdict, replace
from time import monotonic

import click

from mlflow_deploy_plugin.cli.options import (
    config_option,
    key_values,
    name_argument,
    opened_deployments,
    option,
    output_option,
    show_progress,
    show_result,
    to_names,
    why_option,
)
from mlflow_deploy_plugin.core.errors import InvalidConfig, NotReady, OnnxserveError

_TAKEN_OVER_SECONDS = 20.0
"""The wait for a lease, of which a killed process can be the holder for 15 s."""


@click.command()
@name_argument
@option("--model URI", "model_uri", "Model of the registry, such as models:/churn@champion.")
@option(
    "--from SOURCE",
    "source",
    "Folder or s3://BUCKET/PREFIX of files, delta:FOLDER, postgresql://USER@HOST/DATABASE (or "
    "another database of SQLAlchemy), or push:.",
)
@option(
    "--format FORMAT",
    "format_",
    "columns, or the log of another server: sagemaker, databricks, kserve, bentoml.",
)
@option(
    "--column ROLE=NAME,…",
    "columns",
    "Columns with a role: id, time, prediction, version. All others are inputs.",
    callback=to_names,
)
@option("--query QUERY", "Table of the database, or a SELECT statement.")
@option("--position COLUMN", "Column of the query that grows.", show_default="the time")
@option("--password VARIABLE", "Environment variable with the database's password.")
@option("--since TIME", "Event time from which rows are read; the source is read again.")
@option("--every DURATION", "Time between two readings by the controller.")
@config_option
@why_option
@output_option
def observe(
    name: str,
    model_uri: str | None,
    columns: tuple[str, ...],
    config: tuple[str, ...],
    why: str,
    output: str,
    **fields: str | None,
) -> None:
    """Read the rows of a model that another server serves, as the endpoint NAME.

    The command creates or changes the endpoint, and reads the new rows of its source
    once; `onnxserve controller` then reads them every --every. Each row is in the log
    exactly once, by its id. After Ctrl-C, repeat the command to continue. Monitors,
    labels and reports are those of any endpoint.

    \b
      onnxserve observe churn --model models:/churn@champion --from s3://logs/churn/ \\
          --column id=request_id,time=ts,prediction=score --since 2025-11-01
      onnxserve observe churn
    """
    roles = {f"observe.{role}": column for role, column in key_values(columns, "--column").items()}
    fields["format"] = fields.pop("format_")
    given = {f"observe.{field}": text for field, text in fields.items() if text is not None}
    changes = {**given, **roles, **key_values(config)}
    with opened_deployments() as deployments:
        from mlflow_deploy_plugin.core.store.leases import held_lease
        from mlflow_deploy_plugin.serve.inference_log.source_state import describe_problems
        from mlflow_deploy_plugin.ship.deployments.backends.targets import OBSERVED
        from mlflow_deploy_plugin.watch.observed.reading import (
            read_again,
            read_source,
            reading_lease,
        )

        store = deployments.store
        if name not in store.names():
            at_source = replace(deployments, target=OBSERVED)
            if model_uri is not None:
                at_source.create(name, model_uri, changes)
            else:
                at_source.create_endpoint(name, changes, why)
        elif changes or model_uri is not None:
            if model_uri is not None:
                changes[f"variants.{name}.model"] = model_uri
            deployments.update_endpoint(name, changes, why)
        endpoint = store.require_endpoint(name)
        if endpoint.spec.observe is None:
            raise InvalidConfig(f"onnxserve serves the endpoint {name!r}, and does not observe it")

        begun = monotonic()

        def wait_for(holder: str) -> None:
            if monotonic() < begun + _TAKEN_OVER_SECONDS:
                return
            raise NotReady(f"{name}: {holder} is reading its source; repeat the command later")

        with held_lease(store, reading_lease(name), wait_for):
            if fields["since"] is not None:
                read_again(deployments.settings, endpoint)
            state = read_source(deployments.settings, endpoint, show_progress)
    if state.error:
        raise OnnxserveError(f"{name}: {state.error}")
    problems = describe_problems(state)
    newest = "no rows yet"
    if state.newest is not None:
        newest = f"{state.rows:,} rows in the log, the newest of {state.newest:%Y-%m-%d %H:%M} UTC"
    show_result(output, asdict(state), [f"{name}: {newest}", *(f"  {line}" for line in problems)])
