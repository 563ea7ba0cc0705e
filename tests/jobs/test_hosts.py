"""Jobs of two simulated machines (gloo, CPU): one machine ends with an error when the other is lost."""

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
from utils.distributed import interfaces, rendezvous


def start(
    action: str,
    folder: Path,
    number: int,
    port: int | str,
    *flags: str,
    first: str = "127.0.0.1",
    namespace: str | None = None,
    **options,
) -> Program:
    """Start machine `number` of two with torchrun's variables, in a network namespace if one is named."""
    numbers = {"RANK": number, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
    env = {name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": first, "NAMESPACE": namespace}
    return Program(["-m", "tests.jobs.hosts", action, str(folder), *flags], env=env, **options)


def start_both(action: str, folder: Path, *flags: str, second: Sequence[str] = (), **first) -> list[Program]:
    """Start two machines. second: more flags for the second; first: options of `start` for the first."""
    port = free_port()
    return [start(action, folder, 0, port, *flags, **first), start(action, folder, 1, port, *flags, *second)]


def wait_for_end(machine: Program) -> tuple[int, str]:
    _, err = machine.communicate(timeout=120)
    return machine.returncode, err


def assert_lost_other_process(code: int, err: str, timeout: str = "") -> None:
    """Assert exit code 1 and one line with the timeout and the command to continue."""
    assert code == 1
    assert err == line_with(err, "error: ", "of 2", f"--dist-timeout {timeout}", "--resume auto") + "\n"


@pytest.mark.parametrize(
    ("action", "expected_error"),
    [("refuse", "error: --this: cannot be\n"), ("fail", r"(.*\n)?Traceback(.*\n)+RuntimeError: a fault .*\n")],
)
def test_exit_of_one_machine_ends_the_other_with_one_line(action, expected_error, tmp_path):
    """An error of the program keeps its traceback."""
    first, second = start_both(action, tmp_path)
    code, err = wait_for_end(second)
    assert code == {"refuse": 2, "fail": 1}[action] and re.fullmatch(expected_error, err), err
    assert_lost_other_process(*wait_for_end(first))


def test_unresponsive_machine_times_out(tmp_path):
    first, second = start_both("keep silent", tmp_path, "--dist-timeout", "3")
    code, err = wait_for_end(first)
    second.kill()
    assert_lost_other_process(code, err, timeout="3")


@pytest.mark.parametrize("first", [0, 1])
def test_restarted_processes_ignore_keys_of_killed_processes(first):
    """torchrun's store outlives a restart: the first process waits for the new one, not for an old one."""
    store, timeout = dist.HashStore(), timedelta(seconds=60)
    for restart in range(3):
        with ThreadPoolExecutor() as pool:
            early = pool.submit(rendezvous.fresh_store, store, first, 2, timeout)
            with suppress(TimeoutError):
                early.result(timeout=0.2)
            late = pool.submit(rendezvous.fresh_store, store, 1 - first, 2, timeout)
            early.result().set("written", str(restart))
            assert late.result().get("written").decode() == str(restart)
    with pytest.raises(RuntimeError, match=r"2 .*0\.3"):
        rendezvous.fresh_store(store, first, 2, timedelta(seconds=0.3))


def test_different_arguments_are_refused_on_each_machine(tmp_path):
    first, second = start_both("die", tmp_path, second=["--seed", "2", "-b", "8", "--print-freq", "1"])
    for machine in (first, second):
        code, err = wait_for_end(machine)
        assert code == 2
        assert err == line_with(err, "error: ", socket.gethostname(), "batch_size", "256", "seed", "None") + "\n"
        assert "print" not in err


def test_interface_is_chosen_by_own_address(monkeypatch):
    addresses = {"first": "10.0.0.2", "me": "127.0.0.1", "192.0.2.1": "192.168.1.5"}
    monkeypatch.setattr(interfaces, "own_address", addresses.get)
    monkeypatch.setattr(interfaces, "interfaces", lambda: {"127.0.0.1": "lo", "10.0.0.2": "ib0", "192.168.1.5": "eth0"})
    hosts = ("first", "me", "unknown", "localhost", "127.0.0.1")
    assert [interfaces.interface_to(host) for host in hosts] == ["ib0", "eth0", None, None, None]
    monkeypatch.setattr(interfaces, "interfaces", lambda: {"127.0.0.1": "lo", "10.0.0.2": "ib0"})
    assert interfaces.interface_to("me") == "ib0"  # the only remaining interface


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's SIOCGIFADDR")
def test_interfaces_of_this_machine_are_listed():
    assert interfaces.interfaces()["127.0.0.1"] in dict(map(reversed, socket.if_nameindex()))
    assert interfaces.own_address("127.0.0.1") == "127.0.0.1" and interfaces.own_address("no such host.") is None


def test_missing_machine_times_out(tmp_path):
    (tmp_path / "1").touch()
    code, err = wait_for_end(start("die", tmp_path, 0, free_port(), "--dist-timeout", "3"))
    assert code == 2 and "Traceback" not in err
    assert err.splitlines()[-1] == line_with(err, "error: ", "env://", "gloo")


def test_error_line_is_not_broken_by_progress_bar(tmp_path):
    terminal, terminal_end = pty.openpty()
    fcntl.ioctl(terminal_end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 300, 0, 0))  # rows and columns
    first, second = start_both("die", tmp_path, stderr=terminal_end)
    while not (tmp_path / "met").exists():
        time.sleep(0.01)
    os.close(terminal_end)
    written = b""
    while True:
        try:
            written += os.read(terminal, 4096)
        except OSError:  # Linux: the other end is closed
            break
    os.close(terminal)
    code, _ = wait_for_end(first)
    assert wait_for_end(second) == (-signal.SIGKILL, "")
    text = written.decode().replace("\r\n", "\n")
    assert "a bar:  40%" in text
    before, last = re.split(r"(?=error: )", text, maxsplit=1)
    assert not before.rpartition("\r")[2].strip(), text
    assert_lost_other_process(code, last)


def test_launching_process_reports_for_its_workers(tmp_path):
    """With the launch flags of the authors' code, the launching process prints one line, with the cause if known."""
    url = ["--multiprocessing-distributed", "--world-size", "2", "--dist-url", f"tcp://127.0.0.1:{free_port()}"]
    words = ["-m", "tests.jobs.hosts", "die", str(tmp_path), *url, "--rank"]
    first, second = (Program([*words, number], fork_workers=True) for number in "01")
    code, err = wait_for_end(second)
    assert code == 128 + signal.SIGKILL
    assert err.splitlines()[0] == line_with(err, "error: ", "process 0", "SIGKILL", "--resume auto")
    assert_lost_other_process(*wait_for_end(first))


def run_ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0


@pytest.fixture
def veth_pair() -> Iterator[tuple[str, str]]:
    """Create two network namespaces, 10.213.7.1 and 10.213.7.2, connected through their interfaces `end`."""
    names = f"kcl{os.getpid()}a", f"kcl{os.getpid()}b"
    if not (shutil.which("ip") and os.geteuid() == 0 and all(run_ip("netns", "add", name) for name in names)):
        pytest.skip("needs root and network namespaces (ip netns)")
    try:
        assert run_ip(*f"link add end netns {names[0]} type veth peer name end netns {names[1]}".split())
        for number, name in enumerate(names, start=1):
            assert run_ip("-n", name, *f"addr add 10.213.7.{number}/24 dev end".split())
            assert all(run_ip("-n", name, "link", "set", link, "up") for link in ("lo", "end"))
        yield names
    finally:
        for name in names:
            run_ip("netns", "del", name)


def test_both_hosts_end_when_their_connection_is_cut(veth_pair, tmp_path, monkeypatch):
    """Each host name resolves to an address that the other host cannot reach."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    words = ("29500", "--dist-timeout", "3")  # any port is free in a new namespace
    machines = [
        start("go on", tmp_path, number, *words, namespace=name, first="10.213.7.1")
        for number, name in enumerate(veth_pair)
    ]
    while not (tmp_path / "met").exists() and all(machine.poll() is None for machine in machines):
        time.sleep(0.05)
    assert run_ip("-n", veth_pair[0], "link", "set", "end", "down")
    for machine in machines:
        code, err = wait_for_end(machine)
        assert_lost_other_process(code, err.splitlines(keepends=True)[-1], timeout="3")
