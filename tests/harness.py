"""What the tests share: the program, its children, what /proc shows, accounts, odd surroundings.

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
import resource
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, Union

import docopt
import pytest

Arg = Union[str, bytes, "os.PathLike[str]"]

ROOT = pathlib.Path(__file__).resolve().parent.parent
SLEEP = ("/bin/sleep", "60")
NOBODY = 65534  # nobody and nogroup, on every Debian
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH}  # of most tests: small, without a locale and without PYTHON*
PORTS = itertools.count(97 * os.getpid())  # suites that run side by side begin apart
PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNS, MS_BIND, MS_REC_PRIVATE, MNT_DETACH = 0x20000, 0x1000, 0x44000, 2
PTRACE_TRACEME, PTRACE_SYSCALL = 0, 24
libc = ctypes.CDLL(None)
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
    """Become the parent of what a spawner leaves; drop the caller's umask and ignored signals."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # these by Python
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    os.umask(0o022)
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


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 10) -> Any:
    """Return the first true value of a condition; fail, saying for what, after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s in vain for {what}")
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
        except subprocess.TimeoutExpired:
            words = " ".join(ascii(os.fsdecode(arg)) for arg in args)
            pytest.fail(f"hung for {timeout} s: spawn-fcgi {words}")
        finally:
            process.kill()
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
        content = path.read_bytes() if stat.S_ISREG(seen.st_mode) else b""
        if path.is_symlink():
            content = os.fsencode(os.readlink(path))
        owner = (seen.st_uid, seen.st_gid)
        found[path.name] = (seen.st_ino, seen.st_mode, *owner, seen.st_mtime_ns, content)
    return found


def assert_refused(result: Result, *names: Arg) -> None:
    """Assert a start that came to nothing before the fork: 255, and one line that names these."""
    assert (result.status, result.out) == (255, b""), result
    assert re.fullmatch(rb"spawn-fcgi: [^\n]+\n", result.err), result
    for name in names:
        assert os.fsencode(name) in result.err, (name, result)


MODES = pytest.mark.parametrize("mode", ["fork", "-n"])


@contextmanager
def application(mode: str, *args: Arg, app: Sequence[Arg] = SLEEP, **more: Any) -> Iterator[int]:
    """Start what sleeps, forked or by -n, on a port of its own unless -s is given; its PID."""
    where = () if "-s" in args else ("-p", str(free_port()))
    if mode == "fork":
        result = run(*where, *args, "--", *app, **more)
        assert (result.status, len(result.pids)) == (0, 1), result
        yield result.pids[0]
        return
    begins = os.fsencode(app[0]) + b"\0"
    with popen(*where, *args, "-n", "--", *app, **more) as process:

        def asleep() -> bool:
            """Say whether it is past exec, and past the files that the dynamic linker opens."""
            known = proc(process.pid, "cmdline").startswith(begins)
            return process.poll() is not None or (known and b") S" in proc(process.pid, "stat"))

        try:
            wait_for(f"{app[0]!r} to sleep", asleep)
            assert process.poll() is None, process.communicate()
            yield process.pid
        finally:
            process.kill()


def inheriting(*fds: int, limit: int = 100) -> Callable[[], None]:
    """Return a preexec_fn, for close_fds=False, that opens these and then limits them."""

    def inherit() -> None:
        zero = os.open("/dev/zero", os.O_RDWR)  # close-on-exec, as its copies are not
        for fd in fds:
            os.dup2(zero, fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    return inherit


def limiting(kind: int, most: int) -> Callable[[], None]:
    """Return a preexec_fn that sets a limit, see setrlimit(2)."""
    return partial(resource.setrlimit, kind, (most, most))


def call(function: str, *args: Any) -> None:
    """Call a function of the C library that Python has not."""
    assert getattr(libc, function)(*args) == 0, function


def own_mounts() -> None:
    """Enter a mount namespace of our own, see mount_namespaces(7)."""
    call("unshare", CLONE_NEWNS)
    call("mount", b"none", b"/", None, MS_REC_PRIVATE, None)


# Users and groups that no machine has: mounted over its own.
PASSWD = b"""root:x:0:0::/:
toor:x:0:4201::/:
app:x:4101:4201::/:
other:x:4102:4202::/:
rootgroup:x:4103:0::/:
4104:x:4105:4205::/:
9user:x:4106:4206::/:
\xfcser:x:4107:4207::/:
"""
GROUP = b"""root:x:0:
wheel:x:0:app
app:x:4201:
other:x:4202:
extra:x:4301:app
more:x:4302:other,app
4304:x:4305:
9group:x:4306:
latin:x:4307:\xfcser
"""


def accounts(work: pathlib.Path, *also: Callable[[], None], **more: Any) -> dict[str, Any]:
    """Return what makes run() and popen() know these users only, and call these before."""
    files = {"passwd": PASSWD, "group": GROUP}
    (work / "etc").mkdir()
    for name, text in files.items():
        (work / "etc" / name).write_bytes(text)

    def prepare() -> None:
        own_mounts()
        for name in files:
            source = os.fsencode(work / "etc" / name)
            call("mount", source, f"/etc/{name}".encode(), None, MS_BIND, None)
        for function in also:
            function()

    (work / "cwd").mkdir()
    return {"preexec_fn": prepare, "extra_groups": [7, 8], "cwd": work / "cwd", **more}


def latin_1(work: pathlib.Path) -> dict[str, str]:
    """Return the environment for a Latin-1 locale, which it makes; skip the test if it cannot."""
    if not os.path.exists("/usr/share/i18n/charmaps/ISO-8859-1.gz"):
        pytest.skip("no Latin-1 locale can be made: install Debian's package locales")
    command = ["localedef", "-ien_US", "-fISO-8859-1", str(work / "Latin-1")]
    subprocess.run(command, check=True)
    return {"LC_ALL": "Latin-1", "LOCPATH": str(work)}


def step_through(at_each_stop: Callable[[], object], *args: Arg, **more: Any) -> int:
    """Run the program, stopped before and after each of its system calls; return its status.

    Nobody can be faster than what is called at each stop.
    """
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]

    def begin() -> None:
        signal.alarm(20)
        libc.ptrace(PTRACE_TRACEME, 0, None, None)

    with popen(*args, preexec_fn=begin, **more) as process:
        while os.WIFSTOPPED(status := os.waitpid(process.pid, 0)[1]):
            at_each_stop()
            number = os.WSTOPSIG(status)
            passed_on = 0 if number == signal.SIGTRAP else number
            libc.ptrace(PTRACE_SYSCALL, process.pid, None, passed_on)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode


Make = Callable[[pathlib.Path], object]  # puts something at a path; keep what it returns


def nothing(path: pathlib.Path) -> None:
    """Put nothing there."""
