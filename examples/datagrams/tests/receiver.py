"""Receives a stream of datagrams, and prints what came of it.

First line: the port, and the bytes that the socket holds unread. Last line: the bytes received, the length of
the stream, and the SHA-256 of the stream, with zeros in its gaps.
"""

import hashlib
import socket
import sys

SO_RCVBUFFORCE = 33

host = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1"
family = socket.AF_INET6 if ":" in host else socket.AF_INET
receiver = socket.socket(family, socket.SOCK_DGRAM)
try:
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
except PermissionError:
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
receiver.bind((host, 0))
receiver.settimeout(60)
room = receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
print(receiver.getsockname()[1], room, flush=True)

stream = bytearray()
received = 0
while True:
    datagram = receiver.recv(65536)
    position, payload = int.from_bytes(datagram[:8], "big"), datagram[8:]
    if not payload:
        break
    end = position + len(payload)
    if len(stream) < end:
        stream.extend(bytes(end - len(stream)))
    stream[position:end] = payload
    received += len(payload)
stream.extend(bytes(position - len(stream)))
print(received, position, hashlib.sha256(stream).hexdigest())
