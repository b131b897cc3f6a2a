"""The parts of the package, and the direction in which they may depend on each other."""

import logging
from pathlib import Path

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

CONTRACTS = Path(__file__).parents[1] / ".importlinter"


def test_dependencies_point_one_way_and_the_server_reaches_no_training_framework() -> None:
    loggers = [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    silent = [one.disabled for one in loggers]
    try:
        assert lint_imports(config_filename=str(CONTRACTS), no_cache=True) == EXIT_STATUS_SUCCESS
    finally:
        for logger, is_silent in zip(loggers, silent, strict=True):
            logger.disabled = is_silent  # It would silence the logs of all later tests.
