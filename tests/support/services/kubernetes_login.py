"""MLflow's server with the login of mlflow-kubernetes-plugins, and the parts of the
Kubernetes API that it calls: reviews of tokens and permissions, and the namespaces.
"""

import json
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.clusters import kubeconfig
from tests.support.console import RISK
from tests.support.services.listener import answering
from tests.support.services.logins_environment import login_server

GROUPS = {"reader": [RISK]}
_READ = ["get", "list"]
_EDIT = [*_READ, "create", "update"]
RULES = {
    "admin": {"team/*": [*_EDIT, "delete", "*"]},
    "editor": {"team/registeredmodels": _EDIT, "team/experiments": _EDIT},
    "reader": {"team/registeredmodels": _READ},
    "owner": {"team/registeredmodels/Owned": _EDIT, "team/datasets": _READ},
    "stranger": {"other/registeredmodels": _READ},
}
"""Each user → the user's Roles: a namespace with a resource, and perhaps the name of an
object → the verbs.
"""


@dataclass
class KubernetesApi:
    """The API server of a cluster.

    Attributes:
        users: each valid token → its user.
        review_status: the status of the answers about tokens.
    """

    users: dict[str, str]
    review_status: int = 201

    def answer(self, request, body):
        if request.path.startswith("/api/v1/namespaces"):
            items = [{"metadata": {"name": name}} for name in ("team", "other")]
            listed = "" if "watch=True" in request.path else json.dumps({"items": items})
            return 200, "application/json", listed
        if not body:  # The plugin asks for objects that the cluster does not have.
            return 404, "application/json", "{}"
        spec = json.loads(body)["spec"]
        if "token" in spec:
            code = self.review_status
            user = self.users.get(spec["token"], "")
            names = {"username": user, "groups": GROUPS.get(user, [])}
            status = {"authenticated": bool(user), "user": names}
        else:
            sent = request.headers["Authorization"].removeprefix("Bearer ")
            user = spec.get("user", self.users.get(sent))
            code = 201 if user else 401
            status = {"allowed": _is_allowed(user, spec["resourceAttributes"])}
        return code, "application/json", json.dumps({"spec": spec, "status": status})


def _is_allowed(user, asked):
    place = f"{asked['namespace']}/{asked['resource']}"
    places = (place, f"{place}/{asked.get('name')}", f"{asked['namespace']}/*")
    return any(asked["verb"] in RULES.get(user, {}).get(place, ()) for place in places)


def token_headers(user):
    return {"Authorization": f"Bearer token-of-{user}"}


def proxy_headers(user):
    """Return the headers of a proxy that has logged the user in."""
    return {"X-Remote-User": user, "X-Remote-Groups": "|".join(GROUPS.get(user, []))}


@contextmanager
def kubernetes_login(folder, mode):
    """Run the server with an authorization mode of the plugin. Yield it and the API."""
    api = KubernetesApi({f"token-of-{user}": user for user in RULES})
    with answering(api.answer) as url:
        server = login_server(folder, "kubernetes-auth")
        server.options = ("--enable-workspaces", "--workspace-store-uri", "kubernetes://")
        server.variables |= {
            "KUBECONFIG": str(kubeconfig(folder, url)),
            "MLFLOW_K8S_AUTH_AUTHORIZATION_MODE": mode,
        }
        try:
            server.start()
            yield server, api
        finally:
            server.kill()
