"""`onnxserve observe`: endpoints whose model another server serves."""

from dataclasses import asdict, replace

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
from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError


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
    "columns, or the log of another server: sagemaker, databricks, kserve.",
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
    fields_given = {f"observe.{field}": text for field, text in fields.items() if text is not None}
    changes = {**fields_given, **roles, **key_values(config)}
    with opened_deployments() as deployments:
        from mlflow_deploy_plugin.serve.inference_log.source_state import describe_problems
        from mlflow_deploy_plugin.ship.deployments.backends.targets import OBSERVED
        from mlflow_deploy_plugin.watch.observed.reading import (
            read_again,
            read_source,
            reading_lease,
        )

        store = deployments.store
        if name not in store.names():
            replace(deployments, target=OBSERVED).create_endpoint(name, changes, why)
        elif store.require_endpoint(name).spec.observe is None:
            raise InvalidConfig(f"onnxserve serves the endpoint {name!r}, and does not observe it")
        elif changes:
            deployments.update_endpoint(name, changes, why)
        if model_uri is not None:
            if store.require_endpoint(name).spec.variants:
                deployments.update(name, model_uri, {})
            else:
                deployments.add(name, name, model_uri, {}, why)
        endpoint = store.require_endpoint(name)
        with reading_lease(store, name):
            if fields["since"] is not None:
                read_again(deployments.settings, endpoint)
            state = read_source(deployments.settings, endpoint, show_progress)
    if state.error:
        raise OnnxserveError(f"{name}: {state.error}")
    lines = [f"{name}: {state.rows:,} rows in the log", *describe_problems(state)]
    show_result(output, asdict(state), lines)
