"""Users, groups and the chroot: who the application is, and who owns its socket."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import pytest
from harness import NOBODY, as_user, assert_refused, connects, run, state
from test_app_state import MODES, application, inheriting, libc

ROOT = pytest.mark.root
# Users and groups that no machine has: mounted over its own.
PASSWD = "root:x:0:0::/:\ntoor:x:0:4201::/:\napp:x:4101:4201::/:\nother:x:4102:4202::/:\n"
PASSWD += "rootgroup:x:4103:0::/:\n4104:x:4105:4205::/:\n9user:x:4106:4206::/:\n"
GROUP = "root:x:0:\nwheel:x:0:app\napp:x:4201:\nother:x:4202:\nextra:x:4301:app\n"
GROUP += "more:x:4302:other,app\n4304:x:4305:\n9group:x:4306:\n"
FILES = ["group", "passwd"]
SHOW = ("-n", "--", "/bin/cat", "/proc/self/status")
TOUCH = ("-n", "--", "/bin/touch", "spawned")
CLONE_NEWNS, CLONE_NEWNET, MS_BIND, MS_REC_PRIVATE = 0x20000, 0x40000000, 0x1000, 0x44000
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2


def call(function: str, *args: Any) -> None:
    """Call a function of the C library that Python has not."""
    assert getattr(libc, function)(*args) == 0, function


def accounts(work: Path, *also: Callable[[], None], **more: Any) -> dict[str, Any]:
    """Return what makes run() and popen() know these users only, and call these before."""
    (work / "passwd").write_text(PASSWD)
    (work / "group").write_text(GROUP)

    def prepare() -> None:
        call("unshare", CLONE_NEWNS)
        call("mount", b"none", b"/", None, MS_REC_PRIVATE, None)
        for name in FILES:
            call("mount", os.fsencode(work / name), b"/etc/" + name.encode(), None, MS_BIND, None)
        for function in also:
            function()

    return {"preexec_fn": prepare, "extra_groups": [7, 8], "cwd": work, **more}


def ids(status: bytes) -> list[list[int]]:
    """Return real, effective, saved and file system uids, the gids and the groups."""
    lines = re.findall(rb"^(?:Uid|Gid|Groups):(.*)$", status, re.M)
    return [[*map(int, line.split())] for line in lines]


# Options; uid, gid and groups of the application; uid and gid of the socket.
NO, APP, ID, MAX_ID = "0 0 7 8", "4101 4201 0 4201 4301 4302", "4199 4201", 2**32 - 2
IDENTITIES = [("", NO, "0 0"), ("-U 4199", NO, "4199 0"), ("-G extra", NO, "0 4301")]
IDENTITIES += [("-u app", APP, "4101 4201"), ("-u +004101 -S", APP, "4101 4201")]
IDENTITIES += [("-u 4199", "4199 0 7 8", "4199 0"), ("-u 4199 -g app", ID, "4199 4201")]
IDENTITIES += [("-u app -g other", "4101 4202 0 4202 4301 4302", "4101 4202")]
IDENTITIES += [("-u 4102 -g 4399", "4102 4399 4302 4399", "4102 4399"), ("-U app", NO, "4101 4201")]
IDENTITIES += [("-g other", "0 4202", "0 4202"), ("-u 4104 -g 4304", "4104 4304", "4104 4304")]
IDENTITIES += [("-u 9user -g 9group", "4106 4306 4306", "4106 4306")]
IDENTITIES += [("-u rootgroup -g app", "4103 4201 4201", "4103 4201")]
IDENTITIES += [(f"-u {MAX_ID} -g app -U 4198 -G more", f"{MAX_ID} 4201", "4198 4302")]
IDENTITIES += [("-u 7 -u 4199 -g app -U other -S", ID, "4102 4202")]
IDENTITIES += [("-u 4199 -g app -G extra -U rootgroup", ID, "4103 4301")]


@ROOT
@pytest.mark.parametrize(("options", "app", "socket"), IDENTITIES)
def test_application_and_socket_have_just_the_ids_and_groups_asked_for(
    options: str, app: str, socket: str, work: Path
) -> None:
    result = run("-s", "s", *options.split(), *SHOW, **accounts(work))
    uid, gid, *groups = map(int, app.split())
    assert ids(result.out) == [[uid] * 4, [gid] * 4, groups], result
    found = (work / "s").stat()
    assert f"{found.st_uid} {found.st_gid}" == socket
    # A number that is no user's drops but the user, which is said.
    assert re.findall(r"\d+", result.err.decode()) == (["4199"] if options == "-u 4199" else [])


BAD = ["", "nosuch", "root", "0", "4294967295", "-1"]
REFUSED = [(option, value) for option in ("-u", "-g", "-U", "-G") for value in BAD]
REFUSED += [(option, value) for option in ("-u", "-U") for value in ("toor", "rootgroup", "4103")]
REFUSED += [("-g", "wheel"), ("-G", "wheel"), ("-u", "extra"), ("-g", "toor"), ("-u", "12x")]
REFUSED += [("-g", "+00"), ("-u", "9" * 5000), ("-g", "4_1"), ("-U", "1 "), ("-u", "\u0664\udcff")]


@ROOT
@pytest.mark.parametrize(("option", "value"), REFUSED, ids=lambda text: ascii(text[:9])[1:-1])
def test_nobody_and_root_are_refused(option: str, value: str, work: Path) -> None:
    good = ["-u", "app", "-U", "app"] if option in "-g -G" else []  # they do not excuse it
    args = ["-s", "s", "-P", "pids", "-S", *good, option, value, *TOUCH]
    assert_refused(run(*args, **accounts(work)), option, value)
    assert sorted(os.listdir(work)) == FILES


IDLE = ["", "-c /none", "-S", "-u nosuch", "-g 0", "-U 4294967296", "-G root", "-u _", "-S -g _"]


@pytest.mark.parametrize("line", [*IDLE, "-u 0 -g _ -U root -G -1 -c _ -S"])
def test_what_is_for_root_has_no_effect_for_others_but_a_warning(line: str, work: Path) -> None:
    work.chmod(0o777)
    options = [word.replace("_", "") for word in line.split()]
    result = run("-s", work / "s", *options, *SHOW, **as_user())
    uid = NOBODY if os.getuid() == 0 else os.getuid()
    assert (result.status, ids(result.out)[0]) == (0, [uid] * 4)
    assert ((work / "s").stat().st_uid, len(result.lines)) == (uid, 1 if options else 0)
    named = re.findall(r" (-\w)\b", result.err.decode())
    assert sorted(named) == sorted({*options} & {"-c", "-S", "-u", "-g", "-U", "-G"})


IDS = {"set-uid-root": (0, NOBODY, 255), "set-uid": (4101, NOBODY, 255)}
IDS = {**IDS, "set-gid": (NOBODY, 4201, 255), "root-with-a-group-of-its-own": (-1, 4201, 0)}


@ROOT
@pytest.mark.parametrize(("uid", "gid", "status"), IDS.values(), ids=IDS)
def test_set_uid_and_set_gid_are_refused(uid: int, gid: int, status: int, work: Path) -> None:
    def change() -> None:
        os.setresgid(NOBODY if uid >= 0 else 0, gid, gid)
        os.setresuid(NOBODY if uid >= 0 else 0, uid, uid)

    work.chmod(0o777)
    assert run("-s", "s", *TOUCH, cwd=work, preexec_fn=change).status == status
    assert sorted(os.listdir(work)) == (["s", "spawned"] if status == 0 else [])


@ROOT
@MODES
@pytest.mark.parametrize(("where", "options"), [("jail/s", ""), ("s", "-S -d srv")])
def test_an_empty_root_is_enough(mode: str, where: str, options: str, work: Path) -> None:
    jail = work / "jail"
    (jail / "srv").mkdir(parents=True)
    ldd = subprocess.run(["ldd", "/bin/sleep"], check=True, capture_output=True, text=True)
    for path in ["/bin/sleep", *re.findall(r"(/\S+) \(0x", ldd.stdout)]:
        (jail / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, jail / path[1:])
    caller = accounts(work, inheriting(3, 50, 700), close_fds=False)
    made = {*work.rglob("*"), work / where, *([work / "pids"] if mode == "fork" else [])}
    args = ["-c", "jail", "-s", "s", "-u", "app", "-P", "pids", *options.split()]
    with application(mode, *args, **caller) as pid:
        seen = state(pid)
        assert [seen.uids, seen.gids, seen.groups] == [
            [4101] * 4,
            [4201] * 4,
            [0, 4201, 4301, 4302],
        ]
        places = {"root": jail, "cwd": jail / options[6:]}
        if mode == "fork":
            places |= {"fd/1": Path("/dev/null"), "fd/2": Path("/dev/null")}
            assert set(seen.fds) == {0, 1, 2}
        for name, expected in places.items():  # by name it differs where we are in a chroot
            assert os.path.samefile(f"/proc/{pid}/{name}", expected), name
        assert connects(work / where)
        if mode == "fork":
            assert ((work / "pids").read_text(), (work / "pids").stat().st_uid) == (str(pid), 0)
    assert {*work.rglob("*")} == made


@ROOT
@pytest.mark.parametrize(("options", "status"), [("", 0), ("-u 4101", 255), ("-u 4199 -g 4202", 0)])
def test_d_is_entered_as_the_user(options: str, status: int, work: Path, port: str) -> None:
    (work / "d").mkdir()
    os.chown(work / "d", 0, 4202)
    (work / "d").chmod(0o710)
    result = run("-p", port, "-d", "d", *options.split(), *SHOW, **accounts(work))
    assert (result.status, b"'d'" in result.err) == (status, status != 0)


@ROOT
def test_a_port_of_roots_is_bound_for_a_user(work: Path) -> None:
    own_network = accounts(work, lambda: call("unshare", CLONE_NEWNET))
    assert ids(run("-p", "80", "-u", "app", *SHOW, **own_network).out)[0] == [4101] * 4


# Numbers of a system call on x86_64 and on newer machines; options; what is said; what is left.
CALLS: list[Any] = [
    pytest.param([106], [144], "-g 4202", "group 4202: denied", [], id="setgid", marks=ROOT),
    pytest.param([116], [159], "-g 4202", "groups: denied", [], id="setgroups", marks=ROOT),
    pytest.param([161], [51], "-c /tmp", "'/tmp': denied", [], id="chroot", marks=ROOT),
    pytest.param([260], [54], "-U 4202", "owner or mode of s: denied", [], id="chown", marks=ROOT),
    pytest.param(
        [87, 260, 263],
        [35, 54],
        "-U 4202",
        "owner or mode of s: denied",
        ["s"],
        id="chown, and then unlink",
        marks=ROOT,
    ),
    pytest.param([105], [146], "-u 4101", "user 4101: denied", ["s"], id="setuid", marks=ROOT),
    pytest.param([50], [201], "", "listen on s: denied", [], id="listen"),
    pytest.param(
        [92, 93, 94, 260], [54, 55], "", "", ["s", "spawned"], id="chown-nobody-asked-for"
    ),
]


@pytest.mark.parametrize(("old", "new", "options", "named", "left"), CALLS)
def test_a_forbidden_call_ends_the_start(
    old: list[int], new: list[int], options: str, named: str, left: list[str], work: Path
) -> None:
    rows = [(0x20, 0, 0, 0)]  # seccomp(2): load the number; for each that is equal, return EPERM
    for number in old if platform.machine() == "x86_64" else new:
        rows += [(0x15, 0, 1, number), (0x06, 0, 0, 0x50001)]
    code = b"".join(struct.pack("HBBI", *row) for row in [*rows, (0x06, 0, 0, 0x7FFF0000)])
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HP", len(rows) + 1, ctypes.addressof(buffer))

    def forbid() -> None:
        call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)

    result = run("-s", "s", *options.split(), *TOUCH, cwd=work, preexec_fn=forbid)
    assert sorted(os.listdir(work)) == left
    assert result.status == (0 if "spawned" in left else 255)
    assert named in result.err.decode().replace("Operation not permitted", "denied")


@ROOT
def test_a_user_is_found_by_the_bytes_of_its_name(work: Path) -> None:
    harness.make_latin_1(work)
    caller = accounts(work, env={"LC_ALL": "Latin-1", "LOCPATH": str(work)})
    for name, line in ("passwd", b"\xfcser:x:4107:4207::/:\n"), ("group", b"of:x:4307:\xfcser\n"):
        with (work / name).open("ab") as file:
            file.write(line)
    result = run("-s", "s", "-u", b"\xfcser", *SHOW, **caller)
    assert ids(result.out) == [[4107] * 4, [4207] * 4, [4207, 4307]], result
