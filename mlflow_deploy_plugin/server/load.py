"""A wanted version comes into memory, and says when it leaves it."""

import logging
import weakref
from collections.abc import Callable
from pathlib import Path

from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.server.capture import CapturedModel
from mlflow_deploy_plugin.server.served import LoadedVersion
from mlflow_deploy_plugin.server.state import WantedVariant, loading
from mlflow_deploy_plugin.server.warmup import WarmVersion

logger = logging.getLogger(__name__)


def load_version(state_dir: Path, load: Callable[[Path], WarmVersion], want: WantedVariant) -> LoadedVersion:
    """Loads and warms the version; while that lasts, its folder stands in the state folder, should the worker die.

    Raises:
        OnnxserveError: it cannot be loaded; the message may be shown to whoever asks for it.
    """
    try:
        with loading(state_dir, want.folder):
            warm = load(want.folder)
    except OnnxserveError:
        raise
    except Exception as error:
        logger.exception("loading %s %s failed", want.model, want.version)
        raise OnnxserveError(f"loading failed unexpectedly: {type(error).__name__}, see the log") from None
    predictor = warm.predictor
    loaded = LoadedVersion(
        want.model,
        want.version,
        want.folder,
        predictor,
        CapturedModel(
            want.model,
            want.version,
            predictor.schema,
            predictor.artifact.prediction,
            tuple(output.name for output in predictor.artifact.outputs) or None,
        ),
        warm.batcher,
        warm.seconds_per_row,
        warm.is_deterministic,
    )
    logger.info("loaded %s %s", want.model, want.version)
    if warm.batcher is not None:
        weakref.finalize(loaded, warm.batcher.close).atexit = False
    weakref.finalize(loaded, logger.info, "dropped %s %s", want.model, want.version).atexit = False
    return loaded
