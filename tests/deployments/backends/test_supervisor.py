"""The supervisor's process: ended with all that it leaves behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_deploy_plugin.deployments.backends import supervisor
from mlflow_deploy_plugin.deployments.backends.local import is_port_free

_LISTENER = """
import socket, threading, time
listener = socket.create_server(("127.0.0.1", 0))
memory = bytearray(100_000_000)
memory[::4096] = b"1" * len(memory[::4096])  # as a worker with a model: it takes a moment to end
for _ in range(20):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
print(listener.getsockname()[1], flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("is_dying", [False, True])
def test_a_port_is_free_when_its_server_is_stopped_also_of_one_that_was_ending_already(
    tmp_path: Path, is_dying: bool
) -> None:
    command = [sys.executable, "-c", _LISTENER]
    for _ in range(3):
        with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stdout=subprocess.PIPE) as left:
            assert left.stdout is not None
            port = int(left.stdout.readline())
            if is_dying:
                os.kill(left.pid, signal.SIGKILL)

            supervisor.stop(tmp_path, left.pid, patience_seconds=0)

            assert is_port_free("127.0.0.1", port)
