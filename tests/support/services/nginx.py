"""Debian's nginx with lines of docs/operate.md."""

import re
import shutil
import subprocess
from contextlib import contextmanager

import pytest

from tests.support.guides import ROOT, blocks
from tests.support.waiting import answers, free_port, wait_until

_PASSES = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@contextmanager
def nginx_of_the_guide(folder, upstream, servers, ping):
    """Run nginx with the block of the page that has this upstream, and yield its URL.

    Args:
        servers: the addresses of the servers in the order of the block.
        ping: the path that a server behind nginx answers.
    """
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed (apt-get install nginx)")
    page = (ROOT / "docs" / "operate.md").read_text()
    (lines,) = (block for block in blocks("nginx", page) if f"upstream {upstream} " in block)
    addresses = iter(servers)
    lines = re.sub(r"(?<=^  server )[\w.:-]+", lambda _: next(addresses), lines, flags=re.MULTILINE)
    assert next(addresses, None) is None
    port = free_port()
    lines = re.sub(r"listen \d+", f"listen 127.0.0.1:{port}", lines)
    folders = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in _PASSES)
    file = folder / "nginx.conf"
    file.write_text(
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/nginx.log;\n"
        f"events {{}}\nhttp {{ access_log off;\n{folders}{lines}}}\n"
    )
    process = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(file)])
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}{ping}"), 60, "nginx answers")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)
