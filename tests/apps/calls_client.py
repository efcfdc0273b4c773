"""A client of tests/apps/calls.py through edge: calls_client.py PORT HOST ROOT WHAT. Prints `ok` once all was as it should be."""

import sys
import time

import grpc

port, host, root, what = sys.argv[1:]
with open(root, "rb") as pem:
    credentials = grpc.ssl_channel_credentials(pem.read())
channel = grpc.secure_channel(
    f"127.0.0.1:{port}",
    credentials,
    options=[
        ("grpc.ssl_target_name_override", host),
        ("grpc.default_authority", f"{host}:{port}"),
        ("grpc.max_receive_message_length", 64 << 20),
        ("grpc.enable_retries", 0),
    ],
)


def kind(make, name):
    return make(f"/test.Calls/{name}")


def refused(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    sys.exit("it was answered")


echo = kind(channel.unary_unary, "Echo")
wait = kind(channel.unary_unary, "Wait")


def calls():
    answer, call = echo.with_call(b"hello", timeout=20, metadata=(("x-note", "7"),))
    trailers = dict(call.trailing_metadata())
    assert answer == b"hello" and trailers["x-worker"] == "0", (answer, trailers)
    assert echo(b"", timeout=20) == b""
    large = bytes(range(256)) * (8 << 12)
    assert echo(large, timeout=60) == large
    numbers = list(kind(channel.unary_stream, "Count")(b"1000", timeout=20))
    assert numbers == [b"%d" % number for number in range(1000)]
    assert kind(channel.stream_unary, "Total")(iter([b"x" * 10_000] * 100), timeout=20) == b"1000000"
    error = refused(lambda: kind(channel.unary_unary, "Fail")(b"", timeout=20))
    assert error.code() == grpc.StatusCode.NOT_FOUND and error.details() == "no such thing: ü %", error
    error = refused(lambda: kind(channel.unary_unary, "Missing")(b"", timeout=20))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error


def chat():
    """Each message is sent once the one before is back."""
    back = []

    def messages():
        for number in range(100):
            while len(back) < number:
                time.sleep(0.001)
            yield b"%d" % number

    for message in kind(channel.stream_stream, "Chat")(messages(), timeout=30):
        back.append(message)
    assert back == [b"%d" % number for number in range(100)]


def late():
    error = refused(lambda: wait(b"", timeout=0.5))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error


def cancelled():
    call = wait.future(b"", timeout=20)
    time.sleep(0.5)
    call.cancel()
    assert call.code() == grpc.StatusCode.CANCELLED


def unavailable():
    error = refused(lambda: echo(b"hello", timeout=20))
    assert error.code() == grpc.StatusCode.UNAVAILABLE, error
    assert "The application" in error.details() and "Request " in error.details(), error


def killed():
    error = refused(lambda: wait(b"", timeout=20))
    assert error.code() == grpc.StatusCode.UNAVAILABLE, error


def too_large():
    error = refused(lambda: echo(b"x" * 100_000, timeout=20))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error


globals()[what]()
print("ok")
