"""The gpu image on a machine without a GPU. Its build downloads gigabytes, so the test
runs only with `make test-all`.
"""

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.long, pytest.mark.timeout(1800)]


def test_gpu_image_serves_on_cpu(gpu_image, start, model_folder):
    command = ["serve", "/model", "--device", "cpu", "--insecure"]
    with start(gpu_image, "-v", f"{model_folder}:/model:ro", command=command) as container:
        container.wait_healthy()
        assert container.ask([[1.0, 2.0]]).status == 200
