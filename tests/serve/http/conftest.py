"""A real server with models for the pages and the OpenAPI document."""

import pytest

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from tests.support import page_models
from tests.support.models import mixed_model
from tests.support.servers import gunicorn, variant
from tests.support.waiting import EXPLAINER_SECONDS

FLIGHTS = {
    "dataframe_split": {
        "columns": ["carrier", "distance", "hour", "late"],
        "data": [["AA", 1400.5, 7, False]],
    }
}


@pytest.fixture(scope="session")
def pages_server(tmp_path_factory, model_folders):
    """flights (a table, classes), digits (pictures, classes), hostile (HTML in names),
    tensor, stock, wide (30 columns), airlines.
    """
    root = tmp_path_factory.mktemp("pages")
    state_dir = root / "state"
    state_dir.mkdir()
    flights = page_models.with_example(mixed_model(root / "flights"), FLIGHTS)
    aspects = {"stage": "Production", "run_id": "r-1"}
    folders = {
        "flights": flights,
        "digits": page_models.digits_model(root / "digits"),
        "hostile": page_models.hostile_model(root / "hostile"),
        "tensor": model_folders["tensor"],
        "stock": model_folders["stock"],
        "wide": page_models.wide_model(root / "wide"),
        "airlines": page_models.with_categories(
            mixed_model(root / "airlines"), carrier=["AA", "UA", "W&N"]
        ),
    }
    with gunicorn(
        state_dir,
        {name: {"v": variant(folder, aspects=aspects)} for name, folder in folders.items()},
        ServerSpec(request_timeout_seconds=EXPLAINER_SECONDS),
    ) as running:
        yield running
