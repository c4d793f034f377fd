#!/usr/bin/env python3
"""Bind a socket, start a FastCGI application that has it as fd 0, and be gone.

Usage: spawn-fcgi [options]... [--] [<fcgiapp> [<arg>...]]

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

from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
import re
import signal
import socket
import stat
import sys
import time
from collections import namedtuple
from contextlib import suppress

from docopt import DocoptExit, docopt

TYPE_CHECKING = False  # importing typing costs as much as all of subprocess
if TYPE_CHECKING:
    from typing import Any

__version__ = "1.0.0"
FCGI_LISTENSOCK_FILENO = 0  # FastCGI specification, section 2.2
MAX_ID = 2**32 - 2  # one more is (uid_t)-1, "leave as it is" to chown(2)
INT_MAX = 2**31 - 1  # also as a backlog: Python takes listen(-1) for listen(0)
INT = (-INT_MAX - 1, INT_MAX)
LIMITS = {"-p": (1, 65535), "-M": (0, 0o7777, 8), "-F": (1, INT_MAX), "-C": INT, "-b": INT}
is_number = re.compile(r"[ \t-\r]*[+-]?[0-9]+").fullmatch  # as in Docker's ["-p 9000"]
ROOT_ONLY = ("-c", "-S", "-u", "-g", "-U", "-G")
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
MEANING = {126: "not executable", 127: "not found, or a shared library is missing"}
Options = namedtuple("Options", "program argv family address a p s d M C F b P n c S u g U G")


class Error(Exception):
    """One line that names what failed, and the exit status that goes with it."""

    def __init__(self, line: str, *, status: int | None = 255) -> None:  # str(self) is the line
        self.status = status


def attempt(what: str, function: Any, *args: Any) -> Any:
    """Call a function; raise its OSError as an Error that says what failed."""
    try:
        return function(*args)
    except OSError as error:
        raise Error(f"{what}: {error.strerror}") from None


def say(fd: int, text: str) -> None:
    """Write one line; an fd that is closed, full or without a reader changes nothing."""
    with suppress(OSError, UnicodeError):
        os.write(fd, os.fsencode(f"spawn-fcgi: {text.translate(CONTROL)}\n"))


def parse_argv(argv: list[str]) -> dict[str, Any]:
    """Map each option to its last value, None or a count, and "argv" to the application's."""
    end = argv.index("--") if "--" in argv else len(argv)
    try:
        given = docopt(__doc__, argv[:end], False)
    except DocoptExit:
        raise refusal(argv[:end]) from None
    words = [word for word in (given["<fcgiapp>"], *given["<arg>"]) if word is not None]
    last = {o: (v or [None])[-1] if isinstance(v, list) else v for o, v in given.items()}
    return {**last, "argv": words + argv[end + 1 :]}


def refusal(argv: list[str]) -> Error:
    """Return the Error for a line that docopt refuses, naming the option, as docopt does not."""
    for end in (end for end, word in enumerate(argv, 1) if word.startswith("-")):
        try:
            docopt(__doc__, argv[:end], False)
        except DocoptExit as error:
            what = str(error).splitlines()[0]
            if not what.endswith(" requires argument"):  # else the next word may be its value
                what = f"unknown option {argv[end - 1]}"
                break
    app = docopt(__doc__, argv[: end - 1], False)["<fcgiapp>"]
    hint = "" if app is None else f"; options for {app} go after --"
    return Error(f"{what} (see spawn-fcgi -h{hint})")


def number(option: str, text: str, low: int, high: int, base: int = 10) -> int:
    """Return the value of an option, or raise Error if it is none from low to high."""
    with suppress(ValueError):  # not octal, or more digits than int() takes
        if is_number(text) and low <= int(text, base) <= high:
            return int(text, base)
    limits = f"{low:o} to {high:o}, in octal" if base == 8 else f"{low} to {high}"
    raise Error(f"{option}: no number from {limits}: '{text}'")


def parse_address(text: str, port: int) -> tuple[int, Any]:
    """Return family and sockaddr of a numeric address, see getaddrinfo(3), or raise Error."""
    try:
        host = os.fsencode(text.replace("*", "?"))  # a str needs idna; glibc takes * for one
        found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
    except OSError:
        raise Error(f"-a: not a numeric IPv4 or IPv6 address: '{text}'") from None
    return found[0][0], found[0][4]


def check_options(given: dict[str, Any]) -> Options:
    """Check all that needs no privilege; return the options or raise Error for a wrong one."""
    argv, path, port = given["argv"], given["-s"], given["-p"]
    if os.geteuid() != os.getuid() or (os.getuid() != 0 and os.getegid() != os.getgid()):
        raise Error(f"set-uid or set-gid, to {os.geteuid()}:{os.getegid()}: will not run as such")
    if not argv and given["-f"] is None:
        raise Error("no FastCGI application given (see spawn-fcgi -h)")
    if (path is None) == (port is None):
        raise Error("no socket given: use -p or -s" if path is None else "use -p or -s, not both")
    if path is not None and not 0 < len(os.fsencode(path)) <= 107:  # sun_path in unix(7)
        raise Error(f"-s: a socket path has 1 to 107 bytes: '{path}'")
    for option, limits in LIMITS.items():
        if given[option] is not None:
            given[option] = number(option, given[option], *limits)
    app = [argv[0], argv] if argv else ["/bin/sh", ["sh", "-c", f"exec {given['-f']}"]]
    at = (socket.AF_UNIX, path) if port is None else parse_address(given["-a"], given["-p"])
    ignored = [o for o in ROOT_ONLY if given[o] not in (None, 0) and os.getuid() != 0]
    if ignored:
        say(2, f"warning: not root, so without effect: {' '.join(ignored)}")
    given.update(dict.fromkeys(ignored))
    return Options._make((*app, *at, *(given[f"-{letter}"] for letter in Options._fields[4:])))


def find_user_group(u: str, user: Any, g: str, group: Any) -> tuple[Any, Any, Any]:
    """Return uid, gid and user name, None if not given, of options u and g, or raise Error."""
    uid = gid = name = None
    if user is not None:
        uid = number(u, user, 1, MAX_ID) if is_number(user) else None
        with suppress(KeyError):
            name, _, uid, gid, *_ = pwd.getpwuid(uid) if uid else pwd.getpwnam(user)
        if uid is None:
            raise Error(f"{u}: no such user: '{user}'")
    if group is not None:
        try:
            gid = number(g, group, 1, MAX_ID) if is_number(group) else grp.getgrnam(group).gr_gid
        except KeyError:
            raise Error(f"{g}: no such group: '{group}'") from None
    if uid == 0 or gid == 0:
        asked = f"{u} {user}" if uid == 0 or group is None else f"{g} {group}"
        raise Error(f"{asked}: will not run as root")
    return uid, gid, name


def lock_directory(directory: str) -> int | None:
    """Return an fd with flock(2) on a directory, as far as a second is enough: it is advice."""
    fd = None
    with suppress(OSError):  # it may not be read, or its file system knows no locks
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(200):
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.005)
    return fd


def clear_path(path: str) -> None:
    """Remove a stale socket or an empty file; raise OSError if anything else is there."""
    with suppress(FileNotFoundError):  # also of what goes meanwhile
        found = os.lstat(path)
        if stat.S_ISSOCK(found.st_mode):
            with socket.socket(socket.AF_UNIX) as probe, suppress(ConnectionRefusedError):
                probe.setblocking(False)
                with suppress(BlockingIOError):  # the queue is full, where the C tool hangs
                    probe.connect(path)
                raise OSError(errno.EADDRINUSE, "already in use")
        elif not stat.S_ISREG(found.st_mode) or found.st_size > 0:  # the C tool deletes it
            raise OSError(errno.EEXIST, "exists and is no socket")
        os.unlink(path)


def bind(options: Options) -> socket.socket:
    """Return a bound socket, close-on-exec; that of a path has its mode from birth."""
    sock = socket.socket(options.family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if options.s:
        clear_path(options.s)
    umask = os.umask(0)
    os.umask(umask | 0o117 if options.M is None else 0o777 & ~options.M)
    sock.bind(options.address)
    os.umask(umask)
    return sock


def bind_socket(options: Options, owner: tuple[int, int]) -> int:
    """Return the fd of a listening socket, close-on-exec, or raise Error and leave nothing."""
    where = options.s or f"{options.a} port {options.p}"
    lock = lock_directory(os.path.dirname(where) or ".") if options.s else None
    sock: socket.socket = attempt(f"cannot bind to {where}", bind, options)
    try:
        if options.s and owner != (-1, -1):  # a filter may forbid an idle chown, too
            attempt(f"cannot change the owner of {where}", os.lchown, where, *owner)
        attempt(f"cannot listen on {where}", sock.listen, INT_MAX if options.b < 0 else options.b)
    except Error:
        if options.s:
            os.unlink(where)
        raise
    if lock is not None:
        os.close(lock)
    return sock.detach()


def open_pid_file(path: str) -> int:
    """Return an fd of a regular file, made if there is none; raise OSError if it is no such."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    found, directory = os.fstat(fd), os.stat(os.path.dirname(path) or ".")
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise OSError(errno.EEXIST, "exists and is no regular file, or has another name")
    if directory.st_mode & stat.S_ISVTX and found.st_uid != os.geteuid():
        raise OSError(errno.EACCES, "a file of another user in a sticky directory")
    return fd


def write_pid_file(fd: int, path: str, pids: list[int]) -> None:
    """Write one PID a line; none if they do not fit, as half a PID is the PID of another."""
    try:
        os.ftruncate(fd, 0)
        with open(fd, "wb", closefd=False) as file:
            file.write("\n".join(map(str, pids)).encode())
    except OSError as error:
        say(2, f"cannot write PID file '{path}': {error.strerror}")
        with suppress(OSError):
            os.ftruncate(fd, 0)


def caller_environ() -> dict[bytes, bytes]:
    """Return the environment as getenv(3) finds it; CPython changes its own, see PEP 538."""
    with attempt("cannot open /proc/self/environ", open, "/proc/self/environ", "rb") as file:
        entries = [e.split(b"=", 1) for e in file.read().split(b"\0") if e.find(b"=") > 0]
    return {**dict(entries), **dict(reversed(entries))}  # of one name the first entry counts


def exec_error(options: Options, error: OSError) -> Error:
    """Return the Error for a failed fork(2), or execve(2) with what its errno does not tell."""
    if error.filename is None:
        return Error(f"fork failed: {error.strerror}", status=1)
    app, text = options.program, f"exec failed: {options.program}: {error.strerror}"
    if error.errno == errno.ENOEXEC:
        text += "; it has no #! line, or is for another machine"
    if error.errno == errno.ENOENT and os.path.exists(app):
        text += "; it is there, but its interpreter is not"
    if "/" not in app:
        text += "; PATH is not searched, give its path"
    if options.c is not None:
        text += f"; this was in the new root {options.c}"
    return Error(text, status=error.errno)


def become_app(options: Options, environ: dict[bytes, bytes]) -> Error:
    """execve(2) the application; return the Error if that fails."""
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by CPython, and exec passes that on
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execve(options.program, options.argv, environ)
    except OSError as error:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # else it may end us at the message
        return exec_error(options, error)


def spawn_children(popen: Any, options: Options, environ: Any, null: int, pid_fd: Any) -> int:
    """Start the children by subprocess.Popen, wait, write the PID file; return the exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it hides how children end
    app = options.program if "/" in options.program else f"./{options.program}"  # not from PATH
    how = {"stdout": null, "stderr": null, "env": environ, "start_new_session": True}
    children: list[Any] = []
    failure = None
    try:
        while len(children) < options.F:
            children.append(popen(options.argv, executable=app, **how))
    except OSError as error:
        failure = exec_error(options, error)
    time.sleep(0.1 if children else 0)  # once for all: who lives then counts as spawned
    alive = [child.pid for child in children if child.poll() is None]
    if pid_fd is not None:
        write_pid_file(pid_fd, options.P, alive)
    for pid in alive:
        say(1, f"child spawned successfully: PID: {pid}")
    ends = [child.returncode for child in children if child.returncode is not None]
    for code in ends:
        say(2, f"child exited with: {code}" if code >= 0 else f"child signaled: {-code}")
        if code in MEANING:
            say(2, f"{code} means: {MEANING[code]}")
    if ends:
        say(2, "its stderr was /dev/null: -n shows what it says")
    if failure:
        raise failure
    return next((code if code > 0 else 1 for code in reversed(ends) if code), 0)  # last failure


def spawn(options: Options) -> int:
    """Start the application, in the order of this function; return the exit status."""
    null = max(os.open(os.devnull, os.O_RDWR) for _ in range(4))  # fills what of 0 to 2 is closed
    environ = caller_environ()
    if options.C >= 0:
        environ[b"PHP_FCGI_CHILDREN"] = b"%d" % options.C
    if not options.n:  # which need not pay for it; later, in a chroot, there may be no Python
        from subprocess import Popen
    uid, gid, user = find_user_group("-u", options.u, "-g", options.g)
    s_uid, s_gid, _ = find_user_group("-U", options.U, "-G", options.G)
    owner = (s_uid or uid or -1, s_gid or gid or -1)
    if uid and not gid:
        say(2, f"warning: -u {uid} is no user's and -g is not given: only the user is dropped")
    pid_fd = None
    if options.P is not None and not options.n:
        pid_fd = attempt(f"cannot open PID file '{options.P}'", open_pid_file, options.P)
    sock = bind_socket(options, owner) if options.S else None
    if gid:
        attempt(f"cannot change to group {gid}", os.setgid, gid)
        attempt("cannot change groups", os.setgroups, os.getgrouplist(user, gid) if user else [])
    if options.c is not None:
        attempt(f"cannot chroot to '{options.c}'", os.chroot, options.c)
        os.chdir("/")
    sock = sock or bind_socket(options, owner)
    if uid:
        attempt(f"cannot change to user {uid}", os.setresuid, uid, uid, uid)
    if options.d is not None:
        attempt(f"cannot change to directory '{options.d}'", os.chdir, options.d)
    os.dup2(sock, FCGI_LISTENSOCK_FILENO)
    if not options.program:  # Popen would look for it in PATH, and os.execve refuses
        raise exec_error(options, OSError(errno.ENOENT, os.strerror(errno.ENOENT), ""))
    if options.n:
        raise become_app(options, environ)
    return spawn_children(Popen, options, environ, null, pid_fd)


def main(argv: list[str] | None = None) -> int:
    """Run spawn-fcgi(1) with these arguments; return its exit status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # end as a signal ends, not by a traceback
    argv = sys.argv[1:] if argv is None else argv
    try:
        asked = argv[0][:2] if argv else "-h"  # by the first word, whatever is behind its letter
        if asked not in ("-v", "-h", "-?"):
            given = parse_argv(argv)
            asked = "-v" if given["--version"] else "-h" if given["--help"] or given["-?"] else ""
        if not asked:
            return spawn(check_options(given))
        version = f"spawn-fcgi v{__version__} - starts FastCGI applications\n"
        with suppress(OSError):
            os.write(1, (version if asked == "-v" else __doc__).encode())
        return 0 if argv else 255
    except (Error, OSError, UnicodeError) as error:  # the last in a locale that is not UTF-8
        say(2, str(error))
        return getattr(error, "status", 255)


if __name__ == "__main__":
    raise SystemExit(main())
