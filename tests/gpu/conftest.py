"""Tests on a real GPU. They skip, with the reason, if ONNX Runtime's GPU build, a
driver or a device is missing.
"""

import pytest

from mlflow_deploy_plugin.core.errors import DeviceUnavailable
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.serve.device import require_device


@pytest.fixture(scope="session", autouse=True)
def gpu():
    try:
        require_device(ServerSpec(device="cuda"))
    except DeviceUnavailable as error:
        pytest.skip(error.message)
