"""The files of model control commands, and the errors in their answers.

File names contain the creation time by the machine's monotonic clock, so that commands
are executed in order. The worker that wrote a command removes the command and its
answer. The agent removes the files of dead workers.
"""

from pathlib import Path

from mlflow_deploy_plugin.core import errors
from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.statedir.files import COMMANDS
from mlflow_deploy_plugin.core.statedir.models import CommandAnswer

MAX_WAITING = 64
"""The maximum number of waiting commands per server."""
COMMAND_TIMEOUT_SECONDS = 60.0
MAX_COMMAND_AGE_SECONDS = 2 * COMMAND_TIMEOUT_SECONDS
"""The age of a command after which no worker waits for the answer."""
_OF_COMMANDS = (
    errors.InvalidConfig,
    errors.ModelError,
    errors.NotFound,
    errors.NotReady,
    errors.RegistryUnavailable,
)
_ERRORS: dict[str, type[OnnxserveError]] = {error.__name__: error for error in _OF_COMMANDS}


def command_answer(error: OnnxserveError | None) -> CommandAnswer:
    """Return the answer to a command that failed with `error`; if `error` is None, to a
    command that succeeded.
    """
    if error is None:
        return CommandAnswer()
    kinds = [kind.__name__ for kind in type(error).__mro__]
    return CommandAnswer(
        error=error.message,
        kind=next((kind for kind in kinds if kind in _ERRORS), ""),
    )


def command_error(answer: CommandAnswer) -> OnnxserveError | None:
    if answer.error:
        return _ERRORS.get(answer.kind, OnnxserveError)(answer.error)
    return None


def command_files(state_dir: Path) -> list[Path]:
    """Return the files of the waiting commands, oldest first."""
    return sorted((state_dir / COMMANDS).glob("[!.]*.json"))
