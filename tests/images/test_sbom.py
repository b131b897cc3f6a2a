"""The bill of materials of the environment that runs it."""

import json
import subprocess
import sys
from importlib.metadata import version

from mlflow_deploy_plugin.images.sbom import bill_of_materials


def test_it_names_every_distribution_once_with_its_version() -> None:
    program = [sys.executable, "-m", "mlflow_deploy_plugin.images.sbom"]
    printed = json.loads(subprocess.run(program, capture_output=True, check=True).stdout)
    assert printed == bill_of_materials()  # without times or random numbers
    assert (printed["bomFormat"], printed["specVersion"]) == ("CycloneDX", "1.6")
    components = {component["purl"]: component for component in printed["components"]}
    assert len(components) == len(printed["components"])
    assert components[f"pkg:pypi/numpy@{version('numpy')}"]["type"] == "library"
    assert list(components) == sorted(components)
