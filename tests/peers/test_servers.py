"""The systems that people spawn serve pages behind the web servers that people use."""

from __future__ import annotations

import glob
import pathlib
import pwd
import shlex
import shutil
import subprocess
import sysconfig
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import harness
import pytest
from harness import wait_for

# Each page answers as the sample application does, NAME=value a line, and says what it is run by.
CGI = r"""#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\nBY=%s\n' "$GATEWAY_INTERFACE"
for name in REQUEST_METHOD SCRIPT_NAME PATH_INFO QUERY_STRING; do
  eval "echo \"$name=\$$name\""
done
echo "STDIN=$(wc -c)"
"""
PERL = r"""
use FCGI;
my $request = FCGI::Request();
while ($request->Accept() >= 0) {
    my $size = read(STDIN, my $body, $ENV{CONTENT_LENGTH} || 0);
    print "Content-Type: text/plain\r\n\r\nBY=perl\nSTDIN=$size\n";
    print "$_=$ENV{$_}\n" for qw(REQUEST_METHOD SCRIPT_NAME PATH_INFO QUERY_STRING);
}
"""
PHP = r"""<?php
header('Content-Type: text/plain');
echo 'BY=', PHP_SAPI, "\nSTDIN=", strlen(file_get_contents('php://input')), "\n";
foreach (['REQUEST_METHOD', 'SCRIPT_NAME', 'PATH_INFO', 'QUERY_STRING'] as $name)
    echo "$name=$_SERVER[$name]\n";
"""
WSGI = r"""
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    size = len(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"] or 0)))
    names = ("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING")
    by = "uwsgi" if "uwsgi.version" in environ else "flup"
    lines = [f"BY={by}", f"STDIN={size}", *(f"{name}={environ[name]}" for name in names)]
    return ["\n".join(lines).encode()]

if __name__ == "__main__":
    from flup.server.fcgi import WSGIServer
    WSGIServer(application).run()
"""
FPM = max(glob.glob("/usr/sbin/php-fpm[0-9]*"), default="/usr/sbin/php-fpm")
FPM_LINE = f"env FPM_SOCKETS=ADDRESS=3 {FPM} -F -y fpm.conf 3<&0"  # it refuses fd 0
FPM_CONF = "error_log = {}/fpm.log\n[www]\nlisten = {}\npm = static\npm.max_children = 2\n"
UWSGI = "/usr/bin/uwsgi-core --plugin python3 --fastcgi-socket fd://0 --need-app --wsgi-file"
# What runs the page, the page and its ending, and the words that spawn it, from its directory.
APPS = {
    "fcgiwrap": ("CGI/1.1", CGI, "cgi", "-F 2 -- /usr/sbin/fcgiwrap"),
    "perl": ("perl", PERL, "pl", "-F 2 -- /usr/bin/perl www/page.pl"),
    "php": ("cgi-fcgi", PHP, "php", "-C 2 -- /usr/bin/php-cgi"),
    "php-fpm": ("fpm-fcgi", PHP, "php", f"-f '{FPM_LINE}'"),
    "flup": ("flup", WSGI, "py", "-- /usr/bin/python3 www/page.py"),
    "uwsgi": ("uwsgi", WSGI, "py", f"-- {UWSGI} www/page.py"),
    "multiwatch": ("perl", PERL, "pl", "-- /usr/bin/multiwatch -f 2 -- /usr/bin/perl www/page.pl"),
    "sample": ("", "", "py", "-F 2 -- /usr/bin/python3 app.fcgi"),
}
MODULES = "".join(
    f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"
    for name in ("mpm_event", "authz_core", "proxy", "proxy_fcgi")
)
# The command, which is to be followed by the name of the file with the rest.
SERVERS = {
    "nginx": """/usr/sbin/nginx -e {work}/log -c
daemon off; user www-data; pid {work}/pid; error_log {work}/log; events {{}}
http {{
  client_body_temp_path {work}/t; fastcgi_temp_path {work}/t; proxy_temp_path {work}/t;
  uwsgi_temp_path {work}/t; scgi_temp_path {work}/t; access_log off;
  server {{ listen 127.0.0.1:{port}; location / {{
    include /etc/nginx/fastcgi_params; fastcgi_split_path_info ^(/[^/]+)(/.*)$;
    fastcgi_param SCRIPT_FILENAME {work}/www$fastcgi_script_name;
    fastcgi_param PATH_INFO $fastcgi_path_info; fastcgi_pass {nginx};
}} }} }}
""",
    "lighttpd": """/usr/sbin/lighttpd -D -f
server.modules = ("mod_fastcgi")
server.document-root = "{work}/www"
server.username = "www-data"
server.bind = "127.0.0.1"
server.port = {port}
server.errorlog = "{work}/log"
fastcgi.server = (".php" => (({lighttpd})))
""",
    # GENERIC: a plain SCRIPT_FILENAME, not "proxy:fcgi://...", which only FPM understands.
    "apache2": f"""/usr/sbin/apache2 -DFOREGROUND -f
{MODULES}
User www-data
DefaultRuntimeDir {{work}}
PidFile {{work}}/pid
ErrorLog {{work}}/log
ServerName localhost
Listen 127.0.0.1:{{port}}
DocumentRoot {{work}}/www
ProxyFCGIBackendType GENERIC
<Location "/page.php">
SetHandler "proxy:{{apache2}}"
</Location>
""",
}


@contextmanager
def serving(server: str, work: pathlib.Path, address: str) -> Iterator[int]:
    """Run a server in front of the application at an address; yield the server's port."""
    port, (host, _, number) = harness.free_port(), address.rpartition(":")
    command, _, text = SERVERS[server].partition("\n")
    text = text.format(
        work=work,
        port=port,
        nginx=address if host else f"unix:{address}",
        lighttpd=f'"host" => "{host}", "port" => {number}' if host else f'"socket" => "{address}"',
        apache2=f"fcgi://{address}" if host else f"unix:{address}|fcgi://page",
    )
    (work / "server").write_text(text)
    words = [*command.format(work=work).split(), str(work / "server")]
    with subprocess.Popen(words, cwd="/", env=harness.ENVIRONMENT) as process:
        try:
            here = ("127.0.0.1", port)
            wait_for(server, lambda: process.poll() is not None or harness.connects(here))
            assert process.poll() is None, (work / "log").read_text()
            yield port
        finally:
            process.terminate()  # the master ends its workers
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


@pytest.mark.parametrize(
    ("server", "app", "transport"),
    [
        *(("nginx", app, "unix") for app in APPS),
        *((server, "php", "tcp") for server in SERVERS),
        *((server, "php", "unix") for server in ("lighttpd", "apache2")),
    ],
)
def test_a_spawned_application_serves_its_page(
    server: str, app: str, transport: str, work: pathlib.Path, port: str
) -> None:
    by, page, ending, words = APPS[app]
    address = f"127.0.0.1:{port}" if transport == "tcp" else f"{work}/sock"
    where = ["-a", "127.0.0.1", "-p", port] if transport == "tcp" else ["-s", address]
    (work / "www").mkdir()
    (work / f"www/page.{ending}").write_text(page)
    (work / f"www/page.{ending}").chmod(0o755)
    (work / "fpm.conf").write_text(FPM_CONF.format(work, address))
    shutil.copy(harness.ROOT / "tests/app.fcgi", work)
    flup = pathlib.Path(sysconfig.get_path("purelib")) / "flup"
    shutil.copytree(flup, work / "lib/flup")  # for www-data, too
    shutil.chown(work, "www-data", "www-data")
    words = words.replace("ADDRESS", address)
    who = ("-u", "www-data", "-g", "www-data")
    env = {**harness.ENVIRONMENT, "PYTHONPATH": f"{work}/lib"}
    started = harness.run(*who, *where, *shlex.split(words), env=env, cwd=work)
    assert (started.status, started.err) == (0, b"")
    uid = pwd.getpwnam("www-data").pw_uid
    assert {each for pid in started.pids for each in harness.state(pid).uids} == {uid}
    with serving(server, work, address) as http_port:
        for method, body in (("GET", None), ("POST", b"x=1&y=\xff")):
            url = f"http://127.0.0.1:{http_port}/page.{ending}/more?a=b&c"
            with urllib.request.urlopen(url, body, timeout=20) as answer:
                said = dict(line.split("=", 1) for line in answer.read().decode().splitlines())
            assert (said["REQUEST_METHOD"], said["STDIN"]) == (method, str(len(body or b"")))
            assert (said["SCRIPT_NAME"], said["PATH_INFO"]) == (f"/page.{ending}", "/more")
            assert (said["QUERY_STRING"], said.get("BY", "")) == ("a=b&c", by)
