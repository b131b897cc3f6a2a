"""The gpu image on a machine without a GPU. Its build downloads gigabytes, so the test
runs only with `make test-all`.
"""

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.long, pytest.mark.timeout(1800)]


def test_cuda_without_gpu_is_one_line(gpu_image, docker, model_folder):
    if "nvidia" in docker("info", "-f", "{{json .Runtimes}}").stdout:
        pytest.skip("this machine's Docker has NVIDIA's runtime")
    mount = f"{model_folder}:/model:ro"
    ended = docker(
        "run", "--rm", "-v", mount, gpu_image, "serve", "/model", "--device", "cuda", check=False
    )
    assert ended.returncode == 1
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert "cuda" in ended.stderr


def test_gpu_image_serves_on_cpu(gpu_image, start, model_folder):
    command = ["serve", "/model", "--device", "cpu", "--insecure"]
    with start(gpu_image, "-v", f"{model_folder}:/model:ro", command=command) as container:
        container.wait_healthy()
        assert container.ask([[1.0, 2.0]]).status == 200
