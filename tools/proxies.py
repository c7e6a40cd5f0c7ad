"""
What real proxies make of the layers that answer: `make proxies`.

    python -m tools.proxies                                 all that is here
    python -m tools.proxies --only nginx --count 100        a hundred refused uploads of each

Each of nginx, HAProxy, Apache, Caddy and Varnish, with one line of configuration, in front of
uvicorn, hypercorn and granian. Which of them is not installed is said; on a Debian
`apt-get install nginx-light haproxy apache2 caddy varnish` has them.
"""

from __future__ import annotations

import argparse
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import brotli
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from httpmw.middleware import CrossOriginProtectionMiddleware
from tools.browser import EVENTS, TEXT, coded

ROOT = Path(__file__).parent.parent
PATIENCE = 15  # seconds
MIB = 1024 * 1024
SIZE = 20 * MIB
ENOUGH = {"max_size": 32 * MIB, "seconds": 30}

SERVERS = {
    "uvicorn": "uvicorn --host 127.0.0.1 --port {port} --log-level error",
    "hypercorn": "hypercorn --bind 127.0.0.1:{port} --log-level error",
    "granian": "granian --interface asgi --host 127.0.0.1 --port {port} --log-level error",
}

# Of a temporary folder, the port of the proxy and that of the application.
NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; events {{}}
http {{
  access_log off; client_max_body_size 0;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{app}; }} }}
}}
"""
HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 50s
  timeout server 50s
frontend front
  bind 127.0.0.1:{port}
  default_backend back
backend back
  server app 127.0.0.1:{app}
"""
APACHE = """
ServerRoot {folder}
ServerName localhost
DefaultRuntimeDir {folder}
PidFile {folder}/apache.pid
ErrorLog {folder}/error.log
Listen 127.0.0.1:{port}
User www-data
Group www-data
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
LoadModule proxy_http_module /usr/lib/apache2/modules/mod_proxy_http.so
ProxyPass / http://127.0.0.1:{app}/
"""
CADDY = """
{{
  admin off
  auto_https off
}}
http://:{port} {{
  bind 127.0.0.1
  reverse_proxy 127.0.0.1:{app}
}}
"""
PROXIES = {
    "nginx": (NGINX, "nginx -c {file}"),
    "haproxy": (HAPROXY, "haproxy -f {file}"),
    "apache2": (APACHE, "apache2 -f {file} -DFOREGROUND"),
    "caddy": (CADDY, "caddy run --config {file} --adapter caddyfile"),
    "varnishd": (
        "",
        "varnishd -F -a 127.0.0.1:{port} -b 127.0.0.1:{app} -n {folder}/varnish -s malloc,64m",
    ),
}


DECODE: dict[str | None, Callable[[bytes], bytes]] = {
    None: bytes,
    "gzip": lambda body: zlib.decompress(body, 31),
    "br": brotli.decompress,
}


async def ready(request: Request) -> Response:
    return PlainTextResponse("ready")


def guarded(**options: object) -> Starlette:
    layer = Middleware(CrossOriginProtectionMiddleware, **options)
    return Starlette(routes=[Route("/", ready, methods=["POST"])], middleware=[layer])


app = Starlette(
    routes=[
        Route("/ready", ready),
        Mount("/bounded", guarded()),
        Mount("/enough", guarded(drain=ENOUGH)),
        Mount("/gzip", coded("gzip")),
        Mount("/br", coded("br")),
    ]
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def running(command: str, port: int, log: Path) -> Iterator[None]:
    """Run a server until the block ends."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command.split(),
            cwd=ROOT,
            env=os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin", "HOME": str(log.parent)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + PATIENCE
        while not answers(port):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{command}\ndoes not answer:\n{log.read_text()}")
            time.sleep(0.1)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().read() == b"ready"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def upload(port: int, path: str, file: Path) -> str:
    """Send an upload of another origin as curl does; return the status, or how curl failed."""
    command = [
        *("curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}"),
        *("--max-time", str(PATIENCE), "--header", "Expect:", "--header"),
        *("Origin: https://evil.example", "--data-binary", f"@{file}"),
        f"http://127.0.0.1:{port}{path}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else f"curl {done.returncode}"


def ask(
    port: int, path: str, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=told)
    return connection, connection.getresponse()


def second_visit(port: int, coding: str) -> tuple[bool, int]:
    """Say whether a text arrives as it is, and which status a second visit has."""
    connection, response = ask(port, f"/{coding}/text", accept_encoding=coding)
    body = response.read()
    connection.close()
    # Varnish asks for gzip, or for nothing.
    decoded = DECODE[response.headers.get("content-encoding")](body)
    tag = response.headers["etag"]
    connection, again = ask(port, f"/{coding}/text", accept_encoding=coding, if_none_match=tag)
    again.read()
    connection.close()
    return decoded.decode() == TEXT, again.status


def events(port: int) -> int:
    """Count the events that arrive, each of which is sent when the one before has."""
    connection, response = ask(port, "/gzip/events", accept_encoding="gzip")
    decoder = zlib.decompressobj(31)
    seen = b""
    count = 0
    try:
        while b"event: end" not in seen:
            coded_part = response.read1(65536)
            if not coded_part:
                break
            seen += decoder.decompress(coded_part)
            while count < seen.count(b"data: ") and count < EVENTS:
                count += 1
                acknowledging, acknowledged = ask(port, "/gzip/arrived", "POST")
                acknowledged.read()
                acknowledging.close()
    except (OSError, http.client.HTTPException):
        return count
    finally:
        connection.close()
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--only", nargs="+", default=[*PROXIES], choices=PROXIES)
    parser.add_argument("--server", nargs="+", default=[*SERVERS], choices=SERVERS)
    parser.add_argument("--count", type=int, default=10, help="refused uploads of each pair")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and what it started ends as well
    path = f"{os.environ['PATH']}:/usr/sbin"
    here = [name for name in options.only if shutil.which(name, path=path) is not None]
    for name in options.only:
        if name not in here:
            print(f"skipped: {name} is not installed")
    failed = False
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        folder = Path(made)
        folder.chmod(0o755)
        file = folder / "upload"
        file.write_bytes(bytes(SIZE))
        for server in options.server:
            app_port = free_port()
            command = SERVERS[server].format(port=app_port)
            with running(
                f"{sys.executable} -m {command} tools.proxies:app", app_port, folder / server
            ):
                for name in here:
                    failed = not behind(name, server, app_port, file, options.count) or failed
    sys.exit(failed)


def behind(name: str, server: str, app_port: int, file: Path, count: int) -> bool:
    folder = file.parent
    configuration, command = PROXIES[name]
    port = free_port()
    written = folder / f"{name}.conf"
    places = {"folder": folder, "port": port, "app": app_port, "file": written}
    written.write_text(configuration.format(**places))
    with running(command.format(**places), port, folder / name):
        refused = Counter(upload(port, "/enough/", file) for _ in range(count))
        bounded = Counter(upload(port, "/bounded/", file) for _ in range(3))
        visits = {coding: second_visit(port, coding) for coding in ("gzip", "br")}
        arrived = events(port)
    checks = {
        f"{SIZE // MIB} MiB refused: {dict(refused)}": refused == {"403": count},
        f"beyond the bound: {dict(bounded)}": "curl 28" not in bounded,
        f"text and second visit: {visits}": all(found == (True, 304) for found in visits.values()),
        f"events: {arrived} of {EVENTS}": arrived >= EVENTS,
    }
    for words, is_right in checks.items():
        print(f"{'ok   ' if is_right else 'WRONG'}  {name}, {server}: {words}", flush=True)
    return all(checks.values())


if __name__ == "__main__":
    main()
