"""A machine of the test's own: this one, with processes, a network and files that nobody else sees.

What the documents say is typed there as it stands, with its paths, ports and users.
"""

from __future__ import annotations

import fnmatch
import glob
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

FAKETIME = max(glob.glob("/usr/lib/*/faketime/libfaketime.so.1"), default="no libfaketime")
FAST_CLOCK = f"env LD_PRELOAD={FAKETIME} FAKETIME='+0 x20'"  # for cron, a minute is 3 s
# It does not outlive us, should we be killed.
ALONE = "setpriv --pdeathsig KILL unshare -m -p -n -u -i -C --fork --kill-child --mount-proc"
# $0 is a directory for what is written, which goes to memory, and $1 our program.
SETUP = """
ip link set lo up; mount -t tmpfs none "$0"; mount -t tmpfs -o mode=755 none /run
mount -t tmpfs none /dev/shm  # where libfaketime leaves files
for name in etc home opt root srv usr var tmp; do  # the last one hides the directory
  mkdir "$0/$name" "$0/$name.work"; chmod --reference="/$name" "$0/$name"
  layers="lowerdir=/$name,upperdir=$0/$name,workdir=$0/$name.work"
  mount -t overlay -o "$layers" none "/$name"
done
ln -sf "$1" /usr/local/bin/spawn-fcgi; ln -sf /usr/local/bin/spawn-fcgi /usr/bin
mkdir -m 1777 /run/lock; touch /run/up
"""
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
# Newer ones take this kind of cgroup only if forced.
exec env container=test /lib/systemd/systemd --system --unit=test.target --show-status=no \\
  SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1
"""


class Machine(NamedTuple):
    """A running machine; its PID 1 as seen from outside."""

    init: int

    def sh(self, script: str, network: bool = False, check: bool = True) -> str:
        """Run a script of sh in it, as root, with our network or its loopback; return its words."""
        enter = ["nsenter", "-t", str(self.init), "-m", "-p", *([] if network else ["-n", "-i"])]
        command = [*enter, "/bin/sh", "-ec", f"exec 2>&1 </dev/null; cd /\n{script}"]
        env = {**(os.environ if network else {}), **harness.ENVIRONMENT, "HOME": "/root"}
        pipe = subprocess.PIPE
        done = subprocess.run(command, env=env, stdout=pipe, text=True, timeout=120, check=False)
        assert not check or done.returncode == 0, f"{script}\n{done.stdout}"
        return done.stdout

    def start(self, command: str) -> None:
        """Start a command that may go on for ever."""
        self.sh(f"{{ {command}; }} >/dev/null 2>&1 &")

    def write(self, path: str, text: str, mode: str = "755") -> None:
        """Write a file in it, and make the directories to it."""
        to = f">{path}; chmod {mode} {path}"
        self.sh(f"mkdir -p $(dirname {path}); printf %s {shlex.quote(text)} {to}")

    def path(self, path: str) -> pathlib.Path:
        """Return where one of its files is for us."""
        return pathlib.Path(f"/proc/{self.init}/root{path}")

    def processes(self, name: str) -> dict[int, harness.State]:
        """Return the states of its processes of a name, such as php-fpm*, by their PIDs in it."""
        found, namespace = {}, os.stat(f"/proc/{self.init}/ns/pid")
        for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
            with suppress(OSError, KeyError):  # it has ended meanwhile
                here = os.path.samestat(os.stat(f"/proc/{pid}/ns/pid"), namespace)
                comm = harness.proc(pid, "comm").decode().rstrip("\n")
                if here and fnmatch.fnmatch(comm, name):
                    inside = harness.proc(pid, "status").partition(b"NSpid:")[2].split()[1]
                    found[int(inside)] = harness.state(pid)
        return found

    def running(self, name: str, count: int) -> set[int]:
        """Wait until just so many processes of a name run in it; return their PIDs in it."""

        def counted() -> list[set[int]]:
            """Return their PIDs in a list, which is true even of none, or an empty list."""
            pids = set(self.processes(name))
            return [pids] if len(pids) == count else []

        [found] = wait_for(f"{count} processes of the name {name}", counted, 20)
        return set(found)


@contextmanager
def machine(init: str = INIT) -> Iterator[Machine]:
    """Run a machine whose PID 1 is what this script of sh becomes; all of it ends afterwards."""
    with tempfile.TemporaryDirectory(prefix="sf-machine-") as memory:
        command = [*ALONE.split(), "sh", "-ec", SETUP + init, memory, harness.program[0]]
        process = subprocess.Popen(command, env=harness.ENVIRONMENT, stdin=subprocess.DEVNULL)
        try:
            children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
            [pid] = wait_for("the machine's PID 1", lambda: children.read_text().split())
            made = Machine(int(pid))
            up = made.path("/run/up")
            wait_for("the machine", lambda: process.poll() is not None or up.exists())
            assert process.poll() is None, "unshare, mount or ip failed, see above"
            if init == SYSTEMD:
                made.sh("until systemctl is-system-running; do sleep 0.1; done")
            yield made
        finally:
            if init == SYSTEMD:  # it takes its cgroups along, but for the one that it is in
                with suppress(AssertionError, UnboundLocalError, subprocess.TimeoutExpired):
                    made.sh("systemctl exit")
                    process.wait(10)
            process.kill()
            process.wait()
            for scope in glob.glob("/sys/fs/cgroup/*/init.scope"):
                with suppress(OSError):  # another systemd is in it
                    os.rmdir(scope)
