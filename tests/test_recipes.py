"""The man page's commands and files do what it says of them, typed as they stand.

Each runs on a machine of its own, with the paths, ports and users that it names.
"""

from __future__ import annotations

import json
import re
import shlex
import stat
import subprocess
from collections.abc import Callable, Iterator
from typing import NamedTuple

import harness
import pytest
from harness import wait_for
from machine import SYSTEMD, Machine, machine

pytestmark = [pytest.mark.root, pytest.mark.long]

PAGE_FILE = harness.ROOT / "man/spawn-fcgi.1"
README = (harness.ROOT / "README.md").read_text()
APP = "/srv/app/app.fcgi"
WWW_DATA = 33  # on every Debian
# How roff has what it would make typographical otherwise.
ESCAPES = {
    "\\(aq": "'",
    "\\(ga": "`",
    "\\(ha": "^",
    "\\(ti": "~",
    "\\-": "-",
    "\\&": "",
    "\\e": "\\",
}
# Answers each connection with its PID, and says on stderr that it serves.
STAND_IN = f"#!/usr/bin/perl\n{harness.STAND_IN[2]}\n"
STOPPED = "#!/bin/sh\nkill -STOP $$\n"  # needs nothing but a shell
FAILING = "#!/bin/sh\necho 'no such database' >&2\nexit 3\n"


class Block(NamedTuple):
    """A literal block of the page: the path of a file, empty for commands, and the text."""

    path: str
    text: str


def plain(roff: str) -> str:
    """Return the text that a line of roff stands for."""
    return re.sub(r"\\(\(..|.)", lambda escape: ESCAPES[escape[0]], roff)


def recipes() -> dict[str, list[Block]]:
    """Return the blocks of each subsection that has some, by its title."""
    found = {}
    literal = r"(?:^\.Pa (\S+) :\n)?^\.Bd -literal.*\n((?:.*\n)*?)\.Ed$"
    for part in re.split(r"^\.S[sh] ", PAGE_FILE.read_text(), flags=re.M)[1:]:
        blocks = [Block(path, plain(text)) for path, text in re.findall(literal, part, re.M)]
        if blocks:
            found[part.partition("\n")[0]] = blocks
    return found


RECIPES = recipes()
TRIED: set[str] = set()


def tries(*titles: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark a test as one that runs every command and has every file of these subsections."""
    TRIED.update(titles)
    return lambda test: test


def commands(title: str) -> list[str]:
    """Return the blocks of commands of a subsection."""
    return [block.text for block in RECIPES[title] if not block.path]


def write_files(on: Machine, *titles: str) -> None:
    """Write the files of these subsections."""
    for title in titles:
        for block in RECIPES[title]:
            if block.path:
                on.write(block.path, block.text)


def follow(on: Machine, *titles: str) -> str:
    """Do what these subsections say, one after the other; return what the last command says."""
    said = ""
    for title in titles:
        write_files(on, title)
        for text in commands(title):
            said = on.sh(text, network="pip install" in text)
    return said


def make_app(on: Machine, app: str = STAND_IN) -> None:
    """Make the application that the page takes for granted."""
    on.write(APP, app)
    on.sh(f"chmod 755 {APP}; cp {APP} /usr/local/bin")


def supervise(on: Machine, command: str) -> None:
    """Start a command that may go on for ever."""
    on.sh(f"{{ {command}; }} </dev/null >/dev/null 2>&1 &")


def apps(on: Machine, count: int) -> set[int]:
    """Wait until so many applications run; return their PIDs."""
    found: set[int] = set()

    def all_there() -> bool:
        found.clear()
        found.update(on.processes("app.fcgi"))
        return len(found) == count

    wait_for(all_there, 20)
    return found


def pid_file(on: Machine, path: str = "/run/app.pid") -> set[int]:
    """Return the PIDs in a file."""
    return {int(line) for line in on.path(path).read_text().split("\n")}


def served_by(on: Machine, path: str = "/run/app.sock") -> int:
    """Return the PID of the application that answers."""
    wait_for(lambda: harness.connects(on.path(path)), 20)
    return harness.ask(on.path(path))


# One line each


class Outcome(NamedTuple):
    """What a command leaves running, on which port or Unix socket, and as whom."""

    processes: int
    where: str
    user: str = "www-data"
    owner: str = ""
    mode: int = 0
    pid_file: str = ""
    program: str = "app.fcgi"
    root: str = "/"
    variable: bytes = b""


CHROOT = "spawn-fcgi -c /srv/app -S"
ONE_LINE_EACH = {
    "spawn-fcgi -a 127.0.0.1 -p 9000 -u www-data -F 4": Outcome(4, "9000", pid_file="/run/app.pid"),
    "spawn-fcgi -s /run/php.sock -u app": Outcome(
        5, "/run/php.sock", "app", "www-data", 0o600, "/run/php.pid", "php-cgi"
    ),
    "exec spawn-fcgi -n -s": Outcome(1, "/run/app.sock", owner="www-data", mode=0o640),
    "exec spawn-fcgi -n -a 127.0.0.1": Outcome(4, "9000"),
    "spawn-fcgi -a 127.0.0.1 -p 9000 -u www-data -C 8": Outcome(
        9, "9000", pid_file="/run/php.pid", program="php-cgi", variable=b"PHP_FCGI_CHILDREN=8"
    ),
    CHROOT: Outcome(1, "/run/app.sock", owner="www-data", mode=0o640, root="/srv/app"),
    "spawn-fcgi -a 127.0.0.1 -p 9000 -u www-data -f": Outcome(1, "9000", variable=b"DEBUG=1"),
}


def one_line(beginning: str) -> str:
    """Return the command of one line that begins so."""
    [command] = [text for text in commands("One line each") if text.startswith(beginning)]
    return command.rstrip()


@tries("One line each")
@pytest.mark.parametrize(
    "beginning",
    [
        *(line for line in ONE_LINE_EACH if line != CHROOT),
        pytest.param(CHROOT, marks=pytest.mark.differs(11)),
    ],
)
def test_a_command_of_one_line_starts_what_its_sentence_says(beginning: str) -> None:
    expected = ONE_LINE_EACH[beginning]
    with machine() as on:
        on.sh("useradd app")
        make_app(on, STAND_IN if expected.root == "/" else STOPPED)
        on.sh("cp --parents /bin/sh $(ldd /bin/sh | grep -o '/[^ ]*') /srv/app")
        start = supervise if beginning.startswith("exec") else Machine.sh
        start(on, f"umask 027; cd /srv/app; {one_line(beginning)} >/run/out 2>/run/log")
        wait_for(lambda: len(on.processes(expected.program)) == expected.processes)
        uid, gid = map(int, on.sh(f"id -u {expected.user}; id -g {expected.user}").split())
        running = on.processes(expected.program)
        for state in running.values():
            assert (set(state.uids), set(state.gids)) == ({uid}, {gid})
            assert state.fds[0].startswith("socket:")
            assert beginning.startswith("exec") or state.fds[1] == state.fds[2] == "/dev/null"
            assert state.root == expected.root
            assert not expected.variable or expected.variable in state.environ
        if expected.where.isdecimal():
            assert on.sh(f"ss -Htln sport = :{expected.where}")
        else:
            path = on.path(expected.where)
            assert harness.connects(path)
            seen = stat.S_IMODE(path.stat().st_mode), path.owner()
            assert seen == (expected.mode, expected.owner)
        if expected.pid_file:
            assert pid_file(on, expected.pid_file) <= set(running)
        assert "spawn-fcgi" not in on.path("/run/log").read_text()


def test_one_line_ends_the_children_of_the_first_example() -> None:
    with machine() as on:
        make_app(on)
        on.sh(f"cd /srv/app; {one_line('spawn-fcgi -a 127.0.0.1 -p 9000 -u www-data -F 4')}")
        apps(on, 4)
        on.sh(one_line("kill"))
        apps(on, 0)
    assert len(commands("One line each")) == len(ONE_LINE_EACH) + 1


# Applications behind web servers


def install_by_the_readme(on: Machine) -> None:
    """Install our program as the README says, from a copy of this checkout."""
    block = re.search(r"^## Install\n(?:.*\n)*?```sh\n((?:.*\n)*?)```", README, re.M)
    assert block
    copy_checkout(on, "/usr/src/spawn-fcgi")
    on.sh(f"rm /usr/local/bin/spawn-fcgi; cd /usr/src/spawn-fcgi; {block[1]}", network=True)


def copy_checkout(on: Machine, to: str) -> None:
    """Copy what of this checkout is of the project."""
    what = "Makefile README.md man pyproject.toml spawn_fcgi.py tests"
    on.sh(f"mkdir -p {to}; cd {shlex.quote(str(harness.ROOT))}; cp -r {what} {to}")


@tries("PHP", "A WSGI application", "CGI", "nginx", "lighttpd", "Apache")
def test_from_nothing_the_page_leads_to_pages_of_php_wsgi_and_cgi() -> None:
    with machine() as on:
        install_by_the_readme(on)
        follow(on, "PHP", "A WSGI application", "CGI")
        for server in ("nginx", "lighttpd", "Apache"):
            said = follow(on, server)
            assert re.search(r"^Hello from PHP 8", said, re.M)
            assert "Hello from WSGI at /app/\n" in said
            assert "Hello from CGI at /cgi-bin/hello\n" in said
            on.sh(f"service {server.lower().replace('apache', 'apache2')} stop")
        assert len(on.processes("php-cgi")) == 1 + 4
        assert len(on.processes("fcgiwrap")) == 4
        for state in {**on.processes("php-cgi"), **on.processes("fcgiwrap")}.values():
            assert set(state.uids) == {WWW_DATA}


@tries("uWSGI", "PHP-FPM")
def test_the_same_pages_come_from_uwsgi_and_php_fpm() -> None:
    with machine() as on:
        write_files(on, "PHP", "A WSGI application")
        on.sh("python3 -m venv --without-pip /opt/app")
        said = follow(on, "uWSGI", "PHP-FPM", "CGI", "nginx")
        assert re.search(r"^Hello from PHP 8", said, re.M)
        assert "Hello from WSGI at /app/\n" in said
        assert set(pid_file(on, "/run/app.pid")) <= set(on.processes("uwsgi-core"))
        assert pid_file(on, "/run/php.pid") <= set(on.processes("php-fpm8.2"))
        on.sh("kill $(cat /run/app.pid); kill $(cat /run/php.pid)")
        wait_for(lambda: not on.processes("uwsgi-core") and not on.processes("php-fpm8.2"))


@tries("Perl")
def test_a_page_comes_from_perl() -> None:
    with machine() as on:
        follow(on, "Perl", "PHP", "CGI")
        assert "Hello from Perl at /app/\n" in follow(on, "nginx")
        assert pid_file(on) == set(on.processes("app.pl"))


@tries("Several hosts")
def test_of_several_hosts_one_may_be_down() -> None:
    [spawn] = commands("Several hosts")
    with machine() as on:
        on.sh("for n in 2 3; do ip addr add 10.0.0.$n dev lo; done")
        write_files(on, "PHP", "Several hosts")
        on.sh(spawn)
        on.sh(spawn.replace("10.0.0.2", "10.0.0.3"))
        fetch = "for n in 1 2 3 4 5 6; do curl -sS http://127.0.0.1:8081/hello.php; done"
        assert on.sh(f"service nginx restart; {fetch}").count("Hello from PHP") == 6
        on.sh("kill $(cat /run/php.pid)")
        wait_for(lambda: not on.sh("ss -Htln src 10.0.0.3"))
        assert on.sh(fetch).count("Hello from PHP") == 6


# What starts it, and brings it back


@tries("Shell scripts")
def test_the_shell_scripts_start_stop_and_restart() -> None:
    with machine() as on:
        make_app(on)
        write_files(on, "Shell scripts")
        on.sh("chmod 755 /srv/app/start; /srv/app/start")
        first = apps(on, 4)
        assert pid_file(on) == first
        assert all(set(state.uids) == {WWW_DATA} for state in on.processes("app.fcgi").values())
        follow(on, "Shell scripts")
        second = apps(on, 4)
        assert pid_file(on) == second
        assert not first & second
        assert served_by(on) in second
        on.sh("/srv/app/stop")
        assert not on.processes("app.fcgi")
        assert not on.path("/run/app.pid").exists()


@tries("cron")
def test_cron_brings_all_workers_back_and_changes_nothing_while_they_live() -> None:
    with machine() as on:
        make_app(on)
        write_files(on, "Shell scripts", "cron")
        on.sh("chmod 755 /srv/app/*; chmod 644 /etc/cron.d/app")
        clock = " ".join(f"{name}='{value}'" for name, value in harness.FAST_CLOCK.items())
        supervise(on, f"env {clock} cron -f")
        assert served_by(on) in apps(on, 4)
        line = RECIPES["cron"][0].text.partition(" root ")[2]
        before = wait_for(on.path("/run/app.pid").read_text)  # it is written after the grace time
        assert on.sh(line, check=False) == ""
        assert on.path("/run/app.pid").read_text() == before or harness.on_c_tool()
        first = apps(on, 4)
        on.sh(f"kill -9 {' '.join(map(str, first))}")
        wait_for(lambda: len(set(on.processes("app.fcgi")) - first) == 4, 20)


@tries("SysV init")
def test_the_init_script_starts_stops_restarts_and_tells_the_status() -> None:
    with machine() as on:
        make_app(on)
        write_files(on, "Shell scripts")
        on.sh("chmod 755 /srv/app/*")
        assert "app" not in on.sh("ls /etc/rc2.d")
        follow(on, "SysV init")
        first = apps(on, 4)
        assert "S01app" in on.sh("ls /etc/rc2.d")
        assert on.sh("service app start; service app status") == "running\n"
        assert apps(on, 4) == first
        on.sh("service app restart")
        assert not apps(on, 4) & first
        on.sh("service app stop")
        assert not on.processes("app.fcgi")
        assert on.sh("service app status || echo $?") == "stopped\n3\n"
        on.sh("service app restart")
        kept = apps(on, 4)
        on.sh(f"kill -9 {min(kept)}; service app start; service app status")
        assert apps(on, 3) == kept - {min(kept)}


@pytest.fixture
def with_systemd() -> Iterator[Machine]:
    """Run a machine that systemd has booted."""
    with machine(SYSTEMD) as on:
        make_app(on)
        yield on


def start_unit(on: Machine, title: str) -> None:
    """Write the unit of a subsection, have systemd verify it, and do what the page says."""
    write_files(on, title)
    assert on.sh("systemd-analyze verify /etc/systemd/system/app.service") == ""
    follow(on, title)
    assert on.sh("systemctl is-enabled app; systemctl is-active app") == "enabled\nactive\n"


@tries("systemd, Type=forking")
def test_systemd_starts_all_anew_when_the_first_one_ends(with_systemd: Machine) -> None:
    on = with_systemd
    start_unit(on, "systemd, Type=forking")
    first = apps(on, 4)
    main = int(on.sh("systemctl show --value -p MainPID app"))
    assert main == int(on.path("/run/app.pid").read_text().split()[0])
    on.sh(f"kill -9 {main}")
    wait_for(lambda: not first & set(on.processes("app.fcgi")))
    assert served_by(on) in apps(on, 4)
    on.sh("systemctl stop app")
    assert not on.processes("app.fcgi")


@tries("systemd, Type=simple")
def test_systemd_brings_the_one_process_back_and_has_its_stderr(with_systemd: Machine) -> None:
    on = with_systemd
    start_unit(on, "systemd, Type=simple")
    [first] = apps(on, 1)
    assert set(on.processes("app.fcgi")[first].uids) == {WWW_DATA}
    assert served_by(on, "/run/app/sock") == first
    wait_for(lambda: f"serving as {first}" in on.sh("journalctl -u app"))
    on.sh(f"kill -9 {first}")
    wait_for(lambda: set(on.processes("app.fcgi")) - {first})
    assert served_by(on, "/run/app/sock") in apps(on, 1)


@tries("runit")
def test_runit_brings_the_one_process_back_and_has_its_stderr() -> None:
    with machine() as on:
        make_app(on)
        supervise(on, "runsvdir -P /etc/service")  # as at boot
        follow(on, "runit")
        [first] = apps(on, 1)
        on.sh(f"kill -9 {first}")
        wait_for(lambda: set(on.processes("app.fcgi")) - {first})
        second = served_by(on)
        assert {second} == apps(on, 1)
        log = on.path("/var/log/app/current")
        wait_for(
            lambda: re.findall(r"serving as (\d+)", log.read_text()) == [str(first), str(second)]
        )


@tries("multiwatch")
def test_multiwatch_brings_back_each_of_four() -> None:
    [command] = commands("multiwatch")
    with machine() as on:
        make_app(on)
        supervise(on, command.rstrip())
        first = apps(on, 4)
        on.sh(f"kill -9 {min(first)}")
        wait_for(lambda: len(set(on.processes("app.fcgi")) - first) == 1)
        assert apps(on, 4) > first - {min(first)}


@tries("Containers")
def test_the_containers_first_process_is_php() -> None:
    [dockerfile] = [block.text for block in RECIPES["Containers"]]
    with machine() as on:
        write_files(on, "PHP")
        copy_checkout(on, "/srv/checkout")
        on.sh("mkdir -p /srv/checkout/.venv/bin; touch /srv/checkout/.venv/ready")  # not for here
        on.sh("mv /var/www/html/hello.php /srv/checkout; rm /usr/local/bin/spawn-fcgi")
        for line in dockerfile.replace("\\\n", "").splitlines():
            instruction, _, rest = line.partition(" ")
            if instruction == "FROM":
                assert rest == "debian:12"
            elif instruction == "RUN":
                on.sh(rest, network=True)
            elif instruction == "COPY":
                source, target = rest.split()
                on.sh(f"cd /srv/checkout; mkdir -p {target}; cp -r {source} {target}")
            elif instruction == "CMD":
                start = shlex.join(json.loads(rest))
            else:
                assert line == "EXPOSE 9000"
        supervise(on, f"unshare --pid --fork --kill-child --mount-proc {start}")
        pid = wait_for(lambda: on.sh("pgrep -x php-cgi || :")).strip()
        uid, pids = on.sh(f"grep -h -e ^Uid -e ^NSpid /proc/{pid}/status").splitlines()
        assert (uid.split()[1], pids.split()[-1]) == (str(WWW_DATA), "1")
        ask = "SCRIPT_FILENAME=/var/www/html/hello.php REQUEST_METHOD=GET REDIRECT_STATUS=200"
        assert "Hello from PHP 8" in on.sh(f"{ask} cgi-fcgi -bind -connect 127.0.0.1:9000")


# What people ask


@tries("The application dies at once")
def test_an_application_that_dies_at_once_says_why_with_n() -> None:
    [command] = commands("The application dies at once")
    with machine() as on:
        make_app(on, FAILING)
        assert on.sh(command, check=False) == "no such database\n"


@tries("Where its standard error goes")
def test_a_shell_line_logs_what_the_application_says() -> None:
    with machine() as on:
        make_app(on)
        follow(on, "Where its standard error goes")
        log = on.path("/var/log/app.log")
        wait_for(lambda: log.read_text() == f"serving as {served_by(on)}\n")
        assert log.owner() == "www-data"


@tries("Permission denied at the web server")
@pytest.mark.parametrize("number", [0, 1])
def test_the_web_server_is_let_in_and_nobody_else(number: int) -> None:
    command = commands("Permission denied at the web server")[number]
    with machine() as on:
        on.sh("useradd app")
        make_app(on)
        on.sh(command)
        connect = 'use IO::Socket::UNIX; exit !IO::Socket::UNIX->new("/run/app.sock")'
        become = "setpriv --clear-groups --reuid={0} --regid={0} perl -e " + shlex.quote(connect)
        assert on.sh(f"{become.format('www-data')} && echo connected") == "connected\n"
        assert on.sh(f"{become.format('games')} || echo refused") == "refused\n"


# All of it


def test_every_subsection_with_a_block_is_tried() -> None:
    assert set(RECIPES) == TRIED


def test_every_block_is_seen_on_80_columns_as_it_is_typed() -> None:
    render = ["mandoc", "-Tutf8", "-O", "width=80", str(PAGE_FILE)]
    done = subprocess.run(render, check=True, capture_output=True, text=True)
    seen = re.sub(r".\x08", "", done.stdout)
    lines = [line.strip() for line in seen.splitlines()]
    for block in [block for blocks in RECIPES.values() for block in blocks]:
        for line in block.text.splitlines():
            assert line.strip() in lines
    assert max(map(len, seen.expandtabs().splitlines())) <= 80


def test_shellcheck_has_nothing_to_say_of_the_commands_and_scripts() -> None:
    for title, blocks in RECIPES.items():
        for block in blocks:
            if not block.path or block.text.startswith("#!/bin/sh"):
                # SC2046: several PIDs are to be several words.
                check = ["shellcheck", "-s", "sh", "-S", "warning", "-e", "SC2046", "-"]
                text = block.text.encode()
                done = subprocess.run(check, input=text, capture_output=True, check=False)
                assert done.returncode == 0, f"{title}\n{done.stdout.decode()}"
