"""The wording of the store's most visible messages."""

import pytest

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.keys import ApiKeys
from mlflow_deploy_plugin.core.store.retrainings import Retrainings


@pytest.fixture
def store(tmp_path):
    """Return a store with the endpoint `flights`, its live rollout and retraining, and
    the key `shop`.
    """
    made = open_store(f"sqlite:///{tmp_path}/store.db")
    made.add_endpoint("onnxserve", new_endpoint("flights", "models:/X/1"))
    made.add_rollout("flights", {"to": "models:/X/2"}, "stepping")
    Retrainings(made).add("flights", "accuracy", "X", {"why": "an alarm"}, {})
    ApiKeys(made).create("shop", ["infer"])
    return made


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (
            lambda store: store.require_endpoint("flihgts"),
            "there is no endpoint 'flihgts'; did you mean 'flights'?",
        ),
        (
            lambda store: store.require_endpoint("nope"),
            "there is no endpoint 'nope'; there are flights",
        ),
        (
            lambda store: store.add_endpoint("onnxserve", new_endpoint("flights", "m")),
            "endpoint 'flights' already exists: update or delete it",
        ),
        (
            lambda store: store.replace_spec(new_endpoint("nope", "m")),
            "there is no endpoint 'nope'",
        ),
        (
            lambda store: store.add_rollout("flights", {}, "starting"),
            (
                "endpoint 'flights' already has a rollout: wait for its end, or abort it with "
                "`onnxserve rollout abort flights`"
            ),
        ),
        (
            lambda store: Retrainings(store).add("other", "accuracy", "X", {}, {}),
            "model X is already being trained: retraining 1 is waiting",
        ),
        (
            lambda store: ApiKeys(store).create("shop", ["infer"]),
            "a key with the name 'shop' exists or existed; choose another name",
        ),
        (
            lambda store: open_store("store.db"),
            "ONNXSERVE_STORE_URI is not an SQLAlchemy URI like postgresql+psycopg://user@host/db",
        ),
        (
            lambda store: open_store("nosql://host/db"),
            "ONNXSERVE_STORE_URI: 'nosql' is not a supported database",
        ),
        (
            lambda store: open_store("sqlite:////proc/none/store.db"),
            (
                "the store at sqlite:////proc/none/store.db cannot be used: [Errno 2] No such file "
                "or directory: '/proc/none'; set ONNXSERVE_HOME or ONNXSERVE_STORE_URI to another "
                "location"
            ),
        ),
    ],
)
def test_the_message_of_a_refusal(store, cause, message):
    with pytest.raises(OnnxserveError) as refused:
        cause(store)
    assert str(refused.value) == message
