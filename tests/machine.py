"""A machine of the test's own: this one, with processes, a network and files that nobody else sees.

What the documents say is typed there as it stands, with its paths, ports and users, and is gone
with the machine. Only root can make one.
"""

from __future__ import annotations

import os
import pathlib
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import harness
from harness import wait_for

# What is written to these goes to memory. The last one hides where that is.
OVERLAID = ("etc", "home", "opt", "root", "srv", "usr", "var", "tmp")
NAMESPACES = ("mount", "pid", "net", "uts", "ipc", "cgroup")
INIT = "while sleep 1; do :; done"  # a shell, as PID 1, reaps whose parent is gone
SYSTEMD = """
mount -t tmpfs none /sys/fs/cgroup
mkdir /sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd none /sys/fs/cgroup/systemd
sed 1q /proc/cgroups >/run/cgroups  # no controller: it would leave cgroups in ours
mount --bind /run/cgroups /proc/cgroups
cd /etc/systemd/system
echo '[Unit]' >test.target
ln -s /dev/null systemd-tmpfiles-setup.service  # or it empties /tmp, where our program is
exec env container=test /lib/systemd/systemd --system --unit=test.target --show-status=no
"""


class Machine(NamedTuple):
    """A running machine; its PID 1 as seen from outside."""

    init: int

    def sh(self, script: str, network: bool = False, check: bool = True) -> str:
        """Run a script of sh in it, as root, and return what it says; with our network or its own.

        Its own is a loopback.
        """
        enter = ["nsenter", "-t", str(self.init), "-m", "-p", *([] if network else ["-n", "-i"])]
        done = subprocess.run(
            [*enter, "/bin/sh", "-ec", script],
            env={**os.environ, **harness.clean_environment(HOME="/root")},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, f"{script}\n{done.stdout}"
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """Write a file in it, and make the directories to it."""
        name = shlex.quote(path)
        self.sh(f"mkdir -p $(dirname {name}); printf %s {shlex.quote(text)} >{name}")

    def path(self, path: str) -> pathlib.Path:
        """Return where one of its files is for us."""
        return pathlib.Path(f"/proc/{self.init}/root{path}")

    def processes(self, name: str) -> dict[int, harness.State]:
        """Return the states of its processes of a name, by the PIDs that they have in it."""
        found, namespace = {}, os.stat(f"/proc/{self.init}/ns/pid")
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            with suppress(OSError, KeyError):  # it has ended meanwhile
                here = os.path.samestat(os.stat(f"/proc/{pid}/ns/pid"), namespace)
                if here and harness.proc(int(pid), "comm") == f"{name}\n".encode():
                    inside = harness.proc(int(pid), "status").partition(b"NSpid:")[2].split()[1]
                    found[int(inside)] = harness.state(int(pid))
        return found


@contextmanager
def machine(init: str = INIT) -> Iterator[Machine]:
    """Run a machine whose PID 1 is what this script of sh becomes; all of it ends afterwards."""
    with tempfile.TemporaryDirectory(prefix="sf-machine-") as memory:
        setup = f"ip link set lo up; mount -t tmpfs none {memory}; mount -t tmpfs none /run\n"
        for name in OVERLAID:
            layers = f"lowerdir=/{name},upperdir={memory}/{name},workdir={memory}/{name}.work"
            setup += f"mkdir {memory}/{name} {memory}/{name}.work\n"
            setup += f"chmod --reference=/{name} {memory}/{name}\n"
            setup += f"mount -t overlay -o {layers} none /{name}\n"
        setup += "mkdir -m 1777 /run/lock\n"
        setup += "echo 'APT::Get::Upgrade no;' >/etc/apt/apt.conf.d/99test\n"  # it is offline
        setup += f"ln -sf {harness.program[0]} /usr/local/bin/spawn-fcgi; touch /run/up\n"
        command = ["setpriv", "--pdeathsig", "KILL"]  # it does not outlive us, should we be killed
        command += ["unshare", *(f"--{kind}" for kind in NAMESPACES)]
        command += ["--fork", "--kill-child", "--mount-proc", "sh", "-ec", setup + init]
        process = subprocess.Popen(
            command, env=harness.clean_environment(), stdin=subprocess.DEVNULL
        )
        try:
            made = await_machine(process, init)
            yield made
            if init == SYSTEMD:  # it takes its cgroups along
                made.sh("systemctl exit", check=False)
                process.wait(20)
        finally:
            process.kill()
            process.wait()


def await_machine(process: subprocess.Popen[bytes], init: str = INIT) -> Machine:
    """Wait until a machine is up, and return it."""
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    [pid] = wait_for(lambda: process.poll() is None and children.read_text().split())
    made = Machine(int(pid))
    wait_for(lambda: process.poll() is not None or made.path("/run/up").exists())
    assert process.poll() is None, "unshare, mount or ip failed, see above"
    if init == SYSTEMD:
        made.sh("until systemctl is-system-running; do sleep 0.1; done")
    return made
