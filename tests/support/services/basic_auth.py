"""MLflow's server with its basic auth, the gate and the console."""

from contextlib import contextmanager

import requests

from tests.support.services.mlflow_server import MlflowServer

_CONFIG = """[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{folder}/users.db
admin_username = admin
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


def password(user):
    return f"password-of-{user}"


@contextmanager
def basic_auth_server(folder, *users):
    """Run a server with these users and the administrator `admin`. The store is in the
    folder `home`.
    """
    (folder / "auth.ini").write_text(_CONFIG.format(folder=folder, password=password("admin")))
    server = MlflowServer(folder, app="onnxserve-basic-auth")
    server.variables = {
        "ONNXSERVE_HOME": str(folder / "home"),
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password("admin"),
        "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key of sixteen bytes or more",
        "MLFLOW_TRACKING_URI": "",
    }
    with server.running():
        for user in users:
            new = {"username": user, "password": password(user)}
            path = f"{server.url}/api/2.0/mlflow/users/create"
            admin = ("admin", password("admin"))
            requests.post(path, json=new, auth=admin, timeout=60).raise_for_status()
        yield server
