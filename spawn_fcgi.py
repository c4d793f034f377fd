#!/usr/bin/env python3
"""Bind a socket, start a FastCGI application with that socket as fd 0, and exit.

Usage: spawn-fcgi [options]... [--] [<fcgiapp> [<arg>...]]

Options:
 -f <command>    shell command to run with /bin/sh (ignored if <fcgiapp> is given)
 -d <directory>  change to this directory before spawning
 -a <address>    IPv4 or IPv6 address to bind, not a host name [default: 0.0.0.0]
 -p <port>       TCP port to bind, 1 to 65535
 -s <path>       Unix domain socket to bind, at most 107 bytes
 -M <mode>       octal mode of the Unix socket (default: 0660 masked by the umask)
 -C <children>   set PHP_FCGI_CHILDREN for PHP; negative: do not set it [default: -1]
 -F <children>   number of children to fork (ignored with -n) [default: 1]
 -b <backlog>    listen backlog; negative: the kernel's maximum [default: 1024]
 -P <path>       file to write the PIDs to, one per line (ignored with -n)
 -n              do not fork: become the application (for runit, systemd, containers)
 -v, --version   print the version and exit
 -?              print this help and exit
 -h, --help      print this help and exit

Options for root only:
 -c <directory>  chroot to this directory
 -S              create the socket before the chroot, so outside it
 -u <user>       user to run as, by name or number
 -g <group>      group to run as (default: primary group of -u)
 -U <user>       owner of the Unix socket (default: same as -u)
 -G <group>      group of the Unix socket (default: primary group of -U, or same as -g)

Example: spawn-fcgi -a 127.0.0.1 -p 9000 -F 4 -- ./app.fcgi
See spawn-fcgi(1) and spawn-fcgi-recipes(7).
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
from contextlib import suppress
from types import SimpleNamespace as Options

from docopt import DocoptExit, docopt

TYPE_CHECKING = False  # type checkers treat it as True; importing typing would be slow
if TYPE_CHECKING:
    from typing import Any, Callable, NoReturn

__version__ = "1.0.0"
FCGI_LISTENSOCK_FILENO = 0  # FastCGI specification, section 2.2
INT_MIN, INT_MAX = -(2**31), 2**31 - 1
MAX_ID = 2**32 - 2  # the next one, (uid_t)-1, means "leave it as it is" to chown(2)
SOCKET_OF_ROOT = "neither the owner nor the group of the socket may be root"
ROOT_ONLY = ("-c", "-S", "-u", "-g", "-U", "-G")
CONTROL_CHARACTERS = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
SHELL_STATUS = {126: "not executable", 127: "command not found, or a shared library is missing"}
# Stricter than int(), but leading blanks are allowed: Docker's ["-p 9000"] passes " 9000".
is_number = re.compile(r"[ \t\n\v\f\r]*[+-]?[0-9]+").fullmatch


class Error(Exception):
    """A line that says what failed, and the exit status that goes with it."""

    def __init__(self, line: str, status: int = 255) -> None:
        super().__init__(line)
        self.status = status


def attempt(what: str, function: Callable[..., Any], *args: Any) -> Any:
    """Return function(*args), turning OSError into Error; if args[0] is None, do nothing."""
    try:
        return None if args[0] is None else function(*args)
    except OSError as error:
        raise Error(f"{what}: {error.strerror or error}") from None


def require(condition: object, line: str) -> None:
    """Raise Error with this line unless the condition is true."""
    if not condition:
        raise Error(line)


def say(fd: int, text: str) -> None:
    """Write one line; it makes no difference if the fd is closed, full or without a reader."""
    with suppress(OSError, UnicodeError):
        os.write(fd, os.fsencode(f"spawn-fcgi: {text.translate(CONTROL_CHARACTERS)}\n"))


def refuse(words: list[str]) -> NoReturn:
    """Raise Error for words that docopt refuses, and name the wrong one, which docopt does not."""
    wrong, problem = 0, ""  # for -4p, docopt wants p's value; only for -4p 9000 does it refuse -4
    for index, word in enumerate(words):
        if problem or word.startswith("-"):  # no other word can be wrong, and docopt is slow
            try:
                docopt(__doc__, words[: index + 1], False)  # False is help=, renamed in docopt-ng
                problem = ""
            except DocoptExit as error:
                if " requires argument" not in str(error):
                    wrong = index - 1 if problem else index  # blame the option, not its value
                    problem = f"unknown option {words[wrong]}"
                    break
                wrong, problem = index, f"{word} requires an argument"
    app = docopt(__doc__, words[:wrong], False)["<fcgiapp>"]
    hint = "" if app is None else f"; options for {app} go after --"
    raise Error(f"{problem} (see spawn-fcgi -h{hint})")


def parse_argv(argv: list[str]) -> dict[str, Any]:
    """Map options to their last values, flags to counts, and "argv" to the application's argv."""
    end = argv.index("--") if "--" in argv else len(argv)
    try:
        given = docopt(__doc__, argv[:end], False)
    except DocoptExit:
        refuse(argv[:end])
    words = [] if given["<fcgiapp>"] is None else [given["<fcgiapp>"], *given["<arg>"]]
    for option, value in given.items():
        if isinstance(value, list):  # all values, because of "[options]...": the last one counts
            given[option] = value[-1] if value else None
    return {**given, "argv": words + argv[end + 1 :]}


def number(option: str, text: str, low: int, high: int, base: int = 10) -> int:
    """Return the value of an option; raise Error unless it is a number from low to high."""
    with suppress(ValueError):  # not octal, or more digits than int() takes
        if is_number(text) and low <= int(text, base) <= high:
            return int(text, base)
    limits = f"{low:o} to {high:o}, in octal" if base == 8 else f"{low} to {high}"
    raise Error(f"{option}: not a number from {limits}: '{text}'")


def check_options(given: dict[str, Any]) -> Options:
    """Return the checked Options, or raise Error. This needs no privilege and no look-up."""
    argv, command, path, host = given["argv"], given["-f"], given["-s"], given["-a"]
    require(argv[0] if argv else command, "no FastCGI application given (see spawn-fcgi -h)")
    options = Options(program=argv[0] if argv else "/bin/sh", in_root="")  # in_root: see spawn()
    options.argv = argv or ["sh", "-c", f"exec {command}"]
    require((path is None) != (given["-p"] is None), "give exactly one of -p and -s")
    if path is not None:  # see sun_path in unix(7)
        require(1 <= len(os.fsencode(path)) <= 107, f"-s: not a path of 1 to 107 bytes: '{path}'")
        options.family, options.address, options.where = socket.AF_UNIX, path, path
    else:
        port = number("-p", given["-p"], 1, 65535)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:  # getaddrinfo takes 127.1 and 0, inet_pton does not. A str would load the idna codec.
            socket.inet_pton(family, host.partition("%")[0])
            found = socket.getaddrinfo(host.encode(), port, family, flags=socket.AI_NUMERICHOST)
        except (OSError, UnicodeError):
            raise Error(f"-a: not a numeric IPv4 or IPv6 address: '{host}'") from None
        options.family, options.address, options.where = family, found[0][4], f"{host} port {port}"
    umask = os.umask(0)  # there is no other way to read it
    os.umask(umask)
    mode = f"{0o660 & ~umask:o}" if given["-M"] is None else given["-M"]
    options.socket_mode = number("-M", mode, 0, 0o7777, base=8) & 0o777  # no set-ID or sticky bit
    options.backlog = number("-b", given["-b"], INT_MIN, INT_MAX)
    options.children = number("-F", given["-F"], 1, INT_MAX)
    options.php_children = number("-C", given["-C"], INT_MIN, INT_MAX)
    ignored = [option for option in ROOT_ONLY if given[option] not in (None, 0)]  # 0: -S not given
    if os.getuid() != 0 and ignored:
        say(2, f"warning: not root, ignoring {' '.join(ignored)}")
        given.update(dict.fromkeys(ignored))
    options.no_fork, options.socket_before_chroot = bool(given["-n"]), bool(given["-S"])
    options.socket_path, options.pid_file = given["-s"], None if given["-n"] else given["-P"]
    options.new_root, options.directory = given["-c"], given["-d"]
    options.user, options.group = given["-u"], given["-g"]
    options.socket_user, options.socket_group = given["-U"], given["-G"]
    return options


def find_user_group(user_option: str, user: Any, group_option: str, group: Any) -> Any:
    """Return (uid, gid, user name), each None if not given or not known, or raise Error."""
    uid = gid = name = None
    if user is not None:
        uid = number(user_option, user, 0, MAX_ID) if is_number(user) else None
        with suppress(KeyError):
            name, _, uid, gid, *_ = pwd.getpwnam(user) if uid is None else pwd.getpwuid(uid)
        require(uid is not None, f"{user_option}: no such user: '{user}'")
    if group is not None:
        gid = number(group_option, group, 0, MAX_ID) if is_number(group) else None
        with suppress(KeyError):
            gid = grp.getgrnam(group).gr_gid if gid is None else gid
        require(gid is not None, f"{group_option}: no such group: '{group}'")
    culprit = f"{user_option} {user}" if uid == 0 or group is None else f"{group_option} {group}"
    refusal = "will not run as root" if user_option == "-u" else SOCKET_OF_ROOT
    require(uid != 0 and gid != 0, f"{culprit}: {refusal}")  # no group given: gid is the user's
    return uid, gid, name


def lock_directory(path: str) -> int | None:
    """Lock a path's directory: until we listen(2), another spawn-fcgi sees our socket as stale."""
    fd = None
    with suppress(OSError):  # it is not readable, or its file system has no locks
        fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(200):  # about a second, then go on without the lock
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.005)
    return fd


def clear_path(path: str) -> None:
    """Remove a stale socket or an empty file; raise OSError if anything else is there."""
    with suppress(FileNotFoundError):  # nothing is there, or not any more
        found = os.lstat(path)
        if stat.S_ISSOCK(found.st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.setblocking(False)
                answer = probe.connect_ex(path)
            if answer in (0, errno.EAGAIN):  # EAGAIN: its queue is full; the C tool hangs here
                answer = errno.EADDRINUSE
            if answer != errno.ECONNREFUSED:
                raise OSError(answer, os.strerror(answer))
        elif not stat.S_ISREG(found.st_mode) or found.st_size > 0:  # the C tool would delete it
            raise OSError(errno.EEXIST, "exists and is not a socket")
        attempt(f"cannot remove {path}", os.unlink, path)


def set_owner(path: str, mode: int, owner: tuple[int, int], proc_fds: int | None) -> None:
    """Set the owner of the socket and, if a default ACL has narrowed it, its mode."""
    how: dict[str, Any] = {"follow_symlinks": False}
    if proc_fds is not None and hasattr(os, "O_PATH"):
        # Change /proc/self/fd/N, the socket itself; its path may lead to another file by now.
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        found = os.fstat(fd)
        ours = stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid()
        if not ours and (owner != (-1, -1) or mode & ~found.st_mode):  # if there is work to do
            raise OSError(errno.EEXIST, "somebody has put another file there")
        path, how = str(fd), {"dir_fd": proc_fds}  # follow /proc/self/fd/N; exec closes fd
        if mode & ~found.st_mode:  # only if bits are missing: some file systems refuse any chmod
            os.chmod(path, mode, **how)
    if owner != (-1, -1):  # some sandboxes refuse chown
        os.chown(path, *owner, **how)


def bind_socket(options: Options, owner: tuple[int, int], proc_fds: Any, pid_fd: Any) -> None:
    """Listen, then empty the PID file, then make the socket fd 0; on Error, leave no socket."""
    path, mode, where = options.socket_path, options.socket_mode, options.where + options.in_root
    lock = attempt("cannot lock", lock_directory, path)  # path None (TCP): does nothing
    attempt(f"cannot bind to {where}", clear_path, path)
    sock: socket.socket = attempt(f"cannot bind to {where}", socket.socket, options.family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    umask = os.umask(0o777 & ~mode)
    attempt(f"cannot bind to {where}", sock.bind, options.address)
    os.umask(umask)
    try:
        attempt(f"cannot set owner or mode of {where}", set_owner, path, mode, owner, proc_fds)
        backlog = INT_MAX if options.backlog < 0 else options.backlog  # Python turns -1 into 0
        attempt(f"cannot listen on {where}", sock.listen, backlog)
        attempt(f"cannot empty PID file '{options.pid_file}'", os.ftruncate, pid_fd, 0)
    except Error:
        sock.close()
        with suppress(Error):  # the first error is the one to report
            attempt("cannot remove", clear_path, path)  # it is closed, and so it is stale
        raise
    attempt("cannot unlock", os.close, lock)
    os.dup2(sock.fileno(), FCGI_LISTENSOCK_FILENO)  # sock itself closes as this returns


def open_pid_file(path: str) -> int:
    """Return an fd of a PID file, created if there is none; raise OSError for any other file."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, flags, 0o644)
    found, directory = os.fstat(fd), os.stat(os.path.dirname(path) or ".")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EEXIST, "not a regular file")
    if found.st_nlink > 1:
        raise OSError(errno.EEXIST, "has another hard link")
    if directory.st_mode & stat.S_ISVTX and found.st_uid != os.geteuid():
        raise OSError(errno.EEXIST, "belongs to another user, in a sticky directory")
    while chunk := os.read(fd, 65536):
        if chunk.translate(None, b"0123456789 \t\n\0"):  # a crash leaves NULs
            raise OSError(errno.EEXIST, "not a PID file")
    return fd


def caller_environ() -> dict[bytes, bytes]:
    """Return the caller's environment as getenv(3) finds it, byte for byte."""
    environ = dict(os.environb)  # a fallback: in the C locale, Python sets LC_CTYPE (PEP 538)
    with suppress(OSError), open("/proc/self/environ", "rb") as file:  # may be unreadable
        entries = file.read().split(b"\0")
        environ = {}
        for entry in entries:
            name, equals, value = entry.partition(b"=")
            if name and equals:
                environ.setdefault(name, value)  # the first entry of a name counts
    return environ


def prepare_descriptors(options: Options) -> tuple[int, int | None]:
    """Open /dev/null and, if possible, /proc/self/fd; unless -n, mark all fds close-on-exec."""
    null, proc_fds = 0, None
    while null <= 2:  # fill fds 0 to 2 if closed, or a later open of ours would land there
        null = attempt("cannot open /dev/null", os.open, "/dev/null", os.O_RDWR)
    with suppress(OSError):  # no /proc, or file capabilities make it unreadable
        proc_fds = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    if proc_fds is not None and not options.no_fork:  # Popen's close_fds may be slow in a chroot
        for fd in attempt("cannot list the open descriptors", os.listdir, proc_fds):
            with suppress(OSError):  # one of them was listdir's own
                fcntl.fcntl(int(fd), fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    return null, proc_fds


def raise_start_error(options: Options, error: OSError) -> NoReturn:
    """Raise Error for a failed fork(2) or execve(2), with hints that errno does not give."""
    if error.filename is None:  # only a failed exec names a file
        raise Error(f"fork failed: {error.strerror}", status=1)
    line = f"exec failed: {options.program}: {error.strerror}{options.in_root}"
    if error.errno == errno.EACCES:
        line += f"; tried as user {options.user or os.getuid()}"
    if error.errno == errno.ENOEXEC:
        line += "; it does not begin with #!, or is for another machine"
    if error.errno == errno.ENOENT and os.path.exists(options.program):
        line += "; the file exists, but its interpreter does not"
    if "/" not in options.program:
        line += "; PATH is not searched: give the full path"
    raise Error(line, status=error.errno or 255)


def become_app(options: Options, environ: dict[bytes, bytes]) -> NoReturn:
    """Reset the signals that CPython ignores and execve(2) the application, or raise Error."""
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execve(options.program, options.argv, environ)
    except OSError as error:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # the message may have no reader
        raise_start_error(options, error)


def spawn_children(options: Options, popen: Any, how: dict[str, Any], pid_fd: int | None) -> int:
    """Start the children, wait, write the PID file, report; return the exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if ignored, exit statuses are lost
    program = options.program if "/" in options.program else f"./{options.program}"  # skip PATH
    children: list[Any] = []
    failure = None
    try:
        while len(children) < options.children:
            children.append(popen(options.argv, executable=program, start_new_session=True, **how))
    except OSError as error:
        failure = error
    time.sleep(0.1 if children else 0)  # watch all at once; the C tool watches only the first
    alive = [child.pid for child in children if child.poll() is None]
    if pid_fd is not None:
        try:
            with open(pid_fd, "wb", closefd=False) as file:  # text would import a codec
                file.write("\n".join(map(str, alive)).encode())
        except OSError as error:
            say(2, f"cannot write PID file '{options.pid_file}': {error.strerror}")
            with suppress(OSError):
                os.ftruncate(pid_fd, 0)  # half a PID would be the PID of another process
    for pid in alive:
        say(1, f"child spawned successfully: PID: {pid}")
    ended = [child.returncode for child in children if child.returncode is not None]
    for code in ended:
        say(2, f"child exited with: {code}" if code >= 0 else f"child signaled: {-code}")
        if code in SHELL_STATUS:
            say(2, f"{code} means: {SHELL_STATUS[code]}")
    if ended:
        say(2, "the child's stderr went to /dev/null: run with -n to see it")
    if failure is not None:
        raise_start_error(options, failure)
    statuses = [1 if code < 0 else code for code in ended if code != 0]
    return statuses[-1] if statuses else 0


def spawn(options: Options) -> int:
    """Start the application; the order of the steps matters. Return the exit status."""
    if not options.no_fork:
        from subprocess import Popen  # slow, so not for -n; a new root may have no Python
    uid, gid, user_name = find_user_group("-u", options.user, "-g", options.group)
    socket_ids = find_user_group("-U", options.socket_user, "-G", options.socket_group)
    owner = (socket_ids[0] or uid or -1, socket_ids[1] or gid or -1)  # 0 was refused; -1: no change
    if uid is not None and gid is None:
        say(2, f"warning: no user has the ID {uid}, and -g is not given: keeping all groups")
    null, proc_fds = prepare_descriptors(options)
    environ = caller_environ()
    if options.php_children >= 0:
        environ[b"PHP_FCGI_CHILDREN"] = b"%d" % options.php_children
    pid_fd = attempt(f"cannot open PID file '{options.pid_file}'", open_pid_file, options.pid_file)
    if options.socket_before_chroot:
        bind_socket(options, owner, proc_fds, pid_fd)
    if gid is not None:
        attempt(f"cannot change to group {gid}", os.setgid, gid)
        attempt("cannot drop the supplementary groups", os.setgroups, [])
    attempt(f"cannot set the groups of {user_name}", os.initgroups, user_name, gid)  # None: skipped
    if options.new_root is not None:
        attempt(f"cannot chroot to '{options.new_root}'", os.chroot, options.new_root)
        attempt("cannot chdir to the new root", os.chdir, "/")
        options.in_root = f" in the new root {options.new_root}"
    if not options.socket_before_chroot:
        bind_socket(options, owner, proc_fds, pid_fd)
    attempt(f"cannot change to user {options.user}{options.in_root}", os.setuid, uid)
    attempt(f"cannot chdir to '{options.directory}'{options.in_root}", os.chdir, options.directory)
    if options.no_fork:
        become_app(options, environ)
    how = {"stdout": null, "stderr": null, "env": environ, "close_fds": proc_fds is None}
    return spawn_children(options, Popen, how, pid_fd)


def main(argv: list[str] | None = None) -> int:
    """Run spawn-fcgi(1) with these arguments; return its exit status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # let Ctrl-C kill us, without a traceback
    argv = sys.argv[1:] if argv is None else argv
    first = argv[0][:2] if argv else "-h"
    words = [first] if first in ("-v", "-h", "-?") else argv  # -version means -v, -help means -h
    try:
        require(os.getuid() == os.geteuid(), "will not run set-uid")
        require(os.getgid() == os.getegid() or os.getuid() == 0, "will not run set-gid")
        given = parse_argv(words)
        if not (given["--version"] or given["--help"] or given["-?"]):
            return spawn(check_options(given))
    except (Error, UnicodeError) as error:  # the latter in a locale that is not UTF-8
        say(2, str(error))
        return getattr(error, "status", 255)
    version = f"spawn-fcgi v{__version__} - starts FastCGI applications\n"
    with suppress(OSError):
        os.write(1, (version if given["--version"] else __doc__).encode())
    return 0 if argv else 255  # no arguments: show the help, but fail


if __name__ == "__main__":
    raise SystemExit(main())
