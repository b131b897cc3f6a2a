"""MLflow's server with mlflow-oidc-auth and an issuer, and the users of the tests of
logins.
"""

from dataclasses import dataclass, field
from pathlib import Path

import requests

from tests.support.console import RISK
from tests.support.services.logins_environment import login_server
from tests.support.services.mlflow_server import MlflowServer
from tests.support.services.oidc_issuer import Identity, OidcIssuer

ADMINS = "mlflow-admins"
MEMBERS = "mlflow-members"
TEAM = "data-science"
USERS = {
    "admin": Identity("admin@example.com", "The Admin", (ADMINS,)),
    "reader": Identity("reader@example.com", "The Reader", (MEMBERS, RISK)),
    "editor": Identity("editor@example.com", "The Editor", (MEMBERS, TEAM)),
    "stranger": Identity("stranger@example.com", "The Stranger", (MEMBERS,)),
    "outsider": Identity("outsider@example.com", "The Outsider", ("sales",)),
}
"""The users of the issuer. `outsider` is in no group that may log in."""

_SECONDS = 60


@dataclass
class OidcServer:
    """An MLflow server whose users log in at the issuer. The plugin's names of users
    are their mail addresses.
    """

    folder: Path
    issuer: OidcIssuer = field(default_factory=lambda: OidcIssuer(USERS))
    mlflow: MlflowServer = field(init=False)

    def __post_init__(self):
        self.mlflow = login_server(self.folder, "oidc-auth")
        self.mlflow.variables |= {
            "OIDC_DISCOVERY_URL": self.issuer.discovery_url,
            "OIDC_CLIENT_ID": self.issuer.client_id,
            "OIDC_CLIENT_SECRET": self.issuer.client_secret,
            "OIDC_REDIRECT_URI": f"{self.url}/callback",
            "OIDC_USERS_DB_URI": f"sqlite:///{self.folder}/oidc.db",
            "OIDC_GROUP_NAME": MEMBERS,
            "OIDC_ADMIN_GROUP_NAME": ADMINS,
            "DEFAULT_MLFLOW_PERMISSION": "NO_PERMISSIONS",
            "DEFAULT_LANDING_PAGE_IS_PERMISSIONS": "false",
            "AUTOMATIC_LOGIN_REDIRECT": "true",
            "PERMISSION_CACHE_TTL_SECONDS": "0",
            "SECRET_KEY": "a key of sixteen bytes or more",
        }

    @property
    def url(self):
        return self.mlflow.url

    def start(self):
        self.mlflow.start()

    def stop(self):
        self.mlflow.kill()
        self.issuer.stop()

    def log_in(self, user):
        """Return a session of the user, who logs in through the issuer's form."""
        session = requests.Session()
        form = session.get(f"{self.url}/login", timeout=_SECONDS)
        answer = session.post(form.url, data={"user": user}, timeout=_SECONDS)
        answer.raise_for_status()
        return session

    def access_token(self, session):
        """Return a new access token of the session's user, which is the password in
        basic auth.
        """
        path = f"{self.url}/api/2.0/mlflow/users/access-token"
        answer = session.patch(path, json={}, timeout=_SECONDS)
        answer.raise_for_status()
        return str(answer.json()["token"])

    def grant(self, admin, user, model, permission):
        """Grant the user a permission on a registered model, such as READ, EDIT or
        MANAGE.
        """
        path = f"/api/2.0/mlflow/permissions/users/{USERS[user].email}/registered-models/{model}"
        admin.post(
            f"{self.url}{path}", json={"permission": permission}, timeout=_SECONDS
        ).raise_for_status()

    def grant_group(self, admin, group, model, permission):
        """Grant a group a permission on a registered model."""
        path = f"/api/2.0/mlflow/permissions/groups/{group}/registered-models/{model}"
        admin.post(
            f"{self.url}{path}", json={"permission": permission}, timeout=_SECONDS
        ).raise_for_status()
