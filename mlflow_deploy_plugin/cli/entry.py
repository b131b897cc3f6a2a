"""The entry point of `onnxserve`.

Images, containers and manifests start `onnxserve`, and never a module, so that they
do not depend on the folders of the package.
"""

import io
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

_OF_CONTAINERS = {
    "build-environment": "mlflow_deploy_plugin.serve.agent.pyfunc_environment",
    "health": "mlflow_deploy_plugin.serve.cloud",
    "hold-socket": "mlflow_deploy_plugin.serve.listener",
    "list-packages": "mlflow_deploy_plugin.ship.images.sbom",
}
"""A command that only containers run → its module, with a function `main`.

`--help` does not list these commands. They start without click: a health check runs
every ten seconds, and click with the settings would triple its time (0.23 s, 0.08 s).
"""


def main() -> None:
    """Run the command in `sys.argv`, and exit with its status."""
    name, *arguments = sys.argv[1:] or [""]
    if name in _OF_CONTAINERS:
        run: Callable[[Sequence[str]], int] = import_module(_OF_CONTAINERS[name]).main
        sys.exit(run(arguments))
    from mlflow_deploy_plugin.cli.commands import main as run_command
    from mlflow_deploy_plugin.cli.options import Output

    for stream_name in ("stdout", "stderr"):
        stream = getattr(sys, stream_name)
        if sys.platform == "win32":  # Only Python's own stream writes to its console.
            stream.reconfigure(errors="replace")
        elif stream is not None:  # `>&-` closes it.
            raw = Output(stream.fileno(), "w", closefd=False)
            text = io.TextIOWrapper(
                io.BufferedWriter(raw),
                stream.encoding,
                stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, stream_name, text)
    run_command(prog_name="onnxserve")
