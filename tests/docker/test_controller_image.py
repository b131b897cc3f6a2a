"""The controller image: hardened, with settings only in the environment, judging the
captured rows of a real server.
"""

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from tests.support.services.s3 import NEEDS_S3

pytestmark = [
    *NEEDS_S3,
    pytest.mark.docker,
    pytest.mark.postgresql,
    pytest.mark.long,
    pytest.mark.timeout(1800),
]

HARDENED = [
    "--user",
    "10001",
    "--read-only",
    "--tmpfs",
    "/tmp",
    "--tmpfs",
    "/var/lib/onnxserve",
    "--cap-drop",
    "ALL",
]
HARDENED += ["--security-opt", "no-new-privileges", "--memory", "2g"]


@pytest.fixture
def command(controller_image, docker, tmp_path):
    """Run `onnxserve ARGUMENTS` in a container whose home is removed with it."""

    def run(*arguments, **settings):
        secrets = tmp_path / "secrets.env"
        secrets.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        command = [
            "run",
            "--rm",
            *HARDENED,
            "--env-file",
            str(secrets),
            controller_image,
            *arguments,
        ]
        return docker(*command, check=False)

    return run


def test_due_windows_are_judged_once(two_days, command):
    first = command("monitor", "run-due", "flights", "--monitor", "daily", **two_days.settings)
    again = command("monitor", "run-due", "flights", "--monitor", "daily", **two_days.settings)

    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    assert again.stdout.strip().split(": ") == ["flights", "monitor daily", "no window is due"]
    assert two_days.verdicts("daily") == ["no drift", "drift"]
    for window, line in zip(
        Monitors(two_days.store).windows(), first.stdout.splitlines(), strict=True
    ):
        assert line.startswith(
            f"flights: monitor daily {window.start:%F}/{window.end:%F}: {window.verdict}; http"
        )
        run = MlflowClient(two_days.mlflow.url).get_run(window.run_id)
        assert run.data.tags["onnxserve.window.start"] == window.start.isoformat()
