"""README.md does what it says; test_install.py runs the example and walks "By hand" in empty environments."""

import re
import sys
from pathlib import Path

from tests.support.guides import ROOT, blocks, run_smallest_example, section

ENVIRONMENT = Path(sys.prefix)


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    """`make test` is this run, `make demo` is run by test_demo.py."""
    (block,) = blocks("sh", section("Two commands"))
    commands = re.findall(r"^make ([\w-]+)", block, flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert commands == ["demo", "test"]
    assert all(re.search(rf"^{target}: install$", makefile, re.MULTILINE) for target in commands)


def test_the_smallest_example_runs(tmp_path: Path) -> None:
    run_smallest_example(ENVIRONMENT, tmp_path)
