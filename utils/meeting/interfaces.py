"""The network interface over which a machine reaches the others of a job."""

import fcntl
import os
import socket
import struct
from contextlib import suppress

SIOCGIFADDR = 0x8915  # Linux: the address of an interface


def settle_interface(master: str | None) -> None:
    """Let gloo use the interface that leads to the first machine, unless GLOO_SOCKET_IFNAME names one.

    By itself it takes the address that the machine's own name stands for, which on many, as on Debian, is a loopback
    one: no other machine reaches it there.
    """
    if master and "GLOO_SOCKET_IFNAME" not in os.environ and (name := interface_to(master)):
        os.environ["GLOO_SOCKET_IFNAME"] = name


def interface_to(host: str) -> str | None:
    """The interface over which this machine speaks IPv4 with a host; None: not known, or only with itself.

    On the host itself, where its name may stand for a loopback address: that of the default route, or the only one.
    """
    if host == "localhost" or host.startswith("127."):
        return None  # the machines are one
    names = interfaces()
    if not (own := own_address(host)):
        return None
    if not own.startswith("127."):
        return names.get(own)
    others = {address: name for address, name in names.items() if not address.startswith("127.")}
    default = own_address("192.0.2.1")  # an address that is nobody's: RFC 5737
    return others.get(default) or (next(iter(others.values())) if len(others) == 1 else None)


def own_address(host: str) -> str | None:
    """The IPv4 address from which this machine would send to a host; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect((host, 9))
        return probe.getsockname()[0]
    return None


def interfaces() -> dict[str, str]:
    """The name of the interface of each of this machine's IPv4 addresses (Linux)."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has none
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
                found[socket.inet_ntoa(answer[20:24])] = name
    return found
