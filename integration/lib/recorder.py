"""Stands between a client and a server on the loopback: recorder.py FILE PORT SERVER_PORT. All that goes through, in
either direction, is appended to FILE."""

import contextlib
import socket
import sys
import threading

record = open(sys.argv[1], "ab", buffering=0)
listener = socket.create_server(("127.0.0.1", int(sys.argv[2])))


def pump(source, sink):
    try:
        while data := source.recv(65536):
            record.write(data)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        # To close one would not wake the thread that waits for it.
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


while True:
    client = listener.accept()[0]
    try:
        server = socket.create_connection(("127.0.0.1", int(sys.argv[3])))
    except OSError:
        client.close()
        continue
    for pair in ((client, server), (server, client)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
