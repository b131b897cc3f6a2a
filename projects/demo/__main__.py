"""`python -m projects.demo` runs the demo, and `python -m projects.demo stop` stops its
servers.

With DEMO_EXIT=1 in the environment, all servers are stopped at the end, even after a
failure.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from projects.command import one_line_errors
from projects.demo.walkthrough import STEPS, StepPrinter, run_walkthrough, stop
from projects.demo.workspace import DEFAULT_HOME, Workspace


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m projects.demo",
        description=__doc__.partition("\n\n")[0],
    )
    parser.add_argument("command", nargs="?", choices=("run", "stop"), default="run")
    parser.add_argument(
        "--home",
        type=Path,
        default=DEFAULT_HOME,
        help="folder for everything the demo writes",
    )
    options = parser.parse_args()
    workspace = Workspace(options.home.absolute())
    printer = StepPrinter(STEPS)
    # SIGTERM must stop the servers like Ctrl-C.
    signal.signal(
        signal.SIGTERM,
        signal.default_int_handler,
    )
    try:
        with one_line_errors():
            if options.command == "stop":
                print(
                    "all servers are stopped"
                    if stop(workspace, printer)
                    else "no server of the demo runs",
                )
            else:
                _run(workspace, printer)
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the servers of the demo are stopped")


def _run(workspace: Workspace, printer: StepPrinter) -> None:
    """Run the steps. The servers keep running only after success
    without DEMO_EXIT=1.
    """
    finished = False
    try:
        printer.table(run_walkthrough(workspace, printer))
        finished = True
    finally:
        if not finished or os.environ.get("DEMO_EXIT") == "1":
            stop(workspace, printer)
    if os.environ.get("DEMO_EXIT") == "1":
        print(
            "The servers are stopped, because DEMO_EXIT=1 is set; the reports are in "
            f"{workspace.reports}",
        )
    else:
        print(f"The servers are still running. To stop them:   {workspace.stop_command}")


if __name__ == "__main__":
    main()
