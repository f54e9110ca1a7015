"""Alerts reach a real HTTP server and real programs, each once taken and not before."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.edge.conftest import free_port, running, wait_for
from tests.edge.dripping import BODY, HEADER, dripping, soon

from agridistill.edge.delivery import outputs
from agridistill.edge.delivery.outputs import Command, Deliverer, DeliveryError, Webhook
from agridistill.edge.store.outbox import Message, Outbox
from agridistill.errors import ConfigError

ALERT = {"rule": "blight", "plot": "north", "state": "open", "change": "opened", "level": "warning", "text": "50 %"}


class Receiver:
    """Answers POSTs as told, and keeps what came."""

    def __init__(self, port: int = 0) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.never: dict[bytes, int] = {}
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                code = outer.answers.pop(0) if outer.answers else 204
                code = outer.never.get(body, code)
                outer.asked += 1
                if code < 300:
                    outer.got.append((dict(self.headers), body))
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.close()


def delivering(deliverer: Deliverer) -> AbstractContextManager[None]:
    return running(deliverer.run)


def message(number: int = 0) -> Message:
    return Message(json.dumps(ALERT | {"number": number}).encode(), "alert", "north")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(outputs, "_POLL_S", 0.02)


def test_a_disk_that_refuses_after_a_delivery_does_not_end_the_agent(
    outbox: Outbox, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.add([Message(json.dumps(ALERT).encode())])
    real, refusals = Outbox.delivered, [OSError(errno.EROFS, "Read-only file system")]

    def delivered(self: Outbox, seqs: Any) -> None:
        if refusals:
            raise refusals.pop()
        real(self, seqs)

    monkeypatch.setattr(Outbox, "delivered", delivered)
    monkeypatch.setattr(outputs, "_FIRST_PAUSE_S", 0.01)
    webhook = Webhook(f"http://127.0.0.1:{receiver.port}/alert")
    with delivering(Deliverer(outbox, webhook, webhook.name)):
        wait_for(lambda: not outbox.pending())
    assert len(receiver.got) == 2


def test_alerts_are_posted_in_order_and_then_gone(receiver: Receiver, outbox: Outbox) -> None:
    sent = [message(number) for number in range(5)]
    outbox.add(sent)
    webhook = Webhook(f"http://127.0.0.1:{receiver.port}/hook", token="secret")  # noqa: S106
    with delivering(Deliverer(outbox, webhook, webhook.name)):
        wait_for(lambda: not outbox.pending())
    assert [body for _, body in receiver.got] == [item.payload for item in sent]
    headers, _ = receiver.got[0]
    assert headers["Authorization"] == "Bearer secret"
    assert headers["Idempotency-Key"] == sent[0].event_id
    assert headers["Content-Type"] == "application/json"


def test_what_is_refused_is_offered_again_and_told_once(
    receiver: Receiver, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers = [500, 429, 302, 404]
    outbox.add([message()])
    webhook = Webhook(f"http://127.0.0.1:{receiver.port}/hook/secret-path")
    with delivering(Deliverer(outbox, webhook, webhook.name)):
        wait_for(lambda: not outbox.pending())
    assert len(receiver.got) == 1
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == [
        f"the webhook at 127.0.0.1:{receiver.port} does not accept alerts (HTTP status 500): they wait in the outbox",
        f"the webhook at 127.0.0.1:{receiver.port} accepts alerts again",
    ]


class TestMessagesThatAreRefusedForWhatTheyAre:
    def test_later_ones_pass_and_it_comes_when_it_is_taken(
        self, receiver: Receiver, outbox: Outbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outputs, "_LONGEST_PAUSE_S", 0.1)
        sent = [message(number) for number in range(4)]
        receiver.never = {sent[1].payload: 422}
        outbox.add(sent)
        webhook = Webhook(f"http://127.0.0.1:{receiver.port}/")
        with delivering(Deliverer(outbox, webhook, webhook.name)):
            wait_for(lambda: len(receiver.got) == 3)
            wait_for(lambda: receiver.asked >= 7)
            assert [item.message for item in outbox.pending()] == [sent[1]]
            receiver.never = {}
            wait_for(lambda: not outbox.pending())
        assert [body for _, body in receiver.got] == [sent[number].payload for number in (0, 2, 3, 1)]
        warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(warnings) == 1
        assert "refuses an alert (HTTP status 422): it is sent again every " in warnings[0]
        assert "and later alerts are sent meanwhile" in warnings[0]

    def test_one_that_refuses_all_is_not_asked_about_all_at_once(
        self, receiver: Receiver, outbox: Outbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outputs, "_FIRST_PAUSE_S", 60.0)
        sent = [message(number) for number in range(50)]
        receiver.never = {item.payload: 400 for item in sent}
        outbox.add(sent)
        webhook = Webhook(f"http://127.0.0.1:{receiver.port}/")
        with delivering(Deliverer(outbox, webhook, webhook.name)):
            wait_for(lambda: "they wait in the outbox" in caplog.text)
            threading.Event().wait(0.2)
        assert receiver.asked == 20
        assert len(outbox.pending()) == 50
        assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 2

    def test_a_new_one_is_offered_before_any_that_was_refused(
        self, receiver: Receiver, outbox: Outbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outputs, "_LONGEST_PAUSE_S", 0.03)  # all are due again at once
        refused, good = [message(number) for number in range(45)], message(45)
        receiver.never = {item.payload: 400 for item in refused}
        outbox.add(refused)
        webhook = Webhook(f"http://127.0.0.1:{receiver.port}/")
        with delivering(Deliverer(outbox, webhook, webhook.name)):
            wait_for(lambda: receiver.asked >= 120)
            asked = receiver.asked
            outbox.add([good])
            wait_for(lambda: bool(receiver.got))
            assert receiver.asked - asked < 45
        assert [body for _, body in receiver.got] == [good.payload]

    def test_one_that_was_dropped_meanwhile_is_forgotten(self, receiver: Receiver, outbox: Outbox) -> None:
        refused, later = message(0), message(1)
        receiver.never = {refused.payload: 413, later.payload: 413}
        outbox.add([refused])
        (place,) = [item.seq for item in outbox.pending()]
        webhook = Webhook(f"http://127.0.0.1:{receiver.port}/")
        deliverer = Deliverer(outbox, webhook, webhook.name)
        with delivering(deliverer):
            wait_for(lambda: receiver.asked == 1)
            wait_for(lambda: place in deliverer._refused)
            outbox.delivered([place])
            outbox.add([later])
            (place_of_later,) = [item.seq for item in outbox.pending()]
            wait_for(lambda: list(deliverer._refused) == [place_of_later])
        assert receiver.got == []


def test_a_server_that_comes_later_gets_all(outbox: Outbox) -> None:
    port = free_port()
    outbox.add([message(number) for number in range(3)])
    webhook = Webhook(f"http://127.0.0.1:{port}/")
    with pytest.raises(DeliveryError, match="Connection refused"):
        webhook(message(), threading.Event())
    with delivering(Deliverer(outbox, webhook, webhook.name)):
        late = Receiver(port)
        wait_for(lambda: not outbox.pending())
    late.close()
    assert len(late.got) == 3


def test_secrets_stay_out_of_names_and_logs() -> None:
    webhook = Webhook("https://hooks.example:8443/T0/secret?key=1", token="secret")  # noqa: S106
    assert webhook.name == "the webhook at hooks.example:8443"
    assert "secret" not in repr(webhook)
    for wrong in ("file:///etc/passwd", "http://host:999999/secret", "http://", "http://me:secret@host/x"):
        with pytest.raises(ConfigError, match="a webhook") as caught:
            Webhook(wrong)
        assert "secret" not in str(caught.value)


def test_a_command_gets_the_alert_on_its_input_and_in_its_environment(tmp_path: Path, outbox: Outbox) -> None:
    out = tmp_path / "out"
    script = f'cat > "{out}"; echo "$AGRIDISTILL_RULE $AGRIDISTILL_CHANGE $AGRIDISTILL_PLOT" >> "{out}"'
    command = Command(("sh", "-c", script))
    outbox.add([message()])
    with delivering(Deliverer(outbox, command, command.name)):
        wait_for(lambda: not outbox.pending())
    assert json.loads(out.read_text().splitlines()[0].rpartition("}")[0] + "}") == ALERT | {"number": 0}
    assert out.read_text().endswith("blight opened north\n")


def test_a_command_sees_no_secrets_and_ends_with_the_agent(
    tmp_path: Path, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGRIDISTILL_MQTT_PASSWORD", "correct-horse")
    out = tmp_path / "out"
    command = Command(("sh", "-c", f'env > "{out}.part"; mv "{out}.part" "{out}"; sleep 50'))
    outbox.add([message()])
    began = time.monotonic()
    with delivering(Deliverer(outbox, command, command.name)):
        wait_for(out.exists)
    assert time.monotonic() - began < 15
    assert "correct-horse" not in out.read_text()
    assert len(outbox.pending()) == 1


def test_a_server_that_speaks_no_http_is_one_that_does_not_take_alerts(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    outbox.add([message()])
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client:
                        client.recv(10_000)
                        client.sendall(b"garbage\r\n")
                        client.shutdown(socket.SHUT_WR)
                        while client.recv(10_000):
                            pass  # closing with an unread body would reset the connection, another error

        threading.Thread(target=answer, daemon=True).start()
        webhook = Webhook(f"http://127.0.0.1:{server.getsockname()[1]}/")
        with delivering(Deliverer(outbox, webhook, webhook.name)):
            wait_for(lambda: "does not accept alerts (RemoteProtocolError)" in caplog.text)
    assert len(outbox.pending()) == 1


@pytest.mark.parametrize(
    ("url", "token", "proxy"),
    [
        ("http://field..example/", None, ""),
        ("http://127.0.0.1:9/", "t€k", ""),
        ("http://127.0.0.1:9/", None, "socks://127.0.0.1:1"),
    ],
    ids=["host", "token", "proxy"],
)
def test_a_webhook_that_cannot_be_spoken_to_does_not_end_the_agent(
    url: str, token: str | None, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(DeliveryError):
        Webhook(url, token)(message(), threading.Event())


@pytest.mark.parametrize("beginning", [HEADER, BODY], ids=["header", "body"])
def test_a_webhook_whose_answer_drips_has_not_taken_the_alert(
    beginning: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "_ANSWER_S", 0.3)
    with dripping(beginning) as port, soon(), pytest.raises(DeliveryError, match=r"no complete answer within 0\.3 s"):
        Webhook(f"http://127.0.0.1:{port}/secret")(message(), threading.Event())


def test_no_shell_reads_the_alerts_words(tmp_path: Path) -> None:
    strange = Message(json.dumps(ALERT | {"text": f"$(touch {tmp_path}/hacked); `id`"}).encode(), "alert")
    Command(("sh", "-c", 'test "$AGRIDISTILL_TEXT" && cat > /dev/null'))(strange, threading.Event())
    assert not (tmp_path / "hacked").exists()


def test_a_command_that_leaves_something_in_the_background_has_taken_the_alert(tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = f'echo x >> "{told}"; (sleep 1.5; echo later >> "{told}") & echo words >&2; exit $CODE'
    Command(("sh", "-c", f"CODE=0; {script}"), timeout_s=30)(message(), threading.Event())
    assert told.read_text() == "x\n", "nobody waits for what is in the background"
    wait_for(lambda: told.read_text() == "x\nlater\n", what="the background's word: it lives on")
    with pytest.raises(DeliveryError, match="exit code 3: words"):
        Command(("sh", "-c", f"CODE=3; {script}"), timeout_s=30)(message(), threading.Event())


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("sh", "-c", "echo no line >&2; exit 3"), "exit code 3: no line"),
        (("sleep", "30"), "the program runs longer than 0.2 s"),
        (("no-such-program",), "No such file"),
    ],
)
def test_a_command_that_fails_has_not_taken_the_alert(words: tuple[str, ...], reason: str) -> None:
    with pytest.raises(DeliveryError, match=reason):
        Command(words, timeout_s=0.2 if words[0] == "sleep" else 30)(message(), threading.Event())
