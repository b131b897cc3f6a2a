"""The folder of the demo, and the environment variables that point MLflow and onnxserve
to it.
"""

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from mlflow_deploy_plugin.core.errors import InvalidConfig

CHECKOUT = Path(__file__).parents[2]
DEFAULT_HOME = CHECKOUT / ".demo"
_QUIET = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_LEADS_ELSEWHERE = (
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_RUN_ID",
    "ONNXSERVE_LOG_URI",
    "ONNXSERVE_STORE_URI",
)
_MARKER = "This folder belongs to the demo of onnxserve; each run of the demo empties it first.\n"


@dataclass(frozen=True)
class Workspace:
    """The folder of the demo. The demo writes only to it and does not change any other
    MLflow server or deployment.
    """

    home: Path

    @property
    def marker(self) -> Path:
        return self.home / "README.txt"

    @property
    def server_file(self) -> Path:
        return self.home / "mlflow-server.json"

    @property
    def mlflow(self) -> Path:
        return self.home / "mlflow"

    @property
    def onnxserve_home(self) -> Path:
        return self.home / "onnxserve"

    @property
    def reports(self) -> Path:
        return self.home / "reports"

    @property
    def stop_command(self) -> str:
        """A command line that stops the servers of the demo, from any folder."""
        home = [] if self.home == DEFAULT_HOME else ["--home", str(self.home)]
        command = [sys.executable, "-m", "projects.demo", "stop", *home]
        return f"cd {shlex.quote(str(CHECKOUT))} && {shlex.join(command)}"

    def check(self) -> None:
        """Refuse a folder with files that the demo did not write.

        Raises:
            InvalidConfig: the folder is not empty and does not belong to the demo.
        """
        if self.home.exists() and not self.marker.exists() and any(self.home.iterdir()):
            raise InvalidConfig(
                f"{self.home} is not empty and does not belong to the demo: specify another "
                "folder with --home",
            )

    def empty(self) -> None:
        """Delete and recreate the folder. Call `check` and stop the servers of the
        earlier run first.
        """
        shutil.rmtree(self.home, ignore_errors=True)
        for folder in (self.mlflow, self.onnxserve_home, self.reports):
            folder.mkdir(parents=True)
        self.marker.write_text(_MARKER)

    def use(self, tracking_uri: str | None = None) -> None:
        """Point this process and its children to the folder: the MLflow server and the
        home of onnxserve.

        PATH must begin with the commands of this Python, because `mlflow run
        --env-manager local` calls `python`.
        """
        for inherited in _LEADS_ELSEWHERE:
            os.environ.pop(inherited, None)
        commands = str(Path(sys.executable).parent)
        path = os.environ.get("PATH", "")
        if path.split(os.pathsep)[0] != commands:
            os.environ["PATH"] = os.pathsep.join([commands, path])
        os.environ |= _QUIET | {"ONNXSERVE_HOME": str(self.onnxserve_home)}
        if tracking_uri is not None:
            os.environ["MLFLOW_TRACKING_URI"] = tracking_uri
