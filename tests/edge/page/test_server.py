"""The page over real connections: what it tells, to whom, and what it does not let others do."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from tests.edge.conftest import wait_for
from tests.edge.looks import HOSTILE, KEPT, detection, filled_history, picture, serving, state

from agridistill.edge.alerts.rules import PlotHealth
from agridistill.edge.page import Page, PageServer
from agridistill.edge.page.view import _verdict, content_html
from agridistill.edge.state import AgentState, metrics_text
from agridistill.edge.store.history import History
from agridistill.errors import EdgeError
from agridistill.local_page import server as local_server

TOKEN = "a-token-of-some-length"  # noqa: S105 - of these tests alone
AN_ID = f"{2:032x}"


class Asker:
    """Asks a page, one connection a request."""

    def __init__(self, server: PageServer) -> None:
        parts = urlsplit(server.address)
        assert parts.hostname is not None
        assert parts.port is not None
        self.host, self.port = parts.hostname, parts.port

    def ask(
        self, path: str, method: str = "GET", body: str | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        told = answer.status, answer.headers, answer.read()
        connection.close()
        return told

    def status(self, path: str, method: str = "GET", body: str | None = None, **headers: str) -> int:
        return self.ask(path, method, body, **headers)[0]

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), 10)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    with filled_history(tmp_path_factory.mktemp("page") / "history.sqlite") as found:
        yield found


@pytest.fixture(scope="module")
def open_page(history: History) -> Iterator[Asker]:
    with serving(history, state) as server:
        yield Asker(server)


@pytest.fixture(scope="module")
def guarded(history: History) -> Iterator[Asker]:
    with serving(history, state, token=TOKEN) as server:
        yield Asker(server)


def test_the_page_tells_alerts_state_and_detections_in_words(open_page: Asker) -> None:
    status, headers, body = open_page.ask("/")
    text = body.decode()
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    for told in (
        "8 of the last 20 leaves of plot north show Tomato: Late blight",
        "2 h 3 min",
        "farm.example:8883: connected",
        "mobilenetv3_large_100 7 (abababababab)",
        "unsure (Tomato: Late blight 52 %)",
        "52 % is below the threshold of 80 %",
        "unfamiliar: unlike the photos",
        "unusable: too dark",
        "Tomato: healthy 99 %",
    ):
        assert told in text, told
    assert text.index("Open alerts") < text.index("State") < text.index("Last photos") < text.index("Resolved")
    # Critical ones first, whenever they changed.
    assert text.index("notice critical") < text.index("notice warning")


def test_names_from_outside_stay_text(open_page: Asker) -> None:
    _, _, body = open_page.ask("/")
    assert b"<img src=x" not in body
    assert b"onerror=&quot;alert(1)&quot;" in body


def test_without_anything_seen_the_page_says_what_to_expect(tmp_path: Path) -> None:
    with History(tmp_path / "empty.sqlite") as history, serving(history, state) as server:
        _, _, body = Asker(server).ask("/")
    for told in (b"No alert is open.", b"There are no photos yet.", b"None yet."):
        assert told in body


def test_each_plot_tells_in_words_how_ill_it_is_what_of_and_the_trend(tmp_path: Path) -> None:
    now = time.time()
    plots = [
        PlotHealth("calm", now, 86_400.0, 12, 0.02, "Tomato___Late_blight", 9, 0.4, warned="Tomato___Late_blight"),
        PlotHealth("north", now, 86_400.0, 20, 0.4, "Tomato___Late_blight", 10, 0.1),
        PlotHealth("mild", now, 86_400.0, 10, 0.2, "Tomato___Late_blight", 10, 0.2),
        PlotHealth("new", now, 86_400.0, 2, 0.0, "Tomato___Late_blight"),
        PlotHealth("gone", now - 90_000),
        PlotHealth(HOSTILE, now, 3600.0, 5, 0.9, HOSTILE),
    ]
    with (
        History(tmp_path / "h.sqlite") as history,
        serving(history, state, plots=lambda: plots) as server,
    ):
        text = Asker(server).ask("/content")[2].decode()
    cards = {
        name: text.split(f"<h3>Plot {name}</h3>")[1].split("</li>")[0] for name in ("calm", "north", "mild", "new")
    }
    for name, told in (
        ("north", ("Ill", "8 of 20 leaves ill", "Mostly Tomato: Late blight", "Getting worse: 40 % ill, 10 % before")),
        ("calm", ("Alert open", "0 of 12 leaves ill", "Getting better: 2 % ill, 40 % before")),
        ("mild", ("Some ill", "2 of 10 leaves ill", "Steady")),
        ("new", ("Too few leaves: photograph at least 5", "0 of 2 leaves ill", "No trend yet")),
    ):
        assert [words for words in told if words not in cards[name]] == []
    assert "Plot gone" not in text
    assert HOSTILE not in text
    assert text.index("Plot north") < text.index("Plot mild") < text.index("Plot new")


@pytest.mark.parametrize(
    ("ill_share", "words"), [(0.02, "Healthy"), (0.12, "Few ill"), (0.2, "Some ill"), (0.4, "Ill")]
)
def test_a_plot_is_called_healthy_only_where_no_leaf_is_ill(ill_share: float, words: str) -> None:
    health = PlotHealth("north", 0.0, 86400.0, 8, ill_share, "late blight", 0, 0.0)
    assert _verdict(health)[1] == words


def test_ill_and_healthy_answers_are_marked_also_where_a_setting_names_the_healthy_class(tmp_path: Path) -> None:
    with History(tmp_path / "h.sqlite") as history:
        history.add(detection(1, photo="a.jpg"))
        history.add(detection(2, photo="b.jpg", label="sano"))
        with serving(history, state, healthy=("sano",)) as server:
            text = Asker(server).ask("/content")[2].decode()
    healthy, ill = text.split('<li class="card ')[1:]
    assert healthy.startswith('answer healthy"')
    assert "</span> Healthy</p>" in healthy
    assert ill.startswith('answer ill"')
    assert "</span> Ill</p>" in ill


def test_an_agent_that_says_nothing_any_more_is_told(history: History) -> None:
    with serving(history, lambda: state(at_s=1_700_000_000.0)) as server:
        assert b"has not reported since" in Asker(server).ask("/content")[2]
    with serving(history, state) as server:
        assert b"has not reported since" not in Asker(server).ask("/content")[2]


def test_kept_photos_are_counted_and_what_prevents_them_stands_out(history: History) -> None:
    page = content_html(Page(history, lambda: state(kept=KEPT)))
    words = "12 photos, 3.4 MB; 2 wait for the upload, the oldest for 2 min 5 s; 3 dropped"
    assert f"<dt>Kept photos</dt><dd>{words}</dd>" in page
    page = content_html(Page(history, lambda: state(kept=KEPT | {"trouble": "photos cannot be kept: full"})))
    assert '<dt>Kept photos</dt><dd class="bad">photos cannot be kept: full</dd>' in page


def test_a_loss_of_source_and_broker_stands_out(history: History) -> None:
    lost = state(source_lost_s=125.0, broker={"host": "b", "port": 1883, "connected": False})
    with serving(history, lambda: lost) as server:
        body = Asker(server).ask("/content")[2]
    assert b'<dd class="bad">/photos/inbox: away for 2 min 5 s</dd>' in body
    assert b'<dd class="bad">b:1883: away</dd>' in body


def test_pictures_metrics_and_json_come_as_what_they_are(open_page: Asker) -> None:
    status, headers, body = open_page.ask(f"/detections/{AN_ID}.jpg")
    assert (status, headers["Content-Type"], body) == (200, "image/jpeg", picture(2))
    status, headers, body = open_page.ask("/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert body.decode().splitlines()[0] == metrics_text(state()).splitlines()[0]
    assert json.loads(open_page.ask("/api/state")[2])["device"] == "field-7"
    detections = json.loads(open_page.ask("/api/detections?limit=3")[2])
    assert [one["verdict"] for one in detections] == ["unusable", "unfamiliar", "unsure"]
    assert len(json.loads(open_page.ask("/api/detections")[2])) == 8
    assert json.loads(open_page.ask("/api/detections?limit=500")[2])[-1]["photo"] == HOSTILE
    assert len(json.loads(open_page.ask("/api/alerts?limit=2")[2])) == 2


def test_a_name_that_is_no_utf_8_is_shown_all_the_same(history: History) -> None:
    with serving(history, lambda: state(source="caf\udce9")) as server:
        asker = Asker(server)
        assert b"caf\\udce9" in asker.ask("/")[2]
        assert b'source="caf\\udce9"' in asker.ask("/metrics")[2]
        assert json.loads(asker.ask("/api/state")[2])["source"] == "caf\udce9"


@pytest.mark.parametrize(
    "path",
    [
        "/x",
        "/detections/",
        f"/detections/{'f' * 32}.jpg",
        f"/detections/{6:032x}.jpg",
        "/detections/../../etc/passwd.jpg",
        "/page.css",
    ],
)
def test_what_is_not_there_is_one_line(open_page: Asker, path: str) -> None:
    status, headers, body = open_page.ask(path)
    assert (status, headers["Content-Type"], body) == (404, "text/plain; charset=utf-8", b"not found\n")


@pytest.mark.parametrize("limit", ["0", "501", "-1", "x", "٣", "9" * 5000])
def test_a_limit_that_is_none_is_refused(open_page: Asker, limit: str) -> None:
    assert open_page.status(f"/api/detections?limit={quote(limit)}") == 400


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_nothing_can_be_changed(open_page: Asker, method: str) -> None:
    for path in ("/", "/login", "/api/state"):
        status, headers, body = open_page.ask(path, method)
        assert (status, headers["Allow"], body) == (405, "GET, HEAD", b"this page only answers GET and HEAD\n")


def test_head_is_get_without_the_body(open_page: Asker) -> None:
    for path in ("/metrics", f"/detections/{AN_ID}.jpg", "/missing"):
        got, head = open_page.ask(path), open_page.ask(path, "HEAD")
        assert head[0] == got[0]
        assert head[1]["Content-Type"] == got[1]["Content-Type"]
        assert int(head[1]["Content-Length"]) > 0
        assert head[2] == b""


@pytest.mark.parametrize("path", ["/", "/content", "/metrics", "/api/state", f"/detections/{AN_ID}.jpg", "/missing"])
def test_no_answer_may_be_framed_sniffed_or_taken_by_another_site(open_page: Asker, path: str) -> None:
    _, headers, _ = open_page.ask(path)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["Access-Control-Allow-Origin"] is None


def test_the_nonce_of_style_and_script_is_another_each_time(open_page: Asker) -> None:
    policies = [open_page.ask("/")[1]["Content-Security-Policy"] for _ in range(2)]
    assert policies[0] != policies[1]


def test_a_foreign_name_that_leads_to_this_machine_is_refused(open_page: Asker) -> None:
    for host in (
        "attacker.example",
        f"attacker.example:{open_page.port}",
        "localhost.attacker.example",
        "",
        "[",
        "a@b:x",
    ):
        assert open_page.status("/", Host=host) == 421, host
    for host in ("localhost", f"LOCALHOST:{open_page.port}", "127.0.0.1", f"[::1]:{open_page.port}"):
        assert open_page.status("/", Host=host) == 200, host
    with open_page.connect() as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.0 421 ")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "farm.example", "localhost.example"])  # noqa: S104 - refused
def test_others_may_look_only_with_a_token(history: History, host: str) -> None:
    with pytest.raises(EdgeError, match="set AGRIDISTILL_PAGE_TOKEN"):
        serving(history, state, host=host)
    serving(history, state, host=host, token=TOKEN)


@pytest.mark.parametrize("token", ["", "short", "with a blank in the middle", "line\nbreak-in-the-token", "ü" * 20])
def test_a_token_that_is_weak_or_fits_no_header_is_refused_and_not_shown(history: History, token: str) -> None:
    with pytest.raises(EdgeError) as error:
        serving(history, state, token=token)
    assert not token or token not in str(error.value)


ROUTES = ["/", "/content", "/metrics", "/api/state", "/api/detections", "/api/alerts", f"/detections/{AN_ID}.jpg"]


@pytest.mark.parametrize("path", [*ROUTES, "/missing"])
def test_every_route_needs_the_token(guarded: Asker, path: str) -> None:
    status, headers, body = guarded.ask(path)
    assert (status, body) == (401, b"this page needs its token: send it as Authorization: Bearer TOKEN\n")
    assert headers["WWW-Authenticate"].startswith("Bearer")
    for wrong in (TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "Bearer", "Bearer \u00fc"):
        assert guarded.status(path, Authorization=wrong) == 401, wrong
    assert guarded.status(path, Cookie=f"agridistill={TOKEN}; other") == 401
    assert guarded.status(path, Authorization=f"Bearer {TOKEN}") == (404 if path == "/missing" else 200)


def test_a_browser_without_the_token_gets_a_form_that_takes_it(guarded: Asker) -> None:
    status, headers, body = guarded.ask("/", Accept="text/html,*/*")
    assert status == 401
    assert b'<form method="post" action="/login">' in body
    assert "form-action 'self'" in headers["Content-Security-Policy"]
    form = "application/x-www-form-urlencoded"
    status, _, body = guarded.ask("/login", "POST", "token=wrong", Content_Type=form, Accept="text/html")
    assert status == 401
    assert b"This is not the token." in body
    status, headers, _ = guarded.ask("/login", "POST", f"token={TOKEN}", Content_Type=form)
    assert (status, headers["Location"]) == (303, "/")
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in str(headers)
    assert all(guarded.status(path, Cookie=cookie.partition(";")[0]) == 200 for path in ROUTES)


def test_the_cookie_outlives_a_new_start_and_ends_with_the_token(history: History) -> None:
    def cookie_works(token: str, cookie: str) -> bool:
        with serving(history, state, token=token) as server:
            return Asker(server).status("/", Cookie=cookie) == 200

    with serving(history, state, token=TOKEN) as server:
        cookie = Asker(server).ask("/login", "POST", f"token={TOKEN}")[1]["Set-Cookie"].partition(";")[0]
    assert cookie_works(TOKEN, cookie)
    assert not cookie_works(TOKEN + "2", cookie)


@pytest.mark.parametrize(("length", "status"), [("4097", 413), ("9" * 4000, 413), ("-1", 411), ("x", 411), ("", 411)])
def test_a_long_body_is_refused_unread(guarded: Asker, length: str, status: int) -> None:
    with guarded.connect() as connection:
        connection.sendall(f"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode())
        assert connection.recv(100).startswith(f"HTTP/1.0 {status} ".encode())


def test_what_is_no_http_gets_a_line_and_no_traceback(open_page: Asker, caplog: pytest.LogCaptureFixture) -> None:
    too_long = b"GET /" + b"a" * (65_537 - 5)
    for request, line in (
        (b"nonsense\r\n", b"bad request\n"),
        (b"GET / HTTP/1.0\r\n" + b"a: b\r\n" * 101 + b"\r\n", b"HTTP/1.0 431 "),
        (too_long, b"HTTP/1.0 414 "),
    ):
        with open_page.connect() as connection:
            connection.sendall(request)
            assert connection.recv(1000).startswith(line)
    assert open_page.status("/") == 200
    assert caplog.records == []


def test_many_silent_clients_are_held_off_and_let_go(open_page: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "_WAIT_FOR_PLACE_S", 0.05)
    silent = [open_page.connect() for _ in range(8)]
    try:
        with open_page.connect() as one_too_many:
            assert one_too_many.recv(100).startswith(b"HTTP/1.0 503 ")
        # One that sends a byte now and then is ended as well.
        monkeypatch.setattr(local_server, "_LONGEST_CONNECTION_S", 0.1)
        silent[0].sendall(b"G")
        assert silent[0].recv(100) == b""
        wait_for(lambda: open_page.status("/") == 200, what="the page")
    finally:
        for connection in silent:
            connection.close()


def test_a_client_that_goes_away_is_no_defect(open_page: Asker, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(20):
        with open_page.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            connection.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
    assert open_page.status("/") == 200
    assert caplog.records == []


def test_a_state_that_cannot_be_read_is_a_503_and_a_defect_a_500(
    history: History, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[Exception] = [EdgeError("a state", "/secret/path", "wait"), ZeroDivisionError()]

    def failing() -> AgentState:
        raise failures[0]

    with serving(history, failing) as server:
        asker = Asker(server)
        status, _, body = asker.ask("/api/state")
        assert status == 503
        assert b"secret" not in body
        assert caplog.records == []
        failures.pop(0)
        assert asker.status("/") == 500
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_tokens_and_addresses_are_never_logged(
    guarded: Asker, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        guarded.ask(f"/?token={TOKEN}")
        guarded.ask(f"/missing?token={TOKEN}", Authorization=f"Bearer {TOKEN}")
        guarded.ask("/login", "POST", f"token={TOKEN}")
        with guarded.connect() as connection:
            connection.sendall(f"BAD /?token={TOKEN} HTTP/9\r\n\r\n".encode())
            assert connection.recv(1000)
    told = capfd.readouterr()
    assert TOKEN not in caplog.text + told.out + told.err


def test_a_taken_port_is_told_and_a_stopped_page_gives_it_back(history: History) -> None:
    with serving(history, state) as first:
        again = serving(history, state, port=Asker(first).port)
        with pytest.raises(EdgeError, match="choose another host or port"):
            again.__enter__()
    with again:
        assert Asker(again).status("/") == 200


def test_stopping_ends_open_connections_at_once(history: History) -> None:
    with serving(history, state) as server:
        connection = Asker(server).connect()
        connection.sendall(b"GET / HT")
    with connection, contextlib.suppress(ConnectionResetError):
        assert connection.recv(100) == b""


@pytest.mark.needs("IPv6")
def test_the_page_answers_over_ipv6(history: History) -> None:
    with serving(history, state, host="::1") as server:
        assert server.address.startswith("http://[::1]:")
        assert Asker(server).status("/") == 200


def test_another_process_may_show_what_the_agent_writes(tmp_path: Path) -> None:
    file = tmp_path / "history.sqlite"
    with filled_history(file) as writer, History(file, read_only=True) as reader, serving(reader, state) as server:
        asker = Asker(server)
        before: list[Any] = json.loads(asker.ask("/api/detections")[2])
        writer.add(detection(20))
        after = json.loads(asker.ask("/api/detections")[2])
    assert len(after) == len(before) + 1


APP_FILE = "files/0123456789abcdef-app.js"


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    (folder / "files").mkdir(parents=True)
    for name in ("index.html", "sw.js", "app.webmanifest", "release.json", APP_FILE, ".hidden", "notes.txt"):
        (folder / name).write_text(name)
    (tmp_path / "secret.txt").write_text("secret")
    return folder


def test_the_phone_page_is_served_below_app(history: History, app: Path) -> None:
    with serving(history, state, app=app) as server:
        asker = Asker(server)
        assert b'<a href="/app/">' in asker.ask("/")[2]
        status, headers, body = asker.ask("/app/")
        assert (status, body, headers["Content-Type"]) == (200, b"index.html", "text/html; charset=utf-8")
        # Its threads need an isolated page; its own policy says what it loads.
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert headers.get_all("Content-Security-Policy") == ["frame-ancestors 'none'"]
        _, headers, body = asker.ask(f"/app/{APP_FILE}")
        assert (body, headers["Content-Type"]) == (APP_FILE.encode(), "text/javascript")
        assert "immutable" in headers["Cache-Control"]
        assert asker.ask("/app")[1]["Location"] == "/app/"
        for path in ("../secret.txt", "files/../../secret.txt", "%2e%2e/secret.txt", "files/", ".hidden", "notes.txt"):
            assert asker.status(f"/app/{path}") == 404, path


def test_the_phone_page_needs_the_token_of_the_page_and_a_folder_that_has_it(
    history: History, app: Path, open_page: Asker
) -> None:
    assert open_page.status("/app/") == 404
    with serving(history, state, token=TOKEN, app=app) as server:
        assert Asker(server).status("/app/") == 401
        assert Asker(server).status("/app/", Authorization=f"Bearer {TOKEN}") == 200
    (app / "release.json").unlink()
    with pytest.raises(EdgeError, match=r"expected the folder of a phone page; got no 'release\.json' in"):
        serving(history, state, app=app)
