"""The same command lines on the C tool and on ours, in the same surroundings, with the same end."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import socket
import stat
import subprocess
import tempfile
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import harness
import pytest
from harness import alive, wait_for

SHORT = {"SOCK": "-s sock APP", "TCP": "-p PORT APP", "APP": "-- /bin/sleep 60", "SH": "/bin/sh -c"}
# Surroundings: sh in the caller's directory, or Place.hold(), and after the last `;` what runs it.
USER = "chown 65534:65534 .; setpriv --reuid 65534 --regid 65534 --clear-groups"
APPS = r"""mkdir dir; ln -s /bin/sleep dir/app; cp /bin/sleep .; printf '#!/none\n' >broken;
printf 'exec sleep 60\n' >bare; printf '#!/bin/sh\nexec /bin/sleep 60\n' >script; touch locked;
chmod 755 broken bare script;"""
JAIL = """mkdir -p jail/tmp jail/dev;
cp --parents /bin/sleep $(ldd /bin/sleep | grep -o '/[^ ]*') jail;"""
NULL = f"{JAIL} mknod -m 666 jail/dev/null c 1 3;"
TOOL = '"$0" "$@"'
LO = "ip link set lo up && ip addr add fe80::1/64 dev lo nodad"
LINK_LOCAL = f"unshare -n sh -c '{LO} && exec {TOOL}'"
OLD = "printf '42 42' >pid; chmod 600 pid;"
DIR, CLOSED = "mkdir dir;", "mkdir -m 0 dir;"
BYTES = "env N=\udcff\udcfe E= PHP_FCGI_CHILDREN=9 A=="
NO_CHLD = "env --ignore-signal=CHLD"
X107 = "x" * 107
KINDS = {"-": ":", "s": "=", "p": "|", "l": "@", "d": "/"}  # after a name, as `ls -F` has them
SPAWNED = "spawn-fcgi: child spawned successfully: PID: #{}\n"
NULLS = {0: "socket 2", 1: "/dev/null 2", 2: "/dev/null 2"}


class Row(NamedTuple):
    """Command lines, and what the two are to show of what Place.seen() returns."""

    claim: str  # README numbers the differences
    around: str  # what runs before, and with, the tool: see Place.start()
    c_tool: dict[str, Any]
    ours: dict[str, Any]
    lines: list[str]


def ends(status: int | None, alive: int, files: str = "") -> dict[str, Any]:
    """Say how one of the two ends, or hangs (None): with what children, and what at -P and -s."""
    return {"end": status, "alive": alive, "files": files}


def same(claim: str, around: str, status: int | str, alive: int, lines: list[str]) -> Row:
    """Return a row of lines that end the same with both, or go on by -n ("runs")."""
    expected = {"end": status, "alive": alive}
    return Row(claim, around, expected, expected, lines)


# fmt: off
SAME = [
    same("a port or an address", "", 0, 1, [
        "TCP", "-pPORT APP", "-p ' PORT' APP", "'-p PORT' APP", "-p +PORT APP", "-p 0PORT APP",
        "-p 1 TCP", "-M 0777 TCP", "-a 127.0.0.1 TCP", "-a127.0.0.2 -pPORT APP", "-a 0.0.0.0 TCP",
        "-a :: TCP", "-p PORT -a ::1 APP", "-a 10.0.0.300 -a 127.0.0.1 TCP", "-a x SOCK"]),
    same("a path or a mode", "", 0, 1, [
        "SOCK", "-ssock APP", "-s WORK/sock APP", "-s 's k' APP", "-s -x APP", "-s --help APP",
        "-s s\udcff APP", "-s söck APP", "-s x SOCK", f"-s {X107} APP", "-M 0777 SOCK",
        "-M 640 SOCK", "-M0600 SOCK", "-M 0 SOCK", "-M 6 -M ' 66' SOCK"]),
    same("a umask", "umask 077;", 0, 1, ["SOCK", "-M 0666 SOCK", "-P pid SOCK"]),
    same("a stale socket is replaced", "stale;", 0, 1, ["SOCK", "-M 0600 SOCK"]),
    same("an empty file is replaced", "touch sock;", 0, 1, ["SOCK"]),
    same("a directory", DIR, 0, 1, ["-d dir SOCK", "-d / -dWORK/dir TCP", "-ddir -P pid SOCK"]),
    same("files", APPS, 0, 1, [
        "-d dir -p PORT -- app 60", "-d dir -p PORT -- ./app 60", "-s sock -- sleep 60",
        "-s sock -- ./script", "-f ./script -p PORT"]),
    same("PHP's children, or a backlog", "", 0, 1, [
        "-F 1 SOCK", "-C 0 SOCK", "-C5 TCP", "-C-1 -C 007 SOCK", "-b 5 SOCK", "-b 0 TCP",
        "-b -1 TCP", "-b-2 SOCK", "-b 2147483647 TCP"]),
    same("PHP's children, and the caller's", BYTES, 0, 1, ["-C 2 SOCK", "-C -1 SOCK"]),
    same("PID files", "", 0, 1, ["-P pid SOCK", "-P x -Ppid TCP", "-P -n SOCK", "-P p\udcfe SOCK"]),
    same("an old PID file", OLD, 0, 1, ["-P pid SOCK", "-P ./pid TCP"]),
    same("words among options, or a shell line", "", 0, 1, [
        "-s sock /bin/sleep 60", "/bin/sleep -s sock 60", "/bin/sleep -s sock -- 60",
        "/bin/sleep 60 -s sock --", "-s x -- /bin/sleep -- 60", "-f '/bin/sleep 60' -s sock",
        "-f'/bin/sleep 50' -p PORT", "-f /bin/no SOCK",
        "-f '/bin/sleep $((20+30)) # $0' -s sock --", "-f -n -f 'sleep 50' -s sock"]),
    same("a user or an owner", "", 0, 1, [
        "-g nogroup TCP", "-u nobody SOCK", "-u 65534 -P pid SOCK", "-u 54321 SOCK", "-u ' 1' TCP",
        "-u 1 -g nogroup SOCK", "-u 54321 -g 54321 SOCK", "-u 1 -u nobody -g 1 -g 2 SOCK",
        "-U nobody SOCK", "-G nogroup SOCK", "-U daemon -G nogroup -M 0600 SOCK", "-U 54321 SOCK",
        "-u daemon -U nobody SOCK", "-u daemon -G nogroup SOCK"]),
    same("groups", "setpriv --groups 7", 0, 1, ["-u daemon SOCK", "-g daemon SOCK", "-U 1 SOCK"]),
    same("the socket is made as root", CLOSED, 0, 1, ["-u daemon -s dir/sock APP"]),
    same("a root", NULL, 0, 1, [
        "-c jail -s /sock APP", "-c WORK/jail -P pid SOCK", "-cjail -S SOCK",
        "-S -c jail -s WORK/sock -u 1 -U nobody APP", "-c jail -d tmp -u daemon SOCK"]),
    same("a user's", f"stale; chown 65534 sock; {USER}", 0, 1, ["-M0600 -Ppid SOCK", "-P pid TCP"]),
    same("two", "", 0, 2, ["-F 2 SOCK", "-F ' 2' -P pid TCP", "-F 3 -F2 SOCK", "-C5 -F 2 -u1 TCP"]),
    same("three", OLD, 0, 3, ["-F3 -P WORK/pid TCP", "-F 3 -f '/bin/sleep 60' -s sock -P pid"]),
    same("no fork", "", "runs", 1, [
        "-n -n SOCK", "-nn TCP", "-nssock APP", "/bin/sleep 60 -s sock -n",
        "/bin/sleep -s sock -F 2 40 -n 20", "-nF4 SOCK", "-C 3 -n SOCK",
        "-a :: -b 5 -b 7 -nF 2 TCP", "-P none/pid -n SOCK", "-f '/bin/sleep 50' -n -s sock",
        "-u1 -g 65534 -n SOCK"]),
    same("no fork in a root without /dev/null", JAIL, "runs", 1, ["-c jail -n -d /tmp SOCK"]),
    same("too little or too much", "", 255, 0, [
        "", "--", "-n", "-p PORT", "-s sock --", "APP", "-f '/bin/sleep 60'",
        "-p PORT -s sock -n APP", "-s sock TCP"]),
    same("no address or no port", "", 255, 0, [
        "-a 192.0.2.1 TCP", "-a 2001:db8::1 TCP", "-a localhost TCP", "-a '' TCP",
        "-a ' 127.0.0.1' TCP", "-a [::1] TCP", "-a 10.0.0.300 TCP", "-a 127.1 TCP", "-a 0 TCP",
        "-a 010.0.0.1 TCP", "-a PORT TCP", "-p 0 APP", "-p '' APP", "-p PORTx APP", "-p x APP"]),
    same("no path", "", 255, 0, [
        f"-s {X107}x APP", "-s '' APP", "-s none/sock APP", "-P none/pid SOCK", "-P '' SOCK",
        "-d none SOCK", "-d '' -P pid SOCK", "-P pid -d none SOCK", "-c '' TCP", "-c none SOCK",
        "-c none -S SOCK"]),
    same("taken", "busy;", 255, 0, ["TCP", "-a 127.0.0.1 -n TCP"]),
    same("in use", "live;", 255, 0, ["SOCK", "-n SOCK"]),
    same("a FIFO at -P", "mkfifo pid;", 255, 0, ["-P pid SOCK"]),
    same("a link at -P", "ln -s no pid;", 255, 0, ["-P pid SOCK"]),
    same("a directory out of reach", CLOSED, 255, 0, ["-u daemon -d dir -P pid SOCK"]),
    same("no access", f"{CLOSED}{USER}", 255, 0, ["-s dir/x APP", "-P dir/x SOCK", "-d dir SOCK"]),
    same("who", "", 255, 0, [
        "-u root SOCK", "-u 0 SOCK", "-g root SOCK", "-g 0 SOCK", "-U root SOCK", "-U 0 SOCK",
        "-G root SOCK", "-G 0 SOCK", "-u no SOCK", "-g no SOCK", "-U no SOCK", "-G no SOCK",
        "-u '' SOCK", "-g '' SOCK", "-u 4294967296 SOCK", "-u no -c none -S SOCK"]),
    same("no right to chown", "setpriv --bounding-set -chown", 255, 0, ["-U daemon SOCK"]),
    same("help and version", "", 0, 0, [
        "-h", "-?", "-hn", "-h -v", "-v", "-v -h", "-version", "-nv", "-v SOCK"]),
    same("byte for byte", "", 0, 0, [
        "-s sock -n -- /usr/bin/printf '%s|' '' ' ' -- --help -s '\udcff' ü",
        "/usr/bin/printf -s sock -n '%s|' a -- -n -- -v", "/usr/bin/printf '%s|' - -s sock - -n",
        "-n -f '/usr/bin/printf %s: $0 $# \udcff' -s sock"]),
    same("what fails", "", 1, 0, ["-s sock -- /bin/sleep -v", "-f 'false; exit 4' -s sock"]),
    same("SIGKILL, no fork", "", -9, 0, ["-s sock -n -- SH 'echo a; echo b >&2; kill -9 $$'"]),
    same("SIGTERM, no fork", "", -15, 0, ["-s sock -n -- SH 'echo a; echo b >&2; kill -15 $$'"]),
    same("what the shell cannot find", "", 127, 0, ["-f 'none 1' -s sock -P pid"]),
    same("what the shell cannot run", APPS, 126, 0, ["-f ./locked -s sock -P pid"]),
    same("no such file", "", 2, 0, [
        "-s sock -P pid -- ./none", "-n -s sock -- ./none", "-s sock -- sleep 60",
        "-s sock -- -- /bin/sleep 60"]),
    same("no interpreter", APPS, 2, 0, ["-d dir -p PORT -- dir/app 60", "-s sock -- ./broken"]),
    same("no shell in the root", NULL, 2, 0, ["-c jail -f '/bin/sleep 60' -p PORT"]),
    same("no #! line", APPS, 8, 0, ["-s sock -- ./bare", "-n -p PORT -- ./bare"]),
    same("no executable", APPS, 13, 0, ["-n -s sock -- ./locked", "-P pid -s sock -- /"]),
]
STREAMS = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "3</dev/zero", "4</dev/zero 3<&4"]
STATES = [
    "trap '' HUP INT TERM USR1;", "env --block-signal=HUP,TERM,CHLD", "ulimit -c 8; nice -n 3",
    "umask 0123;", "env LC_ALL=C", "env LANG=C LC_CTYPE=POSIX LC_TIME=C", "env -i", BYTES,
    "env PYTHONPATH=/x PYTHONHOME=/y PYTHONINSPECT=1", USER, "setpriv --groups 7,8",
]
SAME += [same(f"streams: {how}", f"exec {how};", 0, 1, ["-P pid SOCK"]) for how in STREAMS]
SAME += [
    same(f"no fork, streams: {how}", f"{OLD} exec {how};", "runs", 1, ["-P pid -n TCP"])
    for how in ("2>&-", "<&- >&- 2>&-", "3</dev/zero 9</dev/zero")
]
SAME += [same("the caller's state", around, 0, 1, ["SOCK"]) for around in STATES]
SAME += [same("the caller's state, no fork", around, "runs", 1, ["-n SOCK"]) for around in STATES]
SAME += [same("status", OLD, n, 0, [f"-s sock -P pid -- SH 'exit {n}'"]) for n in (0, 3, 125, 255)]
SAME += [same("a signal", OLD, 1, 0, [f"-s sock -P pid -- SH 'kill -{n} $$'"]) for n in (1, 9, 15)]

STARTS, NONE_LEFT, REFUSES = ends(0, 1, "sock="), ends(0, 0, "sock="), ends(255, 0)
DIFFERENT = [
    Row("executes ''", "", ends(2, 0, "sock="), REFUSES, ["-s sock -- ''", "-n -s sock -- ''"]),
    Row("1: lists the dead", "", ends(3, 0, "pid:#0,#1 sock="), ends(3, 0, "pid: sock="), [
        "-F 3 -s sock -P pid -- SH 'exit 3'"]),
    Row("1: spawns the dead", "", {"out": SPAWNED.format(0) + SPAWNED.format(1)}, {"out": ""}, [
        "-F 3 -s sock -- SH 'kill -9 $$'", "-F 3 -s sock -- ./none"]),
    Row("2: empties the PID file", OLD, ends(255, 0, "pid:"), ends(255, 0, "pid:42,42"), [
        "-P pid -s none/x APP", "-P pid -u no-one SOCK"]),
    Row("2: empties the PID file of whoever has the path", f"live; {OLD}",
        ends(255, 0, "pid: sock="), ends(255, 0, "pid:42,42 sock="), ["-P pid SOCK"]),
    Row("2: empties the PID file of whoever has the port", f"busy; {OLD}",
        ends(255, 0, "pid:"), ends(255, 0, "pid:42,42"), ["-P pid TCP"]),
    Row("3: deletes a file", "echo mine >sock;", STARTS, ends(255, 0, "sock:mine"), ["SOCK"]),
    Row("3: deletes a FIFO", "mkfifo sock;", STARTS, ends(255, 0, "sock|"), ["SOCK"]),
    Row("3: deletes a link", "ln -s no sock;", STARTS, ends(255, 0, "sock@no"), ["SOCK"]),
    Row("3: deletes a datagram socket", "dgram;", STARTS, ends(255, 0, "sock="), ["SOCK"]),
    Row("3: deletes another's socket", f"live; {USER}", STARTS, ends(255, 0, "sock="), ["SOCK"]),
    Row("4: hangs", "full;", ends(None, 0, "sock="), ends(255, 0, "sock="), ["SOCK"]),
    Row("6: does not say what", "", {"err": "spawn-fcgi: "}, {"err": "./none: No such file"}, [
        "-s sock -- ./none", "-n -s sock -- ./none"]),
    Row("7: helps", "", ends(0, 0), REFUSES, [
        "-x SOCK", "-s sock -P", "-nx SOCK", "--bad SOCK", "/bin/sleep 60 -s"]),
    Row("8: is none", "", NONE_LEFT, REFUSES, [
        "-F 0 SOCK", "-F -1 SOCK", "-F '' SOCK", "-F x SOCK"]),
    Row("8: is a number", "", STARTS, REFUSES, [
        "-F 1x SOCK", "-F 4294967297 SOCK", "-C x SOCK", "-b x SOCK", "-M 888 SOCK",
        "-M 10000 SOCK", "-g 4294967297 SOCK", "-U 4294967295 SOCK"]),
    Row("8: is a port", "", ends(0, 1), REFUSES, ["-p -1 APP", "-p WRAP APP"]),
    Row("9: leaks", "exec 9<.;", {"fds": [{**NULLS, 9: "WORK 0"}]}, {"fds": [NULLS]}, ["SOCK"]),
    Row("11: leaks", JAIL, {"fds": [{**NULLS, 1: "BASE/out 1", 2: "BASE/err 1"}], "spoke": True},
        {"fds": [NULLS], "spoke": False}, ["-c jail TCP"]),
    Row("12: is silent", USER, {"spoke": False}, {"spoke": True}, [
        "-u daemon SOCK", "-u no-one -g 0 SOCK", "-u '' SOCK", "-c '' SOCK",
        "-c none -S -U root -G 0 -n SOCK"]),
    Row("13: hides the dead", NO_CHLD, NONE_LEFT, ends(3, 0, "sock="), ["-s sock -- SH 'exit 3'"]),
    Row("13: ignores SIGCHLD", NO_CHLD, {"ignored": [{17}]}, {"ignored": [set()]}, ["SOCK"]),
    Row("14: follows", "touch x; ln -s x pid;",
        ends(0, 1, "pid@x sock="), ends(255, 0, "pid@x"), ["-P pid SOCK"]),
    Row("15: overwrites any file", "echo mine >pid;",
        ends(0, 1, "pid:#0 sock="), ends(255, 0, "pid:mine"), ["-P pid SOCK"]),
    Row("ignores SIGPIPE and SIGXFSZ", "trap '' PIPE XFSZ;",
        {"ignored": [{13, 25}]}, {"ignored": [set()]}, ["-n SOCK"]),
    Row("knows no %lo", LINK_LOCAL, REFUSES, ends(0, 1), ["-a fe80::1%lo TCP"]),
    Row("knows no --help", "", {"spoke": True}, {"spoke": False}, ["--help"]),
    Row("heeds POSIX", "env POSIXLY_CORRECT=1", REFUSES, STARTS, ["/bin/sleep -s sock 60"]),
    Row("has a path --", "", ends(0, 1), REFUSES, ["-s -- APP"]),
    Row("sets useless bits", "", {"left": {"sock": ("srwsrwsrwt", 0, 0, "")}},
        {"left": {"sock": ("srwxrwxrwx", 0, 0, "")}}, ["-M 7777 SOCK"]),
    Row("opens the PID file first", "", ends(255, 0, "pid:"), REFUSES, ["-P pid -u no-one SOCK"]),
]
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
        if what == "busy":
            self.undo.enter_context(socket.create_server(("", self.port)))
            return True
        kind = socket.SOCK_DGRAM if what == "dgram" else socket.SOCK_STREAM
        held = self.undo.enter_context(socket.socket(socket.AF_UNIX, kind))
        held.bind(str(self.work / "sock"))
        if what in ("live", "full"):  # what does not listen is stale
            held.listen(0 if what == "full" else 8)
        if what == "full":
            self.undo.enter_context(socket.socket(socket.AF_UNIX)).connect(held.getsockname())
        return True

    def start(self, line: str, around: str) -> None:
        """Start the tool in its surroundings."""
        *commands, by = [part for part in around.split(";") if not self.hold(part.strip())]
        values = {"WRAP": self.port + 65536, "PORT": self.port, "WORK": self.work}
        for word, text in {**SHORT, **values}.items():
            line = line.replace(word, str(text))
        streams = "exec </dev/null >../out 2>../err"
        script = f"{streams}\n{';'.join(commands)}\nexec {by} {TOOL}"
        command = ["/bin/sh", "-ec", script, self.tool, *shlex.split(line)]
        self.process = subprocess.Popen(command, cwd=self.work, env=harness.ENVIRONMENT)
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

    def seen(self, patience: float) -> dict[str, Any]:
        """Wait for the end, or for the application in its place; return all that can be seen."""
        process, left, files = self.process, {}, []
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
            if path.name in ("pid", "sock"):
                files.append(path.name + KINDS[mode[0]] + ",".join(text.split()))
        children = [self.inherited(pid) for pid in self.pids if alive(pid)]
        seen = {"end": end, "alive": len(children), "files": " ".join(files), "left": left}
        seen.update(out=self.plain(out), err=self.plain(err), spoke=bool(err))
        if children:
            seen.update({key: [child[key] for child in children] for key in children[0]})
        return seen

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
        inode = re.sub(r"\D", "", found["fds"].get(0, "")) or "none"
        listed = subprocess.run(["ss", "-Hlxtne"], check=True, capture_output=True).stdout
        rows = [row for row in os.fsdecode(listed).splitlines() if re.search(rf"\b{inode}\b", row)]
        # Its kind, state, queue and backlog as they are, as a PID may be the same number; address.
        found["socket"] = [[*row.split()[:4], self.plain(row.split()[4])] for row in rows]
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


def on_both(line: str, around: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a command line on the C tool and on ours at once; return what is to be seen of each."""
    with ExitStack() as undo:
        c_tool, ours = (Place(tool, undo) for tool in ("/usr/bin/spawn-fcgi", harness.program[0]))
        undo.callback(harness.end_children, but=harness.my_children())
        for place in (c_tool, ours):
            place.start(line, around)
        patience = 1 if around == "full;" else 20
        seen = c_tool.seen(patience), ours.seen(patience)
        known = [c_tool.process.pid, *c_tool.pids, ours.process.pid, *ours.pids]
        assert [pid for pid in harness.my_children() if pid not in known] == []
        return seen


def differences(c_tool: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Return what is not the same of the two, but for the words of their messages."""
    keys = {*c_tool, *ours} - {"err"}
    both = {key: (c_tool.get(key), ours.get(key)) for key in keys}
    return {key: (one, other) for key, (one, other) in both.items() if one != other}


def check(row: Row, line: str) -> None:
    """Assert that both show what the row says, and that nothing else differs if both end alike."""
    both = on_both(line, row.around)
    for seen, expected in zip(both, (row.c_tool, row.ours)):
        for key, value in expected.items():
            found = value in seen[key] if key == "err" else value == seen[key]
            assert found, (key, value, seen[key], seen["err"])
    unlike = differences(*both)
    known = {*differences(row.c_tool, row.ours)}
    if "files" in known:  # then so is all that is left, and what is said of it
        known |= {"left", "out"}
    if not known & {"end", "alive"}:
        assert {key: unlike[key] for key in {*unlike} - known} == {}, both[1]["err"]


def patiently(row: Row, line: str) -> None:
    """Check up to three times: on a loaded machine a child may outlive the grace time."""
    for _ in range(2):
        with suppress(AssertionError):
            check(row, line)
            return
    check(row, line)


def lines_of(rows: list[Row]) -> pytest.MarkDecorator:
    """Return a parameter for each line of each row."""
    lines = [pytest.param(row, at, id=f"{row.claim}: {at:.60}") for row in rows for at in row.lines]
    return pytest.mark.parametrize(("row", "line"), lines)


@lines_of(SAME)
def test_the_c_tool_and_ours_do_the_same(row: Row, line: str) -> None:
    may_die_late = row.ours["alive"] == 0 and row.ours["end"] != 255
    (patiently if may_die_late else check)(row, line)


@lines_of(DIFFERENT)
def test_ours_differs_from_the_c_tool_on_purpose(row: Row, line: str) -> None:
    patiently(row, line)
