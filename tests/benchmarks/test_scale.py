"""Three servers behind a real nginx, with Redis, PostgreSQL and S3: one is killed, and
one rate limit applies to all.
"""

import os
import shutil

import pytest

from benchmarks import scale

pytestmark = [
    pytest.mark.long,
    pytest.mark.s3,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not os.environ.get("AWS_ENDPOINT_URL"), reason="no S3 API is named by AWS_ENDPOINT_URL"
    ),
    pytest.mark.skipif(
        not shutil.which("nginx"), reason="nginx is not installed: apt-get install nginx-light"
    ),
]


def test_no_request_fails_when_one_of_three_servers_is_killed():
    result = scale.servers(4)

    assert result.failed == 0
    assert set(result.statuses) == {200}
    assert len(result.seconds) > 1000


def test_three_servers_together_stay_within_one_rate_limit():
    assert scale.limits() == pytest.approx(scale.RATE, rel=0.02)
