"""The systems that people spawn serve pages behind the web servers that people use."""

from __future__ import annotations

import glob
import pathlib
import shlex
import shutil
import subprocess
import sysconfig
import urllib.request

import harness
import pytest
from harness import wait_for

# Each page answers as the sample application does, NAME=value a line, and says what it is run by.
CGI = r"""#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\nBY=%s\nSTDIN=%s\n' "$GATEWAY_INTERFACE" "$(wc -c)"
env
"""
PERL = r"""
use FCGI;
my $request = FCGI::Request();
while ($request->Accept() >= 0) {
    my $size = read(STDIN, my $body, $ENV{CONTENT_LENGTH} || 0);
    print "Content-Type: text/plain\r\n\r\nBY=perl\nSTDIN=$size\n";
    print "$_=$ENV{$_}\n" for keys %ENV;
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
    by = "uwsgi" if "uwsgi.version" in environ else "flup"
    lines = [f"BY={by}", f"STDIN={size}", *(f"{name}={environ[name]}" for name in environ)]
    return ["\n".join(lines).encode()]

if __name__ == "__main__":
    from flup.server.fcgi import WSGIServer
    WSGIServer(application).run()
"""
FPM = max(glob.glob("/usr/sbin/php-fpm[0-9]*"), default="/usr/sbin/php-fpm")
FPM_LINE = f"env FPM_SOCKETS=WORK/sock=3 {FPM} -F -y fpm.conf 3<&0"  # it refuses fd 0
FPM_CONF = "error_log = {}/fpm.log\n[www]\nlisten = {}/sock\npm = static\npm.max_children = 2\n"
UWSGI = "/usr/bin/uwsgi-core --plugin python3 --fastcgi-socket fd://0 --need-app --wsgi-file"
# What runs the page, the page and its ending, and the words that spawn it, from its directory.
APPS = {
    "fcgiwrap": ("CGI/1.1", CGI, "cgi", "-F 2 -- /usr/sbin/fcgiwrap"),
    "perl": ("perl", PERL, "pl", "-F 2 -- /usr/bin/perl page.pl"),
    "php": ("cgi-fcgi", PHP, "php", "-C 2 -- /usr/bin/php-cgi"),
    "php-fpm": ("fpm-fcgi", PHP, "php", f"-f '{FPM_LINE}'"),
    "flup": ("flup", WSGI, "py", "-- /usr/bin/python3 page.py"),
    "uwsgi": ("uwsgi", WSGI, "py", f"-- {UWSGI} page.py"),
    "multiwatch": ("perl", PERL, "pl", "-- /usr/bin/multiwatch -f 2 -- /usr/bin/perl page.pl"),
    "sample": ("", "", "py", "-F 2 -- /usr/bin/python3 app.fcgi"),
}
# The command, which is to be followed by the name of the file with the rest. It logs to stderr.
SERVERS = {
    "nginx": """/usr/sbin/nginx -e stderr -c
daemon off; user www-data; pid {work}/pid; error_log stderr; events {{}}
http {{ access_log off; server {{ listen 127.0.0.1:{port}; location / {{
  include /etc/nginx/fastcgi_params; fastcgi_split_path_info ^(/[^/]+)(/.*)$;
  fastcgi_param SCRIPT_FILENAME {work}$fastcgi_script_name;
  fastcgi_param PATH_INFO $fastcgi_path_info; fastcgi_pass unix:{work}/sock;
}} }} }}
""",
    "lighttpd": """/usr/sbin/lighttpd -D -f
server.modules = ("mod_fastcgi")
server.document-root = "{work}"
server.username = "www-data"
server.bind = "127.0.0.1"
server.port = {port}
fastcgi.server = (".php" => (("host" => "127.0.0.1", "port" => {app_port})))
""",
    # GENERIC: a plain SCRIPT_FILENAME, not "proxy:fcgi://...", which only FPM understands.
    "apache2": """/usr/sbin/apache2 -DFOREGROUND -f
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
LoadModule proxy_fcgi_module /usr/lib/apache2/modules/mod_proxy_fcgi.so
User www-data
DefaultRuntimeDir {work}
PidFile {work}/pid
ErrorLog /dev/stderr
ServerName localhost
Listen 127.0.0.1:{port}
DocumentRoot {work}
ProxyFCGIBackendType GENERIC
<Location "/page.php">
SetHandler "proxy:fcgi://127.0.0.1:{app_port}"
</Location>
""",
}


def serve(server: str, work: pathlib.Path, app_port: str) -> int:
    """Run a server in front of the application, until no_process_left ends it; return its port."""
    port = harness.free_port()
    text = SERVERS[server].format(work=work, port=port, app_port=app_port)
    command, _, configuration = text.partition("\n")
    (work / "server").write_text(configuration)
    subprocess.Popen([*command.split(), work / "server"], env=harness.ENVIRONMENT)
    wait_for(server, lambda: harness.connects(("127.0.0.1", port)))
    return port


# The recipes have php-cgi behind nginx on a port, and behind the other two on a path.
@pytest.mark.parametrize(
    ("server", "app"),
    [*(("nginx", app) for app in APPS), ("lighttpd", "php"), ("apache2", "php")],
)
def test_a_spawned_application_serves_its_page(
    server: str, app: str, work: pathlib.Path, port: str
) -> None:
    by, page, ending, words = APPS[app]
    (work / f"page.{ending}").write_text(page)
    (work / f"page.{ending}").chmod(0o755)
    (work / "fpm.conf").write_text(FPM_CONF.format(work, work))
    shutil.copy(harness.ROOT / "tests/app.fcgi", work)
    shutil.copytree(sysconfig.get_path("purelib") + "/flup", work / "flup")  # for www-data, too
    shutil.chown(work, "www-data", "www-data")
    where = ["-s", f"{work}/sock"] if server == "nginx" else ["-a", "127.0.0.1", "-p", port]
    line = ["-u", "www-data", *where, *shlex.split(words.replace("WORK", str(work)))]
    started = harness.run(*line, cwd=work)
    assert (started.status, started.err) == (0, b"")
    for pid in started.pids:
        assert {*harness.state(pid).uids} == {33}  # www-data, on every Debian
    url = f"http://127.0.0.1:{serve(server, work, port)}/page.{ending}/more?a=b&c"
    for method, body in (("GET", None), ("POST", b"x=1&y=\xff")):
        with urllib.request.urlopen(url, body, timeout=20) as answer:
            said = dict(line.split("=", 1) for line in answer.read().decode().splitlines())
        assert (said["REQUEST_METHOD"], said["STDIN"]) == (method, str(len(body or b"")))
        assert (said["SCRIPT_NAME"], said["PATH_INFO"]) == (f"/page.{ending}", "/more")
        assert (said["QUERY_STRING"], said.get("BY", "")) == ("a=b&c", by)
