#!/usr/bin/env bash
# amqtt 0.12.1 (Python 3.11, Linux): a version 5 CONNECT with a last will gets no answer, and the connection stays open.
#
# MQTT 3.1.1 (3.1.2.2) has a broker that does not know a protocol level answer CONNACK 0x01 and close, and without a last
# will this one answers so. With one it reads the will's properties, which 3.1.1 does not have, as the will's topic, and
# then does neither: a client that speaks version 5 first and falls back to 3.1.1 on a refusal waits for ever. By 3.1.1 the
# last will is accepted at once.
#
# Output seen:
#   version 5: answer 20020001
#   version 5, last will: no answer in 5 s, connection open
#   version 3.1.1, last will: answer 20020000
#
# What it means for us: a CONNECT of version 5 without an answer is followed by one of 3.1.1
# (edge/delivery/session.py::Session.open).
set -euo pipefail
folder=$(mktemp -d)
broker=
trap '[ -z "$broker" ] || kill "$broker"; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "amqtt==0.12.1"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat > "$folder/amqtt.yaml" <<Y
listeners:
  default:
    type: tcp
    bind: 127.0.0.1:$port
plugins:
  amqtt.plugins.authentication.AnonymousAuthPlugin:
    allow_anonymous: true
Y
"$folder/venv/bin/amqtt" -c "$folder/amqtt.yaml" > "$folder/log" 2>&1 &
broker=$!
found=$(python3 - "$port" <<'P'
import socket
import sys
import time


def connected():
    for _ in range(100):
        try:
            return socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5)
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the broker did not start")


def answer(level, flags, properties, will):
    # CONNECT: keep alive 60 s, client id "a".
    body = b"\0\4MQTT" + bytes([level, flags]) + b"\0\x3c" + properties + b"\0\1a" + will
    with connected() as wire:
        wire.sendall(b"\x10" + bytes([len(body)]) + body)
        try:
            got = wire.recv(100)
        except TimeoutError:
            return "no answer in 5 s, connection open"
        return f"answer {got.hex()}" if got else "closed"


CLEAN, CLEAN_AND_WILL = 2, 6
topic_and_message = b"\0\4will\0\4gone"
print("version 5:", answer(5, CLEAN, b"\0", b""))
print("version 5, last will:", answer(5, CLEAN_AND_WILL, b"\0", b"\0" + topic_and_message))
print("version 3.1.1, last will:", answer(4, CLEAN_AND_WILL, b"", topic_and_message))
P
)
echo "$found"
expected="version 5: answer 20020001
version 5, last will: no answer in 5 s, connection open
version 3.1.1, last will: answer 20020000"
[ "$found" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
