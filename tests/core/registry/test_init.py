import subprocess
import sys

HEAVY = ("mlflow", "pandas", "numpy", "pyarrow", "sqlalchemy", "pydantic", "yaml", "requests")


def test_the_command_line_can_import_the_registry_without_waiting_for_a_library():
    code = (
        f"import sys, mlflow_deploy_plugin.core.registry; print([name for name in {HEAVY} if name "
        "in sys.modules], 'mlflow_deploy_plugin.core.store' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"
