"""The command line: what is answered, what is taken and comes of it, what is refused by which name.

Lines are written as a shell reads them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import re
import signal
import time
from functools import partial
from pathlib import Path
from shlex import split

import harness
import pytest
from harness import NOBODY, SLEEP, accounts, as_user, assert_refused, popen, run

FOR_ROOT, HOSTILE = pytest.mark.root, pytest.mark.hostile
VALUED, FLAGS = "fdapsMCFbPcugUG", "nSvh?"  # the letters of the options
MAX, MIN = 2**31 - 1, -(2**31)
F_GETPIPE_SZ = 1032  # in fcntl since Python 3.10
SEED = int(os.environ.get("SPAWN_FCGI_SEED", time.time_ns() % 10**6))  # is printed

HELP = rb"(?s)[^\n]+\n\nUsage: spawn-fcgi .*\n -f <command> .*\n -G <group> .*"
VERSION = rb"spawn-fcgi v\d+(\.\d+)+ [^\n]+\n"
# A line, the status and the answer. A first word that asks is answered whatever follows it.
ANSWERED = [
    pytest.param("", 255, HELP, id="nothing"),
    pytest.param("-help -x", 0, HELP, id="h-with-more-letters-and-a-wrong-option"),
    pytest.param("-? --bogus", 0, HELP, id="question-mark-and-a-wrong-word"),
    pytest.param("-version -p 0", 0, VERSION, id="v-with-more-letters-and-a-wrong-number"),
    pytest.param("-s s -h -- x", 0, HELP, id="h-later"),
    pytest.param("-s s -? -- x", 0, HELP, id="question-mark-later"),
    pytest.param("-s s --help -- x", 0, HELP, id="long-help-later"),
    pytest.param("-s s -v -- x", 0, VERSION, id="v-later"),
    pytest.param("-n --version", 0, VERSION, id="long-version-later"),
]


@pytest.mark.parametrize(("line", "status", "answer"), ANSWERED)
def test_help_and_version_are_answered_on_stdout(line: str, status: int, answer: bytes) -> None:
    result = run(*split(line))
    assert (result.status, result.err) == (status, b"")
    assert re.fullmatch(answer, result.out)
    with open("/dev/full", "wb") as full:
        assert run(*split(line), stdout=full) == (status, b"", b"")


def test_help_has_a_line_for_each_option_an_example_and_the_names_of_the_pages() -> None:
    text = run("-h").out.decode("ascii")
    lines = re.findall(r"^ -(\S),? ?(<\w+>|--\w+)?  *\w", text, re.M)
    valued = {letter for letter, value in lines if value.startswith("<")}
    assert (sorted(letter for letter, _ in lines), valued) == (sorted(VALUED + FLAGS), {*VALUED})
    assert {*re.findall(r"--\w+", text)} == {"--help", "--version"}
    assert re.search(r"^ -F .*ignored with -n", text, re.M)
    assert re.search(r"\n.*: spawn-fcgi -.*\n.*\bspawn-fcgi\(1\).*\(7\)\.?\n$", text)


SHOW = 'printf %s "$(tr \\\\0 "|" </proc/$$/cmdline)"'
WRONG = f"-s {'x' * 108} -M 8 -C x -F 0 -b x -d missing -a x -n -f false"
RIGHT = "-s s -M 600 -C 4 -F 1 -b 1 -d / -a :: -n -f 'echo $PHP_FCGI_CHILDREN'"
# A line, what the application prints (./app: its argv), and the name of the socket.
ACCEPTED = [
    pytest.param("./app -s t x -n -a ::", "<./app><x>", "t", id="options-between-words"),
    pytest.param("-nns s ./app --", "<./app>", "s", id="flags-before-an-option-in-one-word"),
    pytest.param("-s -n ./app x -- y -v", "<./app><x><y><-v>", "-n", id="words-on-both-sides"),
    pytest.param("-s -h -- ./app -h --no", "<./app><-h><--no>", "-h", id="options-for-the-app"),
    pytest.param("-nsnF4 -- ./app -- x", "<./app><--><x>", "nF4", id="dashes-of-the-app"),
    pytest.param("-b -1 -ss ./app - '' -- ''", "<./app><-><><>", "s", id="dash-and-empty-words"),
    pytest.param("-s '\n\udcff' ./app 'a\nb\udcff'", "<./app><a\nb\udcff>", "\n\udcff", id="bytes"),
    pytest.param(f"-s {'x' * 107} ./app", "<./app>", "x" * 107, id="path-of-107-bytes"),
    pytest.param("-ss -f exit app", "<app>", "s", id="f-is-ignored-beside-a-bare-app"),
    pytest.param(f"-ss -M0 -F1 -C{MIN} -b{MIN} ./app", "<./app>", "s", id="least"),
    pytest.param(f"-ss -M7777 -F{MAX} -C{MAX} -b{MAX} ./app", "<./app>", "s", id="most"),
    pytest.param(f"{WRONG} {RIGHT}", "4\n", "s", id="the-last-of-an-option"),
    pytest.param(f"-ss -f '{SHOW}'", f"sh|-c|exec {SHOW}|", "s", id="shell-command"),
    pytest.param("-ss -d /usr ../bin/pwd", "/usr\n", "s", id="app-relative-to-the-directory"),
]


@pytest.mark.parametrize(("line", "prints", "sock"), ACCEPTED)
def test_a_line_that_is_taken_starts_what_it_says(
    line: str, prints: str, sock: str, work: Path
) -> None:
    (work / "app").write_text('#!/bin/sh\nprintf \'<%s>\' "$0" "$@"\n')
    (work / "app").chmod(0o755)
    assert run("-n", *split(line), cwd=work) == (0, os.fsencode(prints), b"")
    assert {*os.listdir(work)} == {"app", sock}


# A line, what its message names, and what it does not name.
REFUSED = [
    pytest.param("-x -v -- ./a", ["unknown option -x", "spawn-fcgi -h"], ["after"], id="unknown"),
    pytest.param("-4p 9 -n -- ./a", ["unknown option -4p"], ["requires"], id="unknown-before-p"),
    pytest.param("-xp 9 -- ./a", ["unknown option -xp"], ["requires"], id="unknown-before-last-p"),
    pytest.param("-p 9 -nX -- ./a", ["unknown option -nX"], ["requires"], id="unknown-after-p"),
    pytest.param("-ss -n -xF -- ./a", ["unknown option -xF"], ["requires"], id="unknown-before-F"),
    pytest.param("-z app -- ./a", ["unknown option -z"], ["app", "after"], id="unknown-and-app"),
    pytest.param("app -x yy -- ./a", ["-x", "for app go after --"], ["yy"], id="unknown-after-app"),
    pytest.param("'' -x -- ./a", ["-x", "go after --"], [], id="unknown-after-an-empty-app"),
    pytest.param("-p 9 /bin/app -f", ["-f", "/bin/app go after --"], [], id="options-of-the-app"),
    pytest.param(f"app {'x ' * 3000}-X", ["-X", "app go"], [], id="far-behind-app", marks=HOSTILE),
    pytest.param("-s -- ./a", ["-s requires an argument"], ["./a"], id="s-without-a-value"),
    pytest.param("-nF -- ./a", ["-nF requires an argument"], [], id="F-of-a-word-without-a-value"),
    pytest.param("-ss -P pid", ["no FastCGI application given"], [], id="no-app"),
    pytest.param("-ss -P pid -- ''", ["no FastCGI application given"], [], id="empty-app"),
    pytest.param("-ss -n -f ''", ["no FastCGI application given"], [], id="empty-shell-command"),
    pytest.param("-ss -n -f id ''", ["no FastCGI application given"], [], id="empty-app-beside-f"),
    pytest.param("-P pid -n -- ./a", ["-p", "-s"], [], id="neither-p-nor-s"),
    pytest.param("-P pid -p 9 -s s -- ./a", ["-p", "-s"], [], id="both-p-and-s"),
    pytest.param("-P pid -s '' -- ./a", ["-s"], [], id="empty-path"),
    pytest.param(f"-P pid -s {'ü' * 54} -- ./a", ["ü" * 54], [], id="path-of-108-bytes-in-UTF-8"),
    pytest.param("-s no/s -nc . ./a", ["no/s in the new root ."], [], id="chroot", marks=FOR_ROOT),
    # A port that is taken, as the failed bind is told.
    pytest.param("-p 1 -a 192.0.2.1 ./a", ["192.0.2.1 port 1:"], [], id="p-1"),
    pytest.param("-p 65535 -a 192.0.2.1 ./a", ["port 65535:"], [], id="p-65535"),
    pytest.param("-p '\t\n\v\f\r +09' -a 192.0.2.1 ./a", ["port 9:"], [], id="p-after-blanks"),
    # Two faults: the first is told, and the second is not.
    pytest.param("-s no/s -P gone/p ./a", ["gone"], ["no/s"], id="P-before-s"),
    pytest.param("-s no/s -n -d lost ./a", ["no/s"], ["lost"], id="s-before-d"),
    pytest.param("-s no/s -S -P gone/p ./a", ["gone"], ["no/s"], id="P-before-S", marks=FOR_ROOT),
    pytest.param("-s no/s -Snc jail ./a", ["no/s"], ["jail"], id="S-before-c", marks=FOR_ROOT),
    pytest.param("-s no/s -nc jail ./a", ["jail"], ["no/s"], id="c-before-s", marks=FOR_ROOT),
    pytest.param("-ss -nc jail -d lost ./a", ["jail"], ["lost"], id="c-before-d", marks=FOR_ROOT),
]  # fmt: skip


@pytest.mark.parametrize(("line", "names", "not_named"), REFUSED)
def test_a_wrong_line_is_refused_by_name_before_any_work(
    line: str, names: list[str], not_named: list[str], work: Path
) -> None:
    result = run(*split(line), cwd=work)
    assert_refused(result, *names)
    assert [text for text in not_named if text.encode() in result.err] == [], result
    assert os.listdir(work) == []


NOT_NUMBERS = ["", "+", "x", "0x10", "1_000", "1.5", "9\n", "--1", "\u0661", "9\udcff", "7" * 5000]
ADDRESSES = ["", "localhost", "*", "256.0.0.1", "1.2.3.4.5", "127.0.0.1:80", "[::1]", "::g", "0"]
ADDRESSES += ["::1%nosuch", "b\u00fccher.example", "a" * 300, "127.0.0.1\n", "127.1", "010.0.0.1"]
ADDRESSES += ["9000", "127.0.0.1%lo", "::1%"]
NAMES = ["", "nosuch", "4294967295", "-1", "12x", "4_1", "1 ", "\u0664\udcff", "9" * 5000]
GOOD = "-s s -S -u app -U app"  # which excuses nothing
NOT_AS_ROOT = "will not run as root"
NOT_OF_ROOT = "neither the owner nor the group of the socket may be root"
# An option, what else the line needs, why these values are refused, and the values.
# Of the accounts in harness.py: extra is a group only, toor a user only.
BAD = [
    ("-p", "", "not a number from 1 to 65535", [*NOT_NUMBERS, "0", "-1", "65536", "4294976296"]),
    ("-M", "-s s", "not a number from 0 to 7777 (", [*NOT_NUMBERS, "-1", "8", "0o660", "10000"]),
    ("-F", "-s s", f"not a number from 1 to {MAX}:", [*NOT_NUMBERS, "-1", "0", str(MAX + 1)]),
    ("-C", "-s s", f"from {MIN} to {MAX}:", [*NOT_NUMBERS, str(MIN - 1), str(MAX + 1)]),
    ("-b", "-s s", f"from {MIN} to {MAX}:", [*NOT_NUMBERS, str(MIN - 1), str(MAX + 1)]),
    ("-a", "-p 9", "not a numeric", ADDRESSES),
    ("-u", GOOD, "-u: ", [*NAMES, "extra"]),
    ("-g", GOOD, "-g: ", [*NAMES, "toor"]),
    ("-U", GOOD, "-U: ", [*NAMES, "extra"]),
    ("-G", GOOD, "-G: ", [*NAMES, "toor"]),
    ("-u", GOOD, NOT_AS_ROOT, ["root", "0", "toor", "rootgroup", "4103"]),
    ("-u", f"{GOOD} -g app", f"-u 0: {NOT_AS_ROOT}", ["0"]),
    ("-g", GOOD, NOT_AS_ROOT, ["root", "0", "+00", "wheel"]),
    ("-U", GOOD, NOT_OF_ROOT, ["root", "0", "toor", "rootgroup", "4103"]),
    ("-G", GOOD, NOT_OF_ROOT, ["root", "0", "+00", "wheel"]),
]
BAD_VALUES = [
    pytest.param(option, beside, why, value, id=f"{option} {value[:30]!a}",
                 marks=FOR_ROOT if GOOD in beside else ())
    for option, beside, why, values in BAD
    for value in values
]  # fmt: skip


@pytest.mark.parametrize(("option", "beside", "why", "value"), BAD_VALUES)
def test_a_bad_value_is_refused_by_name_before_any_work(
    option: str, beside: str, why: str, value: str, work: Path
) -> None:
    caller = accounts(work) if os.getuid() == 0 else {"cwd": work}
    line = [*split(beside), "-P", "gone/pid", option, value, "--", "./a"]
    result = run(*line, **caller)
    named = value.replace("\n", "\\x0a") or "''"
    assert_refused(result, option, named, why)
    assert b"known" not in result.err, "no resolver was asked"
    assert b"gone" not in result.err, "this comes before the PID file"
    assert os.listdir(caller["cwd"]) == []


ODD = "x\n\x1b[2J\x7f\r\udcff\xe9"
# Lines, at the end of which that is put.
ODD_LINES = [
    pytest.param("-p", id="number"),
    pytest.param("-s no/", id="path"),
]


@HOSTILE
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize("line", ODD_LINES)
def test_odd_bytes_forge_no_line(line: str, locale: str, work: Path) -> None:
    result = run(*f"{line}{ODD}".split(" "), "--", "/bin/true", cwd=work, env={"LC_ALL": locale})
    assert result.status in (errno.ENOENT, 255)
    assert re.fullmatch(rb"spawn-fcgi: [^\x00-\x1f\x7f]*x\\x0a\\x1b[^\x00-\x1f\x7f]*\n", result.err)
    assert {*os.listdir(work)} <= {"s"}


# A line with options that are for root only, and those that the warning names.
IGNORED = [
    pytest.param("", "", id="nothing"),
    pytest.param("-u 0 -g '' -U root -G -1 -c '' -S", "-c -S -u -g -U -G", id="all"),
]


@pytest.mark.parametrize(("line", "ignored"), IGNORED)
def test_what_is_for_root_has_no_effect_for_others_but_a_warning(
    line: str, ignored: str, work: Path
) -> None:
    work.chmod(0o777)
    show = ("-n", "--", "/bin/cat", "/proc/self/status")
    result = run("-s", work / "s", *split(line), *show, **as_user())
    uid = NOBODY if os.getuid() == 0 else os.getuid()
    assert (result.status, result.out.count(b"\nUid:" + b"\t%d" % uid * 4)) == (0, 1), result
    assert (work / "s").stat().st_uid == uid
    warning = [f"spawn-fcgi: warning: not root, ignoring {ignored}"]
    assert result.lines == (warning if ignored else [])


@HOSTILE
def test_a_hundred_thousand_arguments_go_through(work: Path) -> None:
    app = ["/bin/sh", "-c", "echo $#", *["-x"] * 100_000]
    assert run("-n", "-s", work / "s", "--", *app, timeout=5) == (0, b"99999\n", b"")


@pytest.mark.parametrize("caller", [signal.SIG_DFL, signal.SIG_IGN], ids=["takes", "ignores"])
def test_ctrl_c_ends_it_quietly_as_a_signal_does_unless_the_caller_ignores_it(
    caller: signal.Handlers, work: Path
) -> None:
    reader, writer = os.pipe()
    os.write(writer, b" " * fcntl.fcntl(writer, F_GETPIPE_SZ))  # full, so that it waits to speak
    handle = partial(signal.signal, signal.SIGINT, caller)
    with popen("-s", work / "s", "--", *SLEEP, stdout=writer, preexec_fn=handle) as process:
        os.close(writer)
        try:
            harness.wait_for("the socket", lambda: harness.connects(work / "s"))
            process.send_signal(signal.SIGINT)
        finally:
            os.close(reader)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (-signal.SIGINT if caller == signal.SIG_DFL else 0, b"")


def random_line(chance: random.Random) -> list[str]:
    """Return a line of good and bad words that can do no harm, mostly with -n, which is quick."""
    words = "-n -S -nS -x -n9 --bogus --help=1 --help --version -v -h -? -- - -s -p -M -u -d -a 7 é"
    words += " -ss -s-- -p0 -M600 -M9 -C3 -C-1 -F1 -F0 -F+2 -b-1 -Ppid -P/ -d. -a::1 -a* -ftrue"
    words += " -c. -unobody -u0 -gx -U1 -G-1 /bin/true"
    some = [*words.split(), "", " ", "a\nb", "\udcff", f"-p {harness.free_port()}"]
    line = ["-n"] * (chance.random() < 0.8) + chance.choices(some, k=chance.randint(0, 6))
    line.insert(chance.randint(0, len(line)), "-ssock")
    return line + ["--", "/bin/true"] * (chance.random() < 0.6)


def test_a_random_line_is_answered_refused_in_one_line_or_run(work: Path) -> None:
    print(f"SPAWN_FCGI_SEED={SEED}")
    chance, statuses = random.Random(SEED), set()
    for number in range(30):
        line = random_line(chance)
        (work / str(number)).mkdir()
        result = run(*line, cwd=work / str(number))
        context = f"line {number}: {line!a}: {result}"
        assert re.fullmatch(rb"(spawn-fcgi: [^\x00-\x1f\x7f]+\n)*", result.err), context
        statuses.add(result.status)
        assert statuses <= {0, errno.ENOENT, 255}, context
    assert statuses >= {0, 255}, "some lines are right and some are wrong"
