"""Users, groups and the chroot: who the application is, and who owns its socket."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import struct
import subprocess
from pathlib import Path

import harness
import pytest
from harness import MODES, NOBODY, accounts, application, assert_refused, call, connects, run, state

ROOT = pytest.mark.root
SHOW = ("-n", "--", "/bin/cat", "/proc/self/status")
TOUCH = ("-n", "--", "/bin/touch", "spawned")
CLONE_NEWNET = 0x40000000
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
Ids = tuple[int, int, list[int]]  # uid, gid and groups of an application


def ids(status: bytes) -> Ids:
    """Return the ids of a /proc/<pid>/status, each the same in all of its four kinds."""
    lines = re.findall(rb"^(?:Uid|Gid|Groups):(.*)$", status, re.M)
    uids, gids, groups = ([*map(int, line.split())] for line in lines)
    assert (uids, gids) == (uids[:1] * 4, gids[:1] * 4), "real, effective, saved, file system"
    return uids[0], gids[0], groups


CALLER, APP = (0, 0, [7, 8]), (4101, 4201, [0, 4201, 4301, 4302])
MAX = 2**32 - 2  # the highest id
# Options, the ids of the application, those of the socket, the warning: see harness.PASSWD, GROUP.
IDENTITIES = [
    ("owner-with-an-id-of-nobody", "-U 4199", CALLER, (4199, 0), ""),
    ("owner-brings-its-group", "-U app", CALLER, (4101, 4201), ""),
    ("owning-group", "-G extra", CALLER, (0, 4301), ""),
    ("user-brings-its-groups", "-u app", APP, (4101, 4201), ""),
    ("id-of-a-user-does-too", "-u +004101 -S", APP, (4101, 4201), ""),
    ("id-of-nobody-alone", "-u 4199", (4199, 0, [7, 8]), (4199, 0), "no user has the ID 4199"),
    ("g-counts", "-u app -g other", (4101, 4202, [0, 4202, 4301, 4302]), (4101, 4202), ""),
    ("g-alone", "-g other", (0, 4202, []), (0, 4202), ""),
    ("name-of-digits-is-an-id", "-u 4104 -g 4304", (4104, 4304, []), (4104, 4304), ""),
    ("name-may-begin-with-9", "-u 9user -g 9group", (4106, 4306, [4306]), (4106, 4306), ""),
    ("g-instead-of-roots", "-u rootgroup -g app", (4103, 4201, [4201]), (4103, 4201), ""),
    ("U-and-G-count", f"-u {MAX} -g app -U 4198 -G more", (MAX, 4201, []), (4198, 4302), ""),
]


@pytest.mark.root
@pytest.mark.parametrize(
    ("args", "app", "owner", "warning"),
    [pytest.param(*row, id=claim) for claim, *row in IDENTITIES],
)
def test_application_and_socket_have_just_the_ids_asked_for(
    args: str, app: Ids, owner: tuple[int, int], warning: str, work: Path
) -> None:
    result = run("-s", "s", *args.split(), *SHOW, **accounts(work))
    assert result.status == 0, result
    assert ids(result.out) == app
    found = (work / "cwd/s").stat()
    assert (found.st_uid, found.st_gid) == owner, "the socket's user and group"
    assert len(result.lines) == (1 if warning else 0), result
    assert warning in result.err.decode()


@pytest.mark.root
def test_a_user_is_found_by_the_bytes_of_its_name(work: Path) -> None:
    caller = accounts(work, env=harness.latin_1(work))
    result = run("-s", "s", "-u", b"\xfcser", *SHOW, **caller)
    assert ids(result.out) == (4107, 4207, [4207, 4307]), result


# A caller's real and effective uid, the same of its gid; what is there in the end.
SET_IDS = [
    pytest.param((NOBODY, 0), (NOBODY, NOBODY), [], id="set-uid-root"),
    pytest.param((NOBODY, NOBODY), (NOBODY, 4201), [], id="set-gid"),
    pytest.param((0, 0), (0, 4201), ["s", "spawned"], id="set-gid-of-root"),
]


@pytest.mark.root
@pytest.mark.parametrize(("uids", "gids", "left"), SET_IDS)
def test_set_uid_is_refused_and_set_gid_of_all_but_root(
    uids: tuple[int, int], gids: tuple[int, int], left: list[str], work: Path
) -> None:
    def change() -> None:
        os.setresgid(*gids, gids[1])
        os.setresuid(*uids, uids[1])

    work.chmod(0o777)
    result = run("-s", "s", *TOUCH, cwd=work, preexec_fn=change)
    assert sorted(os.listdir(work)) == left
    if left:
        assert result == (0, b"", b"")
    else:
        assert_refused(result, "will not run set-")


CHROOT = [  # the socket, options, and the directory of the application
    pytest.param("jail/s", [], "jail", id="socket-inside"),
    pytest.param("s", ["-S", "-d", "srv"], "jail/srv", id="socket-outside"),
]


def make_jail(jail: Path) -> None:
    """Make a new root that has /bin/sleep, what it is linked with, and a directory srv."""
    (jail / "srv").mkdir(parents=True)
    ldd = subprocess.run(["ldd", "/bin/sleep"], check=True, capture_output=True, text=True)
    for path in ["/bin/sleep", *re.findall(r"(/\S+) \(0x", ldd.stdout)]:
        copy = jail / path.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


@pytest.mark.root
@MODES
@pytest.mark.parametrize(("socket", "options", "cwd"), CHROOT)
def test_an_empty_root_is_enough(
    socket: str, options: list[str], cwd: str, mode: str, work: Path
) -> None:
    caller = accounts(work, harness.inheriting(3, 50, 700), close_fds=False)
    here = work / "cwd"
    make_jail(here / "jail")
    made = {*here.rglob("*"), here / socket}
    args = ["-c", "jail", "-s", "s", "-u", "app", "-P", "pids", *options]
    with application(mode, *args, **caller) as pid:
        assert ids(harness.proc(pid, "status")) == APP
        # The names of these would differ where we are in a chroot ourselves.
        assert os.path.samefile(f"/proc/{pid}/root", here / "jail")
        assert os.path.samefile(f"/proc/{pid}/cwd", here / cwd)
        assert connects(here / socket)
        if mode == "fork":
            made.add(here / "pids")
            assert (here / "pids").read_text() == str(pid)
            assert (here / "pids").stat().st_uid == 0
            assert sorted(state(pid).fds) == [0, 1, 2]
            assert os.path.samefile(f"/proc/{pid}/fd/1", "/dev/null")
            assert os.path.samefile(f"/proc/{pid}/fd/2", "/dev/null")
    assert {*here.rglob("*")} == made


@pytest.mark.root
def test_d_is_entered_as_the_user(work: Path, port: str) -> None:
    (work / "d").mkdir(mode=0o700)
    result = run("-p", port, "-u", "app", "-d", work / "d", *SHOW, **accounts(work))
    assert_refused(result, f"chdir to '{work}/d'", "Permission denied")


@pytest.mark.root
def test_a_port_of_roots_is_bound_for_a_user(work: Path) -> None:
    own_network = accounts(work, lambda: call("unshare", CLONE_NEWNET))
    result = run("-p", "80", "-u", "app", *SHOW, **own_network)
    assert ids(result.out) == APP, result


# Numbers of system calls, see syscall(2). Newer machines do not have all of them.
if platform.machine() == "x86_64":
    NUMBERS = {"listen": 50, "unlink": 87, "chown": 92, "fchown": 93, "lchown": 94, "setuid": 105}
    NUMBERS |= {"setgid": 106, "setgroups": 116, "chroot": 161, "fchownat": 260, "unlinkat": 263}
else:
    NUMBERS = {"unlinkat": 35, "chroot": 51, "fchownat": 54, "fchown": 55, "setgid": 144}
    NUMBERS |= {"setuid": 146, "setgroups": 159, "listen": 201}
CHOWN, UNLINK = ["chown", "fchown", "lchown", "fchownat"], ["unlink", "unlinkat"]
OWNER = "cannot set owner or mode of s"
FORBIDDEN_CALLS = [  # what is forbidden, options, what is said, what is left
    pytest.param(["setgid"], ["-g4202"], "to group 4202", [], id="setgid", marks=ROOT),
    pytest.param(["setgroups"], ["-g4202"], "groups", [], id="setgroups", marks=ROOT),
    pytest.param(["chroot"], ["-c", "/tmp"], "chroot to '/tmp'", [], id="chroot", marks=ROOT),
    pytest.param(CHOWN, ["-U4202"], OWNER, [], id="chown", marks=ROOT),
    pytest.param(CHOWN + UNLINK, ["-U4202"], OWNER, ["s"], id="chown-and-unlink", marks=ROOT),
    pytest.param(["setuid"], ["-u65534"], "to user 65534", ["s"], id="setuid", marks=ROOT),
    pytest.param(["listen"], [], "listen on s", [], id="listen"),
    pytest.param(CHOWN, [], None, ["s", "spawned"], id="chown-nobody-asked-for"),
]


@pytest.mark.parametrize(("calls", "options", "said", "left"), FORBIDDEN_CALLS)
def test_a_forbidden_call_ends_the_start(
    calls: list[str], options: list[str], said: str | None, left: list[str], work: Path
) -> None:
    rows = [(0x20, 0, 0, 0)]  # seccomp(2): load the number; for each that is equal, return EPERM
    for name in calls:
        if name in NUMBERS:
            rows += [(0x15, 0, 1, NUMBERS[name]), (0x06, 0, 0, 0x50001)]
    code = b"".join(struct.pack("HBBI", *row) for row in [*rows, (0x06, 0, 0, 0x7FFF0000)])
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HP", len(rows) + 1, ctypes.addressof(buffer))

    def forbid() -> None:
        call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)

    result = run("-s", "s", *options, *TOUCH, cwd=work, preexec_fn=forbid)
    assert sorted(os.listdir(work)) == left, result
    if said is None:
        assert result == (0, b"", b"")
    else:
        assert_refused(result, f"{said}: Operation not permitted")
