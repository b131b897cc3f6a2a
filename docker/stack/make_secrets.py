#!/usr/bin/env python3
"""Create the secrets of docker/compose.yaml in docker/stack/secrets/. Existing files
are not changed.

    python3 docker/stack/make_secrets.py [--host NAME-OR-ADDRESS …] [--folder FOLDER]

A host is the name or address of this machine for clients. It is added to the names of
the certificate, which is self-signed. The script needs only Python's standard library
and openssl. Other users of this machine cannot open the folder. The files in it are
readable, because every container reads them as a different user.
"""

import argparse
import hashlib
import json
import secrets
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--host", action="append", default=[])
parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "secrets")
OPTIONS = parser.parse_args()
FOLDER: Path = OPTIONS.folder


def keep(name: str, text: str) -> str:
    """Write a file unless it exists, and return its text."""
    file = FOLDER / name
    if not file.exists():
        file.write_text(text)
    return file.read_text()


def new_password() -> str:
    return secrets.token_urlsafe(24)


def is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_for(host: str) -> bool:
    """Return True if the existing certificate has this name or address."""
    check = ["-checkip" if is_address(host) else "-checkhost", host]
    command = ["openssl", "x509", "-in", str(FOLDER / "tls.crt"), "-noout", *check]
    return (
        "does match" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )


def make() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    FOLDER.chmod(0o700)
    password = keep("postgres_password", new_password())
    sections = [
        f"[{database}]\n"
        "host=postgres\n"
        "port=5432\n"
        "user=onnxserve\n"
        f"password={password}\n"
        f"dbname={database}\n"
        for database in ("onnxserve", "mlflow", "mlflow_auth")
    ]
    keep("pg_service.conf", "\n".join(sections))
    user = keep("s3_user", "onnxserve")
    password = keep("s3_password", new_password())
    keep(
        "aws_credentials",
        f"[default]\naws_access_key_id = {user}\naws_secret_access_key = {password}\n",
    )
    password = keep("admin_password", new_password())
    keep(
        "mlflow.env",
        (
            f"MLFLOW_AUTH_ADMIN_PASSWORD={password}\n"
            f"MLFLOW_FLASK_SERVER_SECRET_KEY={secrets.token_hex()}\n"
        ),
    )
    keep(
        "mlflow_credentials",
        f"[mlflow]\nmlflow_tracking_username = admin\nmlflow_tracking_password = {password}\n",
    )
    keep("grafana_password", new_password())
    keep(
        "alerts.yaml",
        "urls: [] # receivers of the controller's alerts, by Apprise: docs/alerts.md\n",
    )
    keys = {}
    for name, scopes in (("prometheus", ["read"]), ("shop", ["infer", "read"])):
        key = keep(f"{name}_key", "onnxserve_" + secrets.token_urlsafe(32))
        digest = hashlib.sha256(key.encode()).hexdigest()
        keys[digest] = {"name": name, "scopes": scopes, "endpoints": [], "expires_at": None}
    keep("keys.json", json.dumps({"keys": keys}, indent=2) + "\n")
    if not (FOLDER / "tls.crt").exists():
        hosts = ["localhost", "127.0.0.1", *OPTIONS.host]
        names = ",".join(f"{'IP' if is_address(host) else 'DNS'}:{host}" for host in hosts)
        subject = ["-subj", f"/CN={hosts[-1]}", "-addext", f"subjectAltName={names}"]
        command = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-noenc",
            "-days",
            "365",
            *subject,
        ]
        files = ["-keyout", str(FOLDER / "tls.key"), "-out", str(FOLDER / "tls.crt")]
        subprocess.run([*command, *files], check=True, capture_output=True)
    elif others := [host for host in OPTIONS.host if not is_for(host)]:
        sys.exit(
            f"{FOLDER}/tls.crt exists, but is not for {', '.join(others)}: remove it, and run "
            "this again",
        )
    for file in FOLDER.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    make()
