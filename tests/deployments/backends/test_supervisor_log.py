"""The line of a log that says why a server ended."""

from pathlib import Path

import pytest

from mlflow_deploy_plugin.deployments.backends.supervisor import final_error, last_error
from mlflow_deploy_plugin.statedir import LOG


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("2026-11-20 08:00:00,1 [agent] INFO fine\nError: no such model\nonnxserve: goodbye\n", "no such model"),
        (
            "2026-11-20 08:00:00,123 ERROR 12 mlflow_deploy_plugin.server.models.repository: cannot load\n",
            "cannot load",
        ),
        ("[2026-11-20 08:00:00 +0000] [7] [CRITICAL] WORKER TIMEOUT\nlast\n", "WORKER TIMEOUT"),
        (
            "Traceback (most recent call last):\n  File x\nModuleNotFoundError: No module\n",
            "ModuleNotFoundError: No module",
        ),
        ("Killed\n\n", "Killed"),
        ("", ""),
        (None, ""),
    ],
)
def test_the_most_telling_line_is_found_without_its_stamp(tmp_path: Path, log: str | None, said: str) -> None:
    if log is not None:
        (tmp_path / LOG).write_text(log)

    assert last_error(tmp_path) == said


@pytest.mark.parametrize(("log", "said"), [("INFO x\nError: gone\n", "gone"), ("Error: old\nINFO serving\n", "")])
def test_only_the_last_line_tells_why_a_server_is_gone(tmp_path: Path, log: str, said: str) -> None:
    (tmp_path / LOG).write_text(log)

    assert final_error(tmp_path) == said
