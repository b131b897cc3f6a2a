"""The wording of the most frequent messages of the gate."""

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.core.registry.policy import parse_policy
from mlflow_deploy_plugin.promote.gate.promotion import promote


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "evaluaton: {}",
            (
                "the policy: evaluaton: Extra inputs are not permitted; the fields are "
                "gated_aliases, gated_stages, parity, evaluation, robustness, budget, backtest, "
                "skip, signer, seed, fresh_hours, judges, approvals, unapproved"
            ),
        ),
        (
            "evaluation: {dataset: d.csv}",
            (
                "the policy: evaluation: Value error, the dataset needs a target, which is its "
                "label column"
            ),
        ),
        (
            "robustness: {disturbances: {noise: 1}}",
            (
                "the policy: Value error, robustness.disturbances need labelled rows: set "
                "robustness.dataset or evaluation.dataset"
            ),
        ),
        (
            "robustness: {disturbances: [noise]}",
            (
                "the policy: robustness.disturbances: Value error, a mapping of disturbances to "
                "strengths is expected, as {noise: 0.1, missing: [0.1, 0.2]}"
            ),
        ),
        (
            "robustness: {disturbances: {noise: -1}}",
            (
                "the policy: robustness.disturbances: Value error, noise cannot have the strength "
                "-1; a number above 0, up to 1e+06, is expected"
            ),
        ),
        (
            "- a",
            (
                "the policy is not a mapping; a policy has the fields gated_aliases, gated_stages, "
                "parity, evaluation, robustness, budget, backtest, skip, signer, seed, "
                "fresh_hours, judges, approvals, unapproved"
            ),
        ),
    ],
)
def test_the_message_of_a_wrong_policy(text, message):
    with pytest.raises(InvalidConfig) as refused:
        parse_policy(text, "the policy")
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"version": "2", "to": "Prod"},
            (
                "'Prod' is neither a stage (Production, Staging, Archived, None) nor an alias; did "
                "you mean 'Production'?"
            ),
        ),
        ({"version": "9"}, "model toy has no version 9; versions: 1 (Production), 2, 3, 4"),
        ({"version": "4", "force": True}, "a forced promotion requires a reason (--why)"),
        (
            {"version": "3"},
            (
                "toy version 3 is not promoted to Production, because it was rolled back (flights: "
                "too slow): `onnxserve promote models:/toy/3 --to Production --force --why TEXT` "
                "promotes it anyway and removes its tag onnxserve.rolled_back"
            ),
        ),
    ],
)
def test_the_message_of_a_promotion_that_is_refused(registry, asked, message):
    registry.set_registered_model_tag(
        "toy", "onnxserve.gate.policy", "skip: [evaluation, robustness, budget]"
    )
    registry.set_model_version_tag("toy", "3", "onnxserve.rolled_back", "flights: too slow")
    with pytest.raises(OnnxserveError) as refused:
        promote("toy", **({"to": "Production"} | asked))
    assert str(refused.value) == message
