import subprocess
import sys


def test_policy_import_needs_no_mlflow_or_pandas():
    heavy = ("mlflow", "pandas", "numpy", "pyarrow", "sqlalchemy")
    code = (
        "import sys; from mlflow_deploy_plugin.core.registry.policy import GatePolicy, "
        "require_mlflow_data; from mlflow_deploy_plugin.promote.gate.verdict import GateVerdict; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
