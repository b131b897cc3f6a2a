"""A small S3 API in this process, with objects in memory, multipart uploads, and
configurable failures.

It implements the part of https://docs.aws.amazon.com/AmazonS3/latest/API/ that boto3's
managed upload and Arrow's reader need, and records the requests with their headers.
Signatures are not checked.
"""

import hashlib
import os
import re
import threading
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import boto3
import pytest


@dataclass
class Bucket:
    """The objects of a bucket, and its configurable failures.

    Attributes:
        refusals: the statuses of the next writes, one per write; 0: the connection is
            closed.
        is_down: every request is refused with 503.
        asked: method, path and headers of every request.
        tokens: the remaining requests of each session token; empty: every request is
            allowed.
    """

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    refusals: list[int] = field(default_factory=list)
    is_down: bool = False
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    def headers_of(self, method, text):
        return [headers for verb, path, headers in self.asked if verb == method and text in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def _dispatch(self):
        bucket = self.bucket
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        bucket.asked.append(
            (self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
        )
        if bucket.is_down or (self.command in ("PUT", "POST") and bucket.refusals):
            status = 503 if bucket.is_down else bucket.refusals.pop(0)
            if not status:
                self.close_connection = True
                return
            code = {
                403: "AccessDenied",
                500: "InternalError",
                501: "NotImplemented",
                503: "SlowDown",
            }[status]
            self._send(
                status, f"<Error><Code>{code}</Code><Message>refused</Message></Error>".encode()
            )
            return
        if bucket.tokens:
            token = self.headers["X-Amz-Security-Token"]
            if not bucket.tokens[token]:
                self._send(400, b"<Error><Code>ExpiredToken</Code><Message>old</Message></Error>")
                return
            bucket.tokens[token] -= 1
        parts = urlsplit(self.path)
        query = {
            name: values[0]
            for name, values in parse_qs(parts.query, keep_blank_values=True).items()
        }
        getattr(self, f"_{self.command.lower()}")(unquote(parts.path).lstrip("/"), query, body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _dispatch  # noqa: N815 - http.server requires these names.

    def _put(self, key, query, body):
        if self.headers.get("If-None-Match") == "*" and key in self.bucket.objects:
            self._send(
                412, b"<Error><Code>PreconditionFailed</Code><Message>exists</Message></Error>"
            )
            return
        if "uploadId" in query:
            self.bucket.uploads[query["uploadId"]][int(query["partNumber"])] = body
        else:
            self.bucket.objects[key] = body
        self._send(200, b"", ETag=f'"{hashlib.sha256(body).hexdigest()}"')

    def _post(self, key, query, body):
        if "uploads" in query:
            name = f"u{len(self.bucket.uploads)}"
            self.bucket.uploads[name] = {}
            text = f"<Key>{escape(key)}</Key><UploadId>{name}</UploadId>"
            self._send(
                200,
                f"<InitiateMultipartUploadResult>{text}</InitiateMultipartUploadResult>".encode(),
            )
            return
        numbers = map(int, re.findall(rb"<PartNumber>(\d+)</PartNumber>", body))
        held = self.bucket.uploads.pop(query["uploadId"])
        self.bucket.objects[key] = b"".join(held[number] for number in numbers)
        self._send(
            200, b"<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>"
        )

    def _delete(self, key, query, body):
        if "uploadId" in query:
            self.bucket.uploads.pop(query["uploadId"], None)
        else:
            self.bucket.objects.pop(key, None)
        self._send(204, b"")

    def _head(self, key, query, body):
        content = self.bucket.objects.get(key)
        is_bucket = "/" not in key
        status = 404 if content is None and not is_bucket else 200
        self._send(status, content or b"", **{"x-amz-bucket-region": "us-east-1"})

    def _get(self, key, query, body):
        if "list-type" in query:
            self._list(key, query.get("prefix", ""), query.get("delimiter", ""))
            return
        content = self.bucket.objects.get(key)
        if content is None:
            self._send(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted:
            start = int(wanted[1])
            stop = min(int(wanted[2] or len(content)), len(content) - 1) + 1
            headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
            self._send(206, content[start:stop], **headers)
            return
        self._send(200, content)

    def _list(self, bucket, prefix, delimiter):
        contents = []
        folders = dict[str, None]()
        for name, content in sorted(self.bucket.objects.items()):
            bucket_name, _, key = name.partition("/")
            if bucket_name != bucket.strip("/") or not key.startswith(prefix):
                continue
            rest = key.removeprefix(prefix)
            if delimiter and delimiter in rest:
                folders[prefix + rest.partition(delimiter)[0] + delimiter] = None
                continue
            moment = "2026-06-01T12:00:00.000Z"
            contents.append(
                f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size><LastModified>{moment}</LastModified></Contents>"
            )
        shown = [
            f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
            for folder in folders
        ]
        count = f"<KeyCount>{len(contents) + len(shown)}</KeyCount><IsTruncated>false</IsTruncated>"
        text = f"<ListBucketResult>{count}{''.join(contents)}{''.join(shown)}</ListBucketResult>"
        self._send(200, text.encode())

    def _send(self, status, body, **headers):
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/xml",
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format, *args):
        pass


@contextmanager
def s3_server():
    """Yield a server on a free port; `AWS_ENDPOINT_URL` must be set to its `url`."""
    bucket = Bucket()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"bucket": bucket}))
    server.daemon_threads = True
    bucket.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


NEEDS_S3 = [
    pytest.mark.s3,
    pytest.mark.skipif(
        not os.environ.get("AWS_ENDPOINT_URL"), reason="no S3 API is named by AWS_ENDPOINT_URL"
    ),
]


@contextmanager
def own_bucket():
    """Yield a bucket. At the end, delete it with all its content.

    The session is new, because boto3's default session keeps the credentials of the
    first test in this process.
    """
    made = (
        boto3.session.Session().resource("s3").create_bucket(Bucket=f"onnxserve-{uuid.uuid4().hex}")
    )
    yield made
    made.objects.all().delete()
    made.delete()
