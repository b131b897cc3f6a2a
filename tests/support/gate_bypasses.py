"""Attempts to move a version past the gate through MLflow's API, for servers with any
login.

Each attempt has a model `GATED` whose version 1 did not pass the gate. Some attempts
also have a model `FREE` without a policy, whose version 1 is in Production and has the
alias champion. The names are placeholders in paths and bodies.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from urllib.parse import quote, urlencode

import requests

from tests.support.console import AJAX, API, PAGE, POLICY

GATED = "GATED-MODEL"
FREE = "FREE-MODEL"
RUN = "ID-OF-RUN"
SOURCE = "URI-OF-FILES"
_SECONDS = 60
_JSON = "application/json"
_STAGE_PATH = "/model-versions/transition-stage"
_ALIAS_PATH = "/registered-models/alias"
_STAGE = {"name": GATED, "version": "1", "stage": "Production"}
_ALIAS = {"name": GATED, "version": "1", "alias": "champion"}


@dataclass(frozen=True)
class Step:
    """A request. The path is sent as it is written, without normalization."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    is_chunked: bool = False


@dataclass(frozen=True)
class Attempt:
    """The requests of an attempt. The last request must be refused, unless MLflow
    ignores it and answers 200.
    """

    steps: tuple[Step, ...]
    is_ignored: bool = False


@dataclass
class GatedRegistry:
    """A server with the gate at `url`.

    Attributes:
        session: the session of the caller, who may create models.
        admin: the session of an administrator, or of any caller of a server without
            accounts.
    """

    url: str
    session: requests.Session
    admin: requests.Session

    def send(self, step):
        body = iter([step.body]) if step.is_chunked else step.body
        request = requests.Request(step.method, self.url, data=body, headers=dict(step.headers))
        prepared = self.session.prepare_request(request)
        prepared.url = f"{self.url}{step.path}"  # requests would decode and shorten the path.
        return self.session.send(prepared, timeout=_SECONDS, allow_redirects=False)

    def create_model(self, policy=""):
        """Create a model with this policy and one version, and return its name."""
        name = f"model-{uuid.uuid4().hex[:12]}"
        tags = [{"key": "onnxserve.gate.policy", "value": policy}] if policy else []
        self._post("/registered-models/create", name=name, tags=tags)
        self._post(
            "/model-versions/create", name=name, source=self.files[SOURCE], run_id=self.files[RUN]
        )
        return name

    @cached_property
    def files(self):
        """Return the placeholders of a run of the caller and of its folder, which is
        the source of all versions.
        """
        experiment = self._post("/experiments/create", name=f"experiment-{uuid.uuid4().hex[:12]}")[
            "experiment_id"
        ]
        run = self._post("/runs/create", experiment_id=experiment)["run"]["info"]
        return {RUN: run["run_id"], SOURCE: f"{run['artifact_uri']}/model"}

    def create_models(self, attempt):
        """Create the models of an attempt. Return the placeholder of each name and the
        name.
        """
        names = {GATED: self.create_model(POLICY)}
        if any(FREE.encode() in step.body for step in attempt.steps):
            names[FREE] = self.create_model()
            self._post(_STAGE_PATH, **{**_STAGE, "name": names[FREE]})
            self._post(_ALIAS_PATH, **{**_ALIAS, "name": names[FREE]})
        return names

    def placed(self, model):
        """Return the stages and the aliases of the model's versions, in lower case."""
        answer = self.admin.get(
            f"{self.url}{API}/registered-models/get", params={"name": model}, timeout=_SECONDS
        )
        answer.raise_for_status()
        registered = answer.json()["registered_model"]
        stages = {version["current_stage"].lower() for version in registered["latest_versions"]}
        return stages | {alias["alias"].lower() for alias in registered.get("aliases", [])}

    def _post(self, path, **fields):
        answer = self.session.post(f"{self.url}{API}{path}", json=fields, timeout=_SECONDS)
        answer.raise_for_status()
        return dict(answer.json())


def check_refused(registry, attempt):
    """Fail if the attempt moves a version of the gated model, or if its last request is
    not refused.
    """
    names, answer = run(registry, attempt)
    assert not is_moved(registry, names[GATED]), answer.text
    if not attempt.is_ignored:
        assert is_refusal(answer), f"{answer.status_code}: {answer.text}"


def run(registry, attempt):
    """Send the requests of the attempt. Return the names of its models and the last
    answer.
    """
    names = registry.create_models(attempt)
    *first, last = (_named(step, names | registry.files) for step in attempt.steps)
    for step in first:
        answer = registry.send(step)
        if answer.status_code == 403:  # The login refuses this step to the caller.
            return names, answer
        assert answer.ok, f"{step.path} {step.body!r}: {answer.text}"
    return names, registry.send(last)


def is_moved(registry, model):
    """Return True if a version of the model has the stage or the alias that the policy
    gates.
    """
    return not registry.placed(model).isdisjoint({"production", "champion"})


def is_refusal(answer):
    """Return True for a status that is not 2xx, and for a GraphQL answer that contains
    only errors.
    """
    if not answer.ok or answer.is_redirect:
        return True
    if answer.request.path_url.startswith("/graphql"):
        return answer.request.method == "HEAD" or (
            bool(answer.json()["errors"]) and not answer.json()["data"]
        )
    return False


def _named(step, names):
    path = step.path
    body = step.body
    for placeholder, name in names.items():
        path = path.replace(placeholder, name)
        for encoding in ("utf-8", "utf-16-le"):
            body = body.replace(placeholder.encode(encoding), name.encode(encoding))
    return Step(step.method, path, body, step.headers, step.is_chunked)


def _call(path, fields, method="POST", headers=None):
    return Step(
        method, path, json.dumps(fields).encode(), {"Content-Type": _JSON, **(headers or {})}
    )


def _raw(path, body, content_type=_JSON):
    content = body.encode() if isinstance(body, str) else body
    return Step("POST", path, content, {"Content-Type": content_type} if content_type else {})


def _one(step, is_ignored=False):
    return Attempt((step,), is_ignored)


def _attempt(
    path,
    fields,
    method="POST",
    headers=None,
    is_ignored=False,
):
    return _one(_call(path, fields, method, headers), is_ignored)


def _raw_attempt(path, body, content_type=_JSON, is_ignored=False):
    return _one(_raw(path, body, content_type), is_ignored)


def _stage(**changed):
    return _attempt(API + _STAGE_PATH, {**_STAGE, **changed})


def _values():
    """Yield spellings of the fields, at the usual paths."""
    for base in (API, AJAX):
        label = base.split("/")[1]
        yield f"stage {label}", _attempt(base + _STAGE_PATH, _STAGE)
        yield f"alias {label}", _attempt(base + _ALIAS_PATH, _ALIAS)
        for stage in ("production", "PRODUCTION", "pRoDuCtIoN"):
            yield (
                f"stage {label} {stage}",
                _attempt(base + _STAGE_PATH, {**_STAGE, "stage": stage}),
            )
        for alias in ("Champion", "CHAMPION"):
            yield (
                f"alias {label} {alias}",
                _attempt(base + _ALIAS_PATH, {**_ALIAS, "alias": alias}),
            )
    for stage in (" Production", "Production ", "Production\n", "PRODUCT\u0130ON"):
        yield f"stage {stage!r}", _stage(stage=stage)
    for version in (1, "01", " 1", "+1", "1.0", "\uff11", True, [1]):
        yield (
            f"stage version {version!r}",
            _stage(version=version),
        )
        yield (
            f"alias version {version!r}",
            _attempt(API + _ALIAS_PATH, {**_ALIAS, "version": version}),
        )
    for archives in (True, False, "true", None):
        fields = {**_STAGE, "archive_existing_versions": archives}
        yield f"stage archives {archives!r}", _attempt(API + _STAGE_PATH, fields)
    extra = {
        "archiveExistingVersions": True,
        "force": True,
        "skip_gate": True,
        "gate": "passed",
        "why": "urgent",
    }
    yield "stage camel case and unknown fields", _stage(**extra)
    yield "alias unknown fields", _attempt(API + _ALIAS_PATH, {**_ALIAS, **extra})
    both = {**_STAGE, "archive_existing_versions": False, "archiveExistingVersions": True}
    yield "stage conflicting spellings", _attempt(API + _STAGE_PATH, both)


def _encodings():
    """Yield encodings of the same fields."""
    for label, path, fields in (
        ("stage", API + _STAGE_PATH, _STAGE),
        ("alias", AJAX + _ALIAS_PATH, _ALIAS),
    ):
        text = json.dumps(fields)
        for content_type in (
            "",
            "text/plain",
            "application/json; charset=utf-16",
            "application/json, text/html",
        ):
            yield f"{label} content type {content_type!r}", _raw_attempt(path, text, content_type)
        yield f"{label} JSON in a JSON string", _raw_attempt(path, json.dumps(text))
        yield f"{label} JSON in JSON in JSON", _raw_attempt(path, json.dumps(json.dumps(text)))
        yield f"{label} BOM", _raw_attempt(path, b"\xef\xbb\xbf" + text.encode())
        yield f"{label} UTF-16", _raw_attempt(path, text.encode("utf-16-le"))
        yield f"{label} list", _raw_attempt(path, f"[{text}]")
        yield (
            f"{label} escaped",
            _raw_attempt(path, text.replace("P", "\\u0050").replace("c", "\\u0063")),
        )
        yield (
            f"{label} chunked",
            _one(Step("POST", path, text.encode(), {"Content-Type": _JSON}, is_chunked=True)),
        )
        form = "application/x-www-form-urlencoded"
        yield f"{label} form", _raw_attempt(path, urlencode(fields), form)
        yield f"{label} JSON as form", _raw_attempt(path, text, form)
        yield f"{label} query", _raw_attempt(f"{path}?{urlencode(fields)}", "")
        harmless = json.dumps({**fields, "stage": "Staging", "alias": "other"})
        yield (
            f"{label} query and other body",
            _raw_attempt(f"{path}?{urlencode(fields)}", harmless, is_ignored=True),
        )
        # MLflow and the gate must read the same value of a key that occurs twice.
        first = text.replace('"Production"', '"Staging"').replace('"champion"', '"other"')
        yield f"{label} gated value last", _raw_attempt(path, f"{first[:-1]}, {text[1:]}")
        yield (
            f"{label} gated value first",
            _raw_attempt(path, f"{text[:-1]}, {first[1:]}", is_ignored=True),
        )
        free = text.replace(GATED, FREE)
        yield f"{label} gated name last", _raw_attempt(path, f"{free[:-1]}, {text[1:]}")
        yield (
            f"{label} gated name first",
            _raw_attempt(path, f"{text[:-1]}, {free[1:]}", is_ignored=True),
        )


def _paths():
    """Yield other paths, methods and headers for the same fields."""
    for label, path, fields in (("stage", _STAGE_PATH, _STAGE), ("alias", _ALIAS_PATH, _ALIAS)):
        usual = API + path
        spellings = {
            "slash at the end": f"{usual}/",
            "two slashes": usual.replace("/mlflow/", "//mlflow//"),
            "two slashes first": f"/{usual}",
            "encoded letter": usual.replace("stage", "%73tage").replace("alias", "%61lias"),
            "encoded slash": usual.replace("/mlflow/", "/mlflow%2F"),
            "dots": usual.replace("/mlflow/", "/mlflow/x/../"),
            "encoded dots": usual.replace("/mlflow/", "/mlflow/x/%2e%2e/"),
            "upper case": usual.upper(),
            "parameter": f"{usual};x=1",
            "encoded NUL": f"{usual}%00",
            "encoded space": f"{usual}%20",
            "preview": usual.replace("2.0/", "2.0/preview/"),
            "preview ajax": f"/ajax-api/2.0/preview/mlflow{path}",
            "3.0": usual.replace("2.0", "3.0"),
            "3.0 ajax": f"/ajax-api/3.0/mlflow{path}",
            "1.2": usual.replace("2.0", "1.2"),
            "databricks": usual.replace("/mlflow/", "/mlflow/databricks/"),
            "unity catalog": usual.replace("/mlflow/", "/mlflow/unity-catalog/"),
            "without a prefix": f"/mlflow{path}",
            "another prefix": f"/proxied{usual}",
            "below the console": f"{PAGE}{usual}",
            "absolute": f"/http://localhost{usual}",
        }
        for name, spelling in spellings.items():
            yield f"{label} path {name}", _attempt(spelling, fields)
        for method in ("PUT", "PATCH"):
            yield f"{label} {method}", _attempt(usual, fields, method)
        yield f"{label} OPTIONS", _attempt(usual, fields, "OPTIONS", is_ignored=True)
        yield (
            f"{label} GET",
            _attempt(f"{usual}?{urlencode(fields)}&_method=POST", fields, "GET"),
        )
        yield f"{label} HEAD", _attempt(f"{usual}?{urlencode(fields)}", fields, "HEAD")
        # A DELETE of an alias that does not exist is answered with 200.
        yield f"{label} DELETE", _attempt(usual, fields, "DELETE", is_ignored=label == "alias")
        for header in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
            yield f"{label} {header} of GET", _attempt(usual, fields, "GET", {header: "POST"})
            yield f"{label} {header} of POST", _attempt(usual, fields, headers={header: "GET"})
        for header in ("X-Original-URL", "X-Rewrite-URL"):
            search = f"{API}/model-versions/search"
            yield f"{label} {header}", _attempt(search, fields, headers={header: usual})
        prefixed = {"X-Forwarded-Prefix": "/proxied", "X-Script-Name": "/proxied"}
        yield f"{label} forwarded prefix", _attempt(f"/proxied{usual}", fields, headers=prefixed)
        yield (
            f"{label} forwarded prefix of a usual path",
            _attempt(usual, fields, headers=prefixed),
        )
        trusted = {
            "X-Forwarded-For": "127.0.0.1",
            "X-Forwarded-User": "admin",
            "Remote-User": "admin",
        }
        yield f"{label} headers of a proxy", _attempt(usual, fields, headers=trusted)
        yield (
            f"{label} workspace",
            _attempt(usual, fields, headers={"X-MLFLOW-WORKSPACE": "default"}),
        )


def _other_calls():
    """Yield calls that change other things, with the fields of a stage or an alias in
    them.
    """
    placed = {"stage": "Production", "current_stage": "Production", "currentStage": "Production"}
    aliased = {"aliases": [{"alias": "champion", "version": "1"}], "alias": "champion"}
    version = {"name": GATED, "version": "1"}
    source = {"name": GATED, "source": SOURCE, "run_id": RUN}
    latest = {"latest_versions": [{**version, **placed, "aliases": ["champion"]}]}
    for base in (API, AJAX):
        label = base.split("/")[1]
        calls = {
            "model update": _call(
                f"{base}/registered-models/update", {"name": GATED, **aliased, **latest}, "PATCH"
            ),
            "version update": _call(
                f"{base}/model-versions/update", {**version, **placed, **aliased}, "PATCH"
            ),
            "version creation": _call(
                f"{base}/model-versions/create",
                {**source, **placed, "aliases": ["champion"], "alias": "champion"},
            ),
            "tag of the version": _call(
                f"{base}/model-versions/set-tag",
                {**version, "key": "current_stage", "value": "Production"},
            ),
            "tag of the model": _call(
                f"{base}/registered-models/set-tag",
                {"name": GATED, "key": "mlflow.alias.champion", "value": "1"},
            ),
        }
        for name, step in calls.items():
            yield f"{name} {label}", _one(step, is_ignored=True)
        yield (
            f"model creation {label}",
            _attempt(f"{base}/registered-models/create", {"name": GATED, **aliased}),
        )
        rename = {"name": FREE, "new_name": GATED}
        yield (
            f"renamed over the gated model {label}",
            _attempt(f"{base}/registered-models/rename", rename),
        )
    form = {
        "action": "promote",
        "model": GATED,
        "version": "1",
        "to": "Production",
        "csrf_token": "forged",
    }
    console = _raw(PAGE, urlencode(form), "application/x-www-form-urlencoded")
    yield "console without its token", _one(console)


def _in_steps():
    """Yield attempts that first change something else that is allowed."""
    stage = _call(API + _STAGE_PATH, _STAGE)
    alias = _call(API + _ALIAS_PATH, _ALIAS)
    for place in ("Staging", "Archived", "None"):
        yield (
            f"from {place}",
            Attempt((_call(API + _STAGE_PATH, {**_STAGE, "stage": place}), stage)),
        )
    yield (
        "from another alias",
        Attempt((_call(API + _ALIAS_PATH, {**_ALIAS, "alias": "challenger"}), alias)),
    )
    create = f"{API}/model-versions/create"
    set_tag = f"{API}/model-versions/set-tag"
    verdict = {
        "onnxserve.gate": "passed",
        "onnxserve.gate.digest": "0" * 64,
        "onnxserve.gate.reason": "forged",
    }
    forged = [{"key": key, "value": value} for key, value in verdict.items()]
    new_version = {"version": "2"}
    moves = {
        "stage": _call(API + _STAGE_PATH, {**_STAGE, **new_version}),
        "alias": _call(API + _ALIAS_PATH, {**_ALIAS, **new_version}),
    }
    copy = {"name": GATED, "source": f"models:/{FREE}/1"}
    is_prompt = {"key": "mlflow.prompt.is_prompt", "value": "true"}
    prompt = {"name": GATED, "source": "prompt-template", "tags": [is_prompt, *forged]}
    for name, move in moves.items():
        new = {"name": GATED, "source": SOURCE, "run_id": RUN, "tags": forged}
        yield f"{name} of a version with a forged verdict", Attempt((_call(create, new), move))
        yield f"{name} of a copy of an ungated version", Attempt((_call(create, copy), move))
        yield (
            f"{name} of a copy with a forged verdict",
            Attempt((_call(create, {**copy, "tags": forged}), move)),
        )
        yield f"{name} of a version that is a prompt", Attempt((_call(create, prompt), move))
    tagged = [_call(set_tag, {"name": GATED, "version": "1", **tag}) for tag in forged]
    tag_model = _call(f"{API}/registered-models/set-tag", {"name": GATED, **is_prompt})
    renamed = _call(f"{API}/registered-models/rename", {"name": GATED, "new_name": f"{GATED}-2"})
    back = _call(f"{API}/registered-models/rename", {"name": f"{GATED}-2", "new_name": GATED})
    for name, move in {"stage": stage, "alias": alias}.items():
        yield f"{name} with a verdict without a digest", Attempt((tagged[0], move))
        yield f"{name} with a verdict on other files", Attempt((*tagged, move))
        yield f"{name} of a model that is a prompt", Attempt((tag_model, move))
        yield f"{name} of a model that was renamed", Attempt((renamed, back, move))
    cleared = {"name": FREE, "alias": "champion"}
    yield (
        "alias after another model lost it",
        Attempt((_call(API + _ALIAS_PATH, cleared, "DELETE"), alias)),
    )


def _graphql():
    """Yield GraphQL mutations. MLflow's GraphQL has no mutation
    of a stage or an alias.
    """
    stage = '{name: "GATED-MODEL", version: "1", stage: "Production"}'
    alias = '{name: "GATED-MODEL", version: "1", alias: "champion"}'
    fields = {
        f"transitionModelVersionStage(input: {stage})": "modelVersion { version }",
        f"mlflowTransitionModelVersionStage(input: {stage})": "modelVersion { version }",
        f"setRegisteredModelAlias(input: {alias})": "__typename",
        f"mlflowSetRegisteredModelAlias(input: {alias})": "__typename",
    }
    for call, selection in fields.items():
        query = f"mutation {{ {call} {{ {selection} }} }}"
        name = call.partition("(")[0]
        yield f"GraphQL {name}", _attempt("/graphql", {"query": query})
        yield (
            f"GraphQL {name} as a query",
            _attempt("/graphql", {"query": query.replace("mutation", "query")}),
        )
        yield (
            f"GraphQL {name} with GET",
            _attempt(f"/graphql?query={quote(query)}", {"query": query}, "GET"),
        )
        yield f"GraphQL {name} batch", _attempt("/graphql", [{"query": query}])
        yield f"GraphQL {name} as text", _raw_attempt("/graphql", query, "application/graphql")


ATTEMPTS = dict(chain(_values(), _encodings(), _paths(), _other_calls(), _in_steps(), _graphql()))
"""The name of each attempt → the attempt."""
