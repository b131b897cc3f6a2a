"""Tests of reading a server's counters from its page /metrics."""

import ssl

import pytest

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.ship.deployments.server_metrics import (
    VersionCounters,
    fetch_page,
    parse_server_history,
    parse_server_metrics,
    read_page,
    total_metrics,
)
from tests.support.keypairs import Authority
from tests.support.metrics_page import PAGE, serving

SECONDS = 30.0


def test_counts_are_summed_over_protocols():
    counters = parse_server_metrics(PAGE).by_version("f")

    assert counters["main", "6"] == VersionCounters(100, 5, {0.1: 86, float("inf"): 100}, refused=3)
    assert counters["main", "6"].failures == 2
    assert counters["new", "7"].requests == 4
    assert counters["copy", "7"].same == 30
    assert counters["copy", "7"].different == 15
    assert set(counters) == {
        ("main", "5"),
        ("main", "6"),
        ("main", "4"),
        ("new", "7"),
        ("copy", "7"),
    }


def test_explanations_count_without_their_times():
    of_version = 'endpoint="f",variant="main",model="X",version="6",protocol="explain"'
    family = "onnxserve_request_duration_seconds_bucket"
    slow = f'{family}{{{of_version},le="0.1"}} 0\n{family}{{{of_version},le="+Inf"}} 900'
    sample = f'onnxserve_requests_total{{{of_version},status="200"}} 900'
    counters = parse_server_metrics(f"{PAGE}{slow}\n{sample}\n").by_version("f")["main", "6"]

    assert counters.requests == 1000
    assert counters.timed == {0.1: 86, float("inf"): 100}


def test_counts_are_separate_per_model():
    metrics = parse_server_metrics(PAGE.replace('model="Y",version="4"', 'model="Y",version="6"'))

    assert metrics.of("f", "main", "X", "6").requests == 100
    assert metrics.of("f", "main", "Y", "6").requests == 1
    assert metrics.by_version("f")["main", "6"].requests == 101
    assert metrics.of("f", "main", "Z", "6") == VersionCounters()


def test_quantile_is_linear_within_its_bucket():
    timed = VersionCounters(100, 0, {0.1: 86, 1.0: 99, float("inf"): 100})

    assert [timed.quantile(share) for share in (0.43, 0.99, 1.0)] == pytest.approx([0.05, 1.0, 1.0])
    assert VersionCounters(timed={0.1: 0, float("inf"): 0}).quantile(0.99) is None
    assert VersionCounters().quantile(0.99) is None


def test_versions_are_sorted_by_last_answer_per_model():
    metrics = parse_server_metrics(PAGE)
    assert metrics.versions_by_last_answer("f", "main", "X") == ["6", "5"]
    assert metrics.versions_by_last_answer("f", "main", "Y") == ["4"]


def test_unreadable_server_has_a_reason(free_port):
    with serving({"/metrics": PAGE}) as url:
        assert fetch_page(f"{url}/metrics", SECONDS) == PAGE.encode()
        assert fetch_page(f"{url}/elsewhere", SECONDS) == Refused(
            "the server returned the status 404"
        )
    away = fetch_page(f"http://127.0.0.1:{free_port}", SECONDS)
    assert read_page(away, parse_server_history) == away == Refused("the server does not answer")
    assert read_page(b"no { history", parse_server_history) == Refused(
        "the metrics of the server cannot be read"
    )


def test_counts_are_summed_over_servers():
    page = PAGE
    later = PAGE.replace('version="5"} 100', 'version="5"} 250')
    metrics = total_metrics(
        {
            "f-1": parse_server_metrics(page),
            "f-2": parse_server_metrics(later),
            "f-3": Refused("gone"),
        }
    )

    assert metrics.of("f", "main", "X", "6") == VersionCounters(
        200, 10, {0.1: 172, float("inf"): 200}, refused=6
    )
    assert metrics.versions_by_last_answer("f", "main", "X") == ["5", "6"]
    assert total_metrics({"f-3": Refused("gone")}).of("f", "main", "X", "6") == VersionCounters()


def test_tls_server_is_read(tmp_path):
    """The certificate is of an unknown authority and for another host, as for a server
    behind a public name.
    """
    certificate_and_key = Authority(tmp_path / "authority", "private").issue("models.example")

    def speak_tls(server):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate_and_key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        return "https"

    with serving({"/metrics": PAGE}, speak_tls) as url:
        assert fetch_page(f"{url}/metrics", SECONDS) == PAGE.encode()
