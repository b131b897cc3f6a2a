"""The part of Unity Catalog's REST API that MLflow's `databricks-uc` calls, in this
process, with the rules of Databricks.

A search returns neither tags nor aliases, at most two versions per page and the oldest
first. The keys of tags have none of `. , - = / :`, and their values at most 1000
characters. There are no stages. Each request for files gets new temporary credentials,
which a `Bucket` accepts `uses` times.
"""

import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from tests.support.services.listener import answering
from tests.support.services.s3 import Bucket

_PREFIX = "/api/2.0/mlflow/unity-catalog/"
_PAGE = 2
_JSON = "application/json"
_ERRORS = {
    KeyError: (404, "RESOURCE_DOES_NOT_EXIST"),
    ValueError: (400, "INVALID_PARAMETER_VALUE"),
    PermissionError: (403, "PERMISSION_DENIED"),
    ConnectionRefusedError: (401, "UNAUTHENTICATED"),
}


@dataclass
class Catalog:
    """The registered models by their names, each with its tags, its aliases, and the
    tags of its versions by their numbers.

    Attributes:
        uses: the number of requests to the bucket that new credentials allow.
        busy: the number of the next requests that are answered with 429 and the header
            Retry-After of one second.
        denied: the name of a model whose reader lacks a privilege.
    """

    bucket: Bucket
    models: dict = field(default_factory=dict)
    uses: int = 1000
    busy: int = 0
    denied: str = ""

    def answer(self, request, body):
        if self.busy:
            self.busy -= 1
            return 429, _JSON, "{}", ("Retry-After", "1")
        path = urlsplit(request.path)
        query = dict(parse_qsl(path.query)) | json.loads(body or b"{}")
        name = query.get("name") or query.get("filter", "''").split("'")[1]
        try:
            if not name:  # The client searches for models, or asks for a feature of the server.
                return 200, _JSON, "{}"
            if request.headers["Authorization"] != "Bearer dapi-secret":
                raise ConnectionRefusedError
            if name == self.denied:
                raise PermissionError
            document = self._call(request.command, path.path.removeprefix(_PREFIX), name, query)
        except tuple(_ERRORS) as error:
            status, code = _ERRORS[type(error)]
            return status, _JSON, json.dumps({"error_code": code, "message": name})
        return 200, _JSON, json.dumps(document)

    def _call(self, method, route, name, query):
        if route == "registered-models/create":
            self.models.setdefault(name, {"tags": {}, "aliases": {}, "versions": {}})
        model = self.models[name]
        versions = model["versions"]
        if route == "model-versions/search":
            start = int(query.get("page_token", 0))
            rows = [{"name": name, "version": number} for number in versions]
            token = str(start + _PAGE) if rows[start + _PAGE :] else ""
            return {"model_versions": rows[start : start + _PAGE], "next_page_token": token}
        number = query.get("version")
        if route == "model-versions/create":
            number = str(len(versions) + 1)
            versions[number] = {}
        if route == "registered-models/alias":
            if method == "POST":
                model["aliases"][query["alias"]] = number
            number = model["aliases"][query["alias"]]
        tags = versions[number] if number else model["tags"]
        for tag in query.get("tags", [query] if route.endswith("/set-tag") else ()):
            if re.search("[.,=/:-]", tag["key"]) or len(tag["value"]) > 1000:
                raise ValueError
            tags[tag["key"]] = tag["value"]
        if route.endswith("/delete-tag"):
            del tags[query["key"]]
        shown = {"name": name, "tags": _pairs("key", "value", tags)}
        if number:
            return self._version(route, name, number, shown)
        return {
            "registered_model": {**shown, "aliases": _pairs("alias", "version", model["aliases"])}
        }

    def _version(self, route, name, number, shown):
        place = f"s3://managed/{name}/{number}"
        shown |= {"version": number, "storage_location": place, "status": "READY"}
        token = f"token-{len(self.bucket.tokens)}"
        if route.endswith("credentials"):
            self.bucket.tokens[token] = self.uses
        keys = {"access_key_id": "A", "secret_access_key": "s", "session_token": token}
        return {
            "model_version": shown,
            "artifact_uri": place,
            "credentials": {"aws_temp_credentials": keys},
        }


def _pairs(key, value, held):
    return [{key: name, value: content} for name, content in held.items()]


@contextmanager
def unity_catalog(bucket, monkeypatch):
    """Yield a catalog without models, which the environment names as the registry."""
    catalog = Catalog(bucket)
    with answering(catalog.answer) as url:
        for name, value in {
            "MLFLOW_REGISTRY_URI": "databricks-uc",
            "DATABRICKS_HOST": url,
            "DATABRICKS_TOKEN": "dapi-secret",
            "MLFLOW_S3_ENDPOINT_URL": bucket.url,
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            monkeypatch.setenv(name, value)
        yield catalog
