"""A machine of the test's own: this one, with processes, network, files that nobody else sees."""

from __future__ import annotations

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
# What scripts may say beside commands; with a fast clock, cron's minute is 3 s.
WORDS = f"""
await() {{ for n in $(seq 200); do eval "$1" && return; sleep 0.1; done; false; }}
fast() {{ LD_PRELOAD={FAKETIME} FAKETIME='+0 x20' "$@" >/dev/null; }}
"""
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

    def write(self, path: str, text: str) -> None:
        """Write a file in it, and make the directories to it."""
        self.sh(f"umask 022; mkdir -p $(dirname {path}); printf %s {shlex.quote(text)} >{path}")

    def path(self, path: str) -> pathlib.Path:
        """Return where one of its files is for us."""
        return pathlib.Path(f"/proc/{self.init}/root{path}")

    def running(self, name: str, count: int) -> list[int]:
        """Wait until just so many processes of a name run in it; return their PIDs in order."""
        counted = shlex.quote(f"[ $(pgrep -cx '{name}') = {count} ]")
        return [*map(int, self.sh(f"{WORDS} await {counted}; pgrep -x '{name}' || :").split())]


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
            wait_for("unshare, mount and ip", made.path("/run/up").exists)
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
