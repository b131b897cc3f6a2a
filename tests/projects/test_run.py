"""Tests that run.py starts modules at the root, and installs the package only into
environments of MLflow.
"""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from projects import run

INSTALL = ["install", "-q", "-c", "constraints.txt", ".[projects]"]
PIP = [sys.executable, "-m", "pip", *INSTALL]
UV = ["uv", "pip", *INSTALL]
STARTED = [sys.executable, "-m", "projects.churn.train", "--trees", "10"]


@dataclass
class Calls:
    """The commands that run.py has started, instead of their effects."""

    installed: list[list[str]] = field(default_factory=list)
    started: list[tuple[list[str], Path]] = field(default_factory=list)
    status: int = 0

    def install(self, command: list[str], cwd: str, check: bool) -> Any:
        assert Path(cwd) != run.ROOT
        assert (Path(cwd) / "constraints.txt").resolve() == run.ROOT / "constraints.txt"
        assert (Path(cwd) / "mlflow_deploy_plugin" / "__init__.py").is_file()
        self.installed.append(command)
        return subprocess.CompletedProcess(command, self.status)

    def start(self, program: str, command: list[str]) -> None:
        assert program == sys.executable
        self.started.append((command, Path.cwd()))


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """The calls of run.py in an environment that MLflow has created."""
    made = Calls()
    environment = tmp_path / "mlflow-3c2b36548a66"
    environment.mkdir()
    (environment / "pyvenv.cfg").write_text("version = 3.11.7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(environment))
    monkeypatch.setattr(sys, "argv", ["../run.py", *STARTED[2:]])
    monkeypatch.setattr(subprocess, "run", made.install)
    monkeypatch.setattr(os, "execv", made.start)
    return made


def test_the_active_environment_is_not_changed(calls, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))

    run.main()

    assert calls.started == [(STARTED, run.ROOT)]
    assert calls.installed == []


def test_an_environment_of_mlflow_gets_the_package_once(calls):
    run.main()
    run.main()

    assert calls.installed == [PIP]
    assert calls.started == [(STARTED, run.ROOT)] * 2


def test_an_environment_of_uv_gets_the_package_from_uv(calls):
    (Path(sys.prefix) / "pyvenv.cfg").write_text("implementation = CPython\nuv = 0.9.1\n")

    run.main()

    assert calls.installed == [UV]
    assert calls.started == [(STARTED, run.ROOT)]


def test_the_package_is_installed_again_with_other_requirements(calls, monkeypatch):
    run.main()
    monkeypatch.setattr(run, "_REQUIREMENTS", ("setup.cfg",))
    run.main()

    assert calls.installed == [PIP, PIP]


def test_a_failed_installation_ends_the_run_and_is_repeated_by_the_next(calls):
    calls.status = 2
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2
    assert calls.started == []

    calls.status = 0
    run.main()
    assert calls.installed == [PIP, PIP]
    assert calls.started == [(STARTED, run.ROOT)]
