"""Tests of the client that sends verdicts to MLflow's server: it writes the tags if the
server does not run the app.
"""

import json

from mlflow_deploy_plugin.promote.gate.recording import PATH, VerdictRecord, write_verdict
from tests.support.services.listener import answering
from tests.support.tracking import tracking_at


def test_verdict_is_tagged_if_a_proxy_refuses_the_path(store, monkeypatch):
    set_tags = {}

    def answer(request, body):
        if request.command == "GET":
            version = {"model_version": {"name": "credit", "version": "1"}}
            return 200, "application/json", json.dumps(version)
        if request.path.startswith(PATH):
            return 403, "text/html", "<html>forbidden</html>"
        tag = json.loads(body)
        set_tags[tag["key"]] = tag["value"]
        return 200, "application/json", "{}"

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    record = VerdictRecord(
        model="credit", version="1", state="passed", reason="all checks passed", files="ab12"
    )
    with answering(answer) as url, tracking_at(url):
        write_verdict(record, store)
    assert set_tags["onnxserve.gate"] == "passed"
    assert set_tags["onnxserve.gate.digest"] == "ab12"
    assert [event.after for event in store.events(model="credit")] == ["passed"]
