#!/usr/bin/env bash
# aedes 1.2.0 (Node 20, Linux): one denied PUBLISH ends the connection, without an acknowledgement or a reason.
#
# Mosquitto acknowledges a PUBLISH that its access list denies, by 3.1.1 without a word; a client that works there can be
# stuck here for ever. `authorizePublish` that hands an error over closes the connection, the message is not acknowledged,
# and a client that sends it again after each reconnect never gets to the next one. MQTT 3.1.1 (3.3.5) allows both, and
# gives the client no way to know which message was meant. RabbitMQ 3.10.8 does the same.
#
# Output seen:
#   allowed: PUBACK 40020001
#   denied: closed without an answer
#
# What it means for us: what may be denied is sent last and alone; a connection that ends twice with the same message
# under way ends because of it (edge/delivery/broker.py).
set -euo pipefail
folder=$(mktemp -d)
broker=
trap '[ -z "$broker" ] || kill "$broker"; rm -rf "$folder"' EXIT
npm install --silent --prefix "$folder" aedes@1.2.0
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat > "$folder/broker.mjs" <<'J'
import { createServer } from 'node:net'
import { Aedes } from 'aedes'
const denies = (client, packet, done) => done(packet.topic === 'denied' ? new Error('denied') : null)
const broker = await Aedes.createBroker({ authorizePublish: denies })
createServer(broker.handle).listen(Number(process.argv[2]), '127.0.0.1')
J
node "$folder/broker.mjs" "$port" &
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


def answer(topic):
    with connected() as wire:
        wire.sendall(b"\x10\x0d\0\4MQTT\4\2\0\x3c\0\1a")  # CONNECT of 3.1.1
        assert wire.recv(4) == b"\x20\2\0\0"
        body = len(topic).to_bytes(2, "big") + topic + b"\0\1x"
        wire.sendall(b"\x32" + bytes([len(body)]) + body)  # PUBLISH, QoS 1
        try:
            got = wire.recv(100)
        except ConnectionResetError:
            got = b""
        return f"PUBACK {got.hex()}" if got else "closed without an answer"


print("allowed:", answer(b"allowed"))
print("denied:", answer(b"denied"))
P
)
echo "$found"
expected="allowed: PUBACK 40020001
denied: closed without an answer"
[ "$found" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
