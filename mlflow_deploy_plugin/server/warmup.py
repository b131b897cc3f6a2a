"""Loading a version so that its first request is not its slowest."""

import logging
from pathlib import Path

from mlflow_deploy_plugin.errors import InferenceError, InvalidArtifact, OnnxserveError
from mlflow_deploy_plugin.runtime.model import OnnxModel
from mlflow_deploy_plugin.server.protocols import mlflow
from mlflow_deploy_plugin.server.protocols.content import JSON
from mlflow_deploy_plugin.spec import Device

logger = logging.getLogger(__name__)

EXAMPLE = "serving_input_example.json"
"""MLflow writes it beside a model that was logged with an input example: a body for `/invocations`."""


def load_warm(folder: Path, device: Device, intra_op_num_threads: int) -> OnnxModel:
    """Loads the MLmodel folder and lets it answer once: its own example, or a row of zeros where it has none.

    Raises:
        InvalidArtifact: the model cannot be used, or cannot answer its own example.
        DeviceUnavailable, RuntimeMissing: see `runtime.session.open_session`.
    """
    model = OnnxModel.load(folder, device, intra_op_num_threads)
    example = folder / EXAMPLE
    if example.is_file():
        try:
            model.run(mlflow.decode(JSON, example.read_bytes(), model.schema))
        except OnnxserveError as error:
            raise InvalidArtifact(f"the model cannot answer its own example ({EXAMPLE}): {error.message}") from None
        return model
    try:
        model.run(model.example_feeds())
    except InferenceError as error:
        # A graph may have every right to refuse zeros (an unknown category, a shape): it only starts cold.
        logger.info("%s: no warm-up, since it refuses a row of zeros: %s", folder.name, error.message)
    return model
