"""Users, groups and the chroot: who the application is, and who owns its socket."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from typing import Any

import harness
import pytest

# Users and groups that no machine has: the tests mount these files over its own.
PASSWD = """root:x:0:0::/:/bin/sh
toor:x:0:4201::/:/bin/sh
app:x:4101:4201::/:/bin/sh
other:x:4102:4202::/:/bin/sh
rootgroup:x:4103:0::/:/bin/sh
4104:x:4105:4205::/:/bin/sh
"""
GROUP = """root:x:0:
wheel:x:0:app
app:x:4201:
other:x:4202:
extra:x:4301:app
more:x:4302:other,app
4304:x:4305:
"""
CALLERS_GROUPS = [7, 8]
MAX_ID = 2**32 - 2


@pytest.fixture
def accounts(work: pathlib.Path) -> dict[str, Any]:
    """Return what makes popen() and run() know these users only, and have groups to drop."""
    (work / "passwd").write_text(PASSWD)
    (work / "group").write_text(GROUP)
    mounts = [(work / name, f"/etc/{name}") for name in ("passwd", "group")]
    return {"preexec_fn": harness.mounting(*mounts), "extra_groups": CALLERS_GROUPS}


def words(text: str) -> list[str]:
    """Split at single blanks, and write _ for a blank within a word."""
    return [word.replace("_", " ") for word in text.split()]


IDENTITIES = [
    ("", 0, 0, CALLERS_GROUPS),
    ("-u app", 4101, 4201, [4201, 4301, 4302, 0]),
    ("-u 4101", 4101, 4201, [4201, 4301, 4302, 0]),
    ("-u +004101", 4101, 4201, [4201, 4301, 4302, 0]),
    ("-u _4101", 4101, 4201, [4201, 4301, 4302, 0]),
    ("-u other", 4102, 4202, [4202, 4302]),
    ("-u other -u app", 4101, 4201, [4201, 4301, 4302, 0]),
    ("-u app -g other", 4101, 4202, [4202, 4301, 4302, 0]),
    ("-u app -g 4202", 4101, 4202, [4202, 4301, 4302, 0]),
    ("-u 4102 -g _+4399", 4102, 4399, [4399, 4302]),
    ("-u rootgroup -g app", 4103, 4201, [4201]),
    ("-u 4199 -g other", 4199, 4202, []),
    ("-u 4104 -g 4304", 4104, 4304, []),
    (f"-u {MAX_ID} -g {MAX_ID}", MAX_ID, MAX_ID, []),
    ("-g other", 0, 4202, []),
    ("-g 4399", 0, 4399, []),
    ("-U app -G other", 0, 0, CALLERS_GROUPS),
    ("-u other -U app -G extra", 4102, 4202, [4202, 4302]),
]


@pytest.mark.root
@pytest.mark.parametrize(("options", "uid", "gid", "groups"), IDENTITIES)
def test_the_application_has_no_ids_and_groups_but_those_asked_for(
    options: str,
    uid: int,
    gid: int,
    groups: list[int],
    accounts: dict[str, Any],
    work: pathlib.Path,
) -> None:
    with harness.running("-s", work / "sock", *words(options), **accounts) as process:
        seen = harness.state(process.pid)
        assert (seen.uids, seen.gids) == ([uid] * 4, [gid] * 4)
        assert seen.groups == sorted(groups)


@pytest.mark.root
def test_every_forked_child_has_the_ids_and_groups_asked_for(accounts: dict[str, Any]) -> None:
    port = str(harness.free_port())
    result = harness.run("-F", "2", "-p", port, "-u", "app", "--", *harness.SLEEP, **accounts)
    assert (result.status, len(result.pids), result.err) == (0, 2, b"")
    for pid in result.pids:
        seen = harness.state(pid)
        assert (seen.uids, seen.gids) == ([4101] * 4, [4201] * 4)
        assert seen.groups == [0, 4201, 4301, 4302]


@pytest.mark.root
def test_a_number_without_user_and_group_drops_the_user_only_and_warns(
    accounts: dict[str, Any],
) -> None:
    port = str(harness.free_port())
    result = harness.run("-p", port, "-u", "4199", "--", *harness.SLEEP, **accounts)
    assert (result.status, len(result.pids), len(result.lines)) == (0, 1, 1)
    assert "4199" in result.lines[0]
    assert "warning" in result.lines[0].lower()
    seen = harness.state(result.pids[0])
    assert (seen.uids, seen.gids, seen.groups) == ([4199] * 4, [0] * 4, CALLERS_GROUPS)


@pytest.mark.root
@pytest.mark.parametrize("options", ["-u app", "-u 4199 -g other", "-g 4202", "-U 4199"])
def test_nothing_is_said_of_users_where_all_is_as_asked(
    options: str, accounts: dict[str, Any]
) -> None:
    port = str(harness.free_port())
    result = harness.run("-p", port, *options.split(), "-n", "--", "/bin/true", **accounts)
    assert (result.status, result.out, result.err) == (0, b"", b"")


OWNERS = [
    ("", 0, 0),
    ("-u app", 4101, 4201),
    ("-u 4102", 4102, 4202),
    ("-u app -g other", 4101, 4202),
    ("-g other", 0, 4202),
    ("-u 4199", 4199, 0),
    ("-U other", 4102, 4202),
    ("-U 4102", 4102, 4202),
    ("-U 4199", 4199, 0),
    ("-G extra", 0, 4301),
    ("-G 4399", 0, 4399),
    ("-U other -G extra", 4102, 4301),
    ("-U rootgroup -G extra", 4103, 4301),
    ("-u app -U other", 4102, 4202),
    ("-u app -U 4199", 4199, 4201),
    ("-u app -G extra", 4101, 4301),
    ("-u app -g extra -U 4199", 4199, 4301),
    ("-u app -g extra -U other", 4102, 4202),
    ("-u app -g extra -G more", 4101, 4302),
    ("-u 4199 -U other", 4102, 4202),
    ("-u 4199 -U 4198", 4198, 0),
    ("-g extra -U 4199", 4199, 4301),
    ("-g extra -U other", 4102, 4202),
    ("-g extra -G more", 0, 4302),
    ("-u app -g other -U other -G more", 4102, 4302),
]


@pytest.mark.root
@pytest.mark.parametrize("first", [[], ["-S"]], ids=["", "-S"])
@pytest.mark.parametrize(("options", "uid", "gid"), OWNERS)
def test_the_socket_belongs_to_its_own_user_and_group_or_else_to_the_applications(
    options: str,
    uid: int,
    gid: int,
    first: list[str],
    accounts: dict[str, Any],
    work: pathlib.Path,
) -> None:
    args = ["-s", str(work / "sock"), *first, *options.split()]
    with harness.running(*args, umask=0o027, **accounts):
        found = (work / "sock").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (uid, gid, 0o640)


NO_ID: list[Any] = ["", " ", "nosuch", "root", "0", "00", "+0", "-0", "4294967296", "12x"]
NO_ID += ["0x1005", "4101.0", "4_101", "4101 ", "+-4101", "\u0664\u0661\u0660\u0661", "app\n"]
NO_ID += ["\udcff", "a" * 300]
OVERFLOWS = ["4294967295", "4294967297", "-1", "-4101", "9" * 20, "9" * 5000]
NO_ID += [pytest.param(value, marks=pytest.mark.differs(8)) for value in OVERFLOWS]


@pytest.mark.root
@pytest.mark.parametrize("value", NO_ID)
@pytest.mark.parametrize("option", ["-u", "-g", "-U", "-G"])
def test_a_value_that_is_no_user_or_group_or_is_roots_spawns_nothing(
    option: str, value: str, accounts: dict[str, Any], work: pathlib.Path
) -> None:
    start_in_vain([option, value], option, value, accounts, work)


@pytest.mark.root
@pytest.mark.parametrize("option", ["-u", "-U"])
@pytest.mark.parametrize("value", ["toor", "rootgroup", "4103", "extra"])
def test_a_user_who_is_root_or_in_roots_group_is_refused(
    option: str, value: str, accounts: dict[str, Any], work: pathlib.Path
) -> None:
    start_in_vain([option, value], option, value, accounts, work)


@pytest.mark.root
@pytest.mark.parametrize("option", ["-g", "-G"])
@pytest.mark.parametrize("value", ["wheel", "toor"])
def test_an_alias_of_roots_group_and_a_name_of_users_only_are_no_groups(
    option: str, value: str, accounts: dict[str, Any], work: pathlib.Path
) -> None:
    start_in_vain([option, value], option, value, accounts, work)


@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "option", "value"),
    [
        ("-u root -g app", "-u", "root"),
        ("-u app -g 0", "-g", "0"),
        ("-U app -G root", "-G", "root"),
        ("-u app -U 0", "-U", "0"),
    ],
)
def test_a_good_user_or_group_does_not_excuse_roots_beside_it(
    options: str, option: str, value: str, accounts: dict[str, Any], work: pathlib.Path
) -> None:
    start_in_vain(options.split(), option, value, accounts, work)


def start_in_vain(
    options: list[str], option: str, value: str, accounts: dict[str, Any], work: pathlib.Path
) -> None:
    """Assert that a start with these options does nothing but name the option and its value."""
    app = ["-n", "--", "/usr/bin/touch", str(work / "spawned")]
    result = harness.run("-s", work / "sock", "-S", *options, *app, **accounts)
    harness.assert_refused(result, option, value.rstrip("\n"))
    assert sorted(os.listdir(work)) == ["group", "passwd"]


def set_ids(*, uids: tuple[int, int], gids: tuple[int, int]) -> Callable[[], None]:
    """Return a preexec_fn that sets real and effective ids, as a set-uid file would."""

    def change() -> None:
        os.setgroups([])
        os.setresgid(*gids, gids[1])
        os.setresuid(*uids, uids[1])

    return change


@pytest.mark.root
@pytest.mark.parametrize(
    ("uids", "gids"),
    [
        ((harness.NOBODY, 0), (harness.NOBODY, harness.NOBODY)),
        ((harness.NOBODY, 4101), (harness.NOBODY, harness.NOBODY)),
        ((harness.NOBODY, harness.NOBODY), (harness.NOBODY, 4201)),
    ],
    ids=["set-uid root", "set-uid", "set-gid"],
)
def test_a_set_uid_or_set_gid_start_is_refused(
    uids: tuple[int, int], gids: tuple[int, int], work: pathlib.Path
) -> None:
    work.chmod(0o777)
    ids = set_ids(uids=uids, gids=gids)
    app = ["--", "/usr/bin/touch", str(work / "spawned")]
    harness.assert_refused(harness.run("-n", "-s", work / "sock", *app, preexec_fn=ids))
    assert os.listdir(work) == []


SOMETIMES = [
    ["-c", "/nonexistent"],
    ["-S"],
    ["-u", "nosuch"],
    ["-g", "0"],
    ["-U", "4294967296"],
    ["-G", "root"],
    ["-u", ""],
    ["-S", "-g", "nosuch"],
    ["-u", "0", "-g", "", "-U", "root", "-G", "-1", "-c", "", "-S"],
]


@pytest.mark.parametrize("options", SOMETIMES, ids=" ".join)
def test_what_only_root_may_ask_for_has_no_effect_for_others(
    options: list[str], work: pathlib.Path
) -> None:
    work.chmod(0o777)
    user = harness.as_user()
    uid = user.get("user", os.getuid())
    with harness.running("-s", "sock", *options, cwd=work, **user) as process:
        assert process.poll() is None, process.communicate()
        seen = harness.state(process.pid)
        assert (seen.uids, seen.root, seen.cwd) == ([uid] * 4, "/", str(work))
        assert (work / "sock").stat().st_uid == uid


@pytest.mark.differs(12)
@pytest.mark.parametrize("options", SOMETIMES, ids=" ".join)
@pytest.mark.parametrize("mode", [[], ["-n"]], ids=["fork", "-n"])
def test_one_line_warns_of_the_options_that_only_root_may_use(
    mode: list[str], options: list[str]
) -> None:
    port = str(harness.free_port())
    args = ["-p", port, *mode, *options, "--", "/bin/true"]
    result = harness.run(*args, **harness.as_user())
    assert result.status == 0
    warnings = [line for line in result.lines if "child exited" not in line]
    assert len(warnings) == 1
    named = re.findall(r"(?<!\S)-[a-zA-Z]\b", warnings[0])
    assert sorted(named) == sorted(set(options) & {"-c", "-S", "-u", "-g", "-U", "-G"})


def test_nothing_is_warned_of_where_none_of_these_is_given() -> None:
    args = ["-p", str(harness.free_port()), "-n", "--", "/bin/true"]
    assert harness.run(*args, **harness.as_user()) == (0, b"", b"")


@pytest.fixture
def jail(work: pathlib.Path) -> pathlib.Path:
    """Return a root directory with two programs and their libraries, and nothing else."""
    root = work / "jail"
    (root / "bin").mkdir(parents=True)
    (root / "srv").mkdir()
    for path in ("/bin/sleep", "/bin/true"):
        shutil.copy(path, root / "bin")
        listed = subprocess.run(["ldd", path], check=True, capture_output=True, text=True).stdout
        for library in re.findall(r"(/\S+) \(0x", listed):
            copy = root / library[1:]
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, copy)
    return root


@pytest.mark.root
@pytest.mark.parametrize("who", ["", "-u app", "-u 4101", "-g other", "-u 4199 -g other"])
def test_the_application_runs_in_the_chroot(
    who: str, jail: pathlib.Path, accounts: dict[str, Any], work: pathlib.Path
) -> None:
    options = ["-c", "jail", "-s", "/sock", *who.split()]
    uid, gid, groups = next(ids for asked, *ids in IDENTITIES if asked == who)
    assert isinstance(groups, list)
    with harness.running(*options, cwd=work, **accounts) as process:
        assert process.poll() is None, process.communicate()
        seen = harness.state(process.pid)
        assert (seen.root, seen.cwd) == (str(jail), str(jail))
        assert (seen.uids, seen.gids, seen.groups) == ([uid] * 4, [gid] * 4, sorted(groups))
        assert harness.connects(jail / "sock")


@pytest.mark.root
@pytest.mark.differs(11)
def test_children_in_a_chroot_without_dev_null_have_it_as_fds_1_and_2(
    jail: pathlib.Path, accounts: dict[str, Any], work: pathlib.Path
) -> None:
    options = ["-c", str(jail), "-p", str(harness.free_port()), "-u", "app", "-F", "2"]
    options += ["-P", str(work / "pids"), "--", *harness.SLEEP]
    with open(work / "output", "wb") as file:  # not a pipe, which a child could keep open
        assert harness.run(*options, stdout=file, stderr=file, **accounts).status == 0
    pids = [int(pid) for pid in (work / "pids").read_text().split()]
    assert len(pids) == 2
    for pid in pids:
        seen = harness.state(pid)
        assert (seen.root, seen.cwd, seen.session) == (str(jail), str(jail), pid)
        assert (seen.fds[1], seen.fds[2], len(seen.fds)) == ("/dev/null", "/dev/null", 3)
    assert not (jail / "dev").exists()


@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "where"),
    [
        (["-s", "/srv/sock"], "jail/srv/sock"),
        (["-s", "srv/sock"], "jail/srv/sock"),
        (["-S", "-s", "sock"], "sock"),
        (["-s", "sock", "-S", "-d", "/srv"], "sock"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_socket_is_in_the_chroot_unless_it_comes_before(
    options: list[str], where: str, jail: pathlib.Path, accounts: dict[str, Any], work: pathlib.Path
) -> None:
    args = ["-c", jail.name, "-u", "app", *options]
    with harness.running(*args, cwd=work, **accounts) as process:
        assert harness.connects(work / where)
        found = (work / where).stat()
        assert (found.st_uid, found.st_gid) == (4101, 4201)
        sockets = [str(path.relative_to(work)) for path in work.rglob("sock") if path.is_socket()]
        assert sockets == [where]
        assert harness.state(process.pid).fds[0].startswith("socket:")


@pytest.mark.root
def test_with_a_full_path_the_socket_before_the_chroot_is_outside(
    jail: pathlib.Path, work: pathlib.Path
) -> None:
    with harness.running("-c", jail, "-S", "-s", work / "outside"):
        assert harness.connects(work / "outside")


@pytest.mark.root
@pytest.mark.parametrize("full", [True, False])
def test_the_pid_file_is_outside_the_chroot_and_roots(
    full: bool, jail: pathlib.Path, accounts: dict[str, Any], work: pathlib.Path
) -> None:
    options: list[harness.Arg] = ["-c", jail, "-p", str(harness.free_port())]
    options += ["-u", "app", "-d", "/srv"]
    options += ["-P", work / "pids" if full else "pids", "--"]
    with open(work / "output", "w+b") as file:  # not a pipe, which a child could keep open
        harness.run(*options, *harness.SLEEP, cwd=work, stdout=file, stderr=file, **accounts)
        spawned = harness.Result(0, (work / "output").read_bytes(), b"").pids
    assert [(work / "pids").read_text()] == [str(pid) for pid in spawned]
    assert (work / "pids").stat().st_uid == 0
    assert not list(jail.rglob("pids"))


@pytest.mark.root
@pytest.mark.parametrize("directory", ["/srv", "srv", "/bin/../srv/."])
def test_the_directory_is_one_in_the_chroot(
    directory: str, jail: pathlib.Path, accounts: dict[str, Any]
) -> None:
    port = str(harness.free_port())
    options = ["-c", str(jail), "-p", port, "-u", "app", "-d", directory]
    with harness.running(*options, **accounts) as process:
        assert process.poll() is None, process.communicate()
        seen = harness.state(process.pid)
        assert (seen.root, seen.cwd) == (str(jail), str(jail / "srv"))


@pytest.mark.root
@pytest.mark.parametrize("directory", ["missing", "passwd", "", "passwd/x"])
def test_a_chroot_that_is_no_directory_fails(
    directory: str, accounts: dict[str, Any], work: pathlib.Path
) -> None:
    app = ["--", "/usr/bin/touch", str(work / "spawned")]
    args = ["-c", directory, "-s", str(work / "sock"), "-u", "app", "-n", *app]
    before = sorted(os.listdir(work))
    result = harness.run(*args, cwd=work, **accounts)
    harness.assert_refused(result, directory)
    assert sorted(os.listdir(work)) == before


@pytest.mark.root
@pytest.mark.differs("If a step after bind fails, the new socket file is removed")
@pytest.mark.parametrize(
    "options",
    [
        ["-S", "-c", "missing", "-s", "sock"],
        ["-S", "-c", "jail", "-d", "/missing", "-s", "sock"],
        ["-c", "jail", "-d", "/missing", "-s", "/sock"],
    ],
    ids=" ".join,
)
def test_a_failure_in_or_before_the_chroot_leaves_no_socket(
    options: list[str], jail: pathlib.Path, accounts: dict[str, Any], work: pathlib.Path
) -> None:
    args = [*options, "-u", "app", "-n", "--", "/bin/true"]
    result = harness.run(*args, cwd=work, **accounts)
    assert (result.status, len(result.lines)) == (255, 1)
    assert "missing" in result.lines[0]
    assert not [path for path in work.rglob("*") if path.is_socket()]
    assert jail.is_dir()


@pytest.mark.root
@pytest.mark.differs(11)
@pytest.mark.parametrize("app", ["/bin/true", "/bin/missing"])
@pytest.mark.parametrize(
    ("where", "opened"),
    [("-p PORT", set()), ("-a ::1 -p PORT", set()), ("-s /srv/sock", {"/srv"})],
    ids=["IPv4", "IPv6", "Unix"],
)
def test_in_the_chroot_nothing_is_opened_but_the_directory_of_the_socket_nor_looked_for(
    where: str,
    opened: set[str],
    app: str,
    jail: pathlib.Path,
    accounts: dict[str, Any],
    work: pathlib.Path,
) -> None:
    options = [*where.replace("PORT", str(harness.free_port())).split(), "-u", "app", "-F", "2"]
    options += ["-c", str(jail), "-P", str(work / "pids"), "-d", "/srv", "--", app]
    calls = "%file,execve,connect"
    result, seen = harness.trace(calls, work / "strace", *options, **accounts)
    assert result.status == (0 if app == "/bin/true" else 2)
    start = next(index for index, line in enumerate(seen) if " chroot(" in line)
    children = set()  # those that exec, and then their dynamic loader opens files
    files, opens = set(), set()
    for line in seen[start + 1 :]:
        pid, call = line.split(" ", 1)
        if call.startswith("execve("):
            children.add(pid)
        elif pid not in children:
            name = call.split('"')[1]
            files.add(name)
            opens |= {name} if call.startswith("open") else set()
    assert len(children) == 2
    # From CPython 3.12 on, os.fork() itself looks there for threads, and does without.
    python = {"/proc/self/stat"}
    assert opens - python == opened
    assert files <= python | {"", "/", "/srv", "/srv/sock", "sock", app}


@pytest.mark.root
def test_an_exec_that_fails_in_the_chroot_names_the_application(jail: pathlib.Path) -> None:
    port = str(harness.free_port())
    result = harness.run("-c", jail, "-p", port, "-n", "--", "/usr/bin/env")
    assert (result.status, result.out, len(result.lines)) == (2, b"", 1)
    if not harness.on_c_tool():
        assert "/usr/bin/env" in result.lines[0]


STEPS = {
    "the group": ("setgid", "1", "4201"),
    "no groups": ("setgroups", "1", "4201"),
    "the user's groups": ("setgroups", "2", "4201"),
    "the user": ("?setuid,?setresuid", "1+", "4101"),
    "the user for good": ("?setuid,?setresuid", "2+", "4101"),  # the first is for -d alone
    "the root": ("chroot", "1", "/"),
}


@pytest.mark.root
@pytest.mark.parametrize("option", [(), ("-n",)])
@pytest.mark.parametrize("step", STEPS)
def test_what_cannot_be_given_up_ends_the_start(
    step: str, option: tuple[str, ...], accounts: dict[str, Any], work: pathlib.Path
) -> None:
    calls, which, naming = STEPS[step]
    if harness.on_c_tool() and which == "2+":
        which = "1+"  # it has no other
    work.chmod(0o777)
    args = ["-p", str(harness.free_port()), "-u", "app", "-c", "/", *option, "--"]
    others = harness.my_children()
    with harness.by(*harness.tampering(calls, f"error=EPERM:when={which}")):
        result = harness.run(*args, "/usr/bin/touch", work / "started", **accounts)
    assert (result.status, result.out, len(result.lines)) == (255, b"", 1)
    if not harness.on_c_tool():
        assert f"{naming}: Operation not permitted" in result.lines[0].replace("'", "")
    assert harness.my_children() == others
    assert not (work / "started").exists()


@pytest.mark.root
def test_a_port_that_only_root_may_bind_is_bound_for_a_user() -> None:
    own_network = harness.by("unshare", "-n")
    with own_network, harness.running("-p", "80", "-u", str(harness.NOBODY)) as process:
        assert process.poll() is None, process.communicate()
        assert harness.state(process.pid).uids == [harness.NOBODY] * 4
        listening = harness.proc(process.pid, "net/tcp").decode()
    assert re.search(r"^ *0: 00000000:0050 00000000:0000 0A ", listening, re.M)


@pytest.mark.root
def test_the_application_cannot_become_root_again(accounts: dict[str, Any]) -> None:
    port = str(harness.free_port())
    with harness.running("-p", port, "-u", "app", "-g", "other", **accounts) as process:
        status = harness.proc(process.pid, "status").decode()
        assert re.findall(r"^Cap(?:Prm|Eff|Amb):\s+(\w+)", status, re.M) == ["0" * 16] * 3


@pytest.mark.root
def test_the_user_may_use_the_socket_and_others_may_not(
    accounts: dict[str, Any], work: pathlib.Path
) -> None:
    def may_connect(uid: int, gid: int) -> bool:
        pid = os.fork()
        if not pid:
            status = 1
            try:
                os.setgroups([])
                os.setgid(gid)
                os.setuid(uid)
                with socket.socket(socket.AF_UNIX) as probe:
                    status = probe.connect_ex(str(work / "sock"))
            finally:
                os._exit(status)
        return os.waitpid(pid, 0)[1] == 0

    options = ["-s", str(work / "sock"), "-u", "app", "-U", "other", "-G", "more", "-M", "0660"]
    with harness.running(*options, **accounts):
        assert may_connect(4102, 4299)
        assert may_connect(4199, 4302)
        assert not may_connect(4199, 4201)


@pytest.mark.root
def test_a_name_may_begin_with_digits(work: pathlib.Path) -> None:
    (work / "passwd").write_text(PASSWD + "9user:x:4106:4206::/:/bin/sh\n")
    (work / "group").write_text(GROUP + "9group:x:4306:\n")
    mounts = [(work / name, f"/etc/{name}") for name in ("passwd", "group")]
    options: list[harness.Arg] = ["-s", work / "sock", "-u", "9user", "-g", "9group"]
    with harness.running(*options, preexec_fn=harness.mounting(*mounts)) as process:
        assert process.poll() is None, process.communicate()
        seen = harness.state(process.pid)
        assert (seen.uids, seen.gids) == ([4106] * 4, [4306] * 4)
