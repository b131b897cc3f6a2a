"""`onnxserve rollback NAME`: back to what was served before."""

import click


@click.command()
@click.argument("name")
@click.option("--to", metavar="VERSION", help="Go back to this one. Default: what was served before.")
@click.option("--why", default="", metavar="TEXT", help="Kept in the audit trail, and beside the version in MLflow.")
def rollback(name: str, to: str | None, why: str) -> None:
    """Brings back what the endpoint NAME served before, and returns when it answers.

    The stage or alias that it follows is given back to the earlier version, and the newer one is archived; a rollout
    that is under way is aborted.
    """
    # here: SQLAlchemy, MLflow and the rest take seconds that `--help` should not wait for
    from mlflow_deploy_plugin.registry.connection import import_mlflow_alone

    import_mlflow_alone()
    from mlflow_deploy_plugin.controller.rollouts.rollback import rollback as go_back

    done = go_back(name, why=why, to=to)
    click.echo(
        f"{name}: {done['model']} {done['to']} instead of {done['from']} after {done['seconds']} s; {done['source']}"
    )
