"""`onnxserve rollback NAME`: back to what was served before."""

import click


@click.command()
@click.argument("name")
@click.option(
    "--to",
    metavar="VERSION|MODEL",
    show_default="what was served before",
    help="Version to go back to, or, of an endpoint that follows nothing, its model URI.",
)
@click.option(
    "--why", default="", metavar="REASON", help="Reason, kept in the audit trail and on the version in MLflow."
)
def rollback(name: str, to: str | None, why: str) -> None:
    """Go back to what was served before.

    It is done when the endpoint NAME answers with the earlier version. The stage or alias that it follows is given back
    to the earlier version, and the newer one is archived; a rollout that is under way is aborted.
    """
    # here: SQLAlchemy, MLflow and the rest take seconds that `--help` should not wait for
    from mlflow_deploy_plugin.registry.connection import import_mlflow_without_pandas

    import_mlflow_without_pandas()
    from mlflow_deploy_plugin.controller.rollouts.rollback import rollback as go_back

    done = go_back(name, why=why, to=to)
    click.echo(
        f"{name}: {done['model']} {done['to']} instead of {done['from']} after {done['seconds']} s; {done['source']}"
    )
