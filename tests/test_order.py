"""The order of work: what is opened and made as root, and what as the user and in the chroot."""

from __future__ import annotations

import os
import pathlib
import re

import harness
import pytest

CALLS = "openat,open,setgid,setgroups,chroot,chdir,bind,chmod,fchmodat,chown,fchownat,lchown,listen"
CALLS += ",setuid,setreuid,setresuid,clone,clone3,fork,vfork,setsid,dup2,dup3,execve"
FORK = r"(?:clone3?|v?fork)\("
SOCKET = [r"bind\(", r"f?chmod(?:at)?\(", r"l?f?chown(?:at)?\(", r"listen\("]
USER = str(harness.NOBODY)


def positions(calls: list[str], patterns: list[str]) -> list[int]:
    """Return where each of these calls is first found, searched from where the last one was."""
    found = []
    start = 0
    for pattern in patterns:
        rest = [index for index in range(start, len(calls)) if re.search(pattern, calls[index])]
        assert rest, f"no {pattern} after call {start} of {calls}"
        start = rest[0] + 1
        found.append(rest[0])
    return found


@pytest.mark.root
@pytest.mark.parametrize("first", [False, True], ids=["", "-S"])
@pytest.mark.parametrize("mode", ["fork", "-n"])
def test_each_step_is_taken_once_the_one_before_it_is_done(
    mode: str, first: bool, work: pathlib.Path
) -> None:
    (work / "root/srv").mkdir(parents=True)
    options = ["-s", "sock", "-c", "root", "-u", USER, "-P", "pids", "-d", "/srv", "-M", "0600"]
    options += [*(["-S"] if first else []), *(["-n"] if mode == "-n" else ["-F", "2"])]
    result, calls = harness.trace(CALLS, work / "log", *options, "--", "/none", cwd=work)
    assert result.status == 2
    pid = calls[0].split()[0]
    parent = [call for call in calls if call.split()[0] == pid]
    pid_file = [] if mode == "-n" else [r'open(?:at)?\(.*"pids", [^)]*O_CREAT']
    group = [rf"setgid\({USER}\)", r"setgroups\(0, ", rf"setgroups\(1, \[{USER}\]"]
    chroot = [r'chroot\("root"\)', r'chdir\("/"\)']
    socket = SOCKET if first else []
    steps = ['"/etc/passwd"', *socket, *group, *chroot, *([] if first else SOCKET)]
    steps += [rf"set(?:re|res)?uid\(.*{USER}", r'chdir\("/srv"\)']
    steps += [r'execve\("/none"'] if mode == "-n" else [FORK, FORK]
    positions(parent, [*pid_file, *steps])
    for step in [*group, *chroot, *SOCKET, r'chdir\("/srv"\)']:
        assert len([call for call in parent if re.search(step, call)]) == 1
    if mode == "-n":
        assert not [call for call in parent[1:] if re.search(rf'"pids"|setsid|{FORK}', call)]


@pytest.mark.root
def test_root_is_given_up_for_good_before_the_fork(work: pathlib.Path) -> None:
    options = ["-p", str(harness.free_port()), "-u", USER, "--", "/bin/true"]
    _, calls = harness.trace(CALLS, work / "log", *options)
    pid = calls[0].split()[0]
    changes = [call for call in calls if re.search(r"set(?:re|res)?uid\(", call)]
    assert {call.split()[0] for call in changes} == {pid}
    final = calls.index(changes[-1])
    assert re.search(rf"setuid\({USER}\)|setresuid\({USER}, {USER}, {USER}\)", calls[final])
    assert final < positions(calls, [FORK])[0]


def test_a_child_has_its_session_and_streams_before_it_becomes_the_application(
    work: pathlib.Path,
) -> None:
    options = ["-p", str(harness.free_port()), "-F", "2", "--", "/bin/true"]
    _, calls = harness.trace(CALLS, work / "log", *options)
    parent = calls[0].split()[0]
    children = {call.split()[0] for call in calls} - {parent}
    assert len(children) == 2
    for child in children:
        steps = [r"setsid\(", r"dup[23]\(\d+, 1", r"dup[23]\(\d+, 2", r'execve\("/bin/true"']
        positions([call for call in calls if call.startswith(child)], steps)


# Two faults in one start: what is told of the first one, also by the C tool, and of the other.
FAULTS = [
    ("-P missing/pids -s sock -u nosuch", "missing", "missing", "nosuch"),
    ("-P missing/pids -s elsewhere/sock", "missing", "missing", "elsewhere"),
    ("-s elsewhere/sock -S -u nosuch", "nosuch", "nosuch", "bind"),
    ("-s elsewhere/sock -U nosuch", "nosuch", "nosuch", "bind"),
    ("-s sock -u nosuch -c missing", "nosuch", "nosuch", "chroot"),
    ("-s elsewhere/sock -S -c missing", "elsewhere", "bind", "chroot"),
    ("-s elsewhere/sock -c missing", "missing", "chroot", "bind"),
    ("-s elsewhere/sock -d missing", "elsewhere", "bind", "missing"),
    ("-s sock -d elsewhere -c missing", "missing", "chroot", "elsewhere"),
]


@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "named", "told", "untold"),
    [
        *FAULTS,
        pytest.param(
            *("-P missing/pids -s sock -F 0x", "-F", "0x", "missing"), marks=pytest.mark.differs(8)
        ),
    ],
)
def test_of_two_faults_the_one_that_comes_first_in_the_order_is_told(
    options: str, named: str, told: str, untold: str, work: pathlib.Path
) -> None:
    result = harness.run(*options.split(), "--", "/bin/true", cwd=work)
    harness.assert_refused(result, named, told)
    assert told in result.err.decode()
    assert untold not in result.err.decode()
    assert os.listdir(work) == []


@pytest.mark.root
def test_pid_file_and_socket_are_made_as_root_where_the_user_may_not(work: pathlib.Path) -> None:
    options = ["-u", USER, "-P", "pids", "-s", "sock", "-d", "/"]
    result = harness.run(*options, "--", *harness.SLEEP, cwd=work, umask=0o027)
    assert (work / "pids").read_text() == str(result.pids[0])
    assert ((work / "pids").stat().st_uid, (work / "pids").stat().st_mode) == (0, 0o100640)
    assert (work / "sock").stat().st_uid == harness.NOBODY
    assert harness.connects(work / "sock")


@pytest.mark.root
def test_a_directory_that_the_user_may_not_enter_fails(work: pathlib.Path) -> None:
    (work / "roots").mkdir(mode=0o700)
    options = ["-p", str(harness.free_port()), "-u", USER, "-d", "roots"]
    for mode in ("-n", "-F1"):
        result = harness.run(*options, mode, "--", "/usr/bin/touch", work / "spawned", cwd=work)
        harness.assert_refused(result, "roots")
        assert not (work / "spawned").exists()
    assert harness.run(*options[:2], "-d", "roots", "-n", "--", "/bin/true", cwd=work).status == 0


@pytest.mark.root
@pytest.mark.differs("If a step after bind fails, the new socket file is removed")
def test_a_directory_that_the_user_may_not_enter_leaves_no_socket(work: pathlib.Path) -> None:
    (work / "roots").mkdir(mode=0o700)
    options = ["-s", "sock", "-u", USER, "-d", "roots"]
    result = harness.run(*options, "-n", "--", "/bin/true", cwd=work)
    assert (result.status, os.listdir(work)) == (255, ["roots"])


@pytest.mark.root
@pytest.mark.parametrize("options", [["-u", USER], ["-u", USER, "-g", "4201"], ["-g", "4201"]])
def test_a_directory_for_the_new_group_only_can_be_entered(
    options: list[str], work: pathlib.Path
) -> None:
    (work / "groups").mkdir()
    os.chown(work / "groups", 4199, int(options[-1]))
    (work / "groups").chmod(0o010)
    args = ["-p", str(harness.free_port()), *options, "-d", "groups"]
    with harness.running(*args, cwd=work) as process:
        assert process.poll() is None, process.communicate()
        assert harness.state(process.pid).cwd == str(work / "groups")


@pytest.mark.parametrize("how", ["relative", "full"])
def test_the_directory_counts_from_the_callers(how: str, work: pathlib.Path) -> None:
    (work / "srv").mkdir()
    directory = "srv" if how == "relative" else str(work / "srv")
    paths = ["-s", "sock", "-P", "pids"]
    result = harness.run(*paths, "-d", directory, "--", *harness.SLEEP, cwd=work)
    assert harness.state(result.pids[0]).cwd == str(work / "srv")
    assert sorted(os.listdir(work)) == ["pids", "sock", "srv"]
    assert os.listdir(work / "srv") == []


def test_a_bare_application_is_a_file_in_the_new_directory(work: pathlib.Path) -> None:
    (work / "srv").mkdir()
    (work / "srv/true").symlink_to("/bin/true")
    options = ["-p", str(harness.free_port()), "-n", "-d", "srv"]
    assert harness.run(*options, "--", "true", cwd=work) == (0, b"", b"")
    assert harness.run(*options[:3], "--", "true", cwd=work).status == 2


def test_a_missing_directory_is_named_and_nothing_is_spawned(work: pathlib.Path) -> None:
    options = ["-p", str(harness.free_port()), "-d", "missing"]
    result = harness.run(*options, "--", "/usr/bin/touch", work / "spawned", cwd=work)
    harness.assert_refused(result, "missing")
    assert os.listdir(work) == []
