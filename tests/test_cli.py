"""The command line: what is answered, what is refused and by which name, what is told first."""

from __future__ import annotations

import getopt
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import harness
import pytest
from harness import ROOT, SLEEP, assert_refused, run

TRUE = ("--", "/bin/true")
MAX, MIN = 2**31 - 1, -(2**31)
VALUED, FLAGS = "fdapsMCFbPcugUG", "nSvh?"
# Longer runs: SPAWN_FCGI_LINES=5000; the same lines again: SPAWN_FCGI_SEED as it was printed.
LINES = int(os.environ.get("SPAWN_FCGI_LINES", "30"))
SEED = int(os.environ.get("SPAWN_FCGI_SEED", time.time_ns() % 10**6))
HELP, VERSION = {"-h", "-?", "--help"}, {"-v", "--version"}


def short(value: object) -> str:
    """Name a row by its values, which may be long."""
    return ascii(value)[1:30].rstrip("'")


@pytest.mark.parametrize("line", ["-h", "-?", "--help", *(f"-s s {o} -- x" for o in sorted(HELP))])
def test_help_has_a_line_for_each_option(line: str) -> None:
    result = run(*line.split())
    assert (result.status, result.err) == (0, b"")
    lines = re.findall(r"^ -(\S),? ?(<\w+>|--\w+)?  *\w", result.out.decode("ascii"), re.M)
    valued = {letter for letter, value in lines if value.startswith("<")}
    assert (sorted(letter for letter, _ in lines), valued) == (sorted(VALUED + FLAGS), {*VALUED})
    assert set(re.findall(rb"--\w+", result.out)) == {b"--help", b"--version"}


@pytest.mark.parametrize("line", ["-v", "--version", "-s s -v -- x", "-n --version"])
def test_the_version_is_one_line_on_stdout(line: str) -> None:
    result = run(*line.split())
    assert (result.status, result.err) == (0, b"")
    assert re.fullmatch(rb"spawn-fcgi v\d+(\.\d+)+ [^\n]+\n", result.out)


@pytest.mark.parametrize("line", ["-version", "-v -x", "-v -p 0", "-help", "-hx", "-? --bogus"])
def test_a_first_word_that_asks_is_answered_whatever_is_behind_it(line: str) -> None:
    assert run(*line.split()) == run(line[:2])


def test_without_arguments_it_helps_on_stdout_and_fails() -> None:
    assert run() == (255, run("-h").out, b"")
    with open("/dev/full", "wb") as full:
        assert run(stdout=full) == (255, b"", b"")
        assert run("-v", stdout=full) == (0, b"", b"")


# A line, split at each blank; what its one message has to name and, behind "!", what it may not;
# "--" is the hint that the options of the application go after it.
NUMBERS: dict[str, list[str | int]] = {
    "-p": ["", "+", "x", "0x10", "1_000", "1.5", "9\n", "--1", "\u0661", "9\udcff", "7" * 5000,
           0, -1, 65536, 2**32 + 9000],
    "-M": [-1, 8, "0o660", 10000], "-F": ["", -1, 0, MAX + 1],
    "-C": ["x", MAX + 1, MIN - 1], "-b": ["x", MAX + 1, MIN - 1],
}  # fmt: skip
ADDRESSES = ["", "localhost", "*", "256.0.0.1", "1.2.3.4.5", "127.0.0.1:80", "[::1]", "::g"]
ADDRESSES += ["::1%nosuch", "b\u00fccher.example", "a" * 300, "127.0.0.1\n"]
ADDRESSES += ["127.1", "0", "010.0.0.1", "9000", "127.0.0.1%lo", "::1%"]
REFUSED = {
    "-x": "-x", "-nx": "-nx", "-x -v": "-x",
    "-4p 9000 -n": "-4p !requires", "-xp 9000": "-xp !requires", "-p 9000 -nX": "-nX",
    "-n -xF -s s": "-xF !requires", "-z app": "-z !app", "-n=": "-n=", "---": "---",
    "--bogus 1": "--bogus", "--bogus=1": "--bogus", "--help=1": "--help", "-\u00e9": "-\u00e9",
    "-\udcff": "-\udcff", "-\n": "-\\x0a", "-p 1 -x -s": "-x !--", "-p 9 -a": "-a",
    "-nF": "-nF requires an argument",
    "-s": "-s !/bin/true", "-x app": "-x !app !--", "app -x y": "-x app -- !y", " -x": "-x --",
    "-p 9000 /usr/sbin/fcgiwrap -f": "-f fcgiwrap --", "app 1 -d x --bogus": "--bogus app --",
    **{f"{o} {v}" + " -s s" * (o != "-p"): f"{o} {v}" for o in NUMBERS for v in NUMBERS[o]},
    **{f"-p 9 -P gone/pid -a {a}": f"-a {a} !known !gone" for a in ADDRESSES},
    "-n": "-p -s", "-p 9 -s s": "-p -s", "-s ": "-s", f"-s {'x' * 108}": "x" * 108,
    f"-s {'ü' * 54}": "ü" * 54, "-p 0 -x": "-x !-p", "-s no/s -F 0x -P gone/pid": "0x !gone",
    "-s no/s -P gone/pid": "gone !no/s", "-s no/s -n -d lost": "no/s !lost",
    "-p 9 -a 192.0.2.1 -n -d lost": "192.0.2.1 !lost", "-M 9 -s s": "-M 7777",
}  # fmt: skip
REFUSED_TO_ROOT = {
    "-s s -F 0x -u nosuch": "0x !nosuch", "-s s -u nosuch": "nosuch", "-s s -U 0": "-U socket",
    "-s s -u 0": "-u !socket", "-s no/s -n -c .": "no/s root",
    "-s s -G nosuch -P gone/pid": "nosuch !gone", "-s no/s -S -n -U nosuch": "nosuch !no/s",
    "-s no/s -S -P gone/pid": "gone !no/s", "-s no/s -S -n -c jail": "no/s !jail",
    "-s no/s -n -c jail": "jail !no/s", "-s s -n -c jail -d lost": "jail !lost",
}  # fmt: skip
ROWS = [pytest.param(*row, id=short(row[0])) for row in REFUSED.items()]
ROWS += [pytest.param(*row, id=row[0], marks=pytest.mark.root) for row in REFUSED_TO_ROOT.items()]


@pytest.mark.parametrize(("line", "names"), ROWS)
def test_a_wrong_line_is_refused_by_name_before_any_work(line: str, names: str, work: Path) -> None:
    more = ["-P", "pid"] if " " in line else []  # else the first word is the wrong one
    result = run(*more, *line.split(" "), *TRUE, cwd=work)
    assert os.listdir(work) == []
    assert_refused(result)
    message = os.fsdecode(result.err)
    words = re.split(r"[\s();,:']+", message)
    for name in names.replace("\n", "\\x0a").split(" "):
        text = name.lstrip("!")
        assert (text in (words if text == "--" else message)) is (text == name), (name, message)


def test_without_an_application_nothing_is_made(work: Path) -> None:
    for end in [], ["--"], ["-n"], ["--", ""], ["-n", "-f", "true", ""]:
        assert_refused(run("-s", "s", "-P", "pid", *end, cwd=work))
        assert os.listdir(work) == []


ENDS: dict[str, list[str | int]] = {"-p": [1, 65535, "\t9", "\n\v\f\r +09"], "-M": [0, 7777]}
ENDS.update({"-F": [1, MAX], "-C": [MIN, MAX], "-b": [MIN, MAX]})


@pytest.mark.parametrize("option", ENDS)
def test_a_number_from_end_to_end_of_its_range_is_taken(option: str, work: Path) -> None:
    for value in ENDS[option]:  # so that the fault that is told is a later one
        later = ["-a", "192.0.2.1"] if option == "-p" else [f"-ss{value}", "-d", "missing"]
        assert_refused(run(*later, option, str(value), *TRUE, cwd=work), later[-1])


# A line, the argv that comes of it, and the name of the socket.
ARGV = [
    ("-ss ./app x", "./app x", "s"), ("./app -s t x -n -a ::", "./app x", "t"),
    ("-nns s ./app --", "./app", "s"), ("-s -n ./app x -- y -v", "./app x y -v", "-n"),
    ("-s -h -- ./app -p 1 --bogus -h", "./app -p 1 --bogus -h", "-h"),
    ("-nsnF4 -- ./app -- x", "./app -- x", "nF4"), ("-ss ./app -- --", "./app --", "s"),
    ("-b -1 -ss ./app -  -- ", "./app -  ", "s"), ("-ss -f exit app", "app", "s"),
    ("-s \udcff\n -- ./app \udcff a\nb ü", "./app \udcff a\nb ü", "\udcff\n"),
    (f"-s {'x' * 107} -a localhost ./app", "./app", "x" * 107),
]  # fmt: skip


@pytest.mark.parametrize(("line", "argv", "sock"), ARGV, ids=short)
def test_words_around_the_dashes_are_the_argv(line: str, argv: str, sock: str, work: Path) -> None:
    (work / "app").write_text("#!/bin/sh\ncat /proc/$$/cmdline\n:\n")
    (work / "app").chmod(0o755)
    result = run("-n", *line.split(" "), cwd=work)
    assert (result.status, result.err, {*os.listdir(work)}) == (0, b"", {"app", sock})
    assert os.fsdecode(result.out).split("\0")[1:-1] == argv.split(" ")


def test_of_an_option_given_again_the_last_counts(work: Path) -> None:
    wrong = f"-s {'x' * 108} -M 8 -C x -F 0 -b x -d missing -a x -n -f false".split()
    right = f"-s {work}/s -M 600 -C 4 -F 1 -b 1 -d / -a :: -n -f".split()
    line = "echo $PHP_FCGI_CHILDREN"
    assert run(*wrong, *right, line) == (0, b"4\n", b"")
    assert os.listdir(work) == ["s"]
    assert_refused(run(*right, line, *wrong), "-s")


@pytest.mark.parametrize("line", ['printf %s "$(tr \\\\0 "|" </proc/$$/cmdline)"', ""])
def test_a_shell_line_is_run_by_sh_with_exec(line: str, work: Path) -> None:
    result = run("-n", "-s", work / "s", "-f", line)
    assert result == (0, f"sh|-c|exec {line}|".encode() if line else b"", b"")


def test_the_directory_is_changed_to_before_the_application_is_looked_at(work: Path) -> None:
    for option in "-n", "-F2":
        assert_refused(run("-s", "s", option, "-d", "lost", "--", "/no/app", cwd=work), "lost")
    result = run("-n", "-s", "s", "-d", "/usr", "--", "/bin/pwd", cwd=work)
    assert result == (0, b"/usr\n", b"")


@pytest.mark.parametrize("script", [False, True], ids=["installed", "script"])
@pytest.mark.parametrize("caller", [signal.SIG_DFL, signal.SIG_IGN], ids=["takes", "ignores"])
def test_ctrl_c_ends_it_quietly_as_a_signal_does_unless_the_caller_ignores_it(
    caller: signal.Handlers, script: bool, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script and "SPAWN_FCGI" not in os.environ:
        monkeypatch.setattr(harness, "program", [sys.executable, str(ROOT / "spawn_fcgi.py")])
    status = 0 if caller is signal.SIG_IGN else -signal.SIGINT
    for _ in range(5):  # on a busy machine it is too late now and then
        args = ("-s", work / "s", "--", *SLEEP)
        with harness.popen(
            *args, preexec_fn=lambda: signal.signal(signal.SIGINT, caller)
        ) as process:
            harness.wait_for(lambda: harness.connects(work / "s"))
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
        harness.end_children()
        if process.returncode == status:
            break
    assert (process.returncode, err) == (status, b"")


def random_line(chance: random.Random) -> list[str]:
    """Return a line of good and bad words that can do no harm, mostly with -n, which is quick."""
    words = "-n -S -nS -x -n9 --bogus --help=1 --help --version -v -h -? -- - -s -p -M -u -d -a 7 é"
    words += " -ss -s-- -p0 -M600 -M9 -C3 -C-1 -F1 -F0 -F+2 -b-1 -Ppid -P/ -d. -a::1 -a* -ftrue"
    words += " -c. -unobody -u0 -gx -U1 -G-1 /bin/true"
    some = [*words.split(), "", " ", "a\nb", "\udcff", f"-p {harness.free_port()}"]
    line = ["-n"] * (chance.random() < 0.8) + chance.choices(some, k=chance.randint(0, 6))
    line.insert(chance.randint(0, len(line)), "-ssock")
    return line + [*TRUE] * (chance.random() < 0.6)


def test_a_random_line_is_answered_refused_in_one_line_or_run(work: Path) -> None:
    print(f"SPAWN_FCGI_SEED={SEED}")
    chance = random.Random(SEED)
    letters = "".join(f"{letter}:" for letter in VALUED) + FLAGS
    for number in range(LINES):
        line = random_line(chance)
        (work / str(number)).mkdir()
        result = run(*line, cwd=work / str(number))
        told = [text for text in result.lines if "warning" not in text]
        context = f"line {number}: {line!a}: {result}"
        assert re.fullmatch(rb"(spawn-fcgi: [^\x00-\x1f\x7f]+\n)*", result.err), context
        head = line[: line.index("--")] if "--" in line else line
        try:
            given, _ = getopt.gnu_getopt(head, letters, ["help", "version"])
            asked, wrong = {option for option, _ in given} & (HELP | VERSION), False
        except getopt.GetoptError:
            asked, wrong = set(), True
        if asked or line[0][:2] in HELP | VERSION:
            assert (result.status, told) == (0, []), context
            assert result.out, context
        elif wrong or result.status:  # 2: there is no such application
            assert result.status in ((255,) if wrong else (2, 255)), context
            assert (result.out, len(told)) == (b"", 1), context
