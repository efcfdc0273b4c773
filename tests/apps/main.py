"""The application behind the ASGI servers: tells what it sees, takes and gives bytes, streams, echoes, waits, blocks."""

import asyncio
import contextlib
import os
import re
import time

from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse


def note(what):
    """Appends what becomes of this worker, and when, to the file that APP_DIARY names."""
    if diary := os.environ.get("APP_DIARY"):
        with open(diary, "a") as out:
            out.write(f"{what} {os.getpid()} {time.time():.3f}\n")


@contextlib.asynccontextmanager
async def lifespan(_app):
    note("up")
    yield
    note("down")


app = FastAPI(lifespan=lifespan)
PATTERN = bytes(range(256)) * 256


@app.get("/")
async def root():
    return {"hello": "world"}


@app.get("/info")
async def info(request: Request):
    return {
        "scheme": request.url.scheme,
        "client": request.client.host if request.client else None,
        "host": request.headers.get("host"),
        "forwarded_proto": request.headers.get("x-forwarded-proto"),
        "forwarded_for": request.headers.get("x-forwarded-for"),
        "worker": os.environ.get("EDGE_WORKER"),
        "pid": os.getpid(),
    }


@app.post("/upload")
async def upload(request: Request):
    size = total = 0
    async for chunk in request.stream():
        size += len(chunk)
        total += sum(chunk)
    return {"bytes": size, "sum": total}


@app.get("/download/{size}")
async def download(size: int):
    async def chunks():
        sent = 0
        while sent < size:
            chunk = PATTERN[: size - sent]
            sent += len(chunk)
            yield chunk

    return StreamingResponse(chunks(), media_type="application/octet-stream")


@app.get("/events")
async def events():
    async def stream():
        for number in range(3):
            if number:
                await asyncio.sleep(0.3)
            yield f"data: {number}\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream")


@app.get("/endless")
async def endless():
    async def stream():
        while True:
            yield "data: more\n\n"
            await asyncio.sleep(0.1)

    return StreamingResponse(stream(), media_type="text/event-stream")


@app.get("/slow/{ms}")
async def slow(ms: int):
    await asyncio.sleep(ms / 1000)
    return {"slept_ms": ms, "worker": os.environ.get("EDGE_WORKER")}


@app.get("/cpu/{ms}")
async def cpu(ms: int):
    """Computes, and lets nobody else in meanwhile."""
    end = time.thread_time() + ms / 1000
    while time.thread_time() < end:
        pass
    return {"computed_ms": ms}


@app.get("/block/{ms}")
async def block(ms: int):
    """The mistake of asynchronous handlers: nobody else is served meanwhile."""
    note("blocked")
    time.sleep(ms / 1000)
    return {"blocked_ms": ms}


@app.get("/gil")
def gil():
    """C code in a thread of its own that never gives the interpreter back: backtracking without end."""
    note("blocked")
    return {"found": re.match("(a+)+$", "a" * 60 + "b") is not None}


@app.websocket("/ws")
async def echo(socket: WebSocket):
    await socket.accept()
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect:
        pass
