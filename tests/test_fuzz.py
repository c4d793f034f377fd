"""Command lines by chance: parsed as gnu_getopt() parses them, run as the C tool runs them.

Every list is made from a seeded generator; a failure names the seed that made it.
"""

from __future__ import annotations

import concurrent.futures
import getopt
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import harness
import pytest

sys.path.insert(0, str(harness.ROOT))
import spawn_fcgi  # the checkout's

SEED = int(os.environ.get("FUZZ_SEED", "20240229"))
VALUED, FLAGS = "fdapsMCFbPcugUG", "nSv?h"
SHORTS = "".join(f"{letter}:" for letter in VALUED) + FLAGS
LONGS = {"--help": "-h", "--version": "-v"}
DEFAULTS = {"-a": "0.0.0.0", "-C": "-1", "-F": "1", "-b": "1024"}


# Parsed

VALUES = (
    "", " ", "-", *["--"] * 5, "---", "-n", "-x", "-p", "--help", "-1", "9000", " 9000", "0", "a",
    "a b", "=", "-=", "/tmp/s", "\u00fc", "\udcff", "\udcfe-", "\U0001f600", "a\nb", "[default: 3]",
    "<fcgiapp>", "[--]", "options", "x" * 300,
)  # fmt: skip
WORDS = ("app", "./app", "-", "", " ", "60", "\u00e9", "\udc80", "n", "<arg>", "p=1")
LONG_TOKENS = (
    "--help", "--version", "--he", "--h", "--v", "--ver", "--helpx", "--help=", "--help=1",
    "--version=--", "--x", "--=", "--n", "--p", "--port=9", "---", "--\u00fc", "--\udcff",
    "-\u00fc", "-\udcff", "-x", "-nx", "-=", "-n=", "- ", "-p=9000", "-1", "-nn-", "-h-",
)  # fmt: skip


def random_argv(chance: random.Random) -> list[str]:
    """Return an argv made from the option grammar, and from what is near to it."""

    def token() -> list[str]:
        kind = chance.random()
        letter, value = chance.choice(VALUED), chance.choice(VALUES)
        flags = "".join(chance.choices("nS", k=chance.randint(1, 3)))
        if kind < 0.3:
            return [f"-{letter}", value]
        if kind < 0.45:
            return [f"-{letter}{value}"]
        if kind < 0.55:
            return [f"-{flags}{letter}{value}"]
        if kind < 0.6:
            return [f"-{flags}{letter}", value]
        if kind < 0.7:
            return [f"-{chance.choice([flags, *FLAGS])}"]
        if kind < 0.76:
            return ["--"]
        if kind < 0.78:
            return [chance.choice(LONG_TOKENS)]
        if kind < 0.79:
            return [f"-{letter}"]  # takes the next token, whatever it is
        return [chance.choice(WORDS)]

    return [text for _ in range(chance.randint(0, 5)) for text in token()]


def by_getopt(argv: list[str]) -> dict[str, Any] | None:
    """Return what getopt makes of an argv, in the form of parse_argv; None if it refuses."""
    try:
        given, words = getopt.gnu_getopt(argv, SHORTS, ["help", "version"])
    except getopt.GetoptError:
        return None
    parsed: dict[str, Any] = {f"-{letter}": DEFAULTS.get(f"-{letter}") for letter in VALUED}
    parsed.update({f"-{letter}": False for letter in FLAGS}, words=words)
    for option, value in given:
        parsed[LONGS.get(option, option)] = value if option[1] in VALUED else True
    return parsed


def by_ours(argv: list[str]) -> dict[str, Any] | None:
    """Return what ours makes of an argv; None if it refuses."""
    try:
        parsed = spawn_fcgi.parse_argv(argv)
    except spawn_fcgi.Error:
        return None
    for name, short in LONGS.items():
        parsed[short] = parsed.pop(name)
    for word in ("<fcgiapp>", "<arg>", "--"):  # they are in "words"
        parsed.pop(word)
    return {key: bool(parsed[key]) if key[1] in FLAGS else parsed[key] for key in parsed}


@pytest.mark.long
@pytest.mark.parametrize("part", range(10))
def test_ten_thousand_argvs_are_parsed_as_getopt_parses_them(
    part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POSIXLY_CORRECT", raising=False)
    chance = random.Random(SEED + part)
    refused = 0
    for number in range(1000):
        argv = random_argv(chance)
        expected = by_getopt(list(argv))
        refused += expected is None
        given = list(argv)
        assert by_ours(given) == expected, f"seed {SEED + part}, argv {number}: {argv!a}"
        assert given == argv, f"seed {SEED + part}, argv {number}: changed in place"
    assert 20 < refused < 800, f"seed {SEED + part}: {refused} refused, too few or too many"


# Run


class Line(NamedTuple):
    """A random command line, and whether it is one that ours must refuse."""

    args: list[str]
    wrong: bool


BAD_NUMBERS = {
    "-p": ("0", "65536", "x", "-1", "9x"),
    "-M": ("8", "x", "10000", "-1"),
    "-C": ("x", "2147483648", "1.5"),
    "-F": ("0", "-1", "x", "4294967297"),
    "-b": ("x", "2147483648", "0x10"),
}
GOOD_VALUES = {
    "-M": ("0600", "777", "0", " 640", "7777", "+660"),
    "-C": ("0", "3", "-1", " 7", "007", "-2147483648"),
    "-F": ("1", "2", " 3", "2147483647"),
    "-b": ("0", "-1", "5", "2147483647", " 9"),
    "-P": ("pid", "", "missing/pid", "--", "-n", "\udcfe"),
    "-d": ("dir", ".", "dir/..", "/tmp"),
    "-a": ("127.0.0.1", "0.0.0.0", "::", "::1"),
    "-f": ("/bin/false", "/usr/bin/printf '%s;' $0 $#", "exit 3", "/usr/bin/printf \u00fc"),
}
FAILING_VALUES = {
    "-a": ("localhost", "", "10.0.0.300", "192.0.2.1", "[::]"),
    "-d": ("missing", "", "sock-missing/x"),
}
FREE = "nS" if os.getuid() == 0 else "n"  # -S comes with a warning to others
PATHS = ("sock", "./sock", "dir/sock", "s k", "\u00fc", "--", "missing/sock")
UNKNOWN = ("-x", "--bad", "-nZ", "-\u00fc")
APP_WORDS = ("a", "", " ", "x y", "\u00fc", "\udcff", "60", "-", "%s", "n")


def random_line(chance: random.Random, port: str) -> Line:
    """Return a command line that does no harm, with -n and an application that ends at once."""
    tokens: list[list[str]] = []
    wrong = False

    def give(option: str, value: str) -> None:
        flags = "-" + "".join(chance.choices(FREE, k=chance.randint(0, 2))) + option[1]
        glued = value != "" and chance.random() < 0.4
        tokens.append([flags + value] if glued else [flags, value])

    for option in chance.sample(sorted(GOOD_VALUES), chance.randint(0, 4)):
        give(option, chance.choice(GOOD_VALUES[option]))
    where = chance.random()
    if where < 0.55:
        give("-s", chance.choice(PATHS))
    if where > 0.5 and where < 0.95:
        give("-p", chance.choice((port, f" {port}", f"+{port}", f"0{port}")))
    if chance.random() < 0.06:
        option = chance.choice(sorted(FAILING_VALUES))
        give(option, chance.choice(FAILING_VALUES[option]))
    if os.getuid() == 0 and chance.random() < 0.2:
        give(chance.choice(("-u", "-g", "-U", "-G")), chance.choice(("65534", "1", "54321", "0")))
    tokens.append(["-n"])
    app = [["/bin/true"], ["/bin/false"], ["/usr/bin/printf", "%s|"], ["/bin/sh", "-c", "exit 7"]]
    words = [*chance.choice(app), *chance.choices(APP_WORDS, k=chance.randint(0, 3))]
    if chance.random() < 0.1:
        words = []
    chance.shuffle(tokens)
    if chance.random() < 0.12:
        wrong = True
        option = chance.choice(sorted(BAD_NUMBERS))
        tokens = [token for token in tokens if option[1] not in token[0][:4]]
        tokens.append([option, chance.choice(BAD_NUMBERS[option])])
        if option == "-p":
            tokens = [token for token in tokens if not re.match("-[nS]*s", token[0])]
        elif not any(re.match("-[nS]*[sp]", token[0]) for token in tokens):
            tokens.append(["-s", "sock"])
        if option == "-M":
            tokens = [token for token in tokens if not re.match("-[nS]*p", token[0])]
        words = words or ["/bin/true"]
    if chance.random() < 0.08:
        wrong = True
        tokens.insert(chance.randint(0, len(tokens)), [chance.choice(UNKNOWN)])
    dashes = [] if words and chance.random() < 0.3 and "-c" not in words else ["--"]
    if not dashes and chance.random() < 0.5:
        places = sorted(chance.randint(0, len(tokens)) for _ in words)
        for shift, (place, word) in enumerate(zip(places, words)):
            tokens.insert(place + shift, [word])
        words = []
    return Line([text for token in tokens for text in token] + dashes + words, wrong)


def end_of(tool: str, args: list[str]) -> tuple[harness.Result, list[str]]:
    """Run a tool on a line with a port and a directory of its own; return what it leaves, too."""
    work = pathlib.Path(tempfile.mkdtemp(prefix="sf-"))
    try:
        work.chmod(0o755)
        (work / "dir").mkdir()
        port = str(harness.free_port())
        command = [tool, *(arg.replace("PORT", port) for arg in args)]
        environment = harness.clean_environment()
        done = subprocess.run(
            command, cwd=work, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=30, check=False,
        )  # fmt: skip
        return harness.Result(done.returncode, done.stdout, done.stderr), os.listdir(work)
    finally:
        shutil.rmtree(work)


@pytest.fixture(scope="module")
def ours() -> Iterator[str]:
    """Return the path of ours, installed if the program under test is the C tool."""
    if not harness.on_c_tool():
        yield harness.program[0]
        return
    directory = pathlib.Path(tempfile.mkdtemp(prefix="sf-test-"))
    try:
        directory.chmod(0o755)
        yield harness.install(directory)
    finally:
        shutil.rmtree(directory)


@pytest.mark.long
@pytest.mark.parametrize("part", range(6))
def test_three_hundred_random_lines_end_as_under_the_c_tool(part: int, ours: str) -> None:
    chance = random.Random(SEED + 100 + part)
    lines = [random_line(chance, "PORT") for _ in range(50)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        mine = list(pool.map(lambda line: end_of(ours, line.args), lines))
        its = list(pool.map(lambda line: end_of(harness.C_TOOL, line.args), lines))
    for number, (line, (a, left), (b, _)) in enumerate(zip(lines, mine, its)):
        where = f"seed {SEED + 100 + part}, line {number}: {line.args!a}: {a} {b}"
        if line.wrong:
            assert (a.status, a.out, left) == (255, b"", ["dir"]), where
            assert re.fullmatch(rb"spawn-fcgi: [^\n]+\n", a.err), where
        else:
            assert (a.status, a.out, bool(a.err)) == (b.status, b.out, bool(b.err)), where
    good = sum(not line.wrong and a.status == 0 for line, (a, _) in zip(lines, mine))
    assert good >= 10, f"seed {SEED + 100 + part}: only {good} of the lines do any work"


# Bad bytes

BYTES: dict[str, bytes] = {
    "empty": b"",
    "huge": b"y" * 5000,
    "enormous": b"z" * 100_000,
    "negative": b"-1",
    "dashes": b"--",
    "non-ascii": "\u00fc\u20ac".encode(),
    "undecodable": b"\xff\xfe",
    "controls": b"\x1b[2J\r\x07\nb",
}
NAMES = {"negative", "dashes", "non-ascii", "undecodable", "controls"}  # all of them file names
# What is legal, and the exit status that it comes to: with -n that of /bin/true, or of sh.
LEGAL: dict[str, dict[str, int]] = {
    "-s": dict.fromkeys(NAMES, 0),
    "-P": dict.fromkeys(BYTES, 0),  # ignored with -n
    "-C": {"negative": 0},
    "-b": {"negative": 0},
}
ROOT_ONLY = "cugUG"


def spoken(result: harness.Result) -> str:
    """Assert that stderr is one clear line, without control characters, and return it."""
    assert re.fullmatch(rb"spawn-fcgi: [^\x00-\x1f\x7f]+\n", result.err), result.err[:300]
    assert b"Traceback" not in result.err
    return result.err.decode("utf-8", "surrogateescape")


def bytes_cases(options: str) -> list[Any]:
    """Return (option, kind of value) for each of these options."""
    return [
        pytest.param(f"-{letter}", kind, marks=[pytest.mark.root] * (letter in ROOT_ONLY))
        for letter in options
        for kind in BYTES
    ]


@pytest.mark.parametrize(("option", "kind"), bytes_cases("daspMCFbPcugUG"))
def test_bad_bytes_as_a_value_are_refused_in_one_line_that_names_them(
    option: str, kind: str, ours: str, work: pathlib.Path
) -> None:
    value = BYTES[kind]
    where = [b"-p", str(harness.free_port()).encode()] if option in ("-a", "-d", "-c") else []
    where = where or ([] if option in ("-p", "-s") else [b"-s", b"sock"])
    result = run_ours(ours, [b"-n", *where, option.encode(), value, b"--", b"/bin/true"], work)
    expected = LEGAL.get(option, {}).get(kind, 255)
    assert (result.status, result.out) == (expected, b"")
    if expected == 0:
        assert result.err == b""
        made = value if option == "-s" else b"sock"
        assert os.listdir(os.fsencode(work)) == [made]
        return
    line = spoken(result)
    assert option in line or shown(value) in line
    assert value == b"" or shown(value) in line
    assert os.listdir(work) == []


def shown(value: bytes) -> str:
    """Return a value as a message has it: control characters are escaped."""
    text = value.decode("utf-8", "surrogateescape")
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\x{ord(found.group()):02x}", text)


def run_ours(ours: str, args: list[bytes], work: pathlib.Path, **kwargs: Any) -> harness.Result:
    """Run ours to its end in a directory."""
    done = subprocess.run(
        [os.fsencode(ours), *args], cwd=work, env=harness.clean_environment(), timeout=30,
        stdin=subprocess.DEVNULL, capture_output=True, check=False, **kwargs,
    )  # fmt: skip
    return harness.Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("kind", BYTES)
def test_bad_bytes_name_a_pid_file_or_are_refused(kind: str, ours: str, work: pathlib.Path) -> None:
    value = BYTES[kind]
    result = run_ours(ours, [b"-P", value, b"-s", b"sock", *map(os.fsencode, harness.SLEEP)], work)
    if kind in NAMES:
        assert (result.status, result.err, len(result.pids)) == (0, b"", 1)
        pids = pathlib.Path(os.fsdecode(os.fsencode(work) + b"/" + value)).read_bytes()
        assert pids == b"%d" % result.pids[0]
    else:
        assert (result.status, result.out) == (255, b"")
        assert shown(value) in spoken(result)
        assert os.listdir(work) == []


@pytest.mark.parametrize("kind", BYTES)
def test_bad_bytes_name_a_directory(kind: str, ours: str, work: pathlib.Path) -> None:
    value = BYTES[kind]
    made = os.path.join(os.fsencode(work), value)
    if kind in NAMES:
        os.mkdir(made)
    where = [b"-p", b"%d" % harness.free_port(), b"-d", value]
    result = run_ours(ours, [b"-n", *where, b"--", b"/bin/pwd", b"-P"], work)
    if kind in NAMES:
        assert result == (0, made + b"\n", b"")
    else:
        assert (result.status, result.out) == (255, b"")
        assert shown(value) in spoken(result)


@pytest.mark.parametrize("no_fork", [True, False], ids=["no fork", "fork"])
@pytest.mark.parametrize("kind", BYTES)
def test_bad_bytes_as_an_application_fail_to_exec_in_one_line(
    kind: str, no_fork: bool, ours: str, work: pathlib.Path
) -> None:
    value = BYTES[kind]
    args = [b"-s", b"sock", *([b"-n"] if no_fork else [b"-P", b"pid"]), b"--", value]
    result = run_ours(ours, args, work)
    too_long = kind in ("huge", "enormous")
    assert (result.status, result.out) == (36 if too_long else 2, b"")  # ENAMETOOLONG, ENOENT
    assert shown(value) in spoken(result)
    assert os.listdir(work) == ([] if no_fork else ["pid"])


@pytest.mark.parametrize("kind", BYTES)
def test_bad_bytes_reach_the_application_and_the_shell_as_they_are(
    kind: str, ours: str, work: pathlib.Path
) -> None:
    value = BYTES[kind]
    app = [b"/usr/bin/printf", b"%s|", value, b"x"]
    result = run_ours(ours, [b"-n", b"-s", b"sock", b"--", *app], work)
    assert result == (0, value + b"|x|", b"")
    (work / "sock").unlink()
    command = b"/usr/bin/printf '%s|' '" + value + b"'"
    result = run_ours(ours, [b"-n", b"-s", b"sock", b"-f", command], work)
    assert result == (0, value + b"|", b"")


@pytest.mark.parametrize("kind", BYTES)
def test_bad_bytes_as_a_shell_line_are_the_shells_to_refuse(
    kind: str, ours: str, work: pathlib.Path
) -> None:
    shell = subprocess.run(
        [b"/bin/sh", b"-c", b"exec " + BYTES[kind]], stderr=subprocess.PIPE, check=False,
        cwd=work, env=harness.clean_environment(), stdin=subprocess.DEVNULL,
    )  # fmt: skip
    result = run_ours(ours, [b"-n", b"-s", b"sock", b"-f", BYTES[kind]], work)
    assert (result.status, result.out) == (shell.returncode, b"")
    assert bool(result.err) == bool(shell.stderr)


@pytest.mark.parametrize("kind", sorted(set(BYTES) - {"empty"}))
@pytest.mark.parametrize("flag", ["-n", "-S", "-v", "-?", "-h", "--help=", "--", "-nS"])
def test_bad_bytes_after_a_flag_are_unknown_options(
    flag: str, kind: str, ours: str, work: pathlib.Path
) -> None:
    args = [b"-s", b"sock", flag.encode() + BYTES[kind], b"--", b"/bin/true"]
    result = run_ours(ours, args, work)
    assert (result.status, result.out) == (255, b"")
    assert "spawn-fcgi -h" in spoken(result)
    assert os.listdir(work) == []


@pytest.mark.parametrize("letter", ROOT_ONLY)
@pytest.mark.parametrize("kind", BYTES)
def test_bad_bytes_for_root_alone_are_warned_of_and_harmless_to_a_user(
    letter: str, kind: str, ours: str, work: pathlib.Path
) -> None:
    args = [b"-n", b"-p", b"%d" % harness.free_port(), f"-{letter}".encode(), BYTES[kind]]
    result = run_ours(ours, [*args, b"--", b"/bin/true"], work, **harness.as_user())
    assert (result.status, result.out) == (0, b"")
    assert f"-{letter}" in spoken(result)
