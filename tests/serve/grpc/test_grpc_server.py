"""The gRPC port of a server is shared by its workers, bounded, encrypted, and drained
with HTTP.
"""

import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace

import grpc
import numpy as np
import psutil
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.statedir.files import read_workers
from mlflow_deploy_plugin.serve.observability.tracing import Observer
from tests.serve.grpc.conftest import calling, listening, message, tensor
from tests.support.servers import variant
from tests.support.waiting import wait_until

IMAGE = np.ones((1, 2, 2), np.float32)
CALL = message("tensor", raw_input_contents=[IMAGE.tobytes()])


@pytest.fixture
def endpoints(model_folders):
    return {"tensor": {"v": variant(model_folders["tensor"])}}


def worker_pids(called):
    return [worker.pid for worker in read_workers(called.http.state_dir)]


@pytest.mark.long
def test_two_workers_share_the_port(tmp_path, endpoints):
    with calling(tmp_path, endpoints, workers=2) as called:
        port = int(called.address.rpartition(":")[2])

        def listeners():
            held = {pid: psutil.Process(pid).net_connections() for pid in worker_pids(called)}
            return [
                pid
                for pid, connections in held.items()
                if any(c.status == "LISTEN" and c.laddr.port == port for c in connections)
            ]

        wait_until(lambda: len(listeners()) == 2, what="both listen")
        for _ in range(10):
            with called.client() as client:
                assert client.infer("tensor", [tensor("image", IMAGE)]).as_numpy("total") == [4.0]


@pytest.mark.long
@pytest.mark.parametrize("worker_class", ["fast", "gthread"])
def test_call_in_flight_is_answered_at_shutdown(tmp_path, endpoints, worker_class):
    """The model waits 1.5 s for a partial batch; a second call on the connection shows
    that the first has arrived.
    """
    waits = {"max_batch_size": 8, "max_queue_delay_microseconds": 1_500_000}
    with (
        calling(tmp_path, endpoints, worker_class=worker_class, **waits) as called,
        called.stub() as stub,
    ):
        future = stub.ModelInfer.future(CALL)
        assert stub.ServerLive(service_pb2.ServerLiveRequest()).live
        assert not future.done()
        called.http.process.send_signal(signal.SIGTERM)
        assert future.result(20).raw_output_contents[1] == np.float32(4).tobytes()
        assert called.http.process.wait(20) == 0


def test_calls_are_answered_without_new_threads(serve_here, endpoints, monkeypatch):
    start = threading.Thread.start

    def start_no_other_of_ours(thread):
        if thread.name.startswith("onnxserve"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with listening(serve_here(endpoints)) as called, called.stub() as stub:
        monkeypatch.setattr(threading.Thread, "start", start_no_other_of_ours)
        for _ in range(2):
            answer = stub.ModelInfer(CALL, timeout=30)
            assert answer.raw_output_contents[1] == np.float32(4).tobytes()


WATCH = "/grpc.health.v1.Health/Watch"
SERVING = b"\x08\x01"
NOT_SERVING = b"\x08\x02"
UNKNOWN = b"\x08\x03"


def test_cancelled_watchers_free_their_places(serve_here, endpoints):
    with (
        listening(serve_here(endpoints)) as called,
        grpc.insecure_channel(called.address) as channel,
    ):
        watch = channel.unary_stream(WATCH)

        def has_room():
            watcher = watch(b"")
            try:
                return bool(next(watcher))
            except grpc.RpcError:
                return False
            finally:
                watcher.cancel()

        watchers = [watch(b"") for _ in range(32)]
        assert {next(watcher) for watcher in watchers} == {SERVING}
        assert not has_room()
        for watcher in watchers:
            watcher.cancel()
        wait_until(has_room, 60, "a place is free")


@contextmanager
def stopped_client(address):
    """A process with a connection that answers nothing."""
    code = "import grpc, os, signal, sys; channel = grpc.insecure_channel(sys.argv[1]);"
    code += "grpc.channel_ready_future(channel).result(60); os.kill(os.getpid(), signal.SIGSTOP)"
    client = subprocess.Popen([sys.executable, "-c", code, address])
    try:
        wait_until(
            lambda: psutil.Process(client.pid).status() == psutil.STATUS_STOPPED,
            60,
            "the client's stop",
        )
        yield
    finally:
        client.kill()
        client.wait()


def test_watchers_and_silent_clients_hear_of_shutdown(tmp_path, endpoints):
    """Neither an idle stream nor a stopped client delays it, for which gRPC itself
    would wait 20 s.
    """
    answered = threading.Event()
    with (
        calling(tmp_path, endpoints, graceful_timeout_seconds=60) as called,
        grpc.insecure_channel(called.address) as channel,
        called.client() as idle,
        stopped_client(called.address),
    ):
        watch = channel.unary_stream(WATCH)
        whole = watch(b"")
        service = watch(b"\x0a\x1einference.GRPCInferenceService")
        other = watch(b"\x0a\x01x")
        assert [next(whole), next(service), next(other)] == [SERVING, SERVING, UNKNOWN]
        with pytest.raises(grpc.RpcError) as refused:
            next(watch(b"\xff"))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        other.cancel()
        idle.start_stream(lambda result, error: answered.set())
        idle.async_stream_infer("tensor", [tensor("image", IMAGE)])
        assert answered.wait(60)
        called.http.process.send_signal(signal.SIGTERM)
        assert [list(whole), list(service)] == [[NOT_SERVING]] * 2
        assert called.http.process.wait(15) == 0
        idle.stop_stream(cancel_requests=True)


def test_silent_calls_are_cancelled(serve_here, endpoints):
    ended = threading.Event()

    def silent():
        ended.wait(60)
        yield from ()

    with (
        listening(serve_here(endpoints), request_timeout_seconds=1) as called,
        grpc.insecure_channel(called.address) as channel,
    ):
        infer = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        waiting = [infer.future(silent()) for _ in range(40)]
        assert {call.exception(30).code() for call in waiting} == {grpc.StatusCode.CANCELLED}
        ended.set()


@pytest.mark.long
def test_silent_connections_before_the_key_end(serve_here, endpoints):
    with (
        listening(serve_here(endpoints), max_connections=1) as called,
        socket.create_connection(called.address.split(":")),
        called.stub() as stub,
    ):
        assert stub.ModelInfer(CALL, timeout=60, wait_for_ready=True).outputs


def test_messages_beyond_the_limit_are_refused(serve_here, endpoints):
    with listening(serve_here(endpoints), max_body_bytes=100_000) as called, called.stub() as stub:
        for size, code in ((100_000, "INVALID_ARGUMENT"), (200_000, "RESOURCE_EXHAUSTED")):
            with pytest.raises(grpc.RpcError) as refused:
                stub.ModelInfer(message("tensor", raw_input_contents=[bytes(size)]))
            assert refused.value.code().name == code
        large = message("tensor", raw_input_contents=[bytes(10_000_000)])
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(large, compression=grpc.Compression.Gzip)
        assert refused.value.code().name in ("UNIMPLEMENTED", "RESOURCE_EXHAUSTED")
        assert stub.ModelInfer(CALL).outputs


def test_port_uses_the_tls_of_the_server(serve_here, endpoints, certificate):
    cert, key = certificate
    credentials = grpc.ssl_channel_credentials(cert.read_bytes())
    with listening(serve_here(endpoints), certfile=str(cert), keyfile=str(key)) as called:
        with grpc.secure_channel(called.address, credentials) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ModelInfer(CALL, timeout=20).outputs
        with called.stub() as stub, pytest.raises(grpc.RpcError):
            stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=5)


def test_calls_of_all_methods_are_logged(serve_here, endpoints, caplog):
    server = replace(serve_here(endpoints), observer=Observer(log_fraction=1.0))
    unload = service_pb2.RepositoryModelUnloadRequest(model_name="tensor")
    with caplog.at_level("INFO"), listening(server) as called:
        with grpc.insecure_channel(called.address) as channel:
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=20)
        with called.stub() as stub, pytest.raises(grpc.RpcError):
            stub.RepositoryModelUnload(unload, timeout=20)

    lines = [vars(record) for record in caplog.records if record.name.endswith(".request")]
    assert [(line["url.path"], line["http.response.status_code"]) for line in lines] == [
        ("/grpc.health.v1.Health/Check", 200),
        ("/inference.GRPCInferenceService/RepositoryModelUnload", 400),
    ]


def test_missing_certificate_is_a_config_error(serve_here, endpoints, tmp_path):
    missing = str(tmp_path / "none.pem")
    with (
        pytest.raises(InvalidConfig, match="No such file"),
        listening(serve_here(endpoints), certfile=missing, keyfile=missing),
    ):
        pass
