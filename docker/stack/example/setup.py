"""Create the data that the core needs before its servers start. Existing data is not
changed.

`setup.py SPEC` creates the bucket, the store's tables, a first version of the model
that the spec follows, with its aliases, and the endpoint with its monitors in the
store.
"""

import sys
from datetime import timedelta
from pathlib import Path

import boto3
import mlflow
from mlflow.exceptions import MlflowException
from train import register_first

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import load_specs
from mlflow_deploy_plugin.core.spec.types import duration_seconds
from mlflow_deploy_plugin.core.store.database import open_store


def main(path: str) -> None:
    settings = load_settings()
    s3 = boto3.client("s3")
    bucket = settings.log_uri.removeprefix("s3://").partition("/")[0]
    if bucket not in {one["Name"] for one in s3.list_buckets()["Buckets"]}:
        s3.create_bucket(Bucket=bucket)

    (spec,) = load_specs(Path(path).read_text())
    client = mlflow.MlflowClient()
    for variant in spec.variants.values():
        model, _, alias = variant.model.removeprefix("models:/").partition("@")
        try:
            client.get_model_version_by_alias(model, alias)
        except MlflowException:
            versions = [
                int(one.version) for one in client.search_model_versions(f"name = '{model}'")
            ]
            window = timedelta(seconds=duration_seconds(spec.monitors["drift"].every))
            if not versions:
                versions = [int(register_first(window, model))]
            client.set_registered_model_alias(model, alias, str(max(versions)))

    store = open_store(settings.store_url)
    if store.endpoint(spec.name) is None:
        store.add_endpoint("onnxserve", spec, why="docker/compose.yaml")
    store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
