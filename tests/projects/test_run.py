"""Tests that run.py starts modules at the root, and installs the package only into
environments of MLflow.
"""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from projects import run

INSTALL = ["install", "-q", "-c", "constraints.txt", ".[projects]"]
PIP = [sys.executable, "-m", "pip", *INSTALL]
STARTED = [sys.executable, "-m", "projects.churn.train", "--trees", "10"]


@dataclass
class Calls:
    """The commands that run.py has started, instead of their effects."""

    installed: list[list[str]] = field(default_factory=list)
    started: list[tuple[list[str], Path]] = field(default_factory=list)
    status: int = 0

    def install(self, command, cwd, check):
        assert Path(cwd) != run.ROOT
        assert (Path(cwd) / "constraints.txt").resolve() == run.ROOT / "constraints.txt"
        assert (Path(cwd) / "mlflow_deploy_plugin" / "__init__.py").is_file()
        self.installed.append(command)
        return subprocess.CompletedProcess(command, self.status)

    def start(self, program, command):
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


def test_active_environment_is_unchanged(calls, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))

    run.main()

    assert calls.started == [(STARTED, run.ROOT)]
    assert calls.installed == []


def test_mlflow_environment_is_installed_once(calls):
    run.main()
    run.main()

    assert calls.installed == [PIP]
    assert calls.started == [(STARTED, run.ROOT)] * 2


def test_failed_installation_is_repeated(calls):
    calls.status = 2
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2
    assert calls.started == []

    calls.status = 0
    run.main()
    assert calls.installed == [PIP, PIP]
    assert calls.started == [(STARTED, run.ROOT)]
