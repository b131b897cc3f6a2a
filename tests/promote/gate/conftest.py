"""A registered model `toy`: version 1 (perfect) is in Production, 2 equals it, 3 is
worse, 4 is not proven.
"""

import shutil
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.registry.resolution import resolve
from tests.support.classifiers import COLUMNS, labelled, write_classifier, write_rows
from tests.support.registry_folder import RegistryFolder


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """MLmodel folders of classifiers: `good`, `equal` (the same answers), `worse`,
    `unproven` (its ONNX form answers otherwise than the original); and `holdout`,
    labelled rows.
    """
    folder = tmp_path_factory.mktemp("models")
    rows = labelled(400, seed=1)
    reference = {name: rows[name] for name in COLUMNS}
    return {
        "good": write_classifier(folder / "good", reference=reference),
        "equal": write_classifier(folder / "equal", (4.0, -2.0), reference=reference),
        "worse": write_classifier(folder / "worse", (1.0, 2.0), reference=reference),
        "unproven": write_classifier(folder / "unproven", parity="warned"),
        "holdout": write_rows(folder / "holdout.parquet", labelled(600)),
    }


@pytest.fixture
def version(folders):
    """Return a folder as a resolved model."""
    return lambda name: resolve(str(folders[name]))


@pytest.fixture
def own_files(registry, folders, tmp_path):
    """Return the folder of version 5, which is as good as version 2, and which the test
    may change.
    """
    folder = Path(shutil.copytree(folders["equal"], tmp_path / "own"))
    registry.create_model_version("toy", folder.as_uri())
    return folder


@pytest.fixture(scope="session")
def registry_folder(folders, tmp_path_factory, new_database):
    prepared = RegistryFolder(tmp_path_factory.mktemp("registry"), new_database)
    with prepared.entered() as client:
        client.create_registered_model("toy")
        for name in ("good", "equal", "worse", "unproven"):
            client.create_model_version("toy", folders[name].as_uri())
        client.transition_model_version_stage("toy", "1", "Production")
    prepared.keep()
    return prepared
