"""A client of WebSockets over HTTP/2 (RFC 8441) by the h2 and wsproto libraries: several at once on one connection.

websocket_h2.py PORT HOST ROOT PATH SOCKETS: prints `ok` once each socket has had its messages echoed and was closed with 1000.
"""

import socket
import ssl
import sys

import h2.connection
import h2.events
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, TextMessage

port, host, root, path, count = sys.argv[1:]
context = ssl.create_default_context(cafile=root)
context.set_alpn_protocols(["h2"])
tls = context.wrap_socket(socket.create_connection(("127.0.0.1", int(port)), timeout=20), server_hostname=host)
http = h2.connection.H2Connection()
http.initiate_connection()
tls.sendall(http.data_to_send())


def events():
    data = tls.recv(65536)
    if not data:
        sys.exit("closed")
    found = http.receive_data(data)
    tls.sendall(http.data_to_send())
    return found


while not http.remote_settings.enable_connect_protocol:
    if any(isinstance(event, h2.events.RemoteSettingsChanged) for event in events()):
        assert http.remote_settings.enable_connect_protocol, "not offered"

sockets = {}
for _ in range(int(count)):
    stream = http.get_next_available_stream_id()
    http.send_headers(
        stream,
        [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "https"),
            (":path", path),
            (":authority", f"{host}:{port}"),
            ("sec-websocket-version", "13"),
            ("origin", f"https://{host}"),
        ],
    )
    sockets[stream] = Connection(ConnectionType.CLIENT)
tls.sendall(http.data_to_send())

said = {stream: "" for stream in sockets}
text = "öl and water " * 500
while sockets:
    for event in events():
        if isinstance(event, h2.events.ResponseReceived):
            status = dict(event.headers)[b":status"]
            assert status == b"200", status
            http.send_data(event.stream_id, sockets[event.stream_id].send(TextMessage(data=text)))
        elif isinstance(event, h2.events.DataReceived):
            http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if event.stream_id not in sockets:
                continue
            frames = sockets[event.stream_id]
            frames.receive_data(event.data)
            for message in frames.events():
                if isinstance(message, TextMessage):
                    said[event.stream_id] += message.data
                    if message.message_finished:
                        assert said[event.stream_id] == text
                        http.send_data(event.stream_id, frames.send(CloseConnection(code=1000)))
                elif isinstance(message, CloseConnection):
                    assert message.code == 1000, message.code
                    http.end_stream(event.stream_id)
                    del sockets[event.stream_id]
        elif isinstance(event, h2.events.StreamReset):
            assert event.stream_id not in sockets, f"reset: {event.error_code}"
    tls.sendall(http.data_to_send())
print("ok")
