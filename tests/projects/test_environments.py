"""Environments of other packages, which several processes ask for at once."""

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from projects import environments


@pytest.mark.long
def test_environment_is_made_once_for_two(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "CACHE", tmp_path)
    with ThreadPoolExecutor(2) as pool:
        programs = set(pool.map(environments.environment, [("iniconfig==2.1.0",)] * 2, [True] * 2))
    (found,) = programs
    subprocess.run([found / "python", "-c", "import iniconfig"], check=True)
    assert len([*tmp_path.glob("iniconfig-*/ready")]) == 1
