#!/usr/bin/env python3
from __future__ import annotations

# Assigned, as `python -OO` takes docstrings away.
__doc__ = """Bind a socket, start a FastCGI application that has it as fd 0, and be gone.

Usage: spawn-fcgi [options] [--] [<fcgiapp> [<arg>...]]

Options:
 -f <command>    shell line to run with /bin/sh (ignored if <fcgiapp> is given)
 -d <directory>  change to this directory before spawning
 -a <address>    IPv4 or IPv6 address to bind, no host name [default: 0.0.0.0]
 -p <port>       TCP port to bind, 1 to 65535
 -s <path>       Unix domain socket to bind, at most 107 bytes
 -M <mode>       octal mode of the Unix socket (default: 0660 less the umask)
 -C <children>   set PHP_FCGI_CHILDREN for PHP; negative: leave it alone [default: -1]
 -F <children>   number of children to fork [default: 1]
 -b <backlog>    listen backlog; negative: what the kernel allows [default: 1024]
 -P <path>       file to write the PIDs to, one a line (ignored with -n)
 -n              do not fork, become the application (runit, systemd, containers)
 -v, --version   show the version
 -?              show this help
 -h, --help      show this help

Options for root only:
 -c <directory>  change the root directory
 -S              create the socket before -c, not inside it
 -u <user>       user to run as, name or number
 -g <group>      group to run as (default: primary group of -u)
 -U <user>       owner of the Unix socket (default: as -u)
 -G <group>      group of the Unix socket (default: that of -U, else as -g)
"""

import _socket as socket  # what socket adds is enums and selectors, and a sixth of our start-up
import errno
import fcntl
import grp
import os
import pwd
import re
import select
import signal
import stat
import sys
import time
from collections import namedtuple
from contextlib import ExitStack, contextmanager, suppress
from getopt import GetoptError, gnu_getopt

from docopt import docopt

TYPE_CHECKING = False  # importing typing, for NamedTuple too, costs a tenth of our start-up
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

__version__ = "1.0.0"
FCGI_LISTENSOCK_FILENO = 0  # FastCGI specification, section 2.2
GRACE = 0.1  # seconds that a child must live to count as spawned
EXEC_LIMIT = 5.0  # seconds that an exec may take, on a slow disk or a loaded machine
LOCK_TRIES = 200  # to lock the directory of a Unix socket, 5 ms apart
MAX_PATH = 107  # bytes of sun_path in unix(7), less its NUL
MAX_ID = 2**32 - 2  # one more is (uid_t)-1, "leave as it is" to chown(2)
INT_MAX = 2**31 - 1
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
MEANING = {126: "not executable", 127: "not found, or a shared library is missing"}
INT = (~INT_MAX, INT_MAX)
LIMITS = {"-p": (1, 65535), "-M": (0, 0o7777, 8), "-F": (1, INT_MAX), "-C": INT, "-b": INT}
UNREAD: set[int] = set()  # fds that were full for a second: once is enough for all lines
ROOT_ONLY = ("-c", "-S", "-u", "-g", "-U", "-G")
# After what to execute, argv[0] twice, and family and address: the options by their letters.
Options = namedtuple("Options", "app at d M C F b P n c S u g U G")


class Error(Exception):
    """One line that names what failed, and the exit status that goes with it."""

    def __init__(self, text: str, status: int = 255) -> None:
        super().__init__(text)
        self.status = status


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Raise an OSError of the block as an Error that says what failed."""
    try:
        yield
    except OSError as error:
        raise Error(f"{what}: {error.strerror or error}") from None


def say(fd: int, text: str) -> None:
    """Write one line; an fd that is closed, full or without a reader changes nothing."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    with suppress(OSError):
        if poll.poll(0 if fd in UNREAD else 1000):
            line = f"spawn-fcgi: {text.translate(CONTROL)}\n"
            os.write(fd, line.encode(errors="surrogateescape"))
        else:
            UNREAD.add(fd)


def parse_argv(argv: list[str]) -> dict[str, Any]:
    """Map each option to its last value, None or False, and "words" to the application's argv."""
    # getopt(3) splits it first: docopt does not name an unknown option, docopt-ng takes no "--"
    # as a value, and both take their time over thousands of words.
    short = "".join(re.findall(r"(?m)^ -(.(?: <)?)", __doc__)).replace(" <", ":")
    try:
        pairs, words = gnu_getopt(argv, short, ["help", "version"])
    except GetoptError as error:
        raise Error(f"{error.msg} (see spawn-fcgi -h)") from None
    last = {option.strip("-")[0]: (option, value) for option, value in pairs}
    split = [[o, v] if o[1] + ":" in short and v != "--" else [o + v] for o, v in last.values()]
    given = docopt(__doc__, [part for parts in split for part in parts], False)
    return {**given, "words": words}


def number(option: str, text: str, low: int, high: int, base: int = 10) -> int:
    """Return the value of an option, or raise Error if it is none from low to high."""
    with suppress(ValueError):  # not octal, or more digits than int() takes
        # Blanks before it as in Docker's ["-p 9000"]; int() alone would take 1_000 and more.
        if re.fullmatch(r"[ \t-\r]*[+-]?[0-9]+", text) and low <= int(text, base) <= high:
            return int(text, base)
    limits = f"{low:o} to {high:o}, in octal" if base == 8 else f"{low} to {high}"
    raise Error(f"{option}: no number from {limits}: '{text}'")


def parse_address(text: str, port: int) -> tuple[int, Any]:
    """Return family and sockaddr of a numeric address, see getaddrinfo(3), or raise Error."""
    # As str it would go through the idna codec, a slow import; and "*" is an address to glibc.
    host = os.fsencode(text.replace("*", "?"))
    with naming(f"-a: not an IPv4 or IPv6 address: '{text}'"):
        found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
    return found[0][0], found[0][4]


def check_options(given: dict[str, Any]) -> Options:
    """Check all that needs no privilege; return the options or raise Error for a wrong one."""
    words, path, port, command = given["words"], given["-s"], given["-p"], given["-f"]
    if os.geteuid() != os.getuid() or (os.getuid() != 0 and os.getegid() != os.getgid()):
        raise Error(f"set-uid or set-gid, to {os.geteuid()}:{os.getegid()}: will not run as such")
    if not words and command is None:
        raise Error("no FastCGI application given (see spawn-fcgi -h)")
    if (path is None) == (port is None):
        raise Error("no socket given: use -p or -s" if path is None else "use -p or -s, not both")
    if path is not None and not 0 < len(os.fsencode(path)) <= MAX_PATH:
        raise Error(f"-s: a socket path has 1 to {MAX_PATH} bytes: '{path}'")
    for option, limits in LIMITS.items():
        if given[option] is not None:
            given[option] = number(option, given[option], *limits)
    app = [words[0], *words] if words else ["/bin/sh", "sh", "-c", f"exec {command}"]
    at = (socket.AF_UNIX, path) if port is None else parse_address(given["-a"], given["-p"])
    ignored = [o for o in ROOT_ONLY if given[o] not in (None, False) and os.getuid() != 0]
    if ignored:
        say(2, f"warning: not root, so without effect: {' '.join(ignored)}")
    given.update(dict.fromkeys(ignored))
    return Options(app, at, *(given[f"-{letter}"] for letter in Options._fields[2:]))


def find_user_group(u: str, user: Any, g: str, group: Any) -> tuple[Any, Any, Any]:
    """Return uid, gid and user name, None if not given, of options u and g, or raise Error."""
    is_id = re.compile(r"[ \t-\r]*\+?[0-9]+").fullmatch
    uid = gid = name = None
    if user is not None:
        uid = number(u, user, 1, MAX_ID) if is_id(user) else None
        with suppress(KeyError):
            name, _, uid, gid, *_ = pwd.getpwuid(uid) if uid else pwd.getpwnam(user)
        if uid is None:
            raise Error(f"{u}: no such user: '{user}'")
    if group is not None:
        try:
            gid = number(g, group, 1, MAX_ID) if is_id(group) else grp.getgrnam(group).gr_gid
        except KeyError:
            raise Error(f"{g}: no such group: '{group}'") from None
    if 0 in (uid, gid):
        by = f"{u} {user}" if uid == 0 or group is None else f"{g} {group}"
        raise Error(f"{by}: will not run as root")
    return uid, gid, name


def lock_directory(path: str) -> tuple[int, bool]:
    """Return an fd of the directory or -1, and whether to go on as the one start that binds."""
    directory, fd = os.path.dirname(path) or ".", -1
    with suppress(OSError):  # it cannot be read, or its file system knows no locks: go on
        how = os.O_RDONLY if os.access(directory, os.R_OK) else getattr(os, "O_PATH", 0)
        fd = os.open(directory, how | os.O_DIRECTORY)
        for _ in range(LOCK_TRIES):
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return fd, True
            time.sleep(0.005)
        return fd, False  # whoever can read the directory can hold its lock for ever
    return fd, True


def is_stale(path: str) -> bool:
    """Say if a socket that refuses connections is there; raise OSError if it is another thing."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "exists and is not itself a socket")
    except FileNotFoundError:
        return False
    probe = socket.socket(socket.AF_UNIX)
    probe.setblocking(False)
    refusal = probe.connect_ex(path)
    probe.close()
    if refusal in (0, errno.EAGAIN):
        raise OSError(errno.EADDRINUSE, "already in use")
    if refusal not in (errno.ECONNREFUSED, errno.ENOENT):  # the latter: removed since lstat
        raise OSError(refusal, f"exists, and may be in use: {os.strerror(refusal)}")
    return refusal == errno.ECONNREFUSED


def remove(path: str, directory: int) -> None:
    """Remove our socket, as root if need be; the fd of its directory leads out of a chroot."""
    with suppress(OSError):
        os.seteuid(os.getuid())
        os.unlink(os.path.basename(path), dir_fd=directory)


def bind_socket(options: Options, owner: list[int], undo: ExitStack) -> int:
    """Return a listening socket, close-on-exec; have undo remove its file."""
    family, address = options.at
    where = address if family == socket.AF_UNIX else f"{address[0]} port {address[1]}"
    with naming(f"cannot bind to {where}"):
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family != socket.AF_UNIX:
            sock.bind(address)
            sock.listen(INT_MAX if options.b < 0 else options.b)  # Python's listen(-1) is listen(0)
            return sock.detach()
        is_stale(address)  # what is in use need not wait for the lock
        fd, locked = lock_directory(address)
        if is_stale(address):
            if not locked:
                raise OSError(errno.EADDRINUSE, "already in use: its directory stays locked")
            os.unlink(address)
        sock.bind(address)
        undo.callback(remove, address, fd)
        os.umask(mask := os.umask(0))
        os.chmod(address, 0o660 & ~mask if options.M is None else options.M)
        if owner != [-1, -1]:
            os.chown(address, *owner, follow_symlinks=False)
        sock.listen(INT_MAX if options.b < 0 else options.b)  # now that mode and owner are right
        with suppress(OSError, ValueError):  # the latter: -1
            fcntl.flock(fd, fcntl.LOCK_UN)  # not close(2): remove() needs it
        return sock.detach()


def open_pid_file(path: str) -> int:
    """Return an fd of a regular file, which is left as it is, or made if there is none."""
    with naming(f"cannot open PID file '{path}'"):
        with suppress(FileExistsError):
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(errno.EEXIST, "exists and is no regular file")
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK)


def write_pid_file(fd: int, path: str, pids: list[int]) -> None:
    """Write one PID a line; none if they do not fit, as half a PID is the PID of another."""
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write("\n".join(map(str, pids)).encode())
    except OSError as error:
        with suppress(OSError):
            os.ftruncate(fd, 0)
        say(2, f"cannot write PID file '{path}': {error.strerror}")


def restore_environment() -> None:
    """Undo PEP 538 in the C library's environ: in the C locale CPython sets LC_CTYPE there."""
    try:
        with open("/proc/self/environ", "rb") as file:  # out of reach after a change of user
            given = re.search(rb"(?:^|\0)LC_CTYPE=([^\0]*)", file.read())
    except OSError:  # no /proc; it goes with UTF-8 mode (PEP 540), and not with LC_ALL
        if not sys.flags.utf8_mode or os.environ.get("LC_ALL"):
            return
        given = None
    if given:
        os.putenv(b"LC_CTYPE", given[1])
    else:
        os.unsetenv(b"LC_CTYPE")


def reserve_fds(no_fork: bool) -> int:
    """Fill what the caller closed of fds 0 to 2; return an fd of /dev/null above them.

    All that Python opens is close-on-exec, PEP 446; with fork what the caller had open is, too.
    """
    try:
        for name in () if no_fork else os.listdir("/proc/self/fd"):
            with suppress(OSError):  # listdir's own is closed by now
                os.set_inheritable(int(name), False)
    except OSError:
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    try:
        fd = os.open(os.devnull, os.O_RDWR)
    except OSError:  # there is none, or a poor one; what can be read only loses all output, too
        fd, writer = os.pipe()
        os.close(writer)
    return fd if fd > 2 else reserve_fds(no_fork=True)


def exec_app(options: Options) -> int:
    """execv(2) the application; return the errno of the failure."""
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by CPython, and exec passes that on
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execv(options.app[0], options.app[1:])
    except OSError as error:
        failure = error.errno or errno.EIO
    except ValueError as error:  # bytes that the locale cannot encode back, or an empty name
        failure = errno.EILSEQ if isinstance(error, UnicodeError) else errno.ENOENT
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    return failure


def exec_error(program: str, failure: int) -> Error:
    """Return the Error for an errno of execve(2), and the reason where that does not tell it."""
    reason = os.strerror(failure)
    if failure == errno.ENOENT and os.path.exists(program):
        reason = "the file is there, but its interpreter is not"
    elif failure == errno.ENOEXEC:
        reason += " (it has no #! line, or is for another machine)"
    return Error(f"exec failed: {program}: {reason}", failure)


def run_child(options: Options, null: int, sigchld: Any, failures: int) -> NoReturn:
    """Become the application in a session of its own, or write PID and errno to failures."""
    try:
        os.setsid()
        os.dup2(null, 1)
        os.dup2(null, 2)
        signal.signal(signal.SIGCHLD, sigchld)
        os.write(failures, b"%d %d\n" % (os.getpid(), exec_app(options)))
    finally:
        os._exit(1)


def await_children(pids: list[int], failures: int) -> dict[int, int]:
    """Wait the grace time; return the errno of each PID that could not be exec'ed."""
    end, report, poll = time.monotonic() + GRACE, b"", select.poll()
    poll.register(failures)  # it ends when every child has exec'ed, however late, or is gone
    while poll.poll(EXEC_LIMIT * 1000) and (data := os.read(failures, 65536)):
        report += data
    failed = {int(pid): int(code) for pid, code in map(bytes.split, report.splitlines())}
    time.sleep(max(0, end - time.monotonic()) if len(failed) < len(pids) else 0)
    return failed


def report_end(status: int) -> int:
    """Say how a child ended, from its wait status; return the exit status for that."""
    code = os.waitstatus_to_exitcode(status)
    say(2, f"child exited with: {code}" if code >= 0 else f"child signaled: {-code}")
    if code in MEANING:
        say(2, f"{code} means: {MEANING[code]}")
    return code if code >= 0 else 1


def spawn_children(options: Options, null: int, pid_fd: int | None, undo: ExitStack) -> int:
    """Fork the children, wait, write the PID file; return the exit status."""
    # With SIGCHLD ignored, as a caller may have it, the kernel forgets how a child ended.
    sigchld = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    reader, writer = os.pipe()
    pids: list[int] = []
    fork_failure = ""
    try:
        while len(pids) < options.F:
            pids.append(os.fork() or run_child(options, null, sigchld, writer))
    except OSError as error:
        fork_failure = f"fork failed: {error.strerror}"
    os.close(writer)
    failed = await_children(pids, reader)
    if len(failed) < len(pids):
        undo.pop_all()  # somebody has the socket
    waited = [os.waitpid(pid, 0 if pid in failed else os.WNOHANG) for pid in pids]
    ended = {pid: status for pid, status in waited if pid}
    alive = [pid for pid in pids if pid not in ended]
    if pid_fd is not None:
        write_pid_file(pid_fd, options.P, alive)
    for pid in alive:
        say(1, f"child spawned successfully: PID: {pid}")
    for failure in set(failed.values()):
        say(2, str(exec_error(options.app[0], failure)))
    results = [failed.get(pid) or report_end(status) for pid, status in ended.items()]
    if fork_failure:
        raise Error(fork_failure, 1)
    return next(filter(None, reversed(results)), 0)


def spawn(options: Options) -> int:
    """Start the application, in the order of this function; return the exit status."""
    restore_environment()
    if options.C >= 0:
        os.putenv("PHP_FCGI_CHILDREN", str(options.C))
    with naming("cannot start"), ExitStack() as undo:
        null = reserve_fds(options.n)
        pid_fd = None if options.P is None or options.n else open_pid_file(options.P)
        uid, gid, user = find_user_group("-u", options.u, "-g", options.g)
        s_uid, s_gid, _ = find_user_group("-U", options.U, "-G", options.G)
        owner = [s_uid or uid or -1, s_gid or gid or -1]
        if uid and not gid:
            say(2, f"warning: -u {uid} has no entry and -g is not given: only the user is dropped")
        sock = bind_socket(options, owner, undo) if options.S else None
        if gid:
            with naming(f"cannot change to group {gid}"):
                os.setgid(gid)
                os.setgroups([])
                if user:
                    os.initgroups(user, gid)
        if options.c is not None:
            with naming(f"cannot chroot to '{options.c}'"):
                os.chroot(options.c)
                os.chdir("/")
        sock = bind_socket(options, owner, undo) if sock is None else sock
        with naming(f"cannot change to user {uid}"):
            if uid:
                os.seteuid(uid)  # not yet for good: it may take root to remove the socket
            if options.d is not None:
                with naming(f"cannot change to directory '{options.d}'"):
                    os.chdir(options.d)
            if uid:
                os.setresuid(uid, uid, uid)
        os.dup2(sock, FCGI_LISTENSOCK_FILENO)
        if options.n:
            raise exec_error(options.app[0], exec_app(options))
        if pid_fd is not None:
            with naming(f"cannot empty PID file '{options.P}'"):
                os.ftruncate(pid_fd, 0)
        return spawn_children(options, null, pid_fd, undo)


def main(argv: list[str] | None = None) -> int:
    """Run spawn-fcgi(1) with these arguments; return its exit status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # end as a signal ends, not by a traceback
    argv = sys.argv[1:] if argv is None else argv
    try:
        given = parse_argv(argv)
        if not argv or given["-?"] or given["--help"] or given["--version"]:
            version = f"spawn-fcgi v{__version__} - starts FastCGI applications\n"
            with suppress(OSError):
                os.write(1, (version if given["--version"] else __doc__).encode())
            return 0 if argv else 255
        return spawn(check_options(given))
    except (Error, UnicodeError) as error:  # the latter in a locale that is not UTF-8
        say(2, str(error))
        return getattr(error, "status", 255)


if __name__ == "__main__":
    raise SystemExit(main())
