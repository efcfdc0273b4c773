"""The application behind the WSGI servers: as main.py, without WebSockets."""

import json
import os
import time

PATTERN = bytes(range(256)) * 256


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/upload":
        return answer(start_response, upload(environ["wsgi.input"]))
    if path.startswith("/download/"):
        size = int(path.rpartition("/")[2])
        start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(size))])
        return download(size)
    if path == "/events":
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return events()
    if path == "/endless":
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return endless()
    if path.startswith("/slow/"):
        ms = int(path.rpartition("/")[2])
        time.sleep(ms / 1000)
        return answer(start_response, {"slept_ms": ms, "worker": os.environ.get("EDGE_WORKER")})
    if path.startswith("/block/"):
        return answer(start_response, block(int(path.rpartition("/")[2])))
    if path == "/info":
        return answer(start_response, info(environ))
    return answer(start_response, {"hello": "world"})


def answer(start_response, value):
    body = json.dumps(value).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def block(ms):
    time.sleep(ms / 1000)
    return {"blocked_ms": ms}


def info(environ):
    return {
        "scheme": environ["wsgi.url_scheme"],
        "client": environ.get("REMOTE_ADDR"),
        "host": environ.get("HTTP_HOST"),
        "forwarded_proto": environ.get("HTTP_X_FORWARDED_PROTO"),
        "forwarded_for": environ.get("HTTP_X_FORWARDED_FOR"),
        "worker": os.environ.get("EDGE_WORKER"),
        "pid": os.getpid(),
    }


def upload(body):
    size = total = 0
    while chunk := body.read(65536):
        size += len(chunk)
        total += sum(chunk)
    return {"bytes": size, "sum": total}


def download(size):
    sent = 0
    while sent < size:
        chunk = PATTERN[: size - sent]
        sent += len(chunk)
        yield chunk


def events():
    for number in range(3):
        if number:
            time.sleep(0.3)
        yield f"data: {number}\n\n".encode()


def endless():
    while True:
        yield b"data: more\n\n"
        time.sleep(0.1)
