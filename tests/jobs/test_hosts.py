"""Two machines, played by processes of this one: how the one ends when the other is lost (gloo, CPU)."""

import fcntl
import os
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.processes import Program, free_port
from tests.refusals import line_with
from utils import rendezvous
from utils.rendezvous import interfaces


def start(
    does: str,
    folder: Path,
    number: int,
    port: int | str,
    *flags: str,
    first: str = "127.0.0.1",
    namespace: str | None = None,
    **options,
) -> Program:
    """Start machine `number` of two as torchrun starts its process there, in a network namespace if one is named."""
    numbers = {"RANK": number, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
    env = {name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": first, "NAMESPACE": namespace}
    return Program(["-m", "tests.jobs.hosts", does, str(folder), *flags], env=env, **options)


def both(does: str, folder: Path, *flags: str, second: Sequence[str] = (), **first) -> list[Program]:
    """Start two machines; second: more flags of the second, first: options of the first."""
    port = free_port()
    return [start(does, folder, 0, port, *flags, **first), start(does, folder, 1, port, *flags, *second)]


def end_of(machine: Program) -> tuple[int, str]:
    _, err = machine.communicate(timeout=120)
    return machine.returncode, err


def assert_lost_another(code: int, err: str, timeout: str = "") -> None:
    """A process has lost another: exit code 1 and one line, with the timeout and how to continue."""
    assert code == 1
    assert err == line_with(err, "error: ", "of 2", f"--dist-timeout {timeout}", "--resume auto") + "\n"


@pytest.mark.parametrize(
    ("does", "its_end"),
    [("refuse", "error: --this: cannot be\n"), ("fail", r"(.*\n)?Traceback(.*\n)+RuntimeError: a fault .*\n")],
)
def test_one_that_ends_leaves_the_other_with_one_line(does, its_end, tmp_path):
    """A fault of the program, which is nobody's loss, keeps its traceback."""
    first, second = both(does, tmp_path)
    code, err = end_of(second)
    assert code == {"refuse": 2, "fail": 1}[does] and re.fullmatch(its_end, err), err
    assert_lost_another(*end_of(first))


def test_one_that_keeps_silent_is_waited_for_only_so_long(tmp_path):
    first, second = both("keep silent", tmp_path, "--dist-timeout", "3")
    code, err = end_of(first)
    second.kill()
    assert_lost_another(code, err, timeout="3")


@pytest.mark.parametrize("first", [0, 1])
def test_those_started_again_never_meet_what_killed_ones_have_left(first):
    """In torchrun's store, which stays: whoever comes first waits for the new one, not for the one before."""
    store, patience = dist.HashStore(), timedelta(seconds=60)
    for restart in range(3):
        with ThreadPoolExecutor() as pool:
            early = pool.submit(rendezvous.fresh_part, store, first, 2, patience)
            with suppress(TimeoutError):
                early.result(timeout=0.2)
            late = pool.submit(rendezvous.fresh_part, store, 1 - first, 2, patience)
            early.result().set("written", str(restart))
            assert late.result().get("written").decode() == str(restart)
    with pytest.raises(RuntimeError, match=r"2 .*0\.3"):
        rendezvous.fresh_part(store, first, 2, timedelta(seconds=0.3))


def test_machines_that_differ_are_refused_in_one_line_on_each(tmp_path):
    first, second = both("die", tmp_path, second=["--seed", "2", "-b", "8", "--print-freq", "1"])
    for machine in (first, second):
        code, err = end_of(machine)
        assert code == 2
        assert err == line_with(err, "error: ", socket.gethostname(), "batch_size", "256", "seed", "None") + "\n"
        assert "print" not in err


def test_the_interface_is_that_of_the_address_one_sends_from(monkeypatch):
    own = {"first": "10.0.0.2", "me": "127.0.0.1", "192.0.2.1": "192.168.1.5"}
    monkeypatch.setattr(interfaces, "own_address", own.get)
    monkeypatch.setattr(interfaces, "interfaces", lambda: {"127.0.0.1": "lo", "10.0.0.2": "ib0", "192.168.1.5": "eth0"})
    asked = ("first", "me", "unknown", "localhost", "127.0.0.1")
    assert [interfaces.interface_to(host) for host in asked] == ["ib0", "eth0", None, None, None]
    monkeypatch.setattr(interfaces, "interfaces", lambda: {"127.0.0.1": "lo", "10.0.0.2": "ib0"})
    assert interfaces.interface_to("me") == "ib0"  # the only one


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's SIOCGIFADDR")
def test_this_machines_addresses_have_the_names_of_their_interfaces():
    assert interfaces.interfaces()["127.0.0.1"] in dict(map(reversed, socket.if_nameindex()))
    assert interfaces.own_address("127.0.0.1") == "127.0.0.1" and interfaces.own_address("no such host.") is None


def test_one_that_never_comes_is_waited_for_only_so_long(tmp_path):
    (tmp_path / "1").touch()
    code, err = end_of(start("die", tmp_path, 0, free_port(), "--dist-timeout", "3"))
    assert code == 2 and "Traceback" not in err
    assert err.splitlines()[-1] == line_with(err, "error: ", "env://", "gloo")


def test_one_that_is_killed_leaves_the_other_with_a_line_that_no_bar_tears(tmp_path):
    terminal, its_end = pty.openpty()
    fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 300, 0, 0))  # rows and columns
    first, second = both("die", tmp_path, stderr=its_end)
    while not (tmp_path / "met").exists():
        time.sleep(0.01)
    os.close(its_end)
    written = b""
    while True:
        try:
            written += os.read(terminal, 4096)
        except OSError:  # Linux: the other end is closed
            break
    os.close(terminal)
    code, _ = end_of(first)
    assert end_of(second) == (-signal.SIGKILL, "")
    shown = written.decode().replace("\r\n", "\n")
    assert "a bar:  40%" in shown
    before, last = re.split(r"(?=error: )", shown, maxsplit=1)
    assert not before.rpartition("\r")[2].strip(), shown
    assert_lost_another(code, last)


def test_the_launching_process_reports_for_those_it_launched(tmp_path):
    """The release's flags: one line a machine, from the launching process, and the cause where it is known."""
    url = ["--multiprocessing-distributed", "--world-size", "2", "--dist-url", f"tcp://127.0.0.1:{free_port()}"]
    words = ["-m", "tests.jobs.hosts", "die", str(tmp_path), *url, "--rank"]
    first, second = (Program([*words, number], fork_workers=True) for number in "01")
    code, err = end_of(second)
    assert code == 128 + signal.SIGKILL
    assert err.splitlines()[0] == line_with(err, "error: ", "process 0", "SIGKILL", "--resume auto")
    assert_lost_another(*end_of(first))


def ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0


@pytest.fixture
def cable() -> Iterator[tuple[str, str]]:
    """Two network namespaces, 10.213.7.1 and 10.213.7.2, whose interfaces `end` are joined by a cable."""
    names = f"kcl{os.getpid()}a", f"kcl{os.getpid()}b"
    if not (shutil.which("ip") and os.geteuid() == 0 and all(ip("netns", "add", name) for name in names)):
        pytest.skip("needs root and network namespaces (ip netns)")
    try:
        assert ip(*f"link add end netns {names[0]} type veth peer name end netns {names[1]}".split())
        for number, name in enumerate(names, start=1):
            assert ip("-n", name, *f"addr add 10.213.7.{number}/24 dev end".split())
            assert all(ip("-n", name, "link", "set", link, "up") for link in ("lo", "end"))
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def test_two_hosts_meet_by_themselves_and_both_end_when_the_cable_is_cut(cable, tmp_path, monkeypatch):
    """Their own names stand for addresses on which neither reaches the other."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    words = ("29500", "--dist-timeout", "3")  # the port is one of the namespace's own
    machines = [
        start("go on", tmp_path, number, *words, namespace=name, first="10.213.7.1")
        for number, name in enumerate(cable)
    ]
    while not (tmp_path / "met").exists() and all(machine.poll() is None for machine in machines):
        time.sleep(0.05)
    assert ip("-n", cable[0], "link", "set", "end", "down")
    for machine in machines:
        code, err = end_of(machine)
        assert_lost_another(code, err.splitlines(keepends=True)[-1], timeout="3")
