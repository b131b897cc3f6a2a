"""`.ci/run` in a project whose tests pass, fail, or fail once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.guides import ROOT
from tests.support.refusals import mentions

MAKEFILE = """\
lint helm:
	@echo make $@
test:
	.venv/bin/python -m pytest -q -p xdist -n 2 tests/test_quick.py
test-install stack-test:
	.venv/bin/python -m pytest -q tests/test_good.py
test-long:
	.venv/bin/python -m pytest -q -p xdist -n 2 --dist loadfile -m long $(DRILLS)
"""
GOOD = "def test_it():\n    pass\n"
BAD = "def test_it():\n    assert False\n"
FLAKY = """\
from pathlib import Path

def test_it():
    before, tried = Path("tried").exists(), Path("tried").touch()
    assert before
"""
DRILLS = f"""\
import pytest, time

pytestmark = pytest.mark.long

{FLAKY}

def test_without_end():
    time.sleep(60)
"""
HEADING = "== FAILED, THEN PASSED: fix or delete these tests before the next issue is resolved =="


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name, text in {
        "Makefile": MAKEFILE,
        "setup.cfg": f"[metadata]\nclassifiers =\n    Programming Language :: Python :: 3.{sys.version_info.minor}\n",
        "pytest.ini": "[pytest]\nmarkers = long\n",
        "tests/test_good.py": GOOD,
        "tests/test_quick.py": GOOD,
        "tests/test_drill.py": DRILLS,
        "programs/apt-get": "#!/bin/sh\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "programs/apt-get").chmod(0o755)
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    (folder / ".venv").symlink_to(sys.prefix)
    git = ["git", "-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "Begin"], cwd=folder, check=True)
    return folder


CHOSEN = {"MACHINE": "none", "CI_PART": "stack", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def run(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script without machine scripts."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "MAKE"))}
    path = f"{project / 'programs'}:{os.environ['PATH']}"
    return subprocess.run(
        [project / ".ci/run"],
        env={**inherited, "PATH": path, **CHOSEN, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.long
def test_lint_the_tests_and_one_part_are_run(project: Path) -> None:
    ran = run(project)

    assert ran.returncode == 0, ran.stdout
    assert [line for line in ran.stdout.splitlines() if line.startswith("make ")] == ["make lint", "make helm"]
    assert ran.stdout.count("1 passed") == 3
    assert HEADING not in ran.stdout


@pytest.mark.long
def test_a_test_that_passes_when_it_is_run_alone_is_named_at_the_end(project: Path) -> None:
    (project / "tests/test_quick.py").write_text(f"{FLAKY}\n{GOOD.replace('test_it', 'test_other')}")

    ran = run(project)

    assert ran.returncode == 0, ran.stdout
    assert ran.stdout.splitlines()[-2:] == [HEADING, "test in .venv: PASSED tests/test_quick.py::test_it"]


@pytest.mark.long
def test_a_test_that_fails_again_fails_the_run_which_names_the_others(project: Path) -> None:
    (project / "tests/test_quick.py").write_text(f"{FLAKY}\n{BAD.replace('test_it', 'test_other')}")

    ran = run(project)

    assert ran.returncode == 1
    assert "FAILED tests/test_quick.py::test_other" in ran.stdout
    assert ran.stdout.splitlines()[-2:] == [HEADING, "test in .venv: PASSED tests/test_quick.py::test_it"]


@pytest.mark.long
def test_a_run_that_pytest_does_not_bring_to_its_end_fails(project: Path) -> None:
    (project / "tests/test_good.py").write_text(f"{FLAKY.replace('def test_it()', 'if True')}\n{GOOD}")

    ran = run(project)

    assert ran.returncode == 1
    assert "Interrupted" in ran.stdout
    assert HEADING not in ran.stdout


@pytest.mark.long
def test_a_part_is_skipped_if_too_little_time_is_left(project: Path) -> None:
    ran = run(project, SECONDS="1700")

    assert ran.returncode == 0, ran.stdout
    assert ran.stdout.splitlines()[-1].startswith("stack is skipped: ")


@pytest.mark.long
def test_the_drills_are_stopped_when_the_time_is_over_and_those_that_failed_count(project: Path) -> None:
    script = project / ".ci/run"
    script.write_text(script.read_text().replace("-lt 240", "-lt 1"))
    (project / "Makefile").write_text(f"lint helm test test-install:\n{MAKEFILE[MAKEFILE.index('test-long') :]}")

    ran = run(project, SECONDS="1788", CI_PART="drills")

    assert ran.returncode == 0, ran.stdout
    assert "make test-long is" in ran.stdout
    assert ran.stdout.splitlines()[-2:] == [HEADING, "test-long in .venv: PASSED tests/test_drill.py::test_it"]


def test_a_part_that_is_not_there_is_refused_with_those_that_are(project: Path) -> None:
    ran = run(project, CI_PART="2.7")

    assert ran.returncode == 2
    assert mentions(ran.stdout.splitlines()[-1], "CI_PART=2.7", "drills", "stack")
