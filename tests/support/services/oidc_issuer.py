"""An OpenID Connect issuer on the loopback interface, with a login form for a browser.

The issuer supports the authorization code flow with PKCE (RFC 7636) and a client
secret. Its tokens are signed with RS256. It has no accounts of its own: the login form
accepts each of the issuer's users without a password.
"""

import json
import logging
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from flask import Flask, jsonify, redirect, render_template_string, request
from jwt.algorithms import RSAAlgorithm
from werkzeug.serving import BaseWSGIServer, make_server

from tests.support.waiting import free_port

logging.getLogger("werkzeug").setLevel(logging.WARNING)  # Requests are not logged.

LOGIN_BUTTON = "Log in"
USER_FIELD = "User"
_KEY_ID = "loopback"
_TOKEN_SECONDS = 3600
_FORM = """<!doctype html>
<title>Issuer</title>
<form method="post">
  <label>{{ field }} \
<select name="user">{% for user in users %}<option>{{ user }}</option>{% endfor %}</select></label>
  <button>{{ button }}</button>
</form>
"""


@dataclass(frozen=True)
class Identity:
    """A user of the issuer."""

    email: str
    name: str
    groups: tuple[str, ...]


@dataclass
class OidcIssuer:
    """An issuer with these users by name and one client. It can be stopped, and started
    again with the same key.
    """

    users: Mapping[str, Identity]
    client_id: str = "mlflow"
    client_secret: str = field(default_factory=lambda: secrets.token_hex(16))
    port: int = field(default_factory=free_port)
    _key: rsa.RSAPrivateKey = field(
        default_factory=lambda: rsa.generate_private_key(65537, 2048), repr=False
    )
    _codes: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    _server: BaseWSGIServer | None = None
    _thread: threading.Thread | None = None

    @property
    def url(self):
        """Return the URL with another host name than MLflow's, so that a browser treats
        them as different sites.
        """
        return f"http://localhost:{self.port}"

    @property
    def discovery_url(self):
        return f"{self.url}/.well-known/openid-configuration"

    def start(self):
        self._server = make_server("127.0.0.1", self.port, self._app(), threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self):
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = self._thread = None

    def token(self, user, **claims):
        """Return a signed token of the user, which is both the ID token and the access
        token of a login.
        """
        identity = self.users[user]
        now = int(time.time())
        content = {
            "iss": self.url,
            "aud": self.client_id,
            "sub": user,
            "iat": now,
            "exp": now + _TOKEN_SECONDS,
        }
        content |= {
            "email": identity.email,
            "name": identity.name,
            "groups": list(identity.groups),
            **claims,
        }
        return jwt.encode(content, self._key, algorithm="RS256", headers={"kid": _KEY_ID})

    def _app(self):
        app = Flask("issuer")
        app.before_request(lambda: self.asked.append(request.path))
        app.add_url_rule("/.well-known/openid-configuration", view_func=self._discovery)
        app.add_url_rule("/jwks", view_func=self._keys)
        app.add_url_rule("/authorize", view_func=self._authorize, methods=["GET", "POST"])
        app.add_url_rule("/token", view_func=self._token, methods=["POST"])
        app.add_url_rule("/userinfo", view_func=self._userinfo)
        return app

    def _discovery(self):
        return jsonify(
            issuer=self.url,
            authorization_endpoint=f"{self.url}/authorize",
            token_endpoint=f"{self.url}/token",
            userinfo_endpoint=f"{self.url}/userinfo",
            jwks_uri=f"{self.url}/jwks",
            response_types_supported=["code"],
            subject_types_supported=["public"],
            id_token_signing_alg_values_supported=["RS256"],
            code_challenge_methods_supported=["S256"],
            token_endpoint_auth_methods_supported=["client_secret_basic", "client_secret_post"],
        )

    def _keys(self):
        key = json.loads(RSAAlgorithm.to_jwk(self._key.public_key()))
        return jsonify(keys=[{**key, "kid": _KEY_ID, "use": "sig", "alg": "RS256"}])

    def _authorize(self):
        """Show the login form. After the login, redirect to the client with a code that
        is valid once.
        """
        parameters = request.args.to_dict()
        if request.method == "GET":
            return render_template_string(
                _FORM, users=self.users, field=USER_FIELD, button=LOGIN_BUTTON
            )
        code = secrets.token_urlsafe()
        self._codes[code] = request.form["user"], parameters
        return redirect(
            f"{parameters['redirect_uri']}?"
            f"{urlencode({'code': code, 'state': parameters['state']})}"
        )

    def _token(self):
        """Return the tokens of the code. The issuer does not check its only client."""
        user, parameters = self._codes.pop(request.form["code"])
        nonce = {"nonce": parameters["nonce"]} if "nonce" in parameters else {}
        tokens = {"access_token": self.token(user), "id_token": self.token(user, **nonce)}
        return jsonify(**tokens, token_type="Bearer", expires_in=_TOKEN_SECONDS)

    def _userinfo(self):
        header = request.authorization
        try:
            key = self._key.public_key()
            claims = jwt.decode(
                (header and header.token) or "", key, algorithms=["RS256"], audience=self.client_id
            )
        except jwt.InvalidTokenError:
            return jsonify(error="invalid_token"), 401
        return jsonify(claims)
