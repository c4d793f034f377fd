"""The systems that people spawn, and the web servers in front of them, all from Debian's packages.

Every application answers with lines of the form `name=value`: what it is, its process, and what
the server told it. Every server runs in the foreground, from a configuration written here.
`make peers` installs the parts; one that is missing fails the tests, by name.
"""

from __future__ import annotations

import glob
import http.client
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import harness

PHP_FPM = max(glob.glob("/usr/sbin/php-fpm[0-9]*"), default="/usr/sbin/php-fpm")
FLUP = str(harness.ROOT / ".venv/peers/lib/python3*/site-packages/flup")
# As root, everything runs as the user of Debian's servers; apache2 and PHP-FPM refuse root.
DROP = ("-u", "www-data", "-g", "www-data") if os.getuid() == 0 else ()

CGI = r"""#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
echo "by=sh, $GATEWAY_INTERFACE"
echo "pid=$$"
echo "ppid=$PPID"
echo "user=$(id -u):$(id -g)"
echo "server=$SERVER_SOFTWARE"
echo "method=$REQUEST_METHOD"
echo "query=$QUERY_STRING"
echo "body=$(cat)"
"""

PERL = r"""
use FCGI;
my $request = FCGI::Request();
while ($request->Accept() >= 0) {
    read(STDIN, my $body, $ENV{CONTENT_LENGTH});
    print "Content-Type: text/plain\r\n\r\n", "by=perl $FCGI::VERSION\n";
    print "pid=$$\nppid=${\getppid()}\nuser=$<:${\($( + 0)}\nserver=$ENV{SERVER_SOFTWARE}\n";
    print "method=$ENV{REQUEST_METHOD}\nquery=$ENV{QUERY_STRING}\nbody=$body\n";
}
"""

PHP = r"""<?php
header('Content-Type: text/plain');
echo 'by=', PHP_SAPI, ' ', PHP_VERSION, "\n";
echo 'pid=', getmypid(), "\nppid=", posix_getppid(), "\n";
echo 'user=', posix_getuid(), ':', posix_getgid(), "\n";
echo "server=$_SERVER[SERVER_SOFTWARE]\nmethod=$_SERVER[REQUEST_METHOD]\n";
echo "query=$_SERVER[QUERY_STRING]\nbody=", file_get_contents('php://input'), "\n";
"""

WSGI = r"""
import os

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    by = "uwsgi" if "uwsgi.version" in environ else "flup"
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode()
    text = f"by={by}\npid={os.getpid()}\nppid={os.getppid()}\n"
    text += f"user={os.getuid()}:{os.getgid()}\n"
    text += f"server={environ['SERVER_SOFTWARE']}\nmethod={environ['REQUEST_METHOD']}\n"
    return [f"{text}query={environ['QUERY_STRING']}\nbody={body}\n".encode()]

if __name__ == "__main__":
    from flup.server.fcgi import WSGIServer
    WSGIServer(application).run()
"""

FPM = """[global]
error_log = {site}/fpm.log
[www]
listen = {address}
pm = static
pm.max_children = 2
"""

PAGES = {"page.cgi": CGI, "page.pl": PERL, "page.php": PHP, "page.py": WSGI}


class App(NamedTuple):
    """An application: what its page says it is, and how to spawn it.

    In words, {page} is its page's file, {address} what it listens at, {conf} a file for FPM.
    """

    name: str
    by: str
    page: str
    words: Sequence[str]
    needs: Sequence[str]  # patterns of files
    children: int = 1


PERL_NEEDS = ("/usr/bin/perl", "/usr/lib/*/perl5/*/FCGI.pm")
PERL_WORDS = ("/usr/bin/perl", "{page}")
FPM_LINE = f"env FPM_SOCKETS={{address}}=3 {PHP_FPM} -F -y {{conf}} 3<&0"  # it refuses fd 0
MULTIWATCH = ("/usr/bin/multiwatch", "-f", "2", "--")
UWSGI = "/usr/bin/uwsgi-core --plugin python3 --fastcgi-socket fd://0 --need-app --wsgi-file"
APPS = [
    App(
        "fcgiwrap",
        "sh, CGI/1.1",
        "page.cgi",
        ["-F2", "/usr/sbin/fcgiwrap"],
        ["/usr/sbin/fcgiwrap"],
        2,
    ),
    App("perl", "perl ", "page.pl", ["-F2", "--", *PERL_WORDS], PERL_NEEDS, 2),
    App("php-C", "cgi-fcgi 8", "page.php", ["-C2", "/usr/bin/php-cgi"], ["/usr/bin/php-cgi"]),
    App("php-F", "cgi-fcgi 8", "page.php", ["-F2", "/usr/bin/php-cgi"], ["/usr/bin/php-cgi"], 2),
    App("flup", "flup", "page.py", ["--", "/usr/bin/python3", "{page}"], [FLUP]),
    App(
        "uwsgi",
        "uwsgi",
        "page.py",
        ["--", *UWSGI.split(), "{page}"],
        ["/usr/bin/uwsgi-core", "/usr/lib/uwsgi/plugins/python3_plugin.so"],
    ),
    App("php-fpm", "fpm-fcgi 8", "page.php", ["-f", FPM_LINE], [PHP_FPM]),
    App(
        "multiwatch",
        "perl ",
        "page.pl",
        ["--", *MULTIWATCH, *PERL_WORDS],
        ["/usr/bin/multiwatch", *PERL_NEEDS],
    ),
]
TRANSPORTS = ["unix", "tcp"]


class Backend(NamedTuple):
    """An application at its address, and the directory that its pages are below, by name."""

    app: App
    site: pathlib.Path
    port: int | None  # None: a Unix socket

    @property
    def name(self) -> str:
        """The first part of the URL's path."""
        return f"{self.app.name}-{'tcp' if self.port else 'unix'}"

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}" if self.port else str(self.site / f"{self.name}.sock")

    @property
    def url(self) -> str:
        """The path of its page."""
        return f"/{self.name}/{self.app.page}"

    def spawner_args(self) -> list[str]:
        """Return the arguments that spawn it, or fail if a part of it is not installed."""
        need(self.app.needs)
        where = ["-a", "127.0.0.1", "-p", str(self.port)] if self.port else ["-s", self.address]
        names = {
            "page": f"{self.site}/www{self.url}",
            "address": self.address,
            "conf": f"{self.site}/{self.name}.conf",
        }
        return [*DROP, *where, *(word.format(**names) for word in self.app.words)]

    def environment(self) -> dict[str, str]:
        """Return the spawner's environment."""
        return harness.clean_environment(PYTHONPATH=f"{self.site}/lib")


def need(patterns: Sequence[str]) -> None:
    """Fail, and say how to mend it, unless there is a file for every pattern."""
    missing = [pattern for pattern in patterns if not glob.glob(pattern)]
    assert not missing, f"not installed: {' '.join(missing)}; run: make peers"


def make_site(site: pathlib.Path) -> list[Backend]:
    """Write the pages of every application, at both transports, below a directory."""
    ports: dict[str, int] = {}
    while len(ports) < len(APPS):
        port = harness.free_port()
        if port not in ports.values():
            ports[APPS[len(ports)].name] = port
    backends = [Backend(app, site, port) for app in APPS for port in (None, ports[app.name])]
    for backend in backends:
        directory = site / "www" / backend.name
        directory.mkdir(parents=True)
        (directory / backend.app.page).write_text(PAGES[backend.app.page])
        (directory / backend.app.page).chmod(0o755)
        fpm = FPM.format(site=site, address=backend.address)
        (site / f"{backend.name}.conf").write_text(fpm)
    for flup in glob.glob(FLUP):  # www-data may be unable to reach this checkout
        shutil.copytree(flup, site / "lib/flup")
    if DROP:
        shutil.chown(site, "www-data", "www-data")
    return backends


def nginx(site: pathlib.Path, port: int, backends: list[Backend]) -> tuple[str, list[str]]:
    """Return nginx's configuration and command line."""
    paths = "".join(
        f"{kind}_temp_path {site}/nginx;"
        for kind in ("client_body", "fastcgi", "proxy", "scgi", "uwsgi")
    )
    locations = "".join(
        f"location /{backend.name}/ {{"
        f" fastcgi_pass {'' if backend.port else 'unix:'}{backend.address}; }}\n"
        for backend in backends
    )
    return (
        f"daemon off; worker_processes 1; {'user www-data;' if DROP else ''}\n"
        f"pid {site}/nginx.pid; error_log {site}/nginx.error.log;\n"
        f"events {{}}\nhttp {{ access_log off; {paths}\n"
        f"server {{ listen 127.0.0.1:{port}; root {site}/www; include /etc/nginx/fastcgi.conf;\n"
        f"{locations} }} }}\n",
        ["/usr/sbin/nginx", "-e", f"{site}/nginx.error.log", "-c"],
    )


def lighttpd(site: pathlib.Path, port: int, backends: list[Backend]) -> tuple[str, list[str]]:
    """Return lighttpd's configuration and command line."""
    user = 'server.username = "www-data"\nserver.groupname = "www-data"\n' if DROP else ""
    locations = "".join(
        f'$HTTP["url"] =~ "^/{backend.name}/" {{ fastcgi.server = ('
        f'"{pathlib.Path(backend.app.page).suffix}" => (('
        + (
            f'"host" => "127.0.0.1", "port" => {backend.port}'
            if backend.port
            else f'"socket" => "{backend.address}"'
        )
        + "))) }\n"
        for backend in backends
    )
    return (
        f'server.modules = ("mod_fastcgi")\nserver.document-root = "{site}/www"\n{user}'
        f'server.bind = "127.0.0.1"\nserver.port = {port}\nserver.upload-dirs = ("{site}")\n'
        f'server.errorlog = "{site}/lighttpd.error.log"\n{locations}',
        ["/usr/sbin/lighttpd", "-D", "-f"],
    )


def apache2(site: pathlib.Path, port: int, backends: list[Backend]) -> tuple[str, list[str]]:
    """Return Apache's configuration and command line."""
    modules = "".join(
        f"LoadModule {module}_module /usr/lib/apache2/modules/mod_{module}.so\n"
        for module in ("mpm_event", "authz_core", "proxy", "proxy_fcgi")
    )
    locations = "".join(
        f'<Location "/{backend.name}/">\nSetHandler "proxy:'
        + (
            f"fcgi://{backend.address}"
            if backend.port
            else f"unix:{backend.address}|fcgi://{backend.name}"
        )
        + '"\n</Location>\n'
        for backend in backends
    )
    return (
        f"{modules}{'User www-data' if DROP else ''}\n{'Group www-data' if DROP else ''}\n"
        f"ServerRoot {site}\nDefaultRuntimeDir {site}\nPidFile {site}/apache2.pid\n"
        f"ErrorLog {site}/apache2.error.log\nServerName localhost\nListen 127.0.0.1:{port}\n"
        # GENERIC: a plain SCRIPT_FILENAME, not "proxy:fcgi://...", which only FPM understands.
        f"DocumentRoot {site}/www\nProxyFCGIBackendType GENERIC\n{locations}",
        ["/usr/sbin/apache2", "-DFOREGROUND", "-f"],
    )


class Page(NamedTuple):
    """What came back from a server, with the application's own lines."""

    status: int
    text: str

    @property
    def says(self) -> dict[str, str]:
        """The application's lines, by name."""
        return dict(line.split("=", 1) for line in self.text.splitlines() if "=" in line)

    @property
    def pids(self) -> set[int]:
        """The process that made the page, and its parent."""
        return {int(self.says["pid"]), int(self.says["ppid"])}


Fetch = Callable[[Backend, str, str], Page]
CONFIGURATIONS = {"nginx": nginx, "lighttpd": lighttpd, "apache2": apache2}
SERVERS = [*CONFIGURATIONS, "cgi-fcgi"]


@contextmanager
def serving(name: str, site: pathlib.Path, backends: list[Backend]) -> Iterator[Fetch]:
    """Run a server in front of the backends; yield what fetches a page of one through it."""
    if name == "cgi-fcgi":
        need(["/usr/bin/cgi-fcgi"])
        yield fetch_by_cgi_fcgi
        return
    port = harness.free_port()
    text, command = CONFIGURATIONS[name](site, port, backends)
    (site / name).with_suffix(".server").write_text(text)
    need(command[:1])

    def fetch(backend: Backend, query: str, body: str) -> Page:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request("POST", f"{backend.url}?{query}", body)
            answer = connection.getresponse()
            return Page(answer.status, answer.read().decode())
        finally:
            connection.close()

    log = (site / f"{name}.log").open("wb")
    with (
        log,
        subprocess.Popen(
            [*command, f"{site}/{name}.server"],
            cwd="/",
            env=harness.clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            harness.wait_for(
                lambda: process.poll() is not None or harness.connects(("127.0.0.1", port))
            )
            assert process.poll() is None, (site / f"{name}.log").read_text()
            yield fetch
        finally:
            process.terminate()  # the master ends its workers
            try:
                process.wait(10)
            finally:
                process.kill()


def fetch_by_cgi_fcgi(backend: Backend, query: str, body: str) -> Page:
    """Fetch a page by cgi-fcgi, which asks the application in the place of a server."""
    variables = {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": "cgi-fcgi",
        "SERVER_PROTOCOL": "HTTP/1.0",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "REQUEST_METHOD": "POST",
        "REQUEST_URI": f"{backend.url}?{query}",
        "QUERY_STRING": query,
        "CONTENT_LENGTH": str(len(body)),
        "CONTENT_TYPE": "text/plain",
        "DOCUMENT_ROOT": f"{backend.site}/www",
        "SCRIPT_NAME": backend.url,
        "SCRIPT_FILENAME": f"{backend.site}/www{backend.url}",
    }
    answer = subprocess.run(
        ["/usr/bin/cgi-fcgi", "-bind", "-connect", backend.address],
        env=harness.clean_environment(**variables),
        input=body.encode(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=20,
        cwd="/",
    ).stdout.decode()
    header, _, text = answer.partition("\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in header.split("\r\n"))
    return Page(int(fields.get("Status", "200").split()[0]), text)


def children_of(pid: int) -> set[int]:
    """Return the PIDs of a process's children."""
    return {int(word) for word in harness.proc(pid, f"task/{pid}/children").split()}
