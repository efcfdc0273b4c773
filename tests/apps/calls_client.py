"""A client of tests/apps/calls.py through edge: calls_client.py PORT HOST ROOT WHAT. Prints `ok` once all was as it should be."""

import os
import sys
import threading
import time

import grpc

port, host, root, what = sys.argv[1:]
diary = os.environ.get("APP_DIARY", "")
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


def large():
    """Messages larger than any window, both ways on one stream."""
    messages = [bytes([number]) * (4 << 20) for number in range(6)]
    assert list(kind(channel.stream_stream, "Chat")(iter(messages), timeout=60)) == messages
    assert kind(channel.stream_unary, "Total")(iter(messages), timeout=60) == b"%d" % (24 << 20)


def silent():
    """Calls of which nothing is heard for long, beside others that nobody waits out."""
    held = kind(channel.unary_stream, "Hold")(b"", timeout=90)
    assert next(held) == b"begun"
    slow = kind(channel.unary_unary, "Slow").future(b"", timeout=90)
    for given_up in [wait.future(b"") for _ in range(8)]:
        time.sleep(1.2)
        given_up.cancel()
    assert not slow.done(), slow
    kind(channel.unary_unary, "Release")(b"", timeout=20)
    assert next(held) == b"ended" and list(held) == []
    assert slow.result() == b"at last"


def late_stream():
    numbers = kind(channel.unary_stream, "Endless")(b"", timeout=1)
    error = refused(lambda: list(numbers))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error


def cancelled_stream():
    numbers = kind(channel.unary_stream, "Endless")(b"", timeout=20)
    assert [next(numbers) for _ in range(3)] == [b"0", b"1", b"2"]
    numbers.cancel()
    assert numbers.code() == grpc.StatusCode.CANCELLED


def cancelled_chat():
    over = threading.Event()

    def messages():
        yield b"one"
        over.wait(20)

    back = kind(channel.stream_stream, "Listen")(messages(), timeout=20)
    assert next(back) == b"one"
    back.cancel()
    over.set()
    assert back.code() == grpc.StatusCode.CANCELLED


def noted(what):
    """Waits until the server has written it down."""
    end = time.monotonic() + 20
    while what not in (open(diary).read() if os.path.exists(diary) else ""):
        assert time.monotonic() < end, what
        time.sleep(0.01)


def late():
    # Connected already, so that all of the time is the call's.
    assert echo(b"hello", timeout=20) == b"hello"
    error = refused(lambda: wait(b"", timeout=2))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error


def cancelled():
    call = wait.future(b"", timeout=20)
    noted("waiting")
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
