"""A folder with a registry, which tests may change and which is restored for each of
them.
"""

import shutil
import sqlite3
from contextlib import closing, contextmanager

import pytest

from tests.support.tracking import tracking_at

DATABASE = "mlflow.db"


class RegistryFolder:
    """A folder with MLflow's database, its artifacts and the home of onnxserve."""

    def __init__(self, folder, new_database):
        self.folder = folder
        self.kept = folder.with_name(f"{folder.name}-kept")
        self.uri = new_database(folder)

    @contextmanager
    def entered(self):
        """Use the registry in the folder, which becomes the current one, and yield its
        client.
        """
        from mlflow import MlflowClient

        with pytest.MonkeyPatch.context() as patch, tracking_at(self.uri):
            patch.setenv("ONNXSERVE_HOME", str(self.folder / "home"))
            patch.chdir(self.folder)  # MLflow writes artifacts here.
            yield MlflowClient()

    def keep(self):
        """Copy the folder, whose state `restored` restores from now on."""
        with self.entered() as client:
            client.search_experiments()  # MLflow adds its default experiment only once.
        shutil.copytree(self.folder, self.kept)

    def restored(self):
        """Restore the folder, and enter it. MLflow keeps its database open, so that
        SQLite must restore it.
        """
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != DATABASE:
                path.unlink()
        shutil.copytree(
            self.kept,
            self.folder,
            ignore=shutil.ignore_patterns(DATABASE),
            dirs_exist_ok=True,
        )
        with (
            closing(sqlite3.connect(self.kept / DATABASE)) as kept,
            closing(sqlite3.connect(self.folder / DATABASE)) as changed,
        ):
            changed.execute("PRAGMA synchronous=OFF")
            kept.backup(changed)
        return self.entered()
