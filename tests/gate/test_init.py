import subprocess
import sys

import pytest

from mlflow_deploy_plugin import gate


@pytest.mark.parametrize("name", gate.__all__)
def test_every_name_of_the_face_is_there(name: str) -> None:
    assert getattr(gate, name).__name__ == name


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'judgement'"):
        gate.__getattr__("judgement")


def test_the_policies_are_read_without_mlflow_and_pandas() -> None:
    heavy = ("mlflow", "pandas", "numpy", "pyarrow", "sqlalchemy")
    code = (
        "import sys; from mlflow_deploy_plugin.gate import GatePolicy, GateVerdict, require_mlflow_artifact; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
