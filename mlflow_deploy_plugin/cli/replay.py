"""`onnxserve replay`: captured requests, computed again."""

import click

from mlflow_deploy_plugin.cli.options import option, output_option


@click.command()
@click.argument("subject", metavar="PREDICTION_ID|NAME")
@option("--against", metavar="URI", default="", help="Candidate that predicts the rows of the endpoint NAME.")
@output_option
def replay(subject: str, against: str, output: str) -> None:
    """Compute captured requests again."""
    if against:
        _backtest(subject, against, output)
    else:
        _replay_prediction(subject, output)


def _replay_prediction(prediction_id: str, output: str) -> None:
    raise click.UsageError(f"--against is missing: {prediction_id} {output}")


def _backtest(endpoint: str, against: str, output: str) -> None:
    raise click.UsageError(f"--against {against} is not supported: {endpoint} {output}")
