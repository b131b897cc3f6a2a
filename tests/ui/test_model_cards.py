"""The versions of a model on the page, and the places that they may be promoted to."""

import re
from typing import Any

from mlflow_deploy_plugin.spec import new_endpoint
from tests.support.console import PAGE


def test_a_version_that_was_rolled_back_is_shown_with_the_reason(mlflow_app: Any, endpoint: str) -> None:
    from mlflow.entities.model_registry import ModelVersionTag

    tag = ModelVersionTag("onnxserve.rolled_back", "flights: <too slow>")
    mlflow_app.registry.set_model_version_tag(endpoint.removeprefix("of-"), "1", tag)
    assert "rolled back: flights: &lt;too slow&gt;; it is promoted again by" in mlflow_app.client.get(PAGE).text


def test_what_would_be_refused_is_not_offered_and_the_reason_stands_there(mlflow_app: Any, endpoint: str) -> None:
    """The server of this endpoint does not run, and version 1 of its model was rolled back; nothing can be promoted or
    judged of a model whose policy nobody can read.
    """
    from mlflow.entities.model_registry import ModelVersionTag

    model = endpoint.removeprefix("of-")
    mlflow_app.registry.set_model_version_tag(model, "1", ModelVersionTag("onnxserve.rolled_back", "flights: slow"))
    mlflow_app.registry.transition_model_version_stage(model, "2", "Staging", False)
    unread = mlflow_app.model(policy="gated_stages: [Mars]", versions=1)
    mlflow_app.store.add_endpoint("onnxserve", new_endpoint(f"of-{unread}", f"models:/{unread}/Production"))
    html = " ".join(mlflow_app.client.get(PAGE).get_data(as_text=True).split())
    mlflow_app.store.remove_endpoint(f"of-{unread}")

    why = f"the server of {endpoint} does not run: `onnxserve start {endpoint}` first"
    assert f'<button disabled title="{why}">Change the traffic</button>' in html
    assert f'<button class="danger" disabled title="{why}">Roll back</button>' in html
    assert f"Not now: {why}</p>" in html
    of_1, of_2 = (offered(html, model, version) for version in ("1", "2"))
    assert re.search(r'<option value="Production" disabled title="[^"]*it was rolled back \(flights: slow\)', of_1)
    assert "Production – it was rolled back" in of_1
    assert '<option value="" selected>where to?</option>' in of_1
    assert "where to?" not in of_2
    assert '<option value="Staging">Staging</option>' in of_1
    assert '<option value="Production">Production</option>' in of_2
    assert '<option value="Staging" disabled title="it is there already">Staging – it is there already' in of_2
    of_unread = offered(html, unread, "1")
    assert re.search(r'value="promote" disabled title="[^"]*gated_stages', of_unread)
    assert re.search(r'value="gate" class="quiet" formnovalidate disabled title="[^"]*gated_stages', of_unread)


def offered(html: str, model: str, version: str) -> str:
    """The form of a version: where it may go, and its buttons."""
    (form,) = re.findall(
        rf'<select name="to" required aria-label="Where version {version} of {model} goes">.*?</form>', html
    )
    return str(form)
