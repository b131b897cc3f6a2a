"""nginx with a generated configuration, on this machine."""

import re
import shutil
import signal
import subprocess
from contextlib import contextmanager

import pytest

from tests.support.waiting import wait_until

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")


@pytest.fixture
def nginx(tmp_path):
    """Return a function that starts nginx as a context with a configuration."""
    if NGINX is None:
        pytest.skip("no nginx on this machine (apt-get install nginx)")

    @contextmanager
    def start(text, name="proxy"):
        folder = tmp_path / name
        folder.mkdir()
        file = folder / "nginx.conf"
        file.write_text(re.sub(r"/tmp/(?=[a-z.]+;)", f"{folder}/", text))
        command = [NGINX or "", "-e", "stderr", "-c", str(file), "-g", "daemon off;"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until(
                lambda: (folder / "nginx.pid").exists() or process.poll() is not None, 30, "nginx"
            )
            assert process.poll() is None, (folder / "log").read_text()
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)

    return start
