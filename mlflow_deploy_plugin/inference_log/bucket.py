"""Putting objects into a bucket: by boto3's managed upload, in parts where they are large, and encrypted as asked.

Arrow's own writer knows no server-side encryption, which a bucket's policy may demand of every object.
"""

import importlib
import io
import os
from functools import lru_cache
from typing import Any

import pyarrow as pa

from mlflow_deploy_plugin.errors import NotInstalled

PART_BYTES = 8 * 1024 * 1024
"""Of an upload in parts; what is larger than one is uploaded so."""
_CONNECT_SECONDS, _READ_SECONDS, _ATTEMPTS = 5, 30, 4
_KMS = "aws:kms"


def put_object(path: str, content: bytes | pa.Buffer, endpoint: str | None, region: str, encryption: str) -> None:
    """Puts `content` at `path`, a bucket and a key, in place of what is there. It is seen whole or not at all.

    Args:
        endpoint: of the S3 API; None: Amazon's.
        encryption: as `ONNXSERVE_LOG_SSE` says it; empty: what the bucket does by itself.

    Raises:
        OSError: the bucket does not take it, after some attempts.
        NotInstalled: boto3 is not here.
    """
    client, transfer, failures = _client(endpoint, region)
    bucket, _, key = path.partition("/")
    try:
        client.upload_fileobj(
            io.BytesIO(content), bucket, key, ExtraArgs=encryption_arguments(encryption), Config=transfer
        )
    except failures as error:
        asked = f"; ONNXSERVE_LOG_SSE asks for {encryption}" if encryption else ""
        raise OSError(f"s3://{path}: {error}{asked}") from None


def encryption_arguments(encryption: str) -> dict[str, str]:
    """`AES256`, `aws:kms` or `aws:kms:KEY` as an upload's arguments.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html
    """
    if encryption.startswith(_KMS + ":"):
        return {"ServerSideEncryption": _KMS, "SSEKMSKeyId": encryption.removeprefix(_KMS + ":")}
    return {"ServerSideEncryption": encryption} if encryption else {}


@lru_cache(maxsize=4)
def _client(endpoint: str | None, region: str) -> tuple[Any, Any, tuple[type[Exception], ...]]:
    """The client, how it transfers, and what it raises."""
    try:
        boto3 = importlib.import_module("boto3")
    except ImportError:
        raise NotInstalled("a log at s3:// needs boto3: pip install 'mlflow-onnxserve[s3]'") from None
    settings = importlib.import_module("botocore.config")
    exceptions = importlib.import_module("botocore.exceptions")
    config = settings.Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        retries={"mode": "standard", "max_attempts": _ATTEMPTS},
        # other S3 APIs than Amazon's refuse the checksums that boto3 adds by itself since 1.36
        request_checksum_calculation=os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        if endpoint
        else None,
    )
    client = boto3.session.Session().client("s3", endpoint_url=endpoint, region_name=region, config=config)
    transfer = importlib.import_module("boto3.s3.transfer").TransferConfig(
        multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, use_threads=False
    )
    uploads = importlib.import_module("boto3.exceptions").Boto3Error
    return client, transfer, (exceptions.BotoCoreError, exceptions.ClientError, uploads)
