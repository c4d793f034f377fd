"""What the tests share: the program under test, an end to its children, and what /proc shows.

The program is the one that $SPAWN_FCGI names, also the C tool; otherwise it is ours, as `make
install` puts it into a directory that every user may enter. The application is mostly `sleep`: it
changes nothing of what it inherited, so /proc/<pid> shows what it got.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Union

import docopt

Arg = Union[str, bytes, "os.PathLike[str]"]

ROOT = pathlib.Path(__file__).resolve().parent.parent
SLEEP = ("/bin/sleep", "60")
NOBODY = 65534  # nobody and nogroup, on every Debian
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH}  # of most tests: small, without a locale and without PYTHON*
PORTS = itertools.count(97 * os.getpid())  # suites that run side by side begin apart
PR_SET_CHILD_SUBREAPER = 36
program: list[str] = shlex.split(os.environ.get("SPAWN_FCGI", ""))  # set by conftest if empty


def interpreter(directory: pathlib.Path, system_site_packages: bool = False) -> pathlib.Path:
    """Make directory/python, with this run's docopt, for every user; return its site-packages."""
    umask = os.umask(0o022)
    venv.create(directory / "python", system_site_packages, symlinks=True)
    [packages] = (directory / "python/lib").glob("python*/site-packages")
    module = pathlib.Path(docopt.__file__)
    files, target = [module], packages
    if module.name == "__init__.py":  # docopt-ng is a package
        files, target = [*module.parent.glob("*.py")], packages / "docopt"
        target.mkdir()
    for file in files:
        shutil.copyfile(file, target / file.name)
    os.umask(umask)
    return packages


def install(directory: pathlib.Path) -> str:
    """Run `make install` into directory/prefix, with a Python made there; return the command."""
    interpreter(directory)
    settings = [f"PYTHON={directory}/python/bin/python3", f"PREFIX={directory}/prefix"]
    command = ["make", "-s", "-C", str(ROOT), "install", *settings]
    subprocess.run(command, check=True, env=ENVIRONMENT)
    return str(directory / "prefix/bin/spawn-fcgi")


def adopt() -> None:
    """Become the parent of what a spawner leaves, and ignore no signal that the caller ignores."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # these by Python
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the fixtures see to the end
        signal.signal(number, signal.default_int_handler)


def my_children() -> list[int]:
    """Return the PIDs of all children of this process, adopted ones included."""
    found: list[int] = []
    for task in os.listdir("/proc/self/task"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            found += map(int, pathlib.Path(f"/proc/self/task/{task}/children").read_text().split())
    return found


def end_children(but: Sequence[int] = ()) -> None:
    """Kill and reap every child and, as they come to us, every grandchild."""
    while pids := [pid for pid in my_children() if pid not in but]:
        for pid in pids:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.001)


def wait_for(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """Return the first true value of condition, or fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.005)
    return value


class Result(NamedTuple):
    """How a run of the program ended: its status (negative: signal), stdout and stderr."""

    status: int
    out: bytes
    err: bytes

    @property
    def pids(self) -> list[int]:
        """The PIDs that stdout calls spawned."""
        line = rb"^spawn-fcgi: child spawned successfully: PID: (\d+)$"
        return [int(pid) for pid in re.findall(line, self.out, re.M)]

    @property
    def lines(self) -> list[str]:
        """The lines on stderr."""
        return self.err.decode("utf-8", "backslashreplace").splitlines()


def as_user(uid: int = NOBODY) -> dict[str, Any]:
    """Return what makes popen() and run() use an ordinary user; nothing if we are one."""
    return {"user": uid, "group": uid, "extra_groups": []} if os.getuid() == 0 else {}


def popen(*args: Arg, env: Mapping[Any, Any] = ENVIRONMENT, **more: Any) -> subprocess.Popen[bytes]:
    """Start the program with these arguments; the rest as of subprocess.Popen."""
    more = {"stdin": subprocess.DEVNULL, "cwd": "/", **more}
    for stream in ("stdout", "stderr"):
        more.setdefault(stream, subprocess.PIPE)
    return subprocess.Popen([*program, *args], env=env, **more)


def run(*args: Arg, timeout: float = 20, **more: Any) -> Result:
    """Run the program to its end and return the Result; what it spawned goes on living.

    With -n that is the application's end, so give it one that ends by itself.
    """
    with popen(*args, **more) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return Result(process.returncode, out or b"", err or b"")


def proc(pid: int, name: str) -> bytes:
    """Return the contents of /proc/<pid>/<name>."""
    return pathlib.Path(f"/proc/{pid}/{name}").read_bytes()


def alive(pid: int) -> bool:
    """Say whether a process is there and no zombie."""
    try:
        return proc(pid, "stat").rpartition(b") ")[2][:1] not in b"ZX"
    except OSError:
        return False


def kill(pid: int) -> None:
    """Kill a child, or what the program has left to us, and wait for its end."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


class State(NamedTuple):
    """What a process has inherited, as the kernel shows it."""

    fds: dict[int, str]  # fd: what it is open on, as in /proc/<pid>/fd
    uids: list[int]  # real, effective, saved, file system
    gids: list[int]
    groups: list[int]
    ignored: set[int]  # signal numbers
    blocked: set[int]
    umask: int
    session: int
    cwd: str
    root: str
    argv: list[bytes]
    environ: list[bytes]  # entries, in order
    limits: str


def state(pid: int) -> State:
    """Return the State of a process."""
    status = dict(re.findall(r"^(\w+):[ \t]*(.*)$", proc(pid, "status").decode(), re.M))

    def signals(field: str) -> set[int]:
        mask = int(status[field], 16)
        # 32 and 33 are the C library's own: who runs the tests may ignore them, no program can.
        return {n for n in range(1, 65) if mask >> (n - 1) & 1 and n not in (32, 33)}

    return State(
        fds={int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")},
        uids=[*map(int, status["Uid"].split())],
        gids=[*map(int, status["Gid"].split())],
        groups=[*map(int, status["Groups"].split())],
        ignored=signals("SigIgn"),
        blocked=signals("SigBlk"),
        umask=int(status["Umask"], 8),
        session=int(proc(pid, "stat").rpartition(b") ")[2].split()[3]),
        cwd=os.readlink(f"/proc/{pid}/cwd"),
        root=os.readlink(f"/proc/{pid}/root"),
        argv=proc(pid, "cmdline").split(b"\0")[:-1],
        environ=proc(pid, "environ").split(b"\0")[:-1],
        limits=proc(pid, "limits").decode(),
    )


def free_port() -> int:
    """Return a TCP port below the ephemeral ones that nobody uses now."""
    for number in PORTS:
        port = 10000 + number % 20000
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port
    raise AssertionError("unreachable")


def connects(address: Any) -> bool:
    """Say whether somebody listens at a Unix path or a (host, port)."""
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    with socket.socket(family) as probe:
        probe.settimeout(5)
        return probe.connect_ex(address if family == socket.AF_INET else os.fspath(address)) == 0


def snapshot(directory: pathlib.Path) -> dict[str, tuple[Any, ...]]:
    """Return inode, mode, owner, time and content of each entry of a directory, by name."""
    found = {}
    for path in directory.iterdir():
        seen = path.lstat()
        content = (
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        )
        found[path.name] = (
            seen.st_ino,
            seen.st_mode,
            seen.st_uid,
            seen.st_gid,
            seen.st_mtime_ns,
            content,
        )
    return found


LATIN_1 = "/usr/share/i18n/charmaps/ISO-8859-1.gz"  # of Debian's package locales


def make_latin_1(directory: pathlib.Path) -> None:
    """Make the locale Latin-1, for programs with this $LOCPATH."""
    command = ["localedef", "-ien_US", "-fISO-8859-1", str(directory / "Latin-1")]
    subprocess.run(command, check=True)


def assert_refused(result: Result, *names: Arg) -> None:
    """Assert a start that came to nothing before the fork: 255, and one line that names these."""
    assert (result.status, result.out) == (255, b""), result
    assert re.fullmatch(rb"spawn-fcgi: [^\n]+\n", result.err), result
    for name in names:
        assert os.fsencode(name) in result.err, (name, result)
