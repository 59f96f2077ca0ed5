"""Hosts of a network of their own on this machine, whose cables can be pulled."""

import contextlib
import dataclasses
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

HERE = "10.213.77.1"  # Of this process in the network.


@dataclasses.dataclass(frozen=True)
class Host:
    """A network namespace. Its processes are this machine's, and their packets go over a cable."""

    name: str
    address: str
    cable: str

    def run(self, *command: str) -> None:
        """Runs it to its end; what it leaves behind goes on."""
        subprocess.run(["ip", "netns", "exec", self.name, *command], check=True)

    def processes(self) -> list[int]:
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def kill(self) -> None:
        """Kills all of its processes."""
        while found := self.processes():
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def unplug(self) -> None:
        """From now on all packets to and from it are lost, and nobody is told."""
        _ip("link", "set", self.cable, "down")

    def plug(self) -> None:
        _ip("link", "set", self.cable, "up")


@contextlib.contextmanager
def network(count: int) -> Iterator[list[Host]]:
    """So many hosts, on one switch with this process. Skips the test where that is not allowed."""
    own = f"nas{os.getpid() % 10**6}"
    with contextlib.ExitStack() as made:
        try:
            _ip("link", "add", own, "type", "bridge")
            made.callback(_ip, "link", "del", own)
            _ip("addr", "add", f"{HERE}/24", "dev", own)
            _ip("link", "set", own, "up")
            yield [_joined(made, own, number) for number in range(2, 2 + count)]
        except (FileNotFoundError, PermissionError) as error:
            pytest.skip(f"network namespaces need root and iproute2: {error}")


def _joined(made: contextlib.ExitStack, switch: str, number: int) -> Host:
    host = Host(f"{switch}-{number}", f"{HERE.rpartition('.')[0]}.{number}", f"{switch}v{number}")
    _ip("netns", "add", host.name)
    made.callback(_ip, "netns", "del", host.name)  # Its end of the cable goes with it.
    _ip("link", "add", host.cable, "type", "veth", "peer", "name", "eth0", "netns", host.name)
    _ip("link", "set", host.cable, "master", switch)
    _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _ip("-n", host.name, "link", "set", device, "up")
    host.plug()
    return host


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
