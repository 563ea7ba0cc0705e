"""Find the network interface over which a machine reaches the other machines of a job."""

import os
import socket
import struct
from contextlib import suppress

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SIOCGIFADDR = 0x8915  # Linux: the address of an interface


def set_interface(master: str | None) -> None:
    """Set GLOO_SOCKET_IFNAME to the interface that reaches the first machine, unless it is already set.

    By default gloo uses the address that the machine's own name resolves to. On many systems, such as Debian, that is
    a loopback address, which other machines cannot reach.
    """
    if master and "GLOO_SOCKET_IFNAME" not in os.environ and (name := interface_to(master)):
        os.environ["GLOO_SOCKET_IFNAME"] = name


def interface_to(host: str) -> str | None:
    """Return the interface over which this machine reaches a host by IPv4, or None if it is unknown or loopback.

    The host's own name may resolve to a loopback address. On the host itself, the interface of the default route is
    returned, or the only interface.
    """
    if host == "localhost" or host.startswith("127."):
        return None  # a single machine
    names = interfaces()
    if not (address_here := own_address(host)):
        return None
    if not address_here.startswith("127."):
        return names.get(address_here)
    external = {address: name for address, name in names.items() if not address.startswith("127.")}
    default = own_address("192.0.2.1")  # an address reserved for documentation (RFC 5737)
    return external.get(default) or (next(iter(external.values())) if len(external) == 1 else None)


def own_address(host: str) -> str | None:
    """Return the IPv4 address from which this machine would send to a host; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect((host, 9))
        return probe.getsockname()[0]
    return None


def interfaces() -> dict[str, str]:
    """Return {IPv4 address: interface name} of this machine; an empty dict on other systems than Linux."""
    by_address = {}
    if fcntl is None:
        return by_address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # the interface has no IPv4 address
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
                by_address[socket.inet_ntoa(answer[20:24])] = name
    return by_address
