"""A server of gRPC calls on bytes, without generated code: all four kinds of call, failure, waiting."""

import asyncio
import os

import grpc


def note(what):
    """Appends what becomes of a call to the file that APP_DIARY names."""
    if diary := os.environ.get("APP_DIARY"):
        with open(diary, "a") as out:
            out.write(f"{what} {os.getpid()}\n")


async def echo(request, context):
    context.set_trailing_metadata((("x-worker", os.environ["EDGE_WORKER"]), ("x-host", context.peer())))
    return request


async def count(request, _context):
    for number in range(int(request)):
        yield b"%d" % number


async def total(requests, _context):
    return b"%d" % sum([len(request) async for request in requests])


async def chat(requests, _context):
    async for request in requests:
        yield request


async def fail(_request, context):
    await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing: ü %")


async def wait(_request, _context):
    note("waiting")
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        note("cancelled")
        raise
    return b""


async def endless(_request, _context):
    number = 0
    try:
        while True:
            yield b"%d" % number
            number += 1
            await asyncio.sleep(0.01)
    finally:
        note("cancelled")


async def listen(requests, _context):
    try:
        async for request in requests:
            yield request
    finally:
        note("cancelled")


released = asyncio.Event()


async def hold(_request, _context):
    yield b"begun"
    await released.wait()
    yield b"ended"


async def slow(_request, _context):
    note("slow")
    await released.wait()
    return b"at last"


async def release(_request, _context):
    released.set()
    return b""


async def main():
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Total": grpc.stream_unary_rpc_method_handler(total),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Wait": grpc.unary_unary_rpc_method_handler(wait),
        "Endless": grpc.unary_stream_rpc_method_handler(endless),
        "Listen": grpc.stream_stream_rpc_method_handler(listen),
        "Hold": grpc.unary_stream_rpc_method_handler(hold),
        "Slow": grpc.unary_unary_rpc_method_handler(slow),
        "Release": grpc.unary_unary_rpc_method_handler(release),
    }
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Calls", handlers),))
    socket = os.environ.get("EDGE_SOCKET")
    server.add_insecure_port(f"unix:{socket}" if socket else f"127.0.0.1:{os.environ['PORT']}")
    await server.start()
    await server.wait_for_termination()


asyncio.run(main())
