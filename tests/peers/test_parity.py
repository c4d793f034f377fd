"""The same command lines on the C tool and on ours, in the same surroundings, with the same end.

Each line of the table runs on both at once, in a directory and on a port of its own. All that can
be seen from outside is compared, of the application all that it inherited.
"""

from __future__ import annotations

import os
import pathlib
import random
import re
import shlex
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import harness
import pytest
from harness import alive, wait_for

SEED, LINES = int(os.environ.get("PARITY_SEED", "1")), int(os.environ.get("PARITY_LINES", "30"))
SHORT = {"SOCK": "-s sock APP", "TCP": "-p PORT APP", "APP": "-- /bin/sleep 60", "SH": "/bin/sh -c"}
# Surroundings: a line of sh in the caller's directory, and after the last `;` what runs the tool.
# A few of its commands are Place.hold()'s.
USER = "chown 65534:65534 .; setpriv --reuid 65534 --regid 65534 --clear-groups"
APPS = r"""mkdir dir; ln -s /bin/sleep dir/app; cp /bin/sleep .; printf '#!/none\n' >broken;
printf 'exec sleep 60\n' >bare; printf '#!/bin/sh\nexec /bin/sleep 60\n' >script; touch locked;
chmod 755 broken bare script;"""
JAIL = """mkdir -p jail/tmp jail/dev;
cp --parents /bin/sleep $(ldd /bin/sleep | grep -o '/[^ ]*') jail;"""
NULL = f"{JAIL} mknod -m 666 jail/dev/null c 1 3;"
EXEC = 'exec "$0" "$@"'
LO = "ip link set lo up && ip addr add fe80::1/64 dev lo nodad"
LINK_LOCAL = f"unshare -n sh -c '{LO} && {EXEC}'"
OLD = "printf '42 42' >pid; chmod 600 pid;"
DIR, CLOSED = "mkdir dir;", "mkdir -m 0 dir;"
BYTES = "env N=\udcff\udcfe E= PHP_FCGI_CHILDREN=9 A=="
NO_CHLD = "env --ignore-signal=CHLD"
X107 = "x" * 107
SPAWNED = "spawn-fcgi: child spawned successfully: PID: #{}\n"
NULLS = {0: "socket 2", 1: "/dev/null 2", 2: "/dev/null 2"}


class Same(NamedTuple):
    """Command lines that end the same with both, in the same surroundings."""

    claim: str
    around: str  # what runs before, and with, the tool: see Place.start()
    status: int | str  # or "runs", by -n
    alive: int  # how many children
    lines: list[str]


class Seen(NamedTuple):
    """What one of the two is to show."""

    status: int | str | None  # None: it hangs
    alive: int
    files: str = ""  # of pid and sock, as `ls -F` has them, with their content


class Different(NamedTuple):
    """Command lines that end differently on purpose; README numbers the differences."""

    claim: str
    lines: list[str]
    around: str
    c_tool: Seen | dict[str, Any]  # or just these of what Place.seen() returns
    ours: Seen | dict[str, Any]


# fmt: off
SAME = [
    Same("a port", "", 0, 1, [
        "TCP", "-pPORT APP", "-p ' PORT' APP", "'-p PORT' APP", "-p +PORT APP", "-p 0PORT APP",
        "-p 1 TCP", "-M 0777 TCP"]),
    Same("an address", "", 0, 1, [
        "-a 127.0.0.1 TCP", "-a127.0.0.2 -pPORT APP", "-a 0.0.0.0 TCP", "-a :: TCP",
        "-p PORT -a ::1 APP", "-a 10.0.0.300 -a 127.0.0.1 TCP", "-a x SOCK"]),
    Same("a path", "", 0, 1, [
        "SOCK", "-ssock APP", "-s WORK/sock APP", "-s 's k' APP", "-s -x APP", "-s --help APP",
        "-s s\udcff APP", "-s söck APP", "-s x SOCK", f"-s {X107} APP"]),
    Same("a mode", "", 0, 1, [
        "-M 0777 SOCK", "-M 640 SOCK", "-M0600 SOCK", "-M 0 SOCK", "-M 6 -M ' 66' SOCK"]),
    Same("a umask", "umask 077;", 0, 1, ["SOCK", "-M 0666 SOCK", "-P pid SOCK"]),
    Same("a stale socket is replaced", "stale;", 0, 1, ["SOCK", "-M 0600 SOCK"]),
    Same("an empty file is replaced", "touch sock;", 0, 1, ["SOCK"]),
    Same("a directory", DIR, 0, 1, ["-d dir SOCK", "-d / -dWORK/dir TCP", "-ddir -P pid SOCK"]),
    Same("files", APPS, 0, 1, [
        "-d dir -p PORT -- app 60", "-d dir -p PORT -- ./app 60", "-s sock -- sleep 60",
        "-s sock -- ./script", "-f ./script -p PORT"]),
    Same("PHP's children", "", 0, 1, ["-F 1 SOCK", "-C 0 SOCK", "-C5 TCP", "-C-1 -C 007 SOCK"]),
    Same("PHP's children, and the caller's", BYTES, 0, 1, ["-C 2 SOCK", "-C -1 SOCK"]),
    Same("a backlog", "", 0, 1, [
        "-b 5 SOCK", "-b 0 TCP", "-b -1 TCP", "-b-2 SOCK", "-b 2147483647 TCP"]),
    Same("a PID file", "", 0, 1, [
        "-P pid SOCK", "-P x -Ppid TCP", "-P -n SOCK", "-P p\udcfe SOCK"]),
    Same("an old PID file", OLD, 0, 1, ["-P pid SOCK", "-P ./pid TCP"]),
    Same("words among options", "", 0, 1, [
        "-s sock /bin/sleep 60", "/bin/sleep -s sock 60", "/bin/sleep -s sock -- 60",
        "/bin/sleep 60 -s sock --", "-s x -- /bin/sleep -- 60"]),
    Same("a shell line", "", 0, 1, [
        "-f '/bin/sleep 60' -s sock", "-f'/bin/sleep 50' -p PORT", "-f /bin/no SOCK",
        "-f '/bin/sleep $((20+30)) # $0' -s sock --", "-f -n -f 'sleep 50' -s sock"]),
    Same("a user", "", 0, 1, [
        "-g nogroup TCP", "-u nobody SOCK", "-u 65534 -P pid SOCK", "-u 54321 SOCK", "-u ' 1' TCP",
        "-u 1 -g nogroup SOCK", "-u 54321 -g 54321 SOCK", "-u 1 -u nobody -g 1 -g 2 SOCK"]),
    Same("an owner", "", 0, 1, [
        "-U nobody SOCK", "-G nogroup SOCK", "-U daemon -G nogroup -M 0600 SOCK", "-U 54321 SOCK",
        "-u daemon -U nobody SOCK", "-u daemon -G nogroup SOCK"]),
    Same("groups", "setpriv --groups 7", 0, 1, [
        "-u daemon SOCK", "-g daemon SOCK", "-U daemon SOCK"]),
    Same("the socket is made as root", CLOSED, 0, 1, ["-u daemon -s dir/sock APP"]),
    Same("a root", NULL, 0, 1, [
        "-c jail -s /sock APP", "-c WORK/jail -P pid SOCK", "-cjail -S SOCK",
        "-S -c jail -s WORK/sock -u 1 -U nobody APP", "-c jail -d tmp -u daemon SOCK"]),
    Same("a user's", f"stale; chown 65534 sock; {USER}", 0, 1, [
        "-M 0600 -P pid SOCK", "-P pid TCP"]),
    Same("two", "", 0, 2, ["-F 2 SOCK", "-F ' 2' -P pid TCP", "-F 3 -F2 SOCK", "-C5 -F 2 -u1 TCP"]),
    Same("three", OLD, 0, 3, ["-F3 -P WORK/pid TCP", "-F 3 -f '/bin/sleep 60' -s sock -P pid"]),
    Same("no fork", "", "runs", 1, [
        "-n -n SOCK", "-nn TCP", "-nssock APP", "/bin/sleep 60 -s sock -n",
        "/bin/sleep -s sock -F 2 40 -n 20", "-nF4 SOCK", "-C 3 -n SOCK",
        "-a :: -b 5 -b 7 -nF 2 TCP", "-P none/pid -n SOCK", "-f '/bin/sleep 50' -n -s sock",
        "-u1 -g 65534 -n SOCK"]),
    Same("no fork in a root without /dev/null", JAIL, "runs", 1, ["-c jail -n -d /tmp SOCK"]),
    Same("too little", "", 255, 0, [
        "", "--", "-n", "-p PORT", "-s sock --", "APP", "-f '/bin/sleep 60'"]),
    Same("too much", "", 255, 0, ["-p PORT -s sock -n APP", "-s sock TCP"]),
    Same("no address", "", 255, 0, [
        "-a 192.0.2.1 TCP", "-a 2001:db8::1 TCP", "-a localhost TCP", "-a '' TCP",
        "-a ' 127.0.0.1' TCP", "-a [::1] TCP", "-a 10.0.0.300 TCP", "-a 127.1 TCP", "-a 0 TCP",
        "-a 010.0.0.1 TCP", "-a PORT TCP"]),
    Same("no port", "", 255, 0, ["-p 0 APP", "-p '' APP", "-p PORTx APP", "-p x APP"]),
    Same("no path", "", 255, 0, [
        f"-s {X107}x APP", "-s '' APP", "-s none/sock APP", "-P none/pid SOCK", "-P '' SOCK",
        "-d none SOCK", "-d '' -P pid SOCK", "-P pid -d none SOCK", "-c '' TCP", "-c none SOCK",
        "-c none -S SOCK"]),
    Same("taken", "busy;", 255, 0, ["TCP", "-a 127.0.0.1 -n TCP"]),
    Same("in use", "live;", 255, 0, ["SOCK", "-n SOCK"]),
    Same("a directory out of reach", CLOSED, 255, 0, ["-u daemon -d dir -P pid SOCK"]),
    Same("out of reach", f"{CLOSED}{USER}", 255, 0, [
        "-s dir/x APP", "-P dir/x SOCK", "-d dir SOCK"]),
    Same("who", "", 255, 0, [
        "-u root SOCK", "-u 0 SOCK", "-g root SOCK", "-g 0 SOCK", "-U root SOCK", "-U 0 SOCK",
        "-G root SOCK", "-G 0 SOCK", "-u no SOCK", "-g no SOCK", "-U no SOCK", "-G no SOCK",
        "-u '' SOCK", "-g '' SOCK", "-u 4294967296 SOCK", "-u no -c none -S SOCK"]),
    Same("no right to chown", "setpriv --bounding-set -chown", 255, 0, ["-U daemon SOCK"]),
    Same("help and version", "", 0, 0, [
        "-h", "-?", "-hn", "-h -v", "-v", "-v -h", "-version", "-nv", "-v SOCK"]),
    Same("byte for byte", "", 0, 0, [
        "-s sock -n -- /usr/bin/printf '%s|' '' ' ' -- --help -s '\udcff' ü",
        "/usr/bin/printf -s sock -n '%s|' a -- -n -- -v", "/usr/bin/printf '%s|' - -s sock - -n",
        "-n -f '/usr/bin/printf %s: $0 $# \udcff' -s sock"]),
    Same("what fails", "", 1, 0, ["-s sock -- /bin/sleep -v", "-f 'false; exit 4' -s sock"]),
    Same("what the shell cannot find", "", 127, 0, ["-f 'none 1' -s sock -P pid"]),
    Same("what the shell cannot run", APPS, 126, 0, ["-f ./locked -s sock -P pid"]),
    Same("no such file", "", 2, 0, [
        "-s sock -P pid -- ./none", "-n -s sock -- ./none", "-s sock -- sleep 60",
        "-s sock -- -- /bin/sleep 60"]),
    Same("no interpreter", APPS, 2, 0, ["-d dir -p PORT -- dir/app 60", "-s sock -- ./broken"]),
    Same("no shell in the root", NULL, 2, 0, ["-c jail -f '/bin/sleep 60' -p PORT"]),
    Same("no #! line", APPS, 8, 0, ["-s sock -- ./bare", "-n -p PORT -- ./bare"]),
    Same("no executable", APPS, 13, 0, ["-n -s sock -- ./locked", "-P pid -s sock -- /"]),
]
STREAMS = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "3</dev/zero", "4</dev/zero 3<&4"]
STATES = [
    "trap '' HUP INT TERM USR1;", "env --block-signal=HUP,TERM,CHLD", "ulimit -c 8; nice -n 3",
    "umask 0123;", "env LC_ALL=C", "env LANG=C LC_CTYPE=POSIX LC_TIME=C", "env -i", BYTES,
    "env PYTHONPATH=/x PYTHONHOME=/y PYTHONINSPECT=1", USER, "setpriv --groups 7,8",
]
SAME += [Same(f"streams: {how}", f"exec {how};", 0, 1, ["-P pid SOCK"]) for how in STREAMS]
SAME += [
    Same(f"no fork, streams: {how}", f"{OLD} exec {how};", "runs", 1, ["-P pid -n TCP"])
    for how in ("2>&-", "<&- >&- 2>&-", "3</dev/zero 9</dev/zero")
]
SAME += [Same("the caller's state", around, 0, 1, ["SOCK"]) for around in STATES]
SAME += [Same("the caller's state, no fork", around, "runs", 1, ["-n SOCK"]) for around in STATES]
SAME += [Same("a FIFO at -P", "mkfifo pid;", 255, 0, ["-P pid SOCK"])]
SAME += [Same("a link at -P", "ln -s no pid;", 255, 0, ["-P pid SOCK"])]
SAME += [
    Same("a status", OLD, n, 0, [f"-s sock -P pid -- SH 'exit {n}'"]) for n in (0, 3, 125, 255)
]
SAME += [Same("a signal", OLD, 1, 0, [f"-s sock -P pid -- SH 'kill -{n} $$'"]) for n in (1, 9, 15)]
SAME += [
    Same("no fork, a signal", "", -n, 0, [f"-s sock -n -- SH 'echo a; echo b >&2; kill -{n} $$'"])
    for n in (9, 15)
]

DIFFERENT = [
    Different("tries to execute an empty name", ["-s sock -- ''", "-n -s sock -- ''"],
        "", Seen(2, 0, "sock="), Seen(255, 0)),
    Different("1: lists the dead", ["-F 3 -s sock -P pid -- SH 'exit 3'"],
        "", Seen(3, 0, "pid:#0,#1 sock="), Seen(3, 0, "pid: sock=")),
    Different("1: spawns the dead", ["-F 3 -s sock -- SH 'kill -9 $$'", "-F 3 -s sock -- ./none"],
        "", {"out": SPAWNED.format(0) + SPAWNED.format(1)}, {"out": ""}),
    Different("2: empties the PID file", ["-P pid -s none/x APP", "-P pid -u no-one SOCK"],
        OLD, Seen(255, 0, "pid:"), Seen(255, 0, "pid:42,42")),
    Different("4: hangs", ["SOCK"], "full;", Seen(None, 0, "sock="), Seen(255, 0, "sock=")),
    Different("6: does not say what", ["-s sock -- ./none", "-n -s sock -- ./none"],
        "", {"err": "spawn-fcgi: "}, {"err": "./none: No such file"}),
    Different("7: helps", ["-x SOCK", "-s sock -P", "-nx SOCK", "--bad SOCK", "/bin/sleep 60 -s"],
        "", Seen(0, 0), Seen(255, 0)),
    Different("8: is none", ["-F 0 SOCK", "-F -1 SOCK", "-F '' SOCK", "-F x SOCK"],
        "", Seen(0, 0, "sock="), Seen(255, 0)),
    Different("8: is a number", [
        "-F 1x SOCK", "-F 4294967297 SOCK", "-C x SOCK", "-b x SOCK", "-M 888 SOCK",
        "-M 10000 SOCK", "-g 4294967297 SOCK", "-U 4294967295 SOCK"],
        "", Seen(0, 1, "sock="), Seen(255, 0)),
    Different("8: is a port", ["-p -1 APP", "-p WRAP APP"], "", Seen(0, 1), Seen(255, 0)),
    Different("9: leaks", ["SOCK"],
        "exec 9</dev/zero;", {"fds": [{**NULLS, 9: "/dev/zero 0"}]}, {"fds": [NULLS]}),
    Different("11: leaks", ["-c jail TCP"],
        JAIL, {"fds": [{**NULLS, 1: "BASE/out 1", 2: "BASE/err 1"}], "spoke": True},
        {"fds": [NULLS], "spoke": False}),
    Different("12: is silent", [
        "-u daemon SOCK", "-u no-one -g 0 SOCK", "-u '' SOCK", "-c '' SOCK",
        "-c none -S -U root -G 0 -n SOCK"],
        USER, {"spoke": False}, {"spoke": True}),
    Different("13: hides the dead", ["-s sock -- SH 'exit 3'"],
        NO_CHLD, Seen(0, 0, "sock="), Seen(3, 0, "sock=")),
    Different("13: ignores SIGCHLD", ["SOCK"], NO_CHLD, {"ignored": [{17}]}, {"ignored": [set()]}),
    Different("ignores SIGPIPE and SIGXFSZ", ["-n SOCK"],
        "trap '' PIPE XFSZ;", {"ignored": [{13, 25}]}, {"ignored": [set()]}),
    Different("14: follows", ["-P pid SOCK"],
        "touch x; ln -s x pid;", Seen(0, 1, "pid@x sock="), Seen(255, 0, "pid@x")),
    Different("15: overwrites any file", ["-P pid SOCK"],
        "echo mine >pid;", Seen(0, 1, "pid:#0 sock="), Seen(255, 0, "pid:mine")),
    Different("knows no %lo", ["-a fe80::1%lo TCP"], LINK_LOCAL, Seen(255, 0), Seen(0, 1)),
    Different("knows no --help", ["--help"], "", {"spoke": True}, {"spoke": False}),
    Different("heeds POSIX", ["/bin/sleep -s sock 60"],
        "env POSIXLY_CORRECT=1", Seen(255, 0), Seen(0, 1, "sock=")),
    Different("has a path --", ["-s -- APP"], "", Seen(0, 1), Seen(255, 0)),
    Different("sets useless bits", ["-M 7777 SOCK"], "",
        {"left": {"sock": ("srwsrwsrwt", 0, 0, "")}}, {"left": {"sock": ("srwxrwxrwx", 0, 0, "")}}),
    Different("opens the PID file first", ["-P pid -u no-one SOCK"],
        "", Seen(255, 0, "pid:"), Seen(255, 0)),
    Different("2: empties the PID file", ["-P pid SOCK"],
        f"live; {OLD}", Seen(255, 0, "pid: sock="), Seen(255, 0, "pid:42,42 sock=")),
    Different("2: empties the PID file", ["-P pid TCP"],
        f"busy; {OLD}", Seen(255, 0, "pid:"), Seen(255, 0, "pid:42,42")),
    Different("3: deletes a file", ["SOCK"],
        "echo mine >sock;", Seen(0, 1, "sock="), Seen(255, 0, "sock:mine")),
    Different("3: deletes a FIFO", ["SOCK"],
        "mkfifo sock;", Seen(0, 1, "sock="), Seen(255, 0, "sock|")),
    Different("3: deletes a link", ["SOCK"],
        "ln -s no sock;", Seen(0, 1, "sock="), Seen(255, 0, "sock@no")),
    Different("3: deletes a datagram socket", ["SOCK"],
        "dgram;", Seen(0, 1, "sock="), Seen(255, 0, "sock=")),
    Different("3: deletes a socket it may not connect to", ["SOCK"],
        f"live; {USER}", Seen(0, 1, "sock="), Seen(255, 0, "sock=")),
]
SOME = shlex.split("""
-n -nn -S '-F 2' -F3 -nF2 '-M 640' -M0 '-C 4' -C-1 '-P pid' -Ppid '-d /' -dWORK '-b 5' -b-1 -u1
'-u nobody' '-g 54321' '-U daemon' -G1 '-f /bin/false' '-a ::' '-d none' '-P none/pid' '-s none/s'
""")
# fmt: on


class Place:
    """Where one of the two runs: directory, port, and what has to be undone at the end."""

    def __init__(self, tool: str, undo: ExitStack) -> None:
        self.tool, self.undo, self.port = tool, undo, harness.free_port()
        self.pids: list[int] = []
        self.base = pathlib.Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="sf-")))
        self.base.chmod(0o755)
        self.work = self.base / "w"
        self.work.mkdir()

    def hold(self, what: str) -> bool:
        """Make what no line of sh can make, and hold it; say whether it was that."""
        if what not in ("live", "stale", "full", "dgram", "busy"):
            return False
        path, family = str(self.work / "sock"), socket.AF_INET if what == "busy" else socket.AF_UNIX
        kind = socket.SOCK_DGRAM if what == "dgram" else socket.SOCK_STREAM
        sock = self.undo.enter_context(socket.socket(family, kind))
        sock.bind(("0.0.0.0", self.port) if what == "busy" else path)
        if what != "dgram":
            sock.listen(0 if what == "full" else 8)
        if what == "stale":
            sock.close()
        if what == "full":
            self.undo.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        return True

    def start(self, line: str, around: str) -> None:
        """Start the tool in its surroundings."""
        *commands, by = [part for part in around.split(";") if not self.hold(part.strip())]
        values = {"WRAP": self.port + 65536, "PORT": self.port, "WORK": self.work}
        for word, text in {**SHORT, **values}.items():
            line = line.replace(word, str(text))
        script = f"{';'.join(commands)}\nexec {by} {EXEC[5:]}"
        with open(self.base / "out", "wb") as out, open(self.base / "err", "wb") as err:
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
            command = ["/bin/sh", "-ec", script, self.tool, *shlex.split(line)]
            self.process = subprocess.Popen(
                command, cwd=self.work, env=harness.ENVIRONMENT, **streams
            )
        self.undo.callback(self.process.wait)
        self.undo.callback(self.process.kill)

    def plain(self, text: str | bytes) -> str:
        """Return text without what differs from run to run, and of the help the flags alone."""
        plain = os.fsdecode(text).replace(str(self.work), "WORK").replace(str(self.base), "BASE")
        plain = re.sub(rf"\b{self.port}\b", "PORT", plain.replace("WORK/jail/dev/", "/dev/"))
        for index, pid in enumerate(self.pids):
            plain = re.sub(rf"\b{pid}\b", f"#{index}", plain)
        if "Usage:" in plain:
            return " ".join(sorted(re.findall(r"(?m)(?:(?<=^ )-\S|(?<=, )-\w)", plain)))
        return re.sub(r"^(socket|pipe):\[\d+\]$|^spawn-fcgi (v)[\d.]+.*\n", r"\1\2", plain)

    def seen(self, patience: float = 20) -> dict[str, Any]:
        """Wait for the end, or for the application in its place; return all that can be seen."""
        process, left, files = self.process, {}, ""
        with suppress(AssertionError):  # it hangs
            ended = lambda: process.poll() is not None or asleep(process.pid)  # noqa: E731
            wait_for("the tool to end", ended, patience)
        end = "runs" if asleep(process.pid) else process.returncode  # None if it hangs
        out, err = [(self.base / name).read_bytes() for name in ("out", "err")]
        listed = [path.read_bytes() for path in self.work.glob("pid") if path.is_file()]
        told = re.findall(rb"(?m)(?:PID: |^)(\d+)$", b"\n".join([out, *listed]))
        self.pids = [process.pid] if end == "runs" else [*map(int, dict.fromkeys(told))]
        wait_for("exec", lambda: all(asleep(pid) or not alive(pid) for pid in self.pids))
        for path in sorted(self.work.rglob("*")):
            about, text = path.lstat(), os.readlink(path) if path.is_symlink() else ""
            if stat.S_ISREG(about.st_mode) and about.st_size < 5000:
                text = self.plain(path.read_bytes())
            mode = stat.filemode(about.st_mode)
            left[str(path.relative_to(self.work))] = mode, about.st_uid, about.st_gid, text
            if path.name in ("pid", "sock"):  # as `ls -F` has it, and the content
                files += f" {path.name}{':=|@/'['-spld'.index(mode[0])]}{','.join(text.split())}"
        children = [self.inherited(pid) for pid in self.pids if alive(pid)]
        return {
            "end": Seen(end, len(children), files.strip()),
            **{"out": self.plain(out), "err": self.plain(err), "spoke": bool(err), "left": left},
            **{key: [child[key] for child in children] for key in (children or [{}])[0]},
        }

    def inherited(self, pid: int) -> dict[str, Any]:
        """Return the state of a process and of its socket, without what differs by run."""
        found = harness.state(pid)._asdict()
        found["session"] = found["session"] == os.getpgid(pid) == pid
        found["nice"] = os.getpriority(os.PRIO_PROCESS, pid)
        found["rights"] = re.findall(rb"(?m)^(?:Cap|NoNew).*", harness.proc(pid, "status"))
        for name in ("argv", "environ"):
            found[name] = [self.plain(text) for text in found[name]]
        for name in ("cwd", "root", "exe"):
            found[name] = self.plain(os.readlink(f"/proc/{pid}/{name}"))
        inode = re.compile(
            rb"\b%s\b" % (re.sub(r"\D", "", found["fds"].get(0, "")) or "none").encode()
        )
        listed = subprocess.run(["ss", "-Hlxtne"], check=True, capture_output=True).stdout
        rows = [row.split()[:5] for row in listed.splitlines() if inode.search(row)]
        found["socket"] = [[self.plain(word) for word in row] for row in rows]  # backlog, address
        for fd, target in found["fds"].items():
            flags = harness.proc(pid, f"fdinfo/{fd}").partition(b"flags:")[2].split()[0]
            mode = int(flags, 8) & (os.O_ACCMODE | os.O_NONBLOCK)
            found["fds"][fd] = f"{self.plain(target)} {mode}"
        return found


def asleep(pid: int) -> bool:
    """Say whether a process has become `sleep`, and exec(2) is over."""
    with suppress(OSError):
        state = harness.proc(pid, "stat").rpartition(b") ")[2][:1]
        return state == b"S" and os.readlink(f"/proc/{pid}/exe").endswith("sleep")
    return False


def on_both(line: str, around: str = "") -> list[dict[str, Any]]:
    """Run a command line on the C tool and on ours at once; return what is to be seen of each."""
    with ExitStack() as undo:
        places = [Place(tool, undo) for tool in ("/usr/bin/spawn-fcgi", harness.program[0])]
        undo.callback(harness.end_children, but=harness.my_children())
        for place in places:
            place.start(line, around)
        seen = [place.seen(1 if around == "full;" else 20) for place in places]
        known = [pid for place in places for pid in (place.process.pid, *place.pids)]
        assert [pid for pid in harness.my_children() if pid not in known] == []
        return seen


def differences(seen: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is not the same of the two, but for the words of their messages."""
    keys = {key for each in seen for key in each if key != "err"}
    both = {key: [each.get(key) for each in seen] for key in keys}
    return {key: (c, ours) for key, (c, ours) in both.items() if c != ours}


def as_same(row: Same, line: str) -> None:
    """Assert that the two are alike, and end as the row says."""
    c_tool, ours = on_both(line, row.around)
    assert c_tool["end"][:2] == (row.status, row.alive), c_tool["err"]
    assert differences([c_tool, ours]) == {}, ours["err"]


def as_different(row: Different, line: str) -> None:
    """Assert that the two are unlike in just what the row says."""
    both = on_both(line, row.around)
    known = {"end", "left", "out"}
    for seen, expected in zip(both, (row.c_tool, row.ours)):
        if isinstance(expected, Seen):
            assert seen["end"] == expected, seen["err"]
            continue
        known = {*expected}
        for key, value in expected.items():
            if key == "err":
                assert value in seen["err"]
            else:
                assert seen[key] == value, seen["err"]
    if not isinstance(row.c_tool, Seen) or row.c_tool[:2] == row.ours[:2]:  # type: ignore[index]
        assert differences(both).keys() <= known


def lines_of(rows: list[Any]) -> list[Any]:
    """Return a parameter for each line of each row."""
    return [pytest.param(row, at, id=f"{row.claim}: {at:.60}") for row in rows for at in row.lines]


def patiently(check: Callable[[Any, str], None], row: Any, line: str) -> None:
    """Check up to three times: on a loaded machine a child may outlive the grace time."""
    for _ in range(2):
        with suppress(AssertionError):
            check(row, line)
            return
    check(row, line)


@pytest.mark.parametrize(("row", "line"), lines_of(SAME))
def test_the_c_tool_and_ours_do_the_same(row: Same, line: str) -> None:
    if row.alive or row.status == 255:
        as_same(row, line)
    else:
        patiently(as_same, row, line)


@pytest.mark.parametrize(("row", "line"), lines_of(DIFFERENT))
def test_ours_differs_from_the_c_tool_on_purpose(row: Different, line: str) -> None:
    patiently(as_different, row, line)


def test_random_lines_do_the_same() -> None:
    chance = random.Random(SEED)
    for _ in range(LINES):
        tokens = [chance.choice(("-s sock", "-pPORT")), *chance.sample(SOME, chance.randint(1, 6))]
        if mixed := chance.random() < 0.5:
            tokens.insert(chance.randint(0, len(tokens)), "/bin/sleep")
        line = " ".join([*tokens, "60" if mixed else "APP"])
        seen = on_both(line)
        assert differences(seen) == {}, line
