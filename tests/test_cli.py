"""The command line, sentence by sentence, and the ends that Ctrl-C makes."""

from __future__ import annotations

import errno
import os
import pathlib
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import harness
import pytest
from harness import NOBODY, SLEEP, Arg, Result, assert_refused, run

VALUED = tuple("fdapsMCFbPcugUG")  # the options that take a value
ALL = (*VALUED, "n", "S", "v", "?", "h")
TABLE = [f"-{letter}" for letter in ALL]
APP = "#!/bin/sh\ncat /proc/$$/cmdline\n:\n"  # says its argv, after the /bin/sh of the #! line
INT_MIN, INT_MAX = -(2**31), 2**31 - 1


@pytest.fixture
def port() -> str:
    """Return a free TCP port, as text."""
    return str(harness.free_port())


@pytest.fixture
def app(work: pathlib.Path) -> str:
    """Return the name of an application, in the directory `work`, that prints its argv."""
    (work / "app").write_text(APP)
    (work / "app").chmod(0o755)
    return "./app"


def argv_of(*args: Arg, cwd: pathlib.Path) -> list[bytes]:
    """Return the arguments that `./app` gets, its name included."""
    result = run("-n", *args, cwd=cwd)
    assert (result.status, result.err) == (0, b""), result
    return result.out.split(b"\0")[1:-1]


def only_child(result: Result) -> int:
    """Return the PID of the one child that a good start has spawned, once it runs `sleep`."""
    assert (result.status, result.err, len(result.pids)) == (0, b"", 1), result
    pid = result.pids[0]
    harness.wait_for(lambda: harness.exe(pid).endswith("sleep"))
    return pid


def refusal(*args: Arg, cwd: pathlib.Path, naming: Arg = "", **kwargs: Any) -> Result:
    """Run what must be refused: one line on stderr that names it, 255, and no work done."""
    before = sorted(os.listdir(cwd)), harness.my_children()
    result = run(*args, cwd=cwd, **kwargs)
    assert (result.status, result.out) == (255, b""), result
    assert (sorted(os.listdir(cwd)), harness.my_children()) == before
    assert result.err
    if not harness.on_c_tool():
        assert re.fullmatch(rb"spawn-fcgi: [^\n]+\n", result.err), result
        assert len(result.lines) == 1
        assert os.fsencode(naming) in result.err
    return result


# Numbers

NO_NUMBERS: tuple[str | bytes, ...] = (
    "", " ", "+", "-", "x", "--1", "+-1", "0x10", "0b1", "0o17", "1_0", "1.0", "1e3", "1 2", "1 ",
    "1\n", "=1", "\u00a01", "\uff11", "\u0661", "\u00b2", b"1\xff", "7" * 5000, "-" + "7" * 5000,
)  # fmt: skip
OUT_OF_RANGE = {
    "-p": ("0", "-1", "65536", "99999", str(2**32 + 9000), str(2**64 + 9000)),
    "-M": ("-1", "8", "689", "10000", "0o660", f"{2**32 + 0o660:o}"),
    "-C": (INT_MAX + 1, INT_MIN - 1, 2**32 + 1, 2**64 + 1),
    "-F": (0, -1, INT_MAX + 1, 2**32 + 1),
    "-b": (INT_MAX + 1, INT_MIN - 1, 2**32 + 1, 2**64 + 1),
}
C_TOOL_WRAPS = ("7" * 5000, "-1", "99999", str(2**32 + 9000), str(2**64 + 9000))  # ports


def bad_numbers() -> list[Any]:
    """Return (option, value) for each number that must be refused."""
    pairs = [(o, v) for o, values in OUT_OF_RANGE.items() for v in (*NO_NUMBERS, *values)]
    values = [(o, v if isinstance(v, bytes) else str(v)) for o, v in pairs]
    return [
        pytest.param(
            option,
            value,
            id=f"{option}-{ascii(value)[:12]}-{number}",
            marks=[] if option == "-p" and value not in C_TOOL_WRAPS else [pytest.mark.differs(8)],
        )
        for number, (option, value) in enumerate(values)
    ]


@pytest.mark.parametrize(("option", "value"), bad_numbers())
def test_a_number_out_of_range_or_form_is_refused_before_any_work(
    option: str, value: Arg, work: pathlib.Path
) -> None:
    where = () if option == "-p" else ("-s", "sock")
    args = (*where, "-P", "pid", option, value, "--", *SLEEP)
    text = os.fsencode(value).replace(b"\n", b"\\x0a")
    result = refusal(*args, cwd=work, naming=text)
    assert harness.on_c_tool() or option in result.lines[0]


@pytest.mark.parametrize("value", ["{}", " {}", "\t{}", "\n \v\f\r{}", "+{}", " +{}", "000{}"])
def test_leading_blanks_a_plus_and_zeros_are_part_of_a_number(value: str, port: str) -> None:
    only_child(run("-p", value.format(port), "--", *SLEEP))
    assert harness.connects(("127.0.0.1", int(port)))


@pytest.mark.parametrize("value", ["1", "65535"])
def test_the_ends_of_the_port_range_are_ports(value: str, work: pathlib.Path) -> None:
    result = run("-p", value, "-a", "192.0.2.1", "--", *SLEEP)  # an address that nobody has
    assert result.status == 255
    assert os.strerror(99).encode() in result.err, "the number was refused, not the address"


@pytest.mark.parametrize(
    "value", ["0", "7", "600", "0600", "+0600", " 0600", "777", "1666", "7777"]
)
def test_the_mode_is_octal_up_to_7777(value: str, work: pathlib.Path) -> None:
    assert run("-n", "-s", "sock", "-M", value, "--", "/bin/true", cwd=work).status == 0
    assert stat.S_IMODE((work / "sock").stat().st_mode) == int(value, 8)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", b"0"),
        ("5", b"5"),
        ("+5", b"5"),
        (" 5", b"5"),
        ("007", b"7"),
        (str(INT_MAX), str(INT_MAX).encode()),
        ("-1", None),
        ("-2", None),
        (str(INT_MIN), None),
    ],
)
@pytest.mark.parametrize("callers", [None, b"callers"])
def test_php_fcgi_children_is_set_unless_negative(
    value: str, expected: bytes | None, callers: bytes | None, port: str
) -> None:
    env = {"PATH": harness.PATH, **({"PHP_FCGI_CHILDREN": callers} if callers else {})}
    result = run("-n", "-p", port, "-C", value, "--", "/usr/bin/env", env=env)
    entries = [e for e in result.out.splitlines() if e.startswith(b"PHP_FCGI_CHILDREN=")]
    assert result.status == 0
    value_is = callers if expected is None else expected
    assert entries == ([] if value_is is None else [b"PHP_FCGI_CHILDREN=" + value_is])


@pytest.mark.parametrize(("value", "count"), [(None, 1), ("1", 1), ("+2", 2), (" 3", 3), ("04", 4)])
def test_so_many_children_are_forked(value: str | None, count: int, port: str) -> None:
    option = () if value is None else ("-F", value)
    result = run("-p", port, *option, "--", *SLEEP)
    assert (result.status, len(set(result.pids))) == (0, count)
    assert all(harness.alive(pid) for pid in result.pids)


def backlog_of(*args: Arg, port: str) -> int:
    """Return the listen backlog that an application on a TCP port finds on fd 0."""
    # On a listening socket tcpi_sacked, the eighth 32-bit field of TCP_INFO, is its backlog.
    code = "import socket; s = socket.socket(fileno=0); print(s.getsockopt(6, 11, 104).hex())"
    result = run("-n", "-p", port, *args, "--", sys.executable, "-ISc", code)
    assert (result.status, result.err) == (0, b"")
    info = bytes.fromhex(result.out.decode())
    return int.from_bytes(info[28:32], sys.byteorder)


@pytest.mark.parametrize(
    ("value", "backlog"),
    [
        (None, 1024),
        ("7", 7),
        ("+7", 7),
        (" 7", 7),
        ("0", 0),
        (str(INT_MAX), INT_MAX),
        ("-1", INT_MAX),
        ("-7", INT_MAX),
        (str(INT_MIN), INT_MAX),
    ],
)
def test_the_backlog_is_as_asked_for_as_far_as_the_kernel_allows(
    value: str | None, backlog: int, port: str
) -> None:
    limit = int(pathlib.Path("/proc/sys/net/core/somaxconn").read_text())
    option = () if value is None else ("-b", value)
    assert backlog_of(*option, port=port) == min(backlog, limit)


# Addresses


@pytest.mark.parametrize(
    ("address", "at"),
    [
        (None, "127.0.0.1"),
        (None, "127.0.0.2"),
        ("0.0.0.0", "127.0.0.2"),
        ("127.0.0.2", "127.0.0.2"),
        pytest.param("127.1", "127.0.0.1", marks=pytest.mark.differs("also `127.1`")),
        ("::1", "::1"),
        ("::", "::1"),
    ],
)
def test_a_numeric_address_is_bound(address: str | None, at: str, port: str) -> None:
    option = () if address is None else ("-a", address)
    only_child(run("-p", port, *option, "--", *SLEEP))
    socket.create_connection((at, int(port)), timeout=5).close()


@pytest.mark.parametrize(
    ("address", "elsewhere"), [("127.0.0.2", "127.0.0.1"), ("::1", "127.0.0.1")]
)
def test_no_address_but_the_given_one_is_bound(address: str, elsewhere: str, port: str) -> None:
    only_child(run("-p", port, "-a", address, "--", *SLEEP))
    assert not harness.connects((elsewhere, int(port)))


@pytest.mark.differs("also `fe80::1%eth0`")
def test_an_address_may_name_its_interface(port: str) -> None:
    result = run("-p", port, "-a", "fe80::1%lo", "--", *SLEEP)
    assert result.status == 255
    assert os.strerror(99).encode() in result.err, "lo has no such address, yet it is an address"


@pytest.mark.parametrize(
    "address",
    ["", " ", "localhost", "localhost.", "example.org", "*", "256.0.0.1", "1.2.3.4.5", "127.0.0.1 ",
     "::g", "[::1]", "::1%nosuch", "fe80::1%nosuch", "127.0.0.1:80", "\u0661.1.1.1",
     "b\u00fccher.example", b"\xff", "a" * 300, "127.0.0.1\n", "::1\n::1"],
)  # fmt: skip
def test_an_address_that_is_no_number_is_refused_before_any_work(
    address: Arg, port: str, work: pathlib.Path
) -> None:
    args = ("-p", port, "-P", "pid", "-a", address, "--", *SLEEP)
    if harness.on_c_tool():  # which opens the PID file first
        (work / "pid").touch()
    refusal(*args, cwd=work, naming=os.fsencode(address).replace(b"\n", b"\\x0a"))


def test_an_address_beside_a_unix_socket_has_no_effect(work: pathlib.Path) -> None:
    only_child(run("-s", "sock", "-a", "localhost", "--", *SLEEP, cwd=work))


# Socket paths


@pytest.mark.parametrize("path", [b"x" * 107, b"\xc3\xa9" * 53 + b"x", b"\xff" * 107])
def test_a_socket_path_may_have_107_bytes(path: bytes, work: pathlib.Path) -> None:
    assert run("-n", "-s", path, "--", "/bin/true", cwd=work).status == 0
    assert os.listdir(os.fsencode(work)) == [path]


@pytest.mark.parametrize("path", [b"x" * 108, b"\xc3\xa9" * 54, b"\xff" * 108, b"x" * 5000])
def test_a_longer_socket_path_is_refused_before_any_work(path: bytes, work: pathlib.Path) -> None:
    refusal("-P", "pid", "-s", path, "--", *SLEEP, cwd=work, naming=path)


def test_an_empty_socket_path_is_refused_before_any_work(work: pathlib.Path) -> None:
    if harness.on_c_tool():  # which binds to a name of the kernel's choice first
        (work / "pid").touch()
    refusal("-P", "pid", "-s", "", "--", *SLEEP, cwd=work, naming="-s")


@pytest.mark.parametrize(
    ("where", "naming"),
    [((), "-s"), (("-s", "sock", "-p", "9"), "-s"), (("-p", "9", "-s", "sock"), "-p")],
)
def test_it_takes_one_of_a_port_and_a_path(
    where: tuple[str, ...], naming: str, work: pathlib.Path
) -> None:
    refusal(*where, "-P", "pid", "--", *SLEEP, cwd=work, naming=naming)


@pytest.mark.parametrize("end", [(), ("--",), ("-n",), ("-F", "2")])
def test_without_an_application_it_refuses_before_any_work(
    end: tuple[str, ...], work: pathlib.Path
) -> None:
    refusal("-s", "sock", "-P", "pid", *end, cwd=work, naming="application")


# Order, glue, repetition


def test_options_and_words_come_in_any_order(port: str, app: str, work: pathlib.Path) -> None:
    assert argv_of("-p", port, app, "x", cwd=work) == [b"./app", b"x"]
    assert argv_of(app, "-p", port, "x", cwd=work) == [b"./app", b"x"]
    assert argv_of(app, "x", "-p", port, cwd=work) == [b"./app", b"x"]
    assert argv_of(app, "-a", "127.0.0.1", "x", "-p", port, "y", cwd=work) == [b"./app", b"x", b"y"]


@pytest.mark.parametrize(
    ("words", "argv"),
    [
        (["--", "./app", "x"], ["./app", "x"]),
        (["./app", "--", "x"], ["./app", "x"]),
        (["./app", "x", "--"], ["./app", "x"]),
        (["./app", "x", "--", "y", "z"], ["./app", "x", "y", "z"]),
        (["--", "./app", "--"], ["./app", "--"]),
        (["--", "./app", "--", "x"], ["./app", "--", "x"]),
        (["./app", "--", "--"], ["./app", "--"]),
        (["./app", "--", "x", "--", "y"], ["./app", "x", "--", "y"]),
        (["./app", "--", "--", "--"], ["./app", "--", "--"]),
        (["--", "./app", "-p", "1", "-h", "-x", "--help", "--no"],
         ["./app", "-p", "1", "-h", "-x", "--help", "--no"]),
        (["./app", "--", "-n", "-v"], ["./app", "-n", "-v"]),
        (["./app", "-"], ["./app", "-"]),
        (["./app", "-", "--", "-"], ["./app", "-", "-"]),
        (["./app", "", "x", ""], ["./app", "", "x", ""]),
        (["--", "./app", ""], ["./app", ""]),
        (["./app", "", "--", ""], ["./app", "", ""]),
    ],
)  # fmt: skip
def test_words_around_the_first_double_dash_are_the_argv(
    words: list[str], argv: list[str], port: str, app: str, work: pathlib.Path
) -> None:
    assert argv_of("-p", port, *words, cwd=work) == [word.encode() for word in argv]


ODD = (
    b"\xff\xfe",
    b"a\nb",
    b"",
    b"\xc3\xa9",
    b"\t ",
    b"\x7f\x1b[0m",
    b"\xed\xa0\x80",
    b"$HOME",
    b"*",
)


@pytest.mark.parametrize("before", [(), ("--",)])
def test_argv_is_passed_on_byte_for_byte(
    before: tuple[str, ...], port: str, app: str, work: pathlib.Path
) -> None:
    assert argv_of("-p", port, *before, app, *ODD, cwd=work) == [b"./app", *ODD]


@pytest.mark.parametrize("env", [{}, {"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8"}, {"LC_ALL": "no_SUCH"}])
def test_argv_is_passed_on_byte_for_byte_in_any_locale(env: dict[str, str], port: str) -> None:
    argv = [b"/bin/../bin/sh", b"-c", b"cat /proc/$$/cmdline; :", *ODD]  # argv[0] as it is given
    result = run("-n", "-p", port, "--", *argv, env=harness.clean_environment(**env))
    assert result.out.split(b"\0")[:-1] == argv


def test_a_forked_child_gets_argv_byte_for_byte(port: str) -> None:
    args = [b"/bin/sh", b"-c", b"sleep 60; :", *ODD]
    result = run("-p", port, "--", *args)
    assert harness.state(result.pids[0]).argv == args


def test_a_bare_name_is_a_file_in_the_current_directory(
    port: str, app: str, work: pathlib.Path
) -> None:
    assert argv_of("-p", port, "app", cwd=work) == [b"app"]
    assert argv_of("-p", port, "-d", work, "app", cwd=pathlib.Path("/")) == [b"app"]


def test_path_is_not_searched(port: str, app: str, work: pathlib.Path) -> None:
    env = {"PATH": f"{work}:{harness.PATH}"}
    for name in "sleep", "app":
        assert run("-n", "-p", port, "--", name, cwd="/", env=env).status == 2
        assert run("-p", port, "--", name, cwd="/", env=env).status == 2


def test_flags_are_stacked_and_values_glued(port: str, app: str, work: pathlib.Path) -> None:
    assert argv_of(f"-p{port}", app, cwd=work) == [b"./app"]
    assert argv_of(f"-nnp{port}", app, cwd=work) == [b"./app"]
    assert argv_of("-nSF4", "-np", port, app, cwd=work) == [b"./app"]
    result = run("-F2", f"-Snp{port}", "--", "/bin/echo", "one")
    assert (result.status, result.out) == (0, b"one\n"), "a stacked -n counts, and -F does not"
    result = run(f"-p{port}", "-F2", "-Ppid", "--", *SLEEP, cwd=work)
    assert (len(result.pids), (work / "pid").exists()) == (2, True)


def test_a_glued_value_is_all_that_follows(work: pathlib.Path) -> None:
    only_child(run("-snF4", "-P-n", "--", *SLEEP, cwd=work))
    assert sorted(os.listdir(work)) == ["-n", "nF4"]


def test_a_value_may_begin_with_a_dash(work: pathlib.Path) -> None:
    (work / "-d").mkdir()
    args = ("-b", "-1", "-C", "-1", "-d", "-d", "-s", "-n", "-P", "-p", "-M", "0600")
    assert harness.state(only_child(run(*args, "--", *SLEEP, cwd=work))).cwd == f"{work}/-d"
    assert sorted(os.listdir(work)) == ["-d", "-n", "-p"]


def test_a_value_may_be_a_double_dash(port: str, work: pathlib.Path) -> None:
    pid = only_child(run("-p", port, "-P", "--", *SLEEP, cwd=work))
    assert (work / "--").read_bytes() == b"%d" % pid
    (work / "new").mkdir()
    argv = [b"/bin/sh", b"-c", b"cat /proc/$$/cmdline; :", b"--", b"-x"]
    result = run("-n", argv[0], "-s", "--", "--", *argv[1:], cwd=work / "new")
    assert result.out.split(b"\0")[:-1] == argv
    assert (work / "new" / "--").is_socket()


@pytest.mark.parametrize(
    "option", ["-d", "-a", "-s", "-M", "-C", "-F", "-b", "-P", "-f", "-p", "-n"]
)
def test_of_an_option_given_again_the_last_counts(
    option: str, port: str, app: str, work: pathlib.Path
) -> None:
    (work / "one").mkdir()
    (work / "two").mkdir()
    where = ("-s", "sock")
    sleep = ("--", *SLEEP)

    def child(*args: Arg) -> harness.State:
        return harness.state(only_child(run(*args, cwd=work)))

    if option == "-d":
        assert child(*where, "-d", "one", "-d", "two", *sleep).cwd == f"{work}/two"
    elif option == "-a":
        child("-p", port, "-a", "127.0.0.2", "-a", "127.0.0.1", *sleep)
        assert harness.connects(("127.0.0.1", int(port)))
        assert not harness.connects(("127.0.0.2", int(port)))
    elif option == "-s":
        child("-s", "first", "-s", "sock", *sleep)
        assert sorted(os.listdir(work)) == ["app", "one", "sock", "two"]
    elif option == "-M":
        child(*where, "-M", "0600", "-M", "0644", *sleep)
        assert stat.S_IMODE((work / "sock").stat().st_mode) == 0o644
    elif option == "-C":
        entries = child(*where, "-C", "3", "-C5", *sleep).environ
        assert [e for e in entries if b"PHP" in e] == [b"PHP_FCGI_CHILDREN=5"]
    elif option == "-F":
        assert len(run(*where, "-F", "3", "-F", "2", *sleep, cwd=work).pids) == 2
    elif option == "-b":
        assert backlog_of("-b", "3", "-b", "5", port=port) == 5
    elif option == "-P":
        child(*where, "-P", "first", "-P", "pid", *sleep)
        assert sorted(os.listdir(work)) == ["app", "one", "pid", "sock", "two"]
    elif option == "-f":
        assert child(*where, "-f", "true", "-f", "sleep 50").argv == [b"sleep", b"50"]
    elif option == "-p":
        child("-p", "1", "-p", port, *sleep)
        assert harness.connects(("127.0.0.1", int(port)))
    else:
        assert argv_of("-n", "-n", "-p", port, app, "-n", cwd=work) == [b"./app"]


@pytest.mark.root
@pytest.mark.parametrize("option", ["-u", "-g", "-U", "-G", "-c"])
def test_of_a_root_only_option_given_again_the_last_counts(option: str, work: pathlib.Path) -> None:
    (work / "root").mkdir()
    path = work / "sock"
    if option == "-c":
        pid_args = ("-s", "sock", "-c", work, "-c", work / "root", "--", *SLEEP)
        assert run(*pid_args, cwd=work).status == 2, "there is no sleep in it"
        return
    work.chmod(0o777)
    args = ("-s", path, "-M", "0666", "-u", "1", "-g", "1", option, "61234", option, "61235")
    state = harness.state(only_child(run(*args, "--", *SLEEP)))
    found = {
        "-u": state.uids[0],
        "-g": state.gids[0],
        "-U": path.stat().st_uid,
        "-G": path.stat().st_gid,
    }
    assert found[option] == 61235


# -f


def shell_argv(line: str, *args: Arg, cwd: pathlib.Path) -> list[bytes]:
    """Run -f with a line that ends as `sleep`; return the argv of the shell that it ran in."""
    # The command substitution runs before the exec, while $$ is still the shell.
    only_child(run("-f", f"{line} $(cat /proc/$$/cmdline >argv)", *args, cwd=cwd))
    return (cwd / "argv").read_bytes().split(b"\0")[:-1]


def test_the_shell_line_is_run_by_sh_with_exec(port: str, work: pathlib.Path) -> None:
    argv = shell_argv("sleep 60", "-p", port, cwd=work)
    line = b"exec sleep 60 $(cat /proc/$$/cmdline >argv)"
    assert argv == [b"sh", b"-c", line], "and `sleep` was found on PATH, by the shell"


def test_the_shell_line_is_passed_on_byte_for_byte(port: str, work: pathlib.Path) -> None:
    result = run("-n", "-p", port, "-f", b"printf '%s|' '\xff\xfe' \"a  b\" 'c\n' \"$0\"", cwd=work)
    assert (result.status, result.out) == (0, b"\xff\xfe|a  b|c\n|sh|")


def test_the_shell_is_bin_sh_whatever_path_says(port: str, work: pathlib.Path) -> None:
    (work / "sh").write_text("#!/bin/sh\nexit 9\n")
    (work / "sh").chmod(0o755)
    result = run("-n", "-p", port, "-f", "echo good", cwd=work, env={"PATH": str(work)})
    assert result.status == 127, "exec finds no echo on that PATH, and /bin/sh was run"
    result = run("-n", "-p", port, "-f", "/bin/echo good", cwd=work, env={"PATH": str(work)})
    assert (result.status, result.out) == (0, b"good\n")


@pytest.mark.parametrize("line", ["touch ran", ""])
def test_the_shell_line_is_ignored_beside_an_application(
    line: str, port: str, work: pathlib.Path
) -> None:
    pid = only_child(run("-f", line, "-p", port, "--", *SLEEP, cwd=work))
    assert harness.state(pid).argv == [word.encode() for word in SLEEP]
    assert os.listdir(work) == []


# -n


def test_without_fork_the_pid_file_is_ignored(port: str, work: pathlib.Path) -> None:
    (work / "old").write_bytes(b"123")
    for name in "new", "old", "no/such/directory":
        result = run("-n", "-p", port, "-P", name, "--", "/bin/true", cwd=work)
        assert (result.status, result.out, result.err) == (0, b"", b"")
    assert os.listdir(work) == ["old"]
    assert (work / "old").read_bytes() == b"123"


def test_without_fork_the_number_of_children_is_ignored(port: str) -> None:
    result = run("-n", "-p", port, "-F", "3", "--", "/bin/echo", "once")
    assert (result.status, result.out, result.err) == (0, b"once\n", b"")


# Help and version

HELPS = [
    ("-?",), ("-h",), ("--help",), ("-nh",), ("-n?",), ("-h", "-h"), ("-h", "-p", "0"),
    ("-p", "9000", "-?", "--", "app"), ("-h", "app"),
]  # fmt: skip


@pytest.mark.parametrize("args", HELPS)
def test_help_is_a_line_for_each_option_on_stdout(args: tuple[str, ...]) -> None:
    result = run(*args)
    assert result.status == 0
    assert result.err == b"" or harness.on_c_tool()
    help_lines = result.out.decode("ascii").splitlines()
    for option in TABLE if not harness.on_c_tool() else TABLE[:-1]:  # there: " -?, -h"
        value = r" <\w+> +\S" if option[1] in VALUED else r"(,| +\S)"
        found = [line for line in help_lines if re.match(" " + re.escape(option) + value, line)]
        assert len(found) == 1, option


def test_the_help_names_the_long_options_and_no_other() -> None:
    longs = set(re.findall(rb"--\w+", run("-h").out))
    assert longs == (set() if harness.on_c_tool() else {b"--help", b"--version"})


def test_without_arguments_it_helps_on_stdout_and_fails() -> None:
    result = run()
    assert (result.status, result.err) == (255, b"")
    assert result.out == run("-h").out


@pytest.mark.parametrize(
    "args",
    [("-v",), ("-nv",), ("-v", "-p", "0"), ("-v", "--", "app"),
     pytest.param(("--version",), marks=pytest.mark.differs("--version")),
     ("-v", "--version")],
)  # fmt: skip
def test_the_version_is_one_line_on_stdout(args: tuple[str, ...]) -> None:
    result = run(*args)
    assert (result.status, result.err) == (0, b"")
    assert re.match(rb"spawn-fcgi v[0-9]+(\.[0-9]+)+ .*\S\n", result.out)
    assert result.out.count(b"\n") == 1 or harness.on_c_tool()


# Wrong options


@pytest.mark.differs(7)
@pytest.mark.parametrize(
    ("args", "naming"),
    [
        (["-x"], "-x"), (["-nx"], "-x"), (["-xn"], "-x"), (["-N"], "-N"), (["-1"], "-1"),
        (["-n9"], "-9"), (["-n="], "-="), (["-\u00e9"], "-\u00e9"), ([b"-\xff"], b"-\xff"),
        (["-\n"], "-\\x0a"), (["--bogus"], "--bogus"), (["--bogus=1"], "--bogus"),
        (["--bogus", "1"], "--bogus"), (["--port", "9000"], "--port"), (["--p"], "--p"),
        (["---"], "---"), (["--helpme"], "--helpme"), (["--help=x"], "--help"),
        (["--bo\ngus"], "--bo\\x0agus"), ([b"--\xff"], b"--\xff"), (["-", "-x"], "-x"),
        (["app", "-x"], "-x"), (["app", "--x", "y"], "--x"), (["-x", "--", "-h"], "-x"),
    ],
)  # fmt: skip
def test_an_unknown_option_is_named_and_points_to_the_help(
    args: list[Arg], naming: Arg, work: pathlib.Path
) -> None:
    result = refusal("-s", "sock", "-P", "pid", *args, "--", *SLEEP, cwd=work, naming=naming)
    assert "spawn-fcgi -h" in result.lines[0]


@pytest.mark.differs(7)
@pytest.mark.parametrize("letter", VALUED)
@pytest.mark.parametrize("prefix", ["-", "-n"])
def test_a_missing_value_is_named_and_points_to_the_help(
    prefix: str, letter: str, work: pathlib.Path
) -> None:
    where = ("-s", "sock", "-P", "pid")
    result = refusal(*where, *SLEEP, prefix + letter, cwd=work, naming=f"-{letter}")
    assert re.search(rf"-{letter}\b.*-h\b", result.lines[0])


# Odd values

ODD_VALUE = b"no\xff\n\x1b\xc3\xa9"
ODD_SHOWN = b"no\xff\\x0a\\x1b\xc3\xa9"
ROOT_ONLY = ("-c", "-u", "-g", "-U", "-G")
CHECKED_FIRST = ("-p", "-a", "-M", "-C", "-F", "-b")


def odd_options() -> list[Any]:
    """Return each option that can have a wrong value."""
    marks: dict[str, Any] = dict.fromkeys(ROOT_ONLY, pytest.mark.root)
    marks.update({option: pytest.mark.differs(8) for option in ("-M", "-C", "-F", "-b")})
    options = [f"-{letter}" for letter in VALUED if letter != "f"]
    return [pytest.param(option, marks=marks.get(option, ())) for option in options]


@pytest.mark.parametrize("option", odd_options())
def test_an_odd_wrong_value_is_one_line_and_leaves_nothing_behind(
    option: str, port: str, work: pathlib.Path
) -> None:
    where = {"-p": (), "-a": ("-p", port), "-s": ()}.get(option, ("-s", "sock"))
    value = ODD_VALUE + b"/x" if option in "-s-P" else ODD_VALUE
    # Where the value is looked at only after the PID file was opened, that stays, as in the C tool.
    pid = ("-P", b"pid\xff\n") if option in CHECKED_FIRST else ()
    result = run(*where, *pid, option, value, "--", *SLEEP, cwd=work)
    assert (result.status, result.out) == (255, b"")
    assert harness.my_children() == []
    if not harness.on_c_tool():
        assert result.err.startswith(b"spawn-fcgi: ")
        assert result.err.count(b"\n") == 1
        assert ODD_SHOWN in result.err
        assert os.listdir(work) == []


@pytest.mark.parametrize("env", [{}, {"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8"}, {"LC_ALL": "no_SUCH"}])
def test_an_odd_path_is_used_byte_for_byte_in_any_locale(
    env: dict[str, str], work: pathlib.Path
) -> None:
    args = ("-s", b"sock\xff\n", "-P", b"pid\xff\n", "--", *SLEEP)
    only_child(run(*args, cwd=work, env=harness.clean_environment(**env)))
    assert sorted(os.listdir(os.fsencode(work))) == [b"pid\xff\n", b"sock\xff\n"]


# Set-uid


@pytest.mark.root
@pytest.mark.parametrize(
    "ids",
    [
        (harness.NOBODY, 0, 0),
        (harness.NOBODY, 1, 1),
        pytest.param(
            (0, harness.NOBODY, 0),
            marks=pytest.mark.differs("effective user unlike the real one: refuse"),
        ),
    ],
)
def test_set_uid_it_refuses_before_any_work(ids: tuple[int, int, int], work: pathlib.Path) -> None:
    work.chmod(0o777)
    args = ("-s", "sock", "-P", "pid", "--", *SLEEP)
    refusal(*args, cwd=work, preexec_fn=lambda: os.setresuid(*ids))


@pytest.mark.root
def test_set_gid_it_refuses_an_ordinary_user_as_the_c_tool_does(work: pathlib.Path) -> None:
    work.chmod(0o777)

    def set_gid() -> None:
        os.setgroups([])
        os.setresgid(harness.NOBODY, 0, 0)
        os.setresuid(harness.NOBODY, harness.NOBODY, harness.NOBODY)

    refusal("-s", "sock", "-P", "pid", "--", *SLEEP, cwd=work, preexec_fn=set_gid)


# Forms of installation

VENV = {"PATH": f"{pathlib.Path(sys.executable).parent}:{harness.PATH}"}
FORMS: dict[str, Callable[[], list[str]]] = {"under test": lambda: harness.program}
if not harness.program:  # else another program than ours, or another copy of it, is under test
    FORMS["script"] = lambda: [sys.executable, str(harness.ROOT / "spawn_fcgi.py")]
    FORMS["script without docstrings"] = lambda: [
        *(sys.executable, "-OO", "-W", "ignore"),  # docopt, compiled anew, is warned of
        str(harness.ROOT / "spawn_fcgi.py"),
    ]
    FORMS["module"] = lambda: [sys.executable, "-m", "spawn_fcgi"]
    FORMS["executable file"] = lambda: [str(harness.ROOT / "spawn_fcgi.py")]
    FORMS["console script"] = lambda: [str(pathlib.Path(sys.executable).with_name("spawn-fcgi"))]


@pytest.mark.parametrize("form", FORMS)
def test_it_works_in_every_form_of_installation(
    form: str, work: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "program", FORMS[form]())
    env = VENV
    pid = only_child(run("-s", "sock", "-P", "pid", "--", *SLEEP, cwd=work, env=env))
    assert (work / "pid").read_bytes() == b"%d" % pid
    assert harness.state(pid).environ == [f"PATH={env['PATH']}".encode()]
    assert run("-n", "-s", "other", "--", "/bin/sh", "-c", "exit 3", cwd=work, env=env).status == 3
    assert run("-h", env=env).status == 0
    assert run("-s", "x" * 108, "--", *SLEEP, env=env).status == 255
    assert run(env=env).status == 255


# Ctrl-C


def interrupted_in_the_grace_time(port: str) -> tuple[int, bytes] | None:
    """Send SIGINT once the child runs `sleep`; return status and stderr, None if too late."""
    process = harness.popen("-p", port, "--", *SLEEP, env=VENV)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def spawned() -> bool:
        return process.poll() is not None or any(
            harness.exe(int(pid)).endswith("sleep") for pid in children.read_text().split()
        )

    try:
        harness.wait_for(spawned)
        process.send_signal(signal.SIGINT)
    finally:
        _, err = process.communicate(timeout=20)
        harness.end_children()
    return None if process.returncode == 0 else (process.returncode, err)


@pytest.mark.alone
@pytest.mark.parametrize("form", FORMS)
def test_ctrl_c_in_the_grace_time_ends_the_parent_as_a_signal_does(
    form: str, port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "program", FORMS[form]())
    ends = [interrupted_in_the_grace_time(port) for _ in range(3)]
    assert set(ends) - {None} == {(-signal.SIGINT, b"")}


def test_a_caller_that_ignores_ctrl_c_is_not_interrupted(port: str) -> None:
    process = harness.popen(
        "-p", port, "--", *SLEEP, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    )
    try:
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.002)
    finally:
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, b"")
    assert b"spawned successfully" in out


def seconds(*args: Arg) -> float:
    """Return the seconds that a good run takes."""
    start = time.monotonic()
    assert run(*args).status == 0
    return time.monotonic() - start


@pytest.mark.alone
def test_ctrl_c_in_the_start_up_is_quiet(port: str) -> None:
    args = ("-n", "-p", port, "--", "/bin/true")
    duration, shots, noise = min(seconds(*args) for _ in range(3)), 48, []
    for shot in range(shots):
        process = harness.popen(*args)
        try:
            time.sleep(duration * shot / shots)
            process.send_signal(signal.SIGINT)
        finally:
            _, err = process.communicate(timeout=20)
        assert process.returncode in (0, -signal.SIGINT) or err
        noise += [err] if err else []
    # Before the first line of a Python program lies half a millisecond of the interpreter's own
    # in which nothing can be done; modules imported with its handler still there are ten or more.
    assert len(noise) <= shots / 8, noise[0].decode()


@pytest.mark.parametrize(
    ("option", "limits"),
    [
        ("-p", "from 1 to 65535:"),
        pytest.param("-M", "from 0 to 7777, in octal:", marks=pytest.mark.differs(8)),
        pytest.param("-F", f"from 1 to {INT_MAX}:", marks=pytest.mark.differs(8)),
        pytest.param("-C", f"from {INT_MIN} to {INT_MAX}:", marks=pytest.mark.differs(8)),
        pytest.param("-b", f"from {INT_MIN} to {INT_MAX}:", marks=pytest.mark.differs(8)),
    ],
)
def test_a_refused_number_is_told_its_limits(option: str, limits: str, work: pathlib.Path) -> None:
    where = () if option == "-p" else ("-s", "sock")
    refusal(*where, option, "x", "--", *SLEEP, cwd=work, naming=limits)


@pytest.mark.root
def test_root_may_have_an_effective_group_of_its_choice(work: pathlib.Path) -> None:
    result = run("-s", work / "s", "--", *SLEEP, preexec_fn=lambda: os.setresgid(0, NOBODY, 0))
    assert (result.status, result.err, len(result.pids)) == (0, b"", 1)


@pytest.fixture
def japanese(work: pathlib.Path) -> dict[str, str]:
    """Return an environment with a locale that decodes bytes which it cannot encode again."""
    command = ["localedef", "-c", "-i", "ja_JP", "-f", "EUC-JP", str(work / "ja")]
    subprocess.run(command, check=False, capture_output=True)  # it warns
    return harness.clean_environment(LOCPATH=str(work), LC_ALL="ja")


@pytest.mark.differs("Never a traceback, whatever the input")
@pytest.mark.parametrize("option", ["-s", "-P", "-d"])
def test_a_path_that_the_locale_cannot_encode_is_refused_in_one_line(
    option: str, japanese: dict[str, str], work: pathlib.Path
) -> None:
    where = () if option == "-s" else ("-s", "sock")
    result = run(*where, option, b"\x81_", "--", *SLEEP, cwd=work, env=japanese)
    assert_refused(result, "euc_jp")
    assert os.listdir(work) == ["ja"]


@pytest.mark.differs("Never a traceback, whatever the input")
@pytest.mark.parametrize("option", [(), ("-n",)])
def test_an_argument_that_the_locale_cannot_encode_is_an_exec_failure(
    option: tuple[str, ...], japanese: dict[str, str], work: pathlib.Path
) -> None:
    result = run("-s", "s", *option, "--", "/bin/echo", b"\x81_", cwd=work, env=japanese)
    assert (result.status, result.out, len(result.lines)) == (errno.EILSEQ, b"", 1)
    assert os.strerror(errno.EILSEQ) in result.lines[0]


def test_a_delete_character_is_escaped_in_a_message(work: pathlib.Path) -> None:
    refusal("-s", b"no/\x7f", "--", *SLEEP, cwd=work, naming=b"no/\\x7f")
