"""The wording of the messages of the console and of MLflow's guarded requests."""

import pytest


@pytest.mark.parametrize(
    ("gate", "reason", "message"),
    [
        (
            "",
            "",
            (
                "version 1 of delay may not become Production: it has not been through the gate. "
                "`onnxserve promote models:/delay/1 --to Production` runs the gate and lists "
                "the failed checks"
            ),
        ),
        (
            "failed",
            "evaluation: accuracy 0.71 against 0.80",
            (
                "version 1 of delay may not become Production: evaluation: accuracy 0.71 against "
                "0.80. `onnxserve promote models:/delay/1 --to Production` runs the gate and lists "
                "the failed checks"
            ),
        ),
    ],
)
def test_the_message_of_a_move_that_the_gate_forbids(mlflow_app, gate, reason, message):
    model = mlflow_app.model()
    if gate:
        mlflow_app.stands(model, "1", gate, reason)

    body = {"name": model, "version": "1", "stage": "Production"}
    answer = mlflow_app.client.post("/api/2.0/mlflow/model-versions/transition-stage", json=body)

    assert answer.status_code == 403
    assert answer.json["error_code"] == "PERMISSION_DENIED"
    assert answer.json["message"].replace(model, "delay") == message
