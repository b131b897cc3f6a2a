"""What holds for every test: nothing is reported to anybody, and nothing of this user's own is read or written."""

import os
from collections.abc import Iterator

import pytest

os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="1", GIT_PYTHON_REFRESH="quiet")
for variable in [
    name for name in os.environ if name.startswith(("ONNXSERVE_", "MLFLOW_TRACKING_", "MLFLOW_REGISTRY_"))
]:
    del os.environ[variable]


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stores, caches and logs lie in a folder of this session; a test that needs its own sets the variables again."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXSERVE_HOME", str(folder / "onnxserve"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        yield
