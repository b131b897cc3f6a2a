"""Tests of the gate against what was written past MLflow's server with the app, and
against names that a database may take for one.
"""

import json

import pytest
from mlflow.entities.model_registry import RegisteredModelTag
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import delete

from mlflow_deploy_plugin.core.store.people import name_key
from mlflow_deploy_plugin.core.store.tables import AuditRow
from mlflow_deploy_plugin.promote.gate.approvals import version_authors
from mlflow_deploy_plugin.promote.gate.recording import PATH
from mlflow_deploy_plugin.ui.approved_files import ChangedFilesSearch
from mlflow_deploy_plugin.ui.guard import views
from tests.support.console import AJAX, API, PAGE, POLICY, HeaderLogin
from tests.support.refusals import mentions
from tests.ui.race_verdict_tags import race
from tests.ui.test_verdicts import verdict

CHAMPION = "@champion"


@pytest.fixture
def model(mlflow_app):
    return mlflow_app.model()


def set_alias(model, version, alias="champion"):
    """Set the alias as by SQL, or by a server without the app."""
    model.mlflow.registry.set_registered_model_alias(model, alias, version)


def create(model, tags, base=API, encode=lambda body: body, user=""):
    """Return the answer to a request to copy version 1 as a new version."""
    source = f"models:/{model}/1"
    pairs = [{"key": key, "value": value} for key, value in tags]
    body = json.dumps({"name": model, "source": source, "tags": pairs})
    headers = {"Content-Type": "application/json", "X-User": user}
    url = f"{base}/model-versions/create"
    return model.mlflow.client.post(url, data=encode(body), headers=headers)


def test_verdict_tags_in_the_registry_do_not_count(model):
    tags = {"": "passed", ".digest": verdict(model)["files"]}
    for key, value in tags.items():
        model.tag("1", f"onnxserve.gate{key}", value)
    assert model.enter("1") == model.enter("1", CHAMPION) == 403


@pytest.mark.parametrize("base", [API, AJAX])
@pytest.mark.parametrize("gate", ["onnxserve.gate", "Onnxserve.Gate", "ｏnnxserve.gaté"])
def test_verdict_tags_never_reach_mlflow(model, monkeypatch, base, gate):
    tags = [("team", "a"), (gate, "failed"), (gate, "passed"), ("onnxserve.rolled_back", "x")]
    received = []
    creation = SqlAlchemyStore.create_model_version

    def create_version(self, *arguments, tags=None, **more):
        received.extend(tag.key for tag in tags)
        return creation(self, *arguments, tags=tags, **more)

    monkeypatch.setattr(SqlAlchemyStore, "create_model_version", create_version)
    assert create(model, tags, base).status_code == 200
    assert received == ["team"]
    assert model.tags("3") == {"team": "a"}


def test_verdict_tags_in_a_json_string_are_refused(model):
    tags = [("team", "a"), ("onnxserve.gate", "passed")]
    refused = create(model, tags, encode=json.dumps)
    assert refused.status_code == 403
    assert "onnxserve.gate" in refused.json["message"]
    assert len(model.mlflow.registry.search_model_versions(f"name='{model}'")) == 2
    assert create(model, tags[:1], encode=json.dumps).status_code == 200


def test_verdict_tags_win_no_race(tmp_path, new_database):
    new_database(tmp_path)
    raced = race(tmp_path, 5)
    assert raced.tries > 0
    assert raced.moves == 0


def test_unrecorded_registration_moves_nowhere(mlflow_app, model, monkeypatch):
    """The server is killed after MLflow has created the version."""
    record = views._record

    def record_intention(*arguments):
        if arguments[2] == "register":
            raise SystemExit
        record(*arguments)

    with monkeypatch.context() as killed:
        killed.setitem(mlflow_app.app.extensions, "onnxserve.login", HeaderLogin("eva", "eva"))
        killed.setattr(views, "_record", record_intention)
        with pytest.raises(SystemExit):
            create(model, [], user="eva")
    created = mlflow_app.registry.get_model_version(model, "3").creation_timestamp
    assert version_authors(mlflow_app.store, model, "3", created) == ("eva",)
    assert model.enter("3", CHAMPION) == 403
    # The server that records a verdict is the witness of the version.
    document = verdict(model) | {"version": "3", "run_id": "a" * 32}
    assert mlflow_app.client.post(PATH, json=document).status_code == 200
    assert model.enter("3", CHAMPION) == 200


def test_registration_needs_a_trail_only_with_a_policy(mlflow_app, model, monkeypatch):
    ungated = mlflow_app.model(policy=None)
    monkeypatch.setenv("ONNXSERVE_STORE_URI", "sqlite:////proc/nobody/can/write/here.db")
    assert create(model, []).status_code == 503
    assert create(ungated, []).status_code == 200


def test_verdict_on_a_deleted_version_does_not_count(mlflow_app, model):
    model.passed("1")
    source = mlflow_app.registry.get_model_version(model, "1").source
    mlflow_app.registry.delete_registered_model(model)
    tag = RegisteredModelTag("onnxserve.gate.policy", POLICY)
    mlflow_app.registry.create_registered_model(model, [tag])
    mlflow_app.registry.create_model_version(model, source)
    assert model.enter("1") == 403


def test_forced_version_needs_a_judge_of_today(mlflow_app):
    model = mlflow_app.model(policy=None)
    model.passed("1", gate="forced")
    assert model.set_policy(f"{POLICY}\njudges: [ci-bot]") == 200
    assert model.enter("1") == 403


def test_verdict_before_a_removed_event_does_not_count(mlflow_app, model):
    model.passed("1")
    model.passed("1", gate="failed")
    with mlflow_app.store.transaction() as session:
        session.execute(delete(AuditRow).filter_by(model=model, after="failed"))
    assert model.enter("1") == 403


@pytest.mark.parametrize("place", [CHAMPION, "Production"])
def test_move_past_the_app_is_reported(mlflow_app, model, place):
    if place == CHAMPION:
        set_alias(model, "2")
    else:
        mlflow_app.registry.transition_model_version_stage(model, "2", place, False)
    with mlflow_app.app.test_request_context():
        changed = ChangedFilesSearch(mlflow_app.app.extensions["onnxserve"]).find()
    assert [(entry.version, entry.place) for entry in changed if entry.model == model] == [
        ("2", place)
    ]
    page = mlflow_app.client.get(f"{PAGE}?model={model}").text
    assert f"version 2 is in {place}, but did not move there" in page
    for _ in range(2):
        assert model.enter("1", place) == 403
    outside, *refusals = model.events
    assert (outside.action, outside.after) == ("outside", f"version 2 in {place}")
    assert [event.action for event in refusals] == ["refused", "refused"]


def test_alias_past_the_app_is_not_already_there(model):
    set_alias(model, "2")
    assert model.enter("2", CHAMPION) == 403
    model.passed("2")
    assert model.enter("2", CHAMPION) == 200
    assert [event.action for event in model.events] == ["outside", "refused", "alias"]
    assert model.enter("2", CHAMPION) == 200
    assert len(model.events) == 3


def test_way_back_past_the_app_is_not_counted(model):
    model.passed("1", "2")
    for version in "12":
        assert model.enter(version, CHAMPION) == 200
    set_alias(model, "1")
    assert model.set_policy(f"{POLICY}\nseed: 1") == 200
    assert model.enter("1", CHAMPION) == 403
    set_alias(model, "2")  # This version belongs there.
    assert model.enter("2", CHAMPION) == 200
    assert model.enter("1", CHAMPION) == 200


def test_version_before_a_move_past_the_app_returns(model):
    model.passed("1")
    assert model.enter("1", CHAMPION) == 200
    assert model.set_policy(f"{POLICY}\nseed: 1") == 200
    set_alias(model, "2")
    assert model.enter("2", CHAMPION) == 403
    assert model.enter("1", CHAMPION) == 200
    assert model.enter("2", CHAMPION) == 403


def test_archived_higher_version_is_recorded(model):
    model.passed("1", "2")
    for version in ("1", "2"):
        assert model.enter(version) == 200
    body = {"version": "1", "stage": "Production", "archive_existing_versions": True}
    assert model.send("model-versions/transition-stage", **body) == 200
    assert [event.version for event in model.events] == ["1", "2", "1"]


def test_alias_past_the_app_after_its_deletion(model):
    model.passed("1")
    assert model.enter("1", CHAMPION) == 200
    body = {"name": model, "alias": "champion"}
    assert model.mlflow.client.delete(f"{API}/registered-models/alias", json=body).json == {}
    set_alias(model, "1")
    assert model.set_policy(f"{POLICY}\nseed: 1") == 200
    assert model.enter("1", CHAMPION) == 403


def test_rename_past_the_app_counts_nothing(mlflow_app, model):
    set_alias(model, "2")
    new_name = f"{model}-new"
    assert model.send("registered-models/rename", new_name=new_name) == 200
    body = {"name": new_name, "alias": "champion", "version": "2"}
    assert mlflow_app.send("registered-models/alias", **body) == 403


@pytest.mark.parametrize("alias", ["chámpion", "ｃhampion", "Champion", "champiøn", "be\u0301st"])
def test_lookalike_alias_is_refused(model, alias):
    model.passed("1")
    assert model.enter("1", "@best") == 200
    answer = model.ask("1", f"@{alias}")
    assert answer.status_code == 403
    assert mentions(answer.json["message"], "use another name")
    assert model.enter("1", "@other") == 200


def test_lookalike_alias_of_an_earlier_server_is_gated(model):
    set_alias(model, "2", "Champion")
    assert model.enter("1", "@Champion") == 403
    model.passed("1")
    assert model.enter("1", "@Champion") == 200


def test_lookalike_model_is_refused(mlflow_app, model):
    ungated = mlflow_app.model(policy=None)
    lookalike = model.replace("model", "módel")
    create_model = "registered-models/create"
    assert mlflow_app.send(create_model, name=lookalike) == 403
    assert ungated.send("registered-models/rename", new_name=lookalike) == 403
    assert mlflow_app.send(create_model, name=ungated.replace("model", "módel")) == 200
    tag = RegisteredModelTag("mlflow.prompt.is_prompt", "true")
    mlflow_app.registry.set_registered_model_tag(model, tag)
    assert mlflow_app.send(create_model, name=lookalike) == 403


@pytest.mark.parametrize(
    ("name", "key"),
    [("ｃhámPION\u200b", "champion"), ("Łódź", "lodz"), ("Straße", "strasse"), ("a-b_c", "a-b_c")],
)
def test_lookalike_names_have_one_key(name, key):
    assert name_key(name) == key
