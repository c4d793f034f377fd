#!/usr/bin/env python3
"""Bind a socket, start a FastCGI application with that socket as fd 0, and exit.

Usage: spawn-fcgi [options]... [--] [<fcgiapp> [<arg>...]]

Options:
 -f <command>    shell command for /bin/sh (ignored if <fcgiapp> is given)
 -d <directory>  change to this directory before spawning
 -a <address>    IPv4 or IPv6 address, not a host name [default: 0.0.0.0]
 -p <port>       TCP port to bind to, 1 to 65535
 -s <path>       Unix domain socket to bind to, at most 107 bytes
 -M <mode>       octal mode of the Unix socket (default: 0660 masked by umask)
 -C <children>   set PHP_FCGI_CHILDREN, unless negative [default: -1]
 -F <children>   number of children to fork (ignored with -n) [default: 1]
 -b <backlog>    listen backlog (negative: the kernel's maximum) [default: 1024]
 -P <path>       file to write the PIDs to, one per line (ignored with -n)
 -n              do not fork: become the application (for runit, systemd)
 -v, --version   print the version and exit
 -?              print this help and exit
 -h, --help      print this help and exit

Root-only options:
 -c <directory>  chroot to this directory
 -S              create the socket before the chroot, outside the new root
 -u <user>       user to run as, by name or number
 -g <group>      group to run as (default: primary group of -u)
 -U <user>       owner of the socket (default: same as -u)
 -G <group>      group of the socket (default: primary group of -U, else as -g)

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
from types import SimpleNamespace as Options  # dataclasses would be slow to import

from docopt import DocoptExit, docopt

TYPE_CHECKING = False  # type checkers treat it as True; importing typing would be slow
if TYPE_CHECKING:
    from typing import Any, Callable

__version__ = "1.0.0"  # a port of lighttpd's spawn-fcgi, called "the C tool" in comments
FCGI_LISTENSOCK_FILENO = 0  # FastCGI specification, section 2.2
INT_MIN, INT_MAX = -(2**31), 2**31 - 1
MAX_ID = 2**32 - 2  # the next value, (uid_t)-1, tells chown(2) to leave the ID alone
NO_ROOT_SOCKET = "neither the owner nor the group of the socket may be root"
ROOT_ONLY = ("-c", "-S", "-u", "-g", "-U", "-G")
CONTROL_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
SHELL_STATUS = {126: "not executable", 127: "command not found, or a shared library is missing"}
# Allow leading whitespace: in a Dockerfile, CMD ["-p 9000"] gives -p the value " 9000".
is_number = re.compile(r"[ \t\n\v\f\r]*[+-]?[0-9]+").fullmatch


class Error(Exception):
    """A failure whose one-line message main() prints before returning 255."""


def attempt(what: str, function: Callable[..., Any], *args: Any) -> Any:
    """Return function(*args), or raise an Error that says what failed and why."""
    try:
        return function(*args)
    except OSError as error:
        raise Error(f"{what}: {error.strerror or error}") from None  # OSError(text) has no strerror


def require(condition: object, message: str) -> None:
    """Raise Error with this message unless the condition is true."""
    if not condition:
        raise Error(message)


def say(fd: int, text: str) -> None:
    """Write one line, ignoring any failure: the fd may be closed, or a pipe with no reader."""
    with suppress(OSError, UnicodeError):
        os.write(fd, os.fsencode(f"spawn-fcgi: {text.translate(CONTROL_ESCAPES)}\n"))


def run_docopt(words: list[str]) -> dict[str, Any]:
    """Return what docopt makes of these words, or raise an Error that names the offending word."""
    with suppress(DocoptExit):
        return docopt(__doc__, words, False)  # help=False, by position: docopt-ng renamed it
    # DocoptExit names no word: look for the first option that is rejected even with an argument.
    bad, problem = len(words) - 1, f"{words[-1]} requires an argument"  # if none is rejected
    for index, word in enumerate(words):
        if word.startswith("-"):  # only an option can be unknown, and docopt is slow
            try:
                docopt(__doc__, [*words[: index + 1], "argument"], False)
            except DocoptExit:
                bad, problem = index, f"unknown option {word}"
                break
    app = docopt(__doc__, words[:bad], False)["<fcgiapp>"]  # all words before it are valid
    hint = "" if app is None else f"; options for {app} go after --"
    raise Error(f"{problem} (see spawn-fcgi -h{hint})")


def parse_argv(argv: list[str]) -> dict[str, Any]:
    """Map options to their last values, flags to counts, and "argv" to the application's argv."""
    end = argv.index("--") if "--" in argv else len(argv)  # docopt sees only what comes before it
    given = run_docopt(argv[:end])
    words = [] if given["<fcgiapp>"] is None else [given["<fcgiapp>"], *given["<arg>"]]
    for option, value in given.items():
        if isinstance(value, list):  # "[options]..." turns values into lists, flags into counts
            given[option] = value[-1] if value else None  # the last one wins
    return {**given, "argv": words + argv[end + 1 :]}


def number(option: str, text: str, low: int, high: int, base: int = 10) -> int:
    """Return the value of an option; raise Error unless it is a number from low to high."""
    with suppress(ValueError):  # not octal, or more digits than int() accepts
        if is_number(text) and low <= int(text, base) <= high:
            return int(text, base)
    limits = f"{low:o} to {high:o} (octal)" if base == 8 else f"{low} to {high}"
    raise Error(f"{option}: not a number from {limits}: '{text}'")


def check_address(given: dict[str, Any]) -> tuple[int, Any, str]:
    """Return the family, the address for bind(), and its printable form, or raise Error."""
    path, port, host = given["-s"], given["-p"], given["-a"]
    require((path is None) != (port is None), "give exactly one of -p and -s")
    if path is not None:  # see sun_path in unix(7)
        require(1 <= len(os.fsencode(path)) <= 107, f"-s: not a path of 1 to 107 bytes: '{path}'")
        return socket.AF_UNIX, path, path
    port = number("-p", port, 1, 65535)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.inet_pton(family, host.partition("%")[0])  # rejects 127.1, unlike getaddrinfo()
        # Turn a zone such as %eth0 into its number; a bytes host avoids the slow idna codec.
        found = socket.getaddrinfo(host.encode(), port, family, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        raise Error(f"-a: not a numeric IPv4 or IPv6 address: '{host}'") from None
    return family, found[0][4], f"{host} port {port}"


def check_options(given: dict[str, Any]) -> Options:
    """Return the checked Options, or raise Error; users and groups are not looked up yet."""
    argv, command, mode = given["argv"], given["-f"], given["-M"]  # -M: bits above 0777 are dropped
    require(argv[0] if argv else command, "no FastCGI application given (see spawn-fcgi -h)")
    options = Options(socket_path=given["-s"], cwd=given["-d"], chroot_note="")  # no chroot yet
    options.program = argv[0] if argv else "/bin/sh"
    options.argv = argv or ["sh", "-c", f"exec {command}"]
    options.family, options.address, options.where = check_address(given)
    options.socket_mode = None if mode is None else number("-M", mode, 0, 0o7777, base=8) & 0o777
    options.backlog = number("-b", given["-b"], INT_MIN, INT_MAX)
    options.children = number("-F", given["-F"], 1, INT_MAX)
    options.php_children = number("-C", given["-C"], INT_MIN, INT_MAX)
    options.no_fork = bool(given["-n"])
    options.pid_file = None if given["-n"] else given["-P"]
    root_only = [option for option in ROOT_ONLY if given[option] not in (None, 0)]  # 0: no -S
    if os.getuid() != 0 and root_only:
        say(2, f"warning: not root, ignoring {' '.join(root_only)}")
        given.update(dict.fromkeys(root_only))  # sets them to None
    options.new_root, options.socket_before_chroot = given["-c"], bool(given["-S"])
    options.user, options.group = given["-u"], given["-g"]
    options.socket_user, options.socket_group = given["-U"], given["-G"]
    return options


def find_user_group(user_option: str, user: Any, group_option: str, group: Any) -> Any:
    """Return (uid, gid, user name), None if no option or passwd entry gives it; refuse root."""
    uid = gid = name = None
    refusal = "will not run as root" if user_option == "-u" else NO_ROOT_SOCKET
    if group is not None and is_number(group):
        gid = number(group_option, group, 0, MAX_ID)
    elif group is not None:
        with suppress(KeyError):
            gid = grp.getgrnam(group).gr_gid
        require(gid is not None, f"{group_option}: no such group: '{group}'")
    require(gid != 0, f"{group_option} {group}: {refusal}")
    if user is not None:
        uid = number(user_option, user, 0, MAX_ID) if is_number(user) else None
        with suppress(KeyError):  # a number may lack a passwd entry; a name without one fails below
            found = pwd.getpwnam(user) if uid is None else pwd.getpwuid(uid)
            uid, gid, name = found.pw_uid, (found.pw_gid if gid is None else gid), found.pw_name
        require(uid is not None, f"{user_option}: no such user: '{user}'")
        require(uid != 0 and gid != 0, f"{user_option} {user}: {refusal}")  # gid may be from passwd
    return uid, gid, name


def prepare_descriptors(options: Options) -> tuple[int, int | None]:
    """Open /dev/null and, if possible, /proc/self/fd; unless -n, mark all fds close-on-exec."""
    null, fd_dir = -1, None
    while null <= 2:  # fill fds 0 to 2 if closed, so that later opens do not land there
        null = attempt("cannot open /dev/null", os.open, "/dev/null", os.O_RDWR)
    with suppress(OSError):  # opened before a chroot hides it; it may be missing or unreadable
        fd_dir = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    if fd_dir is not None and not options.no_fork:  # Popen's close_fds is slow without /proc
        for fd in attempt("cannot list the open descriptors", os.listdir, fd_dir):
            with suppress(OSError):  # EBADF: listdir's own fd is already closed
                fcntl.fcntl(int(fd), fcntl.F_SETFD, fcntl.FD_CLOEXEC)  # dup2() undoes it for 0 to 2
    return null, fd_dir


def lock_directory(path: str) -> int | None:
    """Lock path's directory: until we listen, our socket looks stale to another spawn-fcgi."""
    fd = None
    with suppress(OSError):  # it may be unreadable, or its file system may not support locks
        fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(200):  # retry for about a second, then go on without the lock
            with suppress(BlockingIOError):  # another process holds it
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return fd
            time.sleep(0.005)
    return fd


def clear_path(path: str) -> None:
    """Unlink a stale socket or empty file, or raise Error; raise OSError for anything else."""
    with suppress(FileNotFoundError):  # there is nothing to remove
        found = os.lstat(path)
        if stat.S_ISSOCK(found.st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.setblocking(False)  # a full queue gives EAGAIN; the C tool would hang
                code = probe.connect_ex(path)
            if code != errno.ECONNREFUSED:  # if refused, nobody is listening: the socket is stale
                code = errno.EADDRINUSE if code in (0, errno.EAGAIN) else code
                raise OSError(code, os.strerror(code))
        elif not stat.S_ISREG(found.st_mode) or found.st_size > 0:  # the C tool would delete these
            raise OSError("exists and is not a socket")
        attempt(f"cannot remove {path}", os.unlink, path)


def set_owner(path: str, mode: int, owner: tuple[int, int], fd_dir: int | None) -> None:
    """Set the owner of the socket, and restore its mode if a default ACL has narrowed it."""
    asked = owner != (-1, -1)  # some sandboxes refuse any chown(2)
    if fd_dir is not None and hasattr(os, "O_PATH"):
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)  # this file, even if the path is replaced
        file = os.fstat(fd)
        missing = mode & ~file.st_mode  # the bits that a default ACL removed
        if (asked or missing) and not (stat.S_ISSOCK(file.st_mode) and file.st_uid == os.geteuid()):
            raise OSError("another file has taken its place")
        if missing:
            os.chmod(str(fd), mode, dir_fd=fd_dir)  # that is, /proc/self/fd/<fd>
        if asked:
            os.chown(str(fd), *owner, dir_fd=fd_dir)
    elif asked:  # leave the mode: chmod() could follow a link
        os.chown(path, *owner, follow_symlinks=False)


def bind_socket(options: Options, owner: tuple[int, int], fd_dir: Any, pid_fd: Any) -> None:
    """Bind and listen, removing the socket on failure; empty the PID file; make the socket fd 0."""
    path, where = options.socket_path, options.where + options.chroot_note
    lock = None if path is None else lock_directory(path)  # held until we listen
    if path is not None:
        attempt(f"cannot bind to {where}", clear_path, path)
    sock: socket.socket = attempt(f"cannot bind to {where}", socket.socket, options.family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    umask = os.umask(0o777)  # it can only be read by setting it
    mode = (0o660 & ~umask) if options.socket_mode is None else options.socket_mode
    os.umask(0o777 & ~mode)  # bind() creates the socket with this mode
    attempt(f"cannot bind to {where}", sock.bind, options.address)
    os.umask(umask)
    try:
        if path is not None:
            attempt(f"cannot set owner or mode of {where}", set_owner, path, mode, owner, fd_dir)
        backlog = INT_MAX if options.backlog < 0 else options.backlog  # Python turns -1 into 0
        attempt(f"cannot listen on {where}", sock.listen, backlog)
    except Error:
        sock.close()  # first: clear_path() needs an fd, and there may be no other
        if path is not None:
            with suppress(Error, OSError):  # the first error is the one to report
                clear_path(path)
        raise
    if pid_fd is not None:  # only now: a failed start must not empty a running service's file
        attempt(f"cannot empty PID file '{options.pid_file}'", os.ftruncate, pid_fd, 0)
    if lock is not None:
        os.close(lock)
    os.dup2(sock.fileno(), FCGI_LISTENSOCK_FILENO)  # inheritable, unlike sock


def open_pid_file(path: str) -> int:
    """Open or create the PID file and return its fd; refuse a file that is not a PID file."""
    what = f"cannot open PID file '{path}'"
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    fd: int = attempt(what, os.open, path, flags, 0o644)  # O_NONBLOCK: do not hang on a device
    found, directory = os.fstat(fd), attempt(what, os.stat, os.path.dirname(path) or ".")
    require(stat.S_ISREG(found.st_mode), f"{what}: not a regular file")
    require(found.st_nlink <= 1, f"{what}: has another hard link")
    ours, sticky = found.st_uid == os.geteuid(), directory.st_mode & stat.S_ISVTX
    require(ours or not sticky, f"{what}: in a sticky directory and owned by another user")
    while chunk := attempt(what, os.read, fd, 65536):  # reading moves the offset, hence O_APPEND
        require(not chunk.strip(b"0123456789 \t\n\0"), f"{what}: not a PID file")  # \0 from a crash
    return fd


def app_environ(php_children: int) -> dict[bytes, bytes]:
    """Return the caller's environment, plus PHP_FCGI_CHILDREN unless php_children is negative."""
    entries = [b"=".join(item) for item in os.environb.items()]  # the fallback
    with suppress(OSError), open("/proc/self/environ", "rb") as file:  # it may be unreadable
        entries = file.read().split(b"\0")  # without the LC_CTYPE that PEP 538 may have added
    environ: dict[bytes, bytes] = {}
    for entry in entries:
        name, equals, value = entry.partition(b"=")
        if name and equals:
            environ.setdefault(name, value)  # as in getenv(3), the first one wins
    if php_children >= 0:
        environ[b"PHP_FCGI_CHILDREN"] = b"%d" % php_children
    return environ


def report_start_error(options: Options, error: OSError) -> int:
    """Say why fork(2) or execve(2) failed, with hints; return the exit status."""
    if error.filename is None:  # execve() and Popen name a file only if the exec failed
        say(2, f"fork failed: {error.strerror}")
        return 1
    line = f"exec failed: {options.program}: {error.strerror}{options.chroot_note}"
    if error.errno == errno.EACCES:
        line += f"; tried as user {options.user or os.getuid()}"
    if error.errno == errno.ENOEXEC:
        line += "; it does not begin with #!, or is for another machine"
    if error.errno == errno.ENOENT and os.path.exists(options.program):
        line += "; the file exists, but its interpreter does not"
    if "/" not in options.program:
        line += "; PATH is not searched: give the full path"
    say(2, line)
    return error.errno or 255


def spawn_children(options: Options, popen: Any, kwargs: Any, pid_fd: int | None) -> int:
    """Start the children, see which survive 0.1 s, write the PID file; return the exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it were ignored, exit statuses would be lost
    path = options.program if "/" in options.program else f"./{options.program}"  # no PATH search
    children: list[Any] = []  # they inherit fd 0, the socket
    failure = None
    try:
        for _ in range(options.children):
            children.append(popen(options.argv, executable=path, start_new_session=True, **kwargs))
    except OSError as error:
        failure = error
    time.sleep(0.1 if children else 0)  # once for all; the C tool waits only after the first fork
    alive = [child.pid for child in children if child.poll() is None]
    if pid_fd is not None:
        try:
            with open(pid_fd, "wb", closefd=False) as file:  # a chroot may hide text mode's codec
                file.write("\n".join(map(str, alive)).encode())
        except OSError as error:  # then empty it: half a PID is a wrong PID
            say(2, f"cannot write PID file '{options.pid_file}': {error.strerror}")
            attempt(f"cannot empty PID file '{options.pid_file}'", os.ftruncate, pid_fd, 0)
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
        return report_start_error(options, failure)
    statuses = [1 if code < 0 else code for code in ended if code != 0]
    return statuses[-1] if statuses else 0  # the last failure wins


def spawn(options: Options) -> int:
    """Start the application and return the exit status; the order of the steps matters."""
    if not options.no_fork:
        from subprocess import Popen  # slow, so not with -n; import it before a chroot hides it
    uid, gid, user_name = find_user_group("-u", options.user, "-g", options.group)
    owner_uid, owner_gid, _ = find_user_group("-U", options.socket_user, "-G", options.socket_group)
    owner = (owner_uid or uid or -1, owner_gid or gid or -1)  # 0 was refused above; -1: no change
    if uid is not None and gid is None:
        say(2, f"warning: no user has the ID {uid}; without -g, the current groups are kept")
    null, fd_dir = prepare_descriptors(options)
    environ = app_environ(options.php_children)
    pid_fd = None if options.pid_file is None else open_pid_file(options.pid_file)
    if options.socket_before_chroot:
        bind_socket(options, owner, fd_dir, pid_fd)
    if gid is not None:  # before setuid(), which gives up the right to set groups
        attempt(f"cannot change to group {gid}", os.setgid, gid)
        attempt("cannot drop the supplementary groups", os.setgroups, [])
    if user_name is not None:  # before the chroot, which may hide /etc/group
        attempt(f"cannot set the groups of {user_name}", os.initgroups, user_name, gid)
    if options.new_root is not None:
        attempt(f"cannot chroot to '{options.new_root}'", os.chroot, options.new_root)
        attempt("cannot chdir to the new root", os.chdir, "/")
        options.chroot_note = f" in the new root {options.new_root}"  # for messages
    if not options.socket_before_chroot:
        bind_socket(options, owner, fd_dir, pid_fd)
    if uid is not None:
        attempt(f"cannot change to user {options.user}{options.chroot_note}", os.setuid, uid)
    if options.cwd is not None:
        attempt(f"cannot chdir to '{options.cwd}'{options.chroot_note}", os.chdir, options.cwd)
    if options.no_fork:
        for signum in (signal.SIGPIPE, signal.SIGXFSZ):  # CPython ignores these; Popen resets them
            signal.signal(signum, signal.SIG_DFL)
        try:
            os.execve(options.program, options.argv, environ)
        except OSError as error:
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # stderr may have no reader
            return report_start_error(options, error)
    kwargs = {"stdout": null, "stderr": null, "env": environ, "close_fds": fd_dir is None}
    return spawn_children(options, Popen, kwargs, pid_fd)  # close_fds: see prepare_descriptors()


def main(argv: list[str] | None = None) -> int:
    """Run spawn-fcgi(1) with these arguments; return its exit status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # let Ctrl-C kill us, without a traceback
    argv = sys.argv[1:] if argv is None else argv
    first = argv[0][:2] if argv else "-h"  # as in getopt, "-help" is -h; docopt handles "--help"
    try:
        require(os.getuid() == os.geteuid(), "will not run set-uid")
        require(os.getuid() == 0 or os.getgid() == os.getegid(), "will not run set-gid")  # root may
        given = parse_argv([first] if first in ("-v", "-h", "-?") else argv)
        if not (given["--version"] or given["--help"] or given["-?"]):
            return spawn(check_options(given))
    except (Error, UnicodeError) as error:  # UnicodeError: the locale cannot encode an argument
        say(2, str(error))
        return 255
    version = f"spawn-fcgi v{__version__} - starts FastCGI applications\n"
    with suppress(OSError):
        os.write(1, (version if given["--version"] else __doc__).encode())
    return 0 if argv else 255  # no arguments: show the help, but fail


if __name__ == "__main__":
    raise SystemExit(main())
