"""What a controller is called: in the audit trail, and as the holder of the lease."""

import os
import socket


def controller_name() -> str:
    return f"controller@{socket.gethostname()}"


def process_name() -> str:
    return f"{controller_name()} (process {os.getpid()})"
