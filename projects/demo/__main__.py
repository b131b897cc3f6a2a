"""`python -m projects.demo` runs the demo, `python -m projects.demo stop` ends what it left running.

DEMO_EXIT=1 in the environment stops everything at the end, and whatever happens in between.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from projects.command import plain_errors
from projects.demo.place import DEFAULT_HOME, Place
from projects.demo.screen import Screen
from projects.demo.story import STEPS, stop, tell


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m projects.demo", description=__doc__.partition("\n")[0])
    parser.add_argument("command", nargs="?", choices=("run", "stop"), default="run")
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME, help="folder for everything the demo writes")
    options = parser.parse_args()
    place, screen = Place(options.home.absolute()), Screen(STEPS)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends us wants the servers gone, as with Ctrl-C
    try:
        with plain_errors():
            if options.command == "stop":
                print("everything is stopped" if stop(place, screen) else "nothing of the demo runs")
            else:
                _run(place, screen)
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; what the demo had started is stopped")


def _run(place: Place, screen: Screen) -> None:
    """Tells the story; the servers go on running only where it ended well and nobody asked otherwise."""
    finished = False
    try:
        screen.table(tell(place, screen))
        finished = True
    finally:
        if not finished or os.environ.get("DEMO_EXIT") == "1":
            stop(place, screen)
    if os.environ.get("DEMO_EXIT") == "1":
        print(f"The servers are stopped, as DEMO_EXIT=1 asks; the reports stay in {place.reports}")
    else:
        home = "" if place.home == DEFAULT_HOME else f" --home {place.home}"
        print(f"The servers go on running. This stops them:   {sys.executable} -m projects.demo stop{home}")


if __name__ == "__main__":
    main()
