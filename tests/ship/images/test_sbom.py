"""Tests of the bill of materials of the running environment."""

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest

from mlflow_deploy_plugin.ship.images import sbom
from mlflow_deploy_plugin.ship.images.sbom import bill_of_materials


@pytest.mark.long
def test_distributions_are_listed_once_with_version():
    program = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "list-packages"]
    printed = json.loads(subprocess.run(program, capture_output=True, check=True).stdout)
    assert printed == bill_of_materials()  # It does not contain times or random numbers.
    assert printed["bomFormat"] == "CycloneDX"
    assert printed["specVersion"] == "1.6"
    components = {component["purl"]: component for component in printed["components"]}
    assert len(components) == len(printed["components"])
    assert components[f"pkg:pypi/numpy@{version('numpy')}"]["type"] == "library"
    assert list(components) == sorted(components)


def test_debian_packages_have_architecture_and_release(tmp_path, monkeypatch):
    (tmp_path / "dpkg-query").write_text("#!/bin/sh\necho 'libstdc++6 12.2.0-14+deb12u1 amd64'\n")
    (tmp_path / "dpkg-query").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(sbom, "distributions", list)
    monkeypatch.setattr(
        platform, "freedesktop_os_release", lambda: {"ID": "debian", "VERSION_ID": "12"}
    )

    components: Any = bill_of_materials()["components"]
    (package,) = [component for component in components if component["purl"].startswith("pkg:deb")]

    assert (
        package["purl"]
        == "pkg:deb/debian/libstdc%2B%2B6@12.2.0-14%2Bdeb12u1?arch=amd64&distro=debian-12"
    )
    assert package["name"] == "libstdc++6"
    assert package["version"] == "12.2.0-14+deb12u1"
