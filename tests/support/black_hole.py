"""`python black_hole.py FILE COMMAND…` runs a command in a network without answers.

The namespace has its own loopback, and a route to a tunnel that no other end reads. So
each attempt to reach another machine waits for its time-out, as behind a firewall that
drops packets, and FILE has a line per packet.
"""

import fcntl
import os
import struct
import subprocess
import sys
import threading

_SET_INTERFACE = 0x400454CA  # TUNSETIFF
_PACKETS = 0x1001  # IFF_TUN and IFF_NO_PI
_DNS = 53
_ROUTES = """
ip link set lo up
ip address add 192.0.2.1/24 dev hole
ip link set hole up
ip route add default dev hole
"""


def isolated(packets):
    """Return the beginning of a command that runs in the black hole, or None if this
    machine does not permit one.
    """
    options = ["-rn", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = ["unshare", *options, "--", sys.executable, __file__, str(packets)]
    tried = subprocess.run([*command, "true"], check=False, capture_output=True)
    return None if tried.returncode else command


def described(packet):
    """Return the destination of an IPv4 packet, and the name that it looks up."""
    length = packet[0] % 16 * 4
    address = ".".join(map(str, packet[16:20]))
    _, port = struct.unpack_from("!HH", packet, length)
    labels = packet[length + 20 : -4] if port == _DNS else b""
    name = "".join(chr(byte) if byte > ord(" ") else "." for byte in labels)
    return f"{address}:{port} {name}"


def main():
    hole = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(hole, _SET_INTERFACE, struct.pack("16sH22x", b"hole", _PACKETS))
    subprocess.run(["sh", "-ec", _ROUTES], check=True)
    with open(sys.argv[1], "a", buffering=1) as packets:

        def swallow():
            while True:
                packet = os.read(hole, 65536)
                if packet[0] >> 4 == 4:  # IPv6 announces itself.
                    packets.write(f"{described(packet)}\n")

        threading.Thread(target=swallow, daemon=True).start()
        command = subprocess.Popen(sys.argv[2:])
        # The first process of a namespace adopts orphans, which end with it.
        ended, status = os.wait()
        while ended != command.pid:
            ended, status = os.wait()
        return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
