"""The same command lines on the C tool and on ours, in the same surroundings, with the same end.

Each case of the table runs on both at once, each in a directory of its own with the same layout
and on a port of its own. All that can be seen from outside is compared: how it ended, stdout,
whether stderr spoke, the PID file, all that is left in the directory, the socket, and all that
the application inherited. A deliberate difference names its number in README.md, and
what each of the two does; in all else the two must agree there, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import pathlib
import re
import resource
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Optional

import harness
import pytest

SYS_PIDFD_GETFD = 438  # on every architecture
ATTEMPTS = 5  # on a loaded machine, an application may end after the grace time
HANG = 1.0  # seconds without an end that make a hang, where one is expected
OLD = "the PID file of the running service, longer than ours"


class Place:
    """Where one of the two runs: directory, port, and what has to be undone at the end."""

    def __init__(self, tool: str, undo: contextlib.ExitStack) -> None:
        self.tool, self.undo, self.port = tool, undo, harness.free_port()
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="sf-"))
        undo.callback(shutil.rmtree, self.base)
        self.base.chmod(0o755)
        self.work = self.base / "w"  # the caller's directory
        self.work.mkdir()
        self.streams = [self.base / "out", self.base / "err"]
        self.before: dict[str, tuple[Any, ...]] = {}  # what was in the directory at the start

    def plain(self, text: Any, pids: Sequence[int] = ()) -> str:
        """Return text without what differs from run to run: path, port, inodes and PIDs."""
        plain = os.fsdecode(text).replace(str(self.work), "WORK").replace(str(self.base), "BASE")
        plain = plain.replace("WORK/jail/dev/null", "/dev/null")  # the same device
        plain = re.sub(rf"\b{self.port}\b", "PORT", plain)
        plain = re.sub(r"^(socket|pipe):\[\d+\]$", r"\1", plain)
        for index, pid in enumerate(pids):
            plain = re.sub(rf"\b{pid}\b", f"#{index}", plain)
        return plain


Setup = Callable[[Place], Optional[dict[str, Any]]]  # makes the surroundings; kwargs of Popen


# The surroundings


def listen(place: Place, kind: int = socket.SOCK_STREAM, backlog: int = 8) -> socket.socket:
    """Have a socket at WORK/sock that lives until the end of the case."""
    sock = place.undo.enter_context(socket.socket(socket.AF_UNIX, kind))
    sock.bind(str(place.work / "sock"))
    if kind == socket.SOCK_STREAM:
        sock.listen(backlog)
    return sock


def nothing(place: Place) -> None:
    """Leave the directory empty."""


def live(place: Place) -> None:
    """Have somebody listen at WORK/sock."""
    listen(place)


def stale(place: Place) -> None:
    """Leave a socket at WORK/sock at which nobody listens any more."""
    listen(place).close()


def datagrams(place: Place) -> None:
    """Have somebody receive datagrams at WORK/sock."""
    listen(place, socket.SOCK_DGRAM)


def full(place: Place) -> None:
    """Have somebody listen at WORK/sock whose queue is full."""
    listen(place, backlog=0)
    for _ in range(3):
        client = place.undo.enter_context(socket.socket(socket.AF_UNIX))
        client.setblocking(False)
        client.connect_ex(str(place.work / "sock"))


def file(place: Place) -> None:
    """Have a file at WORK/sock."""
    (place.work / "sock").write_text("precious")


def fifo(place: Place) -> None:
    """Have a FIFO at WORK/sock."""
    os.mkfifo(place.work / "sock")


def directory(place: Place) -> None:
    """Have a directory at WORK/sock and at WORK/pid, and one to go to."""
    for name in ("sock", "pid", "dir"):
        (place.work / name).mkdir()


def link(place: Place) -> None:
    """Have links to a file at WORK/sock and WORK/pid, and one to nowhere at WORK/dangling."""
    (place.work / "file").write_text(OLD)
    for name, target in (("sock", "file"), ("pid", "file"), ("dangling", "nowhere")):
        (place.work / name).symlink_to(target)


def busy_port(place: Place) -> None:
    """Have somebody listen at the port."""
    sock = place.undo.enter_context(socket.socket())
    sock.bind(("0.0.0.0", place.port))
    sock.listen()


def pid_file(place: Place) -> None:
    """Leave the PID file of a service that is gone."""
    (place.work / "pid").write_text(OLD)
    (place.work / "pid").chmod(0o600)


def service(place: Place) -> None:
    """Have a service run: PID file, Unix socket and port."""
    pid_file(place)
    live(place)
    busy_port(place)


def pid_fifo(place: Place) -> None:
    """Have a FIFO at WORK/pid that nobody reads."""
    os.mkfifo(place.work / "pid")


def apps(place: Place) -> None:
    """Have applications in WORK, good ones and bad ones, some of them below WORK/dir."""
    (place.work / "dir").mkdir()
    shutil.copy("/bin/sleep", place.work / "sleep")
    (place.work / "dir/app").symlink_to("/bin/sleep")
    texts = {"script": "#!/bin/sh\nexec /bin/sleep 60\n", "broken": "#!/missing/shell\n"}
    texts.update(bare="exec /bin/sleep 60\n", locked="#!/bin/sh\n")
    for name, text in texts.items():
        (place.work / name).write_text(text)
        (place.work / name).chmod(0o644 if name == "locked" else 0o755)


def jail(place: Place) -> None:
    """Make a root at WORK/jail that holds `sleep` and its libraries, and a /tmp."""
    listed = subprocess.run(["ldd", "/bin/sleep"], check=True, capture_output=True, text=True)
    for name in ("/bin/sleep", *re.findall(r"/\S+", listed.stdout)):
        copy = place.work / "jail" / name[1:]
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, copy)
    (place.work / "jail/tmp").mkdir()


def jail_with_null(place: Place) -> None:
    """Make a root at WORK/jail with a /dev/null."""
    jail(place)
    (place.work / "jail/dev").mkdir()
    os.mknod(place.work / "jail/dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (place.work / "jail/dev/null").chmod(0o666)


def private(place: Place) -> None:
    """Make a directory that root alone may enter."""
    (place.work / "private").mkdir(mode=0o700)


def caller(**kwargs: Any) -> Setup:
    """Return a setup that hands these arguments to Popen, and runs the tool by the command via.

    PATH is in the environment in any case.
    """
    return lambda place: kwargs


def fresh(*calls: Callable[[], Any]) -> Setup:
    """Return a setup that has the caller make these calls before it runs the tool."""

    def make_calls() -> None:
        for call in calls:
            call()

    return lambda place: {"preexec_fn": make_calls}


def closed(*fds: int) -> Setup:
    """Return a setup whose caller has closed these of the standard streams."""
    return fresh(*[functools.partial(os.close, fd) for fd in fds])


def with_fds(*fds: int) -> Setup:
    """Return a setup whose caller has /dev/zero open on these descriptors."""
    opened = " ".join(f"{fd}</dev/zero" for fd in fds)
    return caller(via=["/bin/sh", "-c", f'exec "$0" "$@" {opened}'])


def ignoring(*signals: int) -> Setup:
    """Return a setup whose caller ignores these signals."""
    return fresh(*[functools.partial(signal.signal, number, signal.SIG_IGN) for number in signals])


blocking = fresh(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGTERM}))
limited = fresh(lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 4096)), lambda: os.nice(3))
in_c_locale = caller(env={"LC_ALL": "C"})
with_lc_ctype = caller(env={"LANG": "C", "LC_CTYPE": "POSIX", "LC_TIME": "C"})
with_python = caller(env={"PYTHONPATH": "/x", "PYTHONHOME": "/y", "PYTHONINSPECT": "1"})
with_bytes = caller(env={"N\udcff": "\udcfe", "E": "", "PHP_FCGI_CHILDREN": "9", "A": "="})
strict_posix = caller(env={"POSIXLY_CORRECT": "1"})


# The table

Expected = dict[str, Any]
SAME: Expected = {}
RUNS, REFUSED = "runs, 1 alive", "255, 0 alive"


def spawned(count: int = 1) -> str:
    """Return the end of a good start with so many children."""
    return f"0, {count} alive"


def ended(status: int) -> str:
    """Return the end of a start whose children ended, all of them."""
    return f"{status}, 0 alive"


class Case(NamedTuple):
    """A command line, how it ends, and where the two tools differ.

    In args PORT and WORK stand for the tool's own, and APP for "-- /bin/sleep 60".
    """

    args: str
    end: str = ""  # on both
    setup: Setup = nothing
    who: str = ""  # "root": root alone; "user": an ordinary user; else whoever runs the tests
    differs: int | str = ""  # its number in README.md, or what it is about
    ours: Expected = SAME  # what is not the same; the other fields of the outcome are
    c: Expected = SAME


AFTER_BIND = "If a step after bind fails, the new socket file is removed."
FIRST = "-h and -v in one line: ours shows the version, the C tool what comes first"
HOSTS = "`-a` accepts also `127.1`, `fe80::1%eth0`"
LONG = "the shape: no option that the C tool lacks (`--help` and `--version` apart)"
DROPPED = "The caller's signal mask and ignored signals"  # CPython cannot tell
IDS = "numbers no id can have are errors"
HELP = "help: -? -C -F -G -M -P -S -U -a -b -c -d -f -g -h -n -p -s -u -v"


def differ(item: int | str, ours: Expected, c: Expected) -> dict[str, Any]:
    """Return the fields of a Case for a deliberate difference."""
    unlike = [key for key in ours if ours[key] != c[key]]
    return {
        "differs": item,
        "ours": {key: ours[key] for key in unlike},
        "c": {key: c[key] for key in unlike},
    }


def says(count: int) -> str:
    """Return what stdout says of so many children spawned."""
    return "".join(f"spawn-fcgi: child spawned successfully: PID: #{n}\n" for n in range(count))


def refuses(item: int | str, end: str, made: str = "sock", lost: str = "") -> dict[str, Any]:
    """Return the difference where ours alone refuses, and the C tool ends like this."""
    ours = {"end": REFUSED, "made": "", "lost": "", "out": "", "spoke": True}
    out = says(int(end.split()[1]))
    return differ(item, ours, {"end": end, "made": made, "lost": lost, "out": out, "spoke": False})


def no_exec(why: str, status: int, count: int = 1, pid: str = "") -> dict[str, Any]:
    """Return the difference where exec fails: ours says why, and its socket goes."""
    ours = {"err": f"spawn-fcgi: exec failed: {why}\n", "made": pid, "out": ""}
    err = f"spawn-fcgi: child exited with: {status}\n"
    return differ(6, ours, {"err": err, "made": f"{pid} sock".strip(), "out": says(count - 1)})


def dead(text: str, count: int, pid_file: bool = True) -> dict[str, Any]:
    """Return the difference where N children die: the C tool sees one, and lists the others."""
    ours = {"out": "", "err": text * count, "content pid": ""}
    others = "\n".join(f"#{n}" for n in range(count - 1))
    c = {"out": says(count - 1), "err": text.splitlines(True)[0], "content pid": others}
    if not pid_file:
        del ours["content pid"], c["content pid"]
    return differ(1, ours, c)


NO_FILE = "./missing: No such file or directory"
BARE = "Exec format error (it has no #! line, or is for another machine)"
BROKEN = "the file is there, but its interpreter is not"
EXITED, KILLED = "spawn-fcgi: child exited with: {}\n", "spawn-fcgi: child signaled: 9\n"
UNKNOWN = differ(7, {"end": REFUSED, "out": ""}, {"end": ended(0), "out": HELP})
EMPTIED = differ(2, {"content pid": OLD}, {"content pid": ""})
LEAVES = differ(AFTER_BIND, {"made": ""}, {"made": "sock"})
CLEAN = {0: "socket", 1: "/dev/null", 2: "/dev/null"}
CALLERS = {1: "BASE/out", 2: "BASE/err"}
WARNS = differ(12, {"spoke": True}, {"spoke": False})


def loses(ours: set[int], c: set[int]) -> dict[str, Any]:
    """Return the difference in the signals that the application ignores."""
    return differ(DROPPED, {"child 0 ignored": ours}, {"child 0 ignored": c})


def leaks(item: int, extra: dict[int, str], children: int = 1) -> dict[str, Any]:
    """Return the difference where the children of the C tool have these descriptors, too."""
    more = {**CLEAN, **extra}
    keys = [f"child {child} fds" for child in range(children)]
    return differ(item, dict(zip(keys, [CLEAN] * children)), dict(zip(keys, [more] * children)))


NO_NULL_THERE = differ(
    11,
    {"spoke": False, "child 0 fds": CLEAN},
    {"spoke": True, "child 0 fds": {**CLEAN, **CALLERS}},
)

# fmt: off
TABLE = [
    # Nothing to do
    Case("", REFUSED),
    Case("-h", ended(0)),
    Case("-?", ended(0)),
    Case("-v", ended(0)),
    Case("-hn", ended(0)),
    Case("-nv", ended(0)),
    Case("-nh -F 3 APP", ended(0)),
    Case("-v -s sock APP", ended(0)),
    Case("-s sock /bin/sleep 60 -v", ended(0)),
    Case("-s sock -- /bin/sleep -v", ended(1)),
    Case("-h -v", ended(0), **differ(FIRST, {"out": "version"}, {"out": HELP})),
    Case("-v -h", ended(0)),
    Case("--help", ended(0), **differ(LONG, {"spoke": False}, {"spoke": True})),
    Case("--version", ended(0), **differ(
        LONG, {"spoke": False, "out": "version"}, {"spoke": True, "out": HELP}
    )),
    Case("--", REFUSED),
    Case("-n", REFUSED),
    Case("-p PORT", REFUSED),
    Case("-s sock", REFUSED),
    Case("-s sock --", REFUSED),
    Case("APP", REFUSED),
    Case("-n APP", REFUSED),
    Case("-f '/bin/sleep 60'", REFUSED),
    Case("-p PORT -s sock APP", REFUSED),
    Case("-s sock -p PORT -n APP", REFUSED),
    # Unknown options and missing values
    Case("-x", **UNKNOWN),
    Case("-s sock -x APP", **UNKNOWN),
    Case("-nx -s sock APP", **UNKNOWN),
    Case("-s sock -P", **UNKNOWN),
    Case("/bin/sleep 60 -s", **UNKNOWN),
    Case("-np", **UNKNOWN),
    Case("--bad -s sock APP", **UNKNOWN),
    Case("-s sock -- /bin/sleep -x", ended(1)),
    # TCP
    Case("-p PORT APP", spawned()),
    Case("-pPORT APP", spawned()),
    Case("-p ' PORT' APP", spawned()),
    Case("'-p PORT' APP", spawned()),
    Case("-p +PORT APP", spawned()),
    Case("-p 0PORT APP", spawned()),
    Case("-p 1 -p PORT APP", spawned()),
    Case("-p PORT -p PORT APP", spawned()),
    Case("-a 127.0.0.1 -p PORT APP", spawned()),
    Case("-a127.0.0.1 -pPORT APP", spawned()),
    Case("-p PORT -a 127.0.0.2 APP", spawned()),
    Case("-a 0.0.0.0 -p PORT APP", spawned()),
    Case("-a :: -p PORT APP", spawned()),
    Case("-a ::1 -p PORT APP", spawned()),
    Case("-a ::ffff:127.0.0.1 -p PORT APP", spawned()),
    Case("-a 10.0.0.300 -a 127.0.0.1 -p PORT APP", spawned()),
    Case("-a :: -p PORT -b 5 -F 2 -n APP", RUNS),
    Case("-a 192.0.2.1 -p PORT APP", REFUSED),
    Case("-a 2001:db8::1 -p PORT APP", REFUSED),
    Case("-a localhost -p PORT APP", REFUSED),
    Case("-a 10.0.0.300 -p PORT APP", REFUSED),
    Case("-a '' -p PORT APP", REFUSED),
    Case("-a ' 127.0.0.1' -p PORT APP", REFUSED),
    Case("-a [::1] -p PORT APP", REFUSED),
    Case("-a 127.1 -p PORT APP", **differ(
        HOSTS,
        {"end": spawned(), "out": says(1), "spoke": False},
        {"end": REFUSED, "out": "", "spoke": True},
    )),
    Case("-a ::1%lo -p PORT APP", REFUSED),
    Case("-a bogus -s sock APP", spawned()),
    Case("-p PORT APP", REFUSED, busy_port),
    Case("-p PORT -P pid APP", REFUSED, busy_port),
    Case("-p 0 APP", REFUSED),
    Case("-p -1 APP", **refuses(8, spawned(), "")),
    Case("-p '' APP", REFUSED),
    Case("-p x APP", REFUSED),
    Case("-p 65536 APP", REFUSED),
    Case("-p PORTx APP", REFUSED),
    Case("-M 0777 -p PORT APP", spawned()),
    # The Unix socket
    Case("-s sock APP", spawned()),
    Case("-ssock APP", spawned()),
    Case("-s WORK/sock APP", spawned()),
    Case("-s ./sock APP", spawned()),
    Case("-s 'so ck' APP", spawned()),
    Case("-s so\udcff APP", spawned()),
    Case("-s söck APP", spawned()),
    Case("-s -sock APP", spawned()),
    Case("-s -- APP", spawned()),
    Case("-s --help APP", spawned()),
    Case("-s other -s sock APP", spawned()),
    Case(f"-s {'x' * 107} APP", spawned()),
    Case(f"-s {'x' * 108} APP", REFUSED),
    Case("-s '' APP", REFUSED),
    Case("-s missing/sock APP", REFUSED),
    Case("-s sock -M 0777 APP", spawned()),
    Case("-s sock -M 777 APP", spawned()),
    Case("-s sock -M0600 APP", spawned()),
    Case("-s sock -M 0 APP", spawned()),
    Case("-s sock -M 7777 APP", spawned()),
    Case("-s sock -M 600 -M 666 APP", spawned()),
    Case("-s sock -M ' 640' APP", spawned()),
    Case("-s sock APP", spawned(), caller(umask=0o077)),
    Case("-s sock APP", spawned(), caller(umask=0)),
    Case("-s sock -M 0666 APP", spawned(), caller(umask=0o077)),
    Case("-s sock -P pid APP", spawned(), caller(umask=0o027)),
    Case("-s sock -M 888 APP", **refuses(8, spawned())),
    Case("-s sock -M 0o660 APP", **refuses(8, spawned())),
    Case("-s sock APP", spawned(), stale),
    Case("-s sock -M 0600 -n APP", RUNS, stale),
    Case("-s sock APP", REFUSED, live),
    Case("-n -s sock APP", REFUSED, live),
    Case("-s sock APP", setup=file, **refuses(3, spawned(), lost="sock")),
    Case("-s sock APP", setup=fifo, **refuses(3, spawned(), lost="sock")),
    Case("-s sock APP", REFUSED, directory),
    Case("-s sock APP", setup=link, **refuses(3, spawned(), lost="sock")),
    Case("-s dangling APP", setup=link, **refuses(3, spawned(), "dangling", "dangling")),
    Case("-s sock APP", setup=datagrams, **refuses(3, spawned(), lost="sock")),
    Case("-s sock APP", setup=full, **differ(
        4, {"end": REFUSED, "spoke": True}, {"end": "hangs, 0 alive", "spoke": False}
    )),
    # Directory
    Case("-d dir -s sock APP", REFUSED, directory),
    Case("-d WORK/dir -s sock APP", REFUSED, directory),
    Case("-d dir -s new APP", spawned(), directory),
    Case("-d WORK/dir -p PORT APP", spawned(), directory),
    Case("-ddir -s new -P pids APP", spawned(), directory),
    Case("-d / -d dir -p PORT APP", spawned(), directory),
    Case("-d dir -n -s new APP", RUNS, directory),
    Case("-d dir -p PORT -- app 60", spawned(), apps),
    Case("-d dir -p PORT -- ./app 60", spawned(), apps),
    Case("-d dir -p PORT -- dir/app 60", ended(2), apps),
    Case("-d missing -s sock APP", REFUSED, **LEAVES),
    Case("-d '' -s sock APP", REFUSED, **LEAVES),
    Case("-d dir -s new -P pids -- /bin/sh -c 'exit 3'", ended(3), directory),
    # The number of children, and PHP's
    Case("-F 1 -s sock APP", spawned()),
    Case("-F 3 -s sock APP", spawned(3)),
    Case("-F3 -p PORT -P pid APP", spawned(3)),
    Case("-F ' 2' -s sock APP", spawned(2)),
    Case("-F 3 -F 2 -s sock APP", spawned(2)),
    Case("-F 4 -n -s sock APP", RUNS),
    Case("-nF4 -s sock APP", RUNS),
    Case("-F 0 -s sock APP", **refuses(8, ended(0))),
    Case("-F -1 -s sock APP", **refuses(8, ended(0))),
    Case("-F '' -s sock APP", **refuses(8, ended(0))),
    Case("-F 2x -s sock APP", **refuses(8, spawned(2))),
    Case("-C 0 -s sock APP", spawned()),
    Case("-C 5 -s sock APP", spawned()),
    Case("-C5 -F 2 -p PORT APP", spawned(2)),
    Case("-C -1 -s sock APP", spawned()),
    Case("-C-1 -C 007 -s sock APP", spawned()),
    Case("-C 3 -n -s sock APP", RUNS),
    Case("-C 2 -s sock APP", spawned(), with_bytes),
    Case("-C -1 -s sock APP", spawned(), with_bytes),
    Case("-C x -s sock APP", **refuses(8, spawned())),
    Case("-C 4294967297 -s sock APP", **refuses(8, spawned())),
    # Backlog
    Case("-b 5 -s sock APP", spawned()),
    Case("-b 0 -p PORT APP", spawned()),
    Case("-b -1 -p PORT APP", spawned()),
    Case("-b-1 -s sock APP", spawned()),
    Case("-b 2147483647 -p PORT APP", spawned()),
    Case("-b 5 -b 7 -n -p PORT APP", RUNS),
    Case("-b x -s sock APP", **refuses(8, spawned())),
    # The PID file
    Case("-P pid -s sock APP", spawned()),
    Case("-Ppid -p PORT APP", spawned()),
    Case("-P WORK/pid -F 3 -s sock APP", spawned(3)),
    Case("-P other -P pid -s sock APP", spawned()),
    Case("-P -- -s sock APP", spawned()),
    Case("-P -n -s sock APP", spawned()),
    Case("-P p\udcfe -s sock APP", spawned()),
    Case("-P pid -n -s sock APP", RUNS),
    Case("-P missing/pid -n -s sock APP", RUNS),
    Case("-P pid -s sock APP", spawned(), pid_file),
    Case("-P pid -F 2 -s sock APP", spawned(2), pid_file),
    Case("-P pid -s new APP", spawned(), link),
    Case("-P dangling -s new APP", REFUSED, link),
    Case("-P pid -s new APP", REFUSED, directory),
    Case("-P pid -s sock APP", REFUSED, pid_fifo),
    Case("-P missing/pid -s sock APP", REFUSED),
    Case("-P '' -s sock APP", REFUSED),
    Case("-P pid -s sock APP", REFUSED, service, **EMPTIED),
    Case("-P pid -p PORT APP", REFUSED, service, **EMPTIED),
    Case("-P pid -s missing/sock APP", REFUSED, pid_file, **EMPTIED),
    Case("-P pid -d missing -s sock APP", REFUSED, pid_file, **differ(
        2, {"content pid": OLD, "made": ""}, {"content pid": "", "made": "sock"}
    )),
    Case("-P pid -x -s sock APP", setup=pid_file, **UNKNOWN),
    # No fork
    Case("-n -s sock APP", RUNS),
    Case("-n -n -s sock APP", RUNS),
    Case("-nn -p PORT APP", RUNS),
    Case("-nssock APP", RUNS),
    Case("-s sock -n -- /bin/sh -c 'echo said; echo more >&2; exit 5'", ended(5)),
    Case("-s sock -n -- /bin/sh -c 'kill -9 $$'", "-9, 0 alive"),
    Case("-s sock -n -- /bin/sh -c 'kill -15 $$'", "-15, 0 alive"),
    Case("-s sock -n -- /bin/true", ended(0)),
    # Words and shell lines
    Case("-s sock /bin/sleep 60", spawned()),
    Case("/bin/sleep -s sock 60", spawned()),
    Case("/bin/sleep 60 -s sock -n", RUNS),
    Case("/bin/sleep -s sock -- 60", spawned()),
    Case("/bin/sleep -s sock -F 2 40 -n 20", RUNS),
    Case("-s sock -- /bin/sleep -- 60", spawned()),
    Case("/bin/sleep -s sock -- -- 60", spawned()),
    Case("-s sock -- -- /bin/sleep 60", ended(2), **no_exec("--: No such file or directory", 2)),
    Case("-s sock -- ./-n 60", ended(2), **no_exec("./-n: No such file or directory", 2)),
    Case("-s sock -n -- /usr/bin/printf '%s|' -n '' ' ' -- --help -s '\udcff' ü", ended(0)),
    Case("/usr/bin/printf -s sock -n '%s|' a -- -n -- -v", ended(0)),
    Case("/usr/bin/printf '%s|' - -s sock - -n", ended(0)),
    Case("/bin/sleep -s sock 60", REFUSED, strict_posix),
    Case("-s sock -n /usr/bin/printf '%s|' -n -- -v -- x", ended(0), strict_posix),
    Case("-s sock -n -- /usr/bin/printf '%s|' -- -v", ended(0), strict_posix),
    Case("-f '/bin/sleep 60' -s sock", spawned()),
    Case("-f'/bin/sleep 60' -p PORT", spawned()),
    Case("-f /bin/false -s sock APP", spawned()),
    Case("-f '/bin/sleep 50' -n -s sock", RUNS),
    Case("-f '/bin/sleep 50' -s sock --", spawned()),
    Case("-f 'sleep 50' -s sock", spawned()),
    Case("-f '/bin/sleep $((20+30)) # $0' -F 2 -p PORT", spawned(2)),
    Case("-f '-n' -f '/bin/sleep 50' -s sock", spawned()),
    Case("-f '' -s sock", ended(0)),
    Case("-f 'missing-command 1' -s sock", ended(127)),
    Case("-f ./locked -s sock", ended(126), apps),
    Case("-f 'false; exit 4' -s sock", ended(1)),
    Case("-n -f '/usr/bin/printf %s: $0 $# \udcff' -s sock", ended(0)),
    # Applications that end, or cannot be run
    *[Case(f"-s sock -P pid -- /bin/sh -c 'exit {n}'", ended(n)) for n in (0, 3, 126, 127, 255)],
    *[Case(f"-s sock -P pid -- /bin/sh -c 'kill -{n} $$'", ended(1)) for n in (9, 15, 1)],
    *[
        Case(f"-F 3 -p PORT -P pid -- /bin/sh -c 'exit {n}'", ended(n), **dead(EXITED.format(n), 3))
        for n in (0, 3, 125)
    ],
    Case("-F 3 -s sock -- /bin/sh -c 'kill -9 $$'", ended(1), **dead(KILLED, 3, False)),
    Case("-P pid -s sock -- ./missing", ended(2), **no_exec(NO_FILE, 2, pid="pid")),
    Case("-F 3 -s sock -- ./missing", ended(2), **no_exec(NO_FILE, 2, 3)),
    Case("-s sock -- sleep 60", ended(2), **no_exec("sleep: No such file or directory", 2)),
    Case("-s sock -- ''", ended(2), **no_exec(": No such file or directory", 2)),
    Case("-s sock -- /", ended(13), **no_exec("/: Permission denied", 13)),
    Case("-s sock -- ./locked", ended(13), apps, **no_exec("./locked: Permission denied", 13)),
    Case("-s sock -- ./bare", ended(8), apps, **no_exec(f"./bare: {BARE}", 8)),
    Case("-s sock -- ./broken", ended(2), apps, **no_exec(f"./broken: {BROKEN}", 2)),
    Case("-s sock -- /etc/passwd/x", ended(20), **no_exec("/etc/passwd/x: Not a directory", 20)),
    Case("-n -s sock -- ./missing", ended(2), **differ(
        6,
        {"made": "", "err": "spawn-fcgi: exec failed: ./missing: No such file or directory\n"},
        {"made": "sock", "err": "spawn-fcgi: exec failed: No such file or directory\n"},
    )),
    Case("-n -p PORT -- ./bare", ended(8), apps, **differ(
        6,
        {"err": f"spawn-fcgi: exec failed: ./bare: {BARE}\n"},
        {"err": "spawn-fcgi: exec failed: Exec format error\n"},
    )),
    Case("-s sock -- sleep 60", spawned(), apps),
    Case("-s sock -- ./script", spawned(), apps),
    Case("-n -s sock -- WORK/script", RUNS, apps),
    # What the caller hands on
    Case("-s sock APP", spawned(), closed(0)),
    Case("-s sock -P pid APP", spawned(), closed(1)),
    Case("-s sock -P pid APP", spawned(), closed(0, 1, 2)),
    Case("-n -s sock APP", RUNS, closed(0, 1, 2)),
    Case("-n -p PORT APP", RUNS, closed(2)),
    Case("-n -s sock APP", RUNS, with_fds(3, 9)),
    Case("-F 2 -s sock APP", spawned(2), with_fds(3, 4)),
    Case("-F 2 -s sock APP", spawned(2), with_fds(9), **leaks(9, {9: "/dev/zero"}, 2)),
    Case("-s sock APP", spawned(), with_fds(3, 4, 6), **leaks(9, {6: "/dev/zero"})),
    Case("-s sock APP", spawned(), ignoring(signal.SIGHUP, signal.SIGINT)),
    Case("-n -s sock APP", RUNS, ignoring(13, 15, 25), **loses({15}, {13, 15, 25})),
    Case("-s sock APP", spawned(), caller(restore_signals=False), **loses(set(), {13, 25})),
    Case("-s sock APP", spawned(), ignoring(signal.SIGCHLD)),
    Case("-s sock -- /bin/sh -c 'exit 3'", setup=ignoring(signal.SIGCHLD), **differ(
        13, {"end": ended(3), "spoke": True}, {"end": ended(0), "spoke": False}
    )),
    Case("-F 2 -s sock APP", spawned(2), blocking),
    Case("-n -s sock APP", RUNS, blocking),
    Case("-s sock APP", spawned(), limited),
    Case("-s sock APP", spawned(), caller(umask=0o123)),
    *[
        Case(f"{flag} -s sock APP", end, env)
        for flag, end in (("-F 1", spawned()), ("-n", RUNS))
        for env in (in_c_locale, with_lc_ctype, with_python, with_bytes, caller(env={}))
    ],
    # Users, groups and roots
    Case("-u nobody -s sock APP", spawned(), who="root"),
    Case("-unobody -p PORT -F 2 APP", spawned(2), who="root"),
    Case("-u 65534 -s sock APP", spawned(), who="root"),
    Case("-u daemon -g nogroup -s sock -P pid APP", spawned(), who="root"),
    Case("-u 1 -g 65534 -n -s sock APP", RUNS, who="root"),
    Case("-u 54321 -g 54321 -s sock APP", spawned(), who="root"),
    Case("-u 54321 -s sock APP", spawned(), who="root"),
    Case("-u ' 1' -s sock APP", spawned(), who="root"),
    Case("-g nogroup -s sock APP", spawned(), who="root"),
    Case("-g 54321 -p PORT APP", spawned(), who="root"),
    Case("-U nobody -s sock APP", spawned(), who="root"),
    Case("-G nogroup -s sock APP", spawned(), who="root"),
    Case("-U daemon -G nogroup -s sock -M 0600 APP", spawned(), who="root"),
    Case("-U 1 -G 65534 -s sock APP", spawned(), who="root"),
    Case("-U 54321 -s sock APP", spawned(), who="root"),
    Case("-u daemon -U nobody -s sock APP", spawned(), who="root"),
    Case("-u daemon -G nogroup -s sock APP", spawned(), who="root"),
    Case("-g daemon -U nobody -s sock APP", spawned(), who="root"),
    Case("-u daemon -u nobody -g nogroup -g daemon -s sock APP", spawned(), who="root"),
    Case("-u daemon -p PORT -d private APP", REFUSED, private, who="root"),
    Case("-u daemon -s private/sock APP", spawned(), private, who="root"),
    Case("-u daemon -s sock APP", spawned(), caller(extra_groups=[7, 8]), who="root"),
    Case("-g daemon -s sock APP", spawned(), caller(extra_groups=[7, 8]), who="root"),
    Case("-U daemon -s sock APP", spawned(), caller(extra_groups=[7, 8]), who="root"),
    *[Case(f"-s sock {who} APP", REFUSED, who="root") for who in (
        "-u root", "-u 0", "-g root", "-g 0", "-U root", "-U 0", "-G root", "-G 0", "-u no-one",
        "-g no-ones", "-U no-one", "-G no-ones", "-u ''", "-g ''", "-u 4294967296",
    )],
    Case("-u -1 -s sock APP", REFUSED, who="root", **LEAVES),
    Case("-u 4294967295 -s sock APP", REFUSED, who="root", **LEAVES),
    Case("-U 4294967295 -s sock APP", who="root", **refuses(IDS, spawned())),
    Case("-g 4294967297 -s sock APP", who="root", **refuses(IDS, spawned())),
    Case("-c jail -s /sock APP", spawned(), jail_with_null, who="root"),
    Case("-c WORK/jail -s sock -P pid -F 2 APP", spawned(2), jail_with_null, who="root"),
    Case("-cjail -S -s sock APP", spawned(), jail_with_null, who="root"),
    Case("-S -c jail -s WORK/sock -u daemon -U nobody APP", spawned(), jail_with_null, who="root"),
    Case("-c jail -s sock -d tmp -u daemon APP", spawned(), jail_with_null, who="root"),
    Case("-c jail -n -s sock -d /tmp APP", RUNS, jail, who="root"),
    Case("-c jail -p PORT -d missing APP", REFUSED, jail, who="root"),
    Case("-c jail -p PORT APP", spawned(), jail, who="root", **NO_NULL_THERE),
    Case("-c jail -f '/bin/sleep 60' -p PORT", ended(2), jail_with_null, who="root"),
    Case("-c missing -s sock APP", REFUSED, who="root"),
    Case("-c missing -S -s sock APP", REFUSED, who="root", **LEAVES),
    Case("-c '' -p PORT APP", REFUSED, who="root"),
    Case("-S -s sock APP", spawned(), who="root"),
    Case("-S -n -p PORT APP", RUNS, who="root"),
    # An ordinary user
    Case("-s sock APP", spawned(), who="user"),
    Case("-n -s sock -M 0600 APP", RUNS, who="user"),
    Case("-P pid -F 2 -p PORT APP", spawned(2), who="user"),
    Case("-s private/sock APP", REFUSED, private, who="user"),
    Case("-P private/pid -s sock APP", REFUSED, private, who="user"),
    Case("-d private -s sock APP", REFUSED, private, who="user", **LEAVES),
    Case("-u daemon -s sock APP", spawned(), who="user", **WARNS),
    Case("-u no-one -g 0 -s sock APP", spawned(), who="user", **WARNS),
    Case("-u '' -s sock APP", spawned(), who="user", **WARNS),
    Case("-c '' -n -s sock APP", RUNS, who="user", **WARNS),
    Case("-c missing -S -U root -G 0 -n -s sock APP", RUNS, who="user", **WARNS),
    Case("-s sock APP", setup=file, who="user", **refuses(3, spawned(), lost="sock")),
    Case("-s sock APP", spawned(), stale, who="user"),
]
# fmt: on


# The run


def line(case: Case, place: Place) -> list[str]:
    """Return the arguments of a case."""
    args = case.args.replace("APP", "-- /bin/sleep 60").replace("PORT", str(place.port))
    return shlex.split(args.replace("WORK", str(place.work)))


def start(case: Case, place: Place) -> subprocess.Popen[bytes]:
    """Start the tool of a place with the arguments of a case, as the user of the case."""
    kwargs = {"env": {}, **(case.setup(place) or {}), "cwd": place.work}
    kwargs["env"] = {**harness.clean_environment(), **kwargs["env"]}
    if case.who == "user":
        kwargs.update(harness.as_user())
        for path in (place.work, *place.work.iterdir()):
            if path.name != "private":
                os.chown(path, kwargs.get("user", -1), kwargs.get("group", -1))
    place.before = entries(place)
    with open(place.streams[0], "wb") as out, open(place.streams[1], "wb") as err:
        return subprocess.Popen(
            [*kwargs.pop("via", []), place.tool, *line(case, place)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            **kwargs,
        )


def entries(place: Place) -> dict[str, tuple[Any, ...]]:
    """Return inode, kind, mode, owner and link of all below the directory, by relative path."""
    found = {}
    for path in place.work.rglob("*"):
        seen = path.lstat()
        target = os.readlink(path) if path.is_symlink() else ""
        about = (seen.st_ino, stat.filemode(seen.st_mode), seen.st_uid, seen.st_gid, target)
        found[str(path.relative_to(place.work))] = about
    return found


def socket_of(pid: int) -> dict[str, Any]:
    """Return what fd 0 of a process is, as getsockopt(2), fcntl(2) and ss(8) tell."""
    pidfd = os.pidfd_open(pid)
    try:
        fd = ctypes.CDLL(None, use_errno=True).syscall(SYS_PIDFD_GETFD, pidfd, 0, 0)
    finally:
        os.close(pidfd)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    with socket.socket(fileno=fd) as sock:
        listed = subprocess.run(["ss", "-Hlxtne"], check=True, capture_output=True).stdout
        inode = re.compile(rb"\b%d\b" % os.fstat(fd).st_ino)
        backlog = {row.split()[3] for row in listed.splitlines() if inode.search(row)}
        level = socket.SOL_SOCKET
        return {
            "kind": (sock.family, sock.type, sock.getsockopt(level, socket.SO_ACCEPTCONN)),
            "name": sock.getsockname(),
            "backlog": backlog,
            "reuse": sock.getsockopt(level, socket.SO_REUSEADDR),
            "blocking": os.get_blocking(fd),
            "v6 only": sock.family == socket.AF_INET6
            and sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY),
        }


def settled(pid: int) -> bool:
    """Say whether a process has become `sleep`, or is no more."""
    return harness.asleep(pid) or not harness.alive(pid)


def is_over(process: subprocess.Popen[bytes], hangs: bool) -> str:
    """Wait for the end, or for `sleep` in its place, and return it: a status, runs, hangs."""
    try:
        harness.wait_for(
            lambda: process.poll() is not None or harness.asleep(process.pid),
            HANG if hangs else 20,
        )
    except AssertionError:
        process.kill()
        process.wait()
        return "hangs"
    return "runs" if process.returncode is None else str(process.returncode)


def read_help(text: str) -> str:
    """Return the flags of the help, or no version; any other text as it is."""
    if "Usage:" in text:
        lines = re.findall(r"(?m)^ (-.(?:, -\w)?)", text)
        return "help: " + " ".join(sorted({flag for flags in lines for flag in flags.split(", ")}))
    return re.sub(r"^spawn-fcgi v[\d.]+.*\n$", "version", text)


def outcome(case: Case, place: Place, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Return all that can be seen of a run, as one flat dict."""
    hangs = place.tool == harness.C_TOOL and case.c.get("end") == "hangs, 0 alive"
    end = is_over(process, hangs)
    out, err = [path.read_bytes() for path in place.streams]
    told = harness.Result(0, out, err).pids
    if (place.work / "pid").is_file():
        words = (place.work / "pid").read_text().split()
        told += [int(word) for word in words if word.isdigit() and int(word) not in told]
    if end == "runs":
        told.append(process.pid)
    for pid in told:
        harness.wait_for(functools.partial(settled, pid))
    alive = [pid for pid in told if harness.alive(pid)]
    after = entries(place)
    new = {name for name in after if after[name] != place.before.get(name)}
    lost = {name for name in place.before if after.get(name) != place.before[name]}
    seen: dict[str, Any] = {
        "end": f"{end}, {len(alive)} alive",
        "out": read_help(place.plain(out, told)),
        "err": place.plain(err, told),
        "spoke": bool(err),
        "made": " ".join(sorted(new)),
        "lost": " ".join(sorted(lost)),
    }
    for name, entry in after.items():
        seen[f"entry {name}"] = entry[1:]
        path = place.work / name
        if path.is_file() and path.stat().st_size < 10000:
            seen[f"content {name}"] = place.plain(path.read_bytes(), told)
    for index, pid in enumerate(alive):
        for name, value in inherited(pid, place).items():
            seen[f"child {index} {name}"] = value
    return seen


def inherited(pid: int, place: Place) -> dict[str, Any]:
    """Return the state of a process and of its socket, without what differs from run to run."""
    found = harness.state(pid)._asdict()
    found["parent"] = found["parent"] == os.getpid()
    for name in ("session", "process_group"):
        found[name] = found[name] == pid
    for name in ("argv", "environ"):
        found[name] = [place.plain(text) for text in found[name]]
    found["fds"] = {fd: place.plain(target) for fd, target in found["fds"].items()}
    found["cwd"], found["root"] = place.plain(found["cwd"]), place.plain(found["root"])
    found["exe"] = place.plain(harness.exe(pid))
    found["nice"] = os.getpriority(os.PRIO_PROCESS, pid)
    sock = socket_of(pid) if found["fds"].get(0) == "socket" else {}
    sock["name"] = place.plain(str(sock.get("name")))
    return {**found, **sock}


@pytest.fixture(scope="module")
def tools() -> Iterator[tuple[str, str]]:
    """Return the paths of ours, installed if the program under test is the C tool, and its."""
    if not harness.on_c_tool():
        yield harness.program[0], harness.C_TOOL
        return
    directory = pathlib.Path(tempfile.mkdtemp(prefix="sf-test-"))
    directory.chmod(0o755)
    try:
        yield harness.install(directory), harness.C_TOOL
    finally:
        shutil.rmtree(directory)


def on_both(case: Case, tools: tuple[str, str]) -> list[dict[str, Any]]:
    """Run a case on both tools at once and return the outcomes."""
    with contextlib.ExitStack() as undo:
        undo.callback(harness.end_children, harness.my_children())
        places = [Place(tool, undo) for tool in tools]
        processes = [start(case, place) for place in places]
        for process in processes:
            undo.callback(process.wait)
            undo.callback(process.kill)
        return [outcome(case, *pair) for pair in zip(places, processes)]


def name_of(case: Case) -> str:
    """Return the name of a case as pytest shows it."""
    setup = case.setup.__name__ if case.setup is not nothing else ""
    return ascii(" ".join(filter(None, [case.args[:60], setup.strip("<>"), case.who])))[1:-1]


def cases() -> list[Any]:
    """Return the table for pytest."""
    return [
        pytest.param(case, id=name_of(case), marks=[pytest.mark.root] * (case.who == "root"))
        for case in TABLE
    ]


@pytest.mark.long
@pytest.mark.parametrize("case", cases())
def test_both_tools_do_the_same_but_for_the_deliberate_differences(
    case: Case, tools: tuple[str, str]
) -> None:
    wanted = [{"end": case.end, **case.ours}, {"end": case.end, **case.c}]
    for _ in range(ATTEMPTS if re.match("(?!255).* 0 ", wanted[0]["end"]) else 1):
        ours, c = on_both(case, tools)
        if [ours["end"], c["end"]] == [expected["end"] for expected in wanted]:
            break
    for seen, expected in zip((ours, c), wanted):
        assert {key: seen.get(key) for key in expected} == expected, seen["err"]
    assert set(case.ours) == set(case.c)
    assert bool(case.differs) == bool(case.ours)
    assert [key for key in case.ours if case.ours[key] == case.c[key]] == []
    replaced = {f"entry {name}" for name in case.c.get("lost", "").split()}
    same = ours.keys() & c.keys() - {"err", *case.ours, *replaced}
    assert {k: (ours[k], c[k]) for k in sorted(same) if ours[k] != c[k]} == {}
    if not case.differs:
        assert ours.keys() == c.keys()
