"""`python -m projects.demo` runs the demo, `python -m projects.demo stop` ends what it left running.

DEMO_EXIT=1 in the environment stops everything at the end, and whatever happens in between.
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
    parser = argparse.ArgumentParser(prog="python -m projects.demo", description=__doc__.partition("\n")[0])
    parser.add_argument("command", nargs="?", choices=("run", "stop"), default="run")
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME, help="folder for everything the demo writes")
    options = parser.parse_args()
    workspace, printer = Workspace(options.home.absolute()), StepPrinter(STEPS)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends us wants the servers gone, as with Ctrl-C
    try:
        with one_line_errors():
            if options.command == "stop":
                print("everything is stopped" if stop(workspace, printer) else "nothing of the demo runs")
            else:
                _run(workspace, printer)
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; what the demo had started is stopped")


def _run(workspace: Workspace, printer: StepPrinter) -> None:
    """Run the steps; the servers keep running only after success, and unless DEMO_EXIT=1 is set."""
    finished = False
    try:
        printer.table(run_walkthrough(workspace, printer))
        finished = True
    finally:
        if not finished or os.environ.get("DEMO_EXIT") == "1":
            stop(workspace, printer)
    if os.environ.get("DEMO_EXIT") == "1":
        print(f"The servers are stopped, as DEMO_EXIT=1 asks; the reports stay in {workspace.reports}")
    else:
        print(f"The servers go on running. This stops them:   {workspace.stop_command}")


if __name__ == "__main__":
    main()
