"""A real S3 API, where AWS_ENDPOINT_URL names one."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest

NEEDS_S3 = [
    pytest.mark.s3,
    pytest.mark.skipif(not os.environ.get("AWS_ENDPOINT_URL"), reason="no S3 API is named by AWS_ENDPOINT_URL"),
]


@contextmanager
def own_bucket() -> Iterator[Any]:
    """A bucket that is gone, with all that is in it, at the end of the `with`."""
    made = boto3.resource("s3").create_bucket(Bucket=f"onnxserve-{uuid.uuid4().hex}")
    yield made
    made.objects.all().delete()
    made.delete()
