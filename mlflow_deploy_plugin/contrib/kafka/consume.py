"""`onnxserve consume`: the messages of a Kafka topic, answered by an endpoint."""

import threading
from contextlib import ExitStack
from typing import Any

import click

from mlflow_deploy_plugin.cli.options import (
    POSITIVE,
    name_argument,
    opened_deployments,
    option,
    path_option,
)
from mlflow_deploy_plugin.core.logs import configure_logging
from mlflow_deploy_plugin.core.processes.child import end_on_signals
from mlflow_deploy_plugin.core.settings import load_settings

_ANSWER_SECONDS = 300.0


@click.command()
@name_argument
@option("--from TOPIC", "source", "Topic of the messages.", required=True)
@option("--to TOPIC", "destination", "Topic of the answers.", required=True)
@option(
    "--dead-letter NAME",
    "Name of the topic of messages that cannot be answered.",
    show_default="the name of --from, with .dead-letter",
)
@path_option("--config-file", help="Properties of librdkafka, as lines NAME=VALUE.")
@option("--in-flight COUNT", "Messages to answer at once.", type=POSITIVE, default=16)
@option(
    "--url URL",
    "Address of the server: https://host:8080.",
    show_default="the server of NAME on this machine",
)
def consume(name: str, url: str | None, in_flight: int, **options: Any) -> None:
    """Answer the messages of a Kafka topic with an endpoint.

    Each message is a request to the server of the endpoint NAME. A topic is
    kafka://HOST:PORT/NAME. The command runs until it is stopped.

    \b
      onnxserve consume flights --from kafka://broker:9092/in \\
          --to kafka://broker:9092/out --config-file client.properties

    Each message is answered at least once, and in order per key. The headers of an
    answer contain the version and the prediction id. The file has the credentials for
    the brokers, and ONNXSERVE_API_KEY is the key for the server.
    """
    ended = threading.Event()
    end_on_signals(ended)  # Handle signals before the imports, which take seconds.
    from mlflow_deploy_plugin.contrib.kafka.relay import TopicRelay
    from mlflow_deploy_plugin.serve.client.client import Client, RetryPolicy
    from mlflow_deploy_plugin.ship.deployments.scoring import scoring_target

    settings = load_settings()
    configure_logging(settings.log_format, "consume")
    with ExitStack() as held:
        if url is None:
            deployments = held.enter_context(opened_deployments())
            url = held.enter_context(scoring_target(deployments, None, name)).url
        headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        client = Client(url, name, _ANSWER_SECONDS, headers, RetryPolicy(tries=1), in_flight)
        TopicRelay(client, ended, in_flight=in_flight, **options).run()
