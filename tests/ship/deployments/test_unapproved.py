"""Tests of versions without the required approvals: they get traffic only within the
limit of the model's policy.
"""

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import GateRefused, RegistryUnavailable
from mlflow_deploy_plugin.core.spec.document import add_variant, apply_config, new_endpoint
from mlflow_deploy_plugin.core.store.audit import move_detail
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.ship.deployments.backends.targets import Observation
from mlflow_deploy_plugin.ship.deployments.description import describe_endpoint
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.ship.deployments.unapproved import (
    as_json,
    current_answers,
    permitted_answers,
    require_rollout,
)
from tests.support.clocks import Clock
from tests.support.refusals import mentions, refused
from tests.support.tracking import tracking_at

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
POLICY = "gated_aliases: [champion]\napprovals: {groups: [risk]}\n"
LIMITED = f"{POLICY}unapproved: {{share: 5%, for: 1h}}"
GATE_POLICY = "onnxserve.gate.policy"
CHAMPION = "models:/credit@champion"
SIX = "models:/credit/6"
OTHERS = [
    SIX,
    "models:/credit/latest",
    "models:/credit@challenger",
    "models:/credit/Staging",
    "models:/credit/tag:a=b",
]


@pytest.fixture
def clock():
    return Clock(NOW)


@pytest.fixture
def store(tmp_path, clock):
    opened = open_store(f"sqlite:///{tmp_path}/store.db", clock)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def registry(tmp_path_factory, new_database):
    """A registry with six versions of the model credit, which are not approved."""
    with tracking_at(new_database(tmp_path_factory.mktemp("registry"))):
        client = MlflowClient()
        client.create_registered_model("credit")
        for _ in range(6):
            client.create_model_version("credit", "s3://bucket/credit")
        yield client


@pytest.fixture
def policy(registry):
    """Return a function that sets the gate policy of the model credit."""
    yield lambda text: registry.set_registered_model_tag("credit", GATE_POLICY, text)
    if GATE_POLICY in registry.get_registered_model("credit").tags:
        registry.delete_registered_model_tag("credit", GATE_POLICY)


@contextmanager
def mlflow_is_down():
    with tracking_at("http://127.0.0.1:9"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield


def spec_of(variants, name="credit"):
    """Return the spec of an endpoint whose variants serve these models with these
    weights.
    """
    (first, weight), *other_variants = variants.items()
    spec = apply_config(new_endpoint(name, first, variant="v0"), {"variants.v0.weight": weight})
    for index, (model, weight) in enumerate(other_variants, 1):
        spec = apply_config(
            add_variant(spec, f"v{index}", model), {f"variants.v{index}.weight": weight}
        )
    return spec


def stored(store, variants):
    """Store the endpoint or its change, like a deployment, and return it."""
    spec = spec_of(variants)
    before = store.endpoint("credit")
    answers = as_json(permitted_answers(store, before, spec))
    if before is None:
        return store.add_endpoint("onnxserve", spec, unapproved=answers)
    return store.replace_spec(spec, unapproved=answers)


@pytest.mark.parametrize(("model", "is_new"), [(SIX, False), *((model, True) for model in OTHERS)])
def test_unapproved_version_gets_no_traffic(model, is_new, policy, store):
    policy(POLICY)
    before = None if is_new else stored(store, {CHAMPION: 100})
    with refused(GateRefused, model, "100 %", "'credit'", "permits no answers"):
        permitted_answers(store, before, spec_of({model: 100}))


def test_ungoverned_model_and_gated_alias_are_unlimited(policy, store):
    for text, models in (
        ("gated_aliases: [champion]", OTHERS),
        (POLICY, [CHAMPION, "models:/credit/Production"]),
    ):
        policy(text)
        for model in models:
            assert permitted_answers(store, None, spec_of({model: 100})) == ()


def test_version_within_the_limit_answers_visibly(policy, store):
    policy(LIMITED)
    stored(store, {CHAMPION: 100})
    command = "`onnxserve promote models:/credit/6 --to @champion --request`"
    with refused(GateRefused, SIX, "6 %", command):
        stored(store, {CHAMPION: 94, SIX: 6})
    endpoint = stored(store, {CHAMPION: 95, SIX: 5})
    text = f"{SIX} answers 5 % of the requests without an approval, until 2026-11-26 13:00 UTC"
    described = describe_endpoint(ObservedEndpoint(endpoint, Observation("running")))
    assert described["unapproved"] == [text]
    assert [entry["unapproved"] for entry in described["deployments"].values()] == ["", text]
    event = [*store.events("credit")][-1]
    assert [entry["model_uri"] for entry in event.detail["unapproved"]] == [SIX]


def test_limit_covers_all_versions_and_total_time(policy, store, clock):
    policy(LIMITED)
    stored(store, {CHAMPION: 100})
    stored(store, {CHAMPION: 97, SIX: 3})
    with refused(GateRefused, "models:/credit/5", "6 %"):
        stored(store, {CHAMPION: 94, SIX: 3, "models:/credit/5": 3})
    assert stored(store, {CHAMPION: 100, SIX: 0}).unapproved == ()
    clock.now += timedelta(minutes=59)
    (again,) = stored(store, {CHAMPION: 99, SIX: 1}).unapproved
    assert again["since"] == NOW.isoformat()
    stored(store, {CHAMPION: 100})
    clock.now += timedelta(minutes=1)
    with refused(GateRefused, SIX, "since 2026-11-26 12:00 UTC"):
        stored(store, {CHAMPION: 99, SIX: 1})


def test_order_of_changes_does_not_raise_the_limit(policy, store):
    policy(LIMITED)
    aliases = [f"models:/credit@a{number}" for number in range(3)]
    idle = dict.fromkeys(aliases, 0)
    stored(store, {CHAMPION: 100, **idle})
    stored(store, {CHAMPION: 95, **idle, "models:/credit@a2": 5})
    with refused(GateRefused, "models:/credit@a1", "10 %", "5 % for 1h"):
        stored(store, {CHAMPION: 90, **idle, "models:/credit@a2": 5, "models:/credit@a1": 5})
    exchanged = stored(store, {CHAMPION: 95, **idle, "models:/credit@a0": 5})
    assert [(entry["model_uri"], entry["share"]) for entry in exchanged.unapproved] == [
        ("models:/credit@a0", 5)
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (SIX, "models:/credit/06"),
        ("models:/credit@challenger", "models:/credit@fresh"),
        ("models:/credit/latest", "models:/credit/Staging"),
        ("models:/credit/tag:a=b", "s3://bucket/credit"),
    ],
)
def test_other_reference_does_not_restart_the_time(first, second, policy, store, clock):
    policy(LIMITED)
    stored(store, {CHAMPION: 100})
    stored(store, {CHAMPION: 95, first: 5})
    clock.now += timedelta(minutes=59)
    (answer,) = stored(store, {CHAMPION: 95, second: 5}).unapproved
    assert answer["since"] == NOW.isoformat()
    stored(store, {CHAMPION: 100})
    clock.now += timedelta(minutes=1)
    with refused(GateRefused, second, "since 2026-11-26 12:00 UTC"):
        stored(store, {CHAMPION: 95, second: 5})
    assert stored(
        store, {CHAMPION: 95, "models:/credit/5": 5}
    ).unapproved  # Another version has a time of its own.


def test_ungoverned_model_cannot_replace_a_governed_one(policy, store, tmp_path):
    policy(POLICY)
    MlflowClient().create_registered_model("credit-copy")
    before = stored(store, {CHAMPION: 100})
    unregistered = [
        str(tmp_path),
        "runs:/0123456789abcdef0123456789abcdef/model",
        "s3://bucket/credit",
    ]
    for model in [
        *unregistered,
        "models:/credit-copy/1",
        "models:/credit-copy@champion",
        "models:/unknown/1",
    ]:
        assert permitted_answers(store, None, spec_of({model: 100})) == ()
        with refused(GateRefused, model, "the policy of credit", "follow @champion"):
            permitted_answers(store, before, spec_of({model: 100}))
        with refused(GateRefused, model, "a rollout of 100 %"):
            require_rollout(model, [100], 60, ["credit"])
        assert require_rollout(model, [100], 60, ["credit-copy"]) == ""


def test_other_changes_and_rollback_are_permitted(policy, store):
    before = stored(store, {SIX: 60, "models:/credit/5": 40})
    policy(POLICY)  # The endpoint is older than the policy.
    changed = apply_config(before.spec, {"server.workers": 2})
    assert permitted_answers(store, before, changed) == ()
    assert (
        permitted_answers(
            store, before, spec_of({SIX: 60, "models:/credit/5": 40, "models:/credit/4": 0})
        )
        == ()
    )
    with pytest.raises(GateRefused):
        permitted_answers(store, before, spec_of({SIX: 100}))
    assert permitted_answers(store, before, spec_of({SIX: 100}), restores=True) == ()


def test_shadow_is_permitted(policy, store):
    policy(POLICY)
    before = stored(store, {CHAMPION: 100})
    spec = apply_config(add_variant(before.spec, "shadow", SIX), {"variants.shadow.shadow": True})
    assert permitted_answers(store, before, spec) == ()


def test_traffic_can_shrink_without_mlflow(policy, store):
    policy(LIMITED)
    before = stored(store, {CHAMPION: 95, SIX: 5})
    with mlflow_is_down():
        (answer,) = permitted_answers(store, before, spec_of({CHAMPION: 97, SIX: 3}))
        assert answer.model_uri == SIX
        assert answer.share == 3
        with pytest.raises(RegistryUnavailable):
            permitted_answers(store, before, spec_of({CHAMPION: 90, SIX: 10}))


POLICY_TAG = {"tag": GATE_POLICY}


@pytest.mark.parametrize(
    ("events", "needs_mlflow"),
    [
        ([], False),
        ([{"action": "tag", "after": "gated_aliases: [champion]", "detail": POLICY_TAG}], False),
        ([{"action": "tag", "after": POLICY, "detail": POLICY_TAG}], True),
        ([{"action": "tag", "after": "not: [valid, approvals", "detail": POLICY_TAG}], True),
        ([{"action": "request", "version": "6"}], True),
        (
            [
                {"action": "request"},
                {"action": "tag", "before": POLICY, "after": "", "detail": POLICY_TAG},
            ],
            False,
        ),
        ([{"action": "tag", "after": POLICY, "detail": POLICY_TAG}, {"action": "delete"}], False),
        ([{"action": "rename", "before": "loan", "after": "credit"}], True),
        ([{"action": "rename", "before": "credit", "after": "loan"}], False),
        (
            [
                {"action": "tag", "after": POLICY, "detail": POLICY_TAG},
                {"action": "refused", "before": POLICY, "after": "", "detail": POLICY_TAG},
            ],
            True,
        ),
    ],
)
def test_standby_without_mlflow_follows_the_audit_trail(events, needs_mlflow, store, caplog):
    before = store.add_endpoint("onnxserve", spec_of({"models:/credit/5": 100, SIX: 0}))
    for event in events:
        store.record(**event, model="credit")
    with mlflow_is_down():
        for standby in (
            SIX,
            "s3://bucket/credit",
        ):  # The second model replaces one that may require approvals.
            if needs_mlflow:
                with pytest.raises(RegistryUnavailable):
                    permitted_answers(store, before, spec_of({"models:/credit/5": 1, standby: 99}))
            else:
                assert (
                    permitted_answers(store, before, spec_of({"models:/credit/5": 1, standby: 99}))
                    == ()
                )
                assert mentions(caplog.text, "without MLflow, model credit requires no approvals")


def test_version_promoted_meanwhile_is_approved(policy, store):
    policy(LIMITED)
    endpoint = stored(store, {CHAMPION: 95, SIX: 5})
    assert [answer.model_uri for answer in current_answers(store, endpoint)] == [SIX]
    store.record(
        "alias", model="credit", version="6", detail=move_detail("@champion", "5", "f" * 64)
    )
    assert current_answers(store, endpoint) == []


@pytest.mark.parametrize(
    ("steps", "minutes", "is_permitted"),
    [((1, 5), 30, True), ((1, 10, 50, 100), 5, False), ((5,), 61, False), ((100,), 43200, False)],
)
def test_unapproved_rollout_stays_within_the_limit(steps, minutes, is_permitted, policy):
    policy(LIMITED)
    if is_permitted:
        assert mentions(
            require_rollout(SIX, steps, minutes * 60, ["credit"]),
            "without an approval",
            "5 %",
            "1h",
        )
    else:
        with refused(GateRefused, SIX, "rollout", "5 % for 1h"):
            require_rollout(SIX, steps, minutes * 60, ["credit"])
    policy(POLICY)
    with refused(GateRefused, SIX, "permits no answers"):
        require_rollout(SIX, steps, minutes * 60, ["credit"])
    policy("gated_aliases: [champion]")
    assert require_rollout(SIX, steps, minutes * 60, ["credit"]) == ""
