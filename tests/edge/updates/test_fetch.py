"""A download goes on where it was cut, never takes more than was signed, and leaves room on the disk."""

from __future__ import annotations

import shutil
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.edge.dripping import dripping, soon

from agridistill.edge.updates.prepare import open_source, read_envelope

from .conftest import Device, Publisher, Server, model_like

pytestmark = pytest.mark.usefixtures("without_golden")
Serve = Callable[[Path], Server]
MakeDevice = Callable[..., Device]
Limits = Callable[..., None]
KIB_64 = 65_536
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def large(publisher: Publisher, colour_model: Path) -> Publisher:
    """A release of 0.6 MB: ten times 64 KiB."""
    publisher.model = model_like(colour_model, publisher.model.parent / "large.onnx", padding=600_000)
    publisher.publish(1)
    return publisher


@pytest.fixture
def server(large: Publisher, serve: Serve) -> Server:
    return serve(large.folder)


@pytest.fixture
def device(device_for: MakeDevice, large: Publisher, server: Server) -> Device:
    """Fetches the large release from the server."""
    return device_for(large, server.url)


def part_of(device: Device) -> Path:
    return device.slots.folder / "v1.part" / "large.onnx.part"


def test_cut_at_every_64_kib_the_old_model_runs_until_the_last_byte_is_there(
    device: Device, large: Publisher, server: Server, limits: Limits
) -> None:
    limits(ATTEMPTS=1)
    size, cuts = large.model.stat().st_size, 0
    # One try a check, each cut after 64 KiB.
    server.cut_after = KIB_64
    while (result := device.check()).outcome == "postponed":
        cuts += 1
        assert device.start().version == 0
        assert part_of(device).stat().st_size == cuts * KIB_64
    assert result.outcome == "installed"
    assert cuts == size // KIB_64
    assert server.sent["large.onnx"] == size, "no byte was sent twice"
    assert device.start().version == 1


@pytest.mark.parametrize("cut", range(0, 600_000, KIB_64))
def test_a_file_that_ends_early_on_a_stick_is_never_used(
    device_for: MakeDevice, large: Publisher, cut: int, tmp_path: Path, limits: Limits
) -> None:
    content = large.model.read_bytes()
    (large.folder / "v1" / "large.onnx").write_bytes(content[:cut])
    limits(ATTEMPTS=1)
    device = device_for(large)
    assert device.check().outcome == "postponed"
    assert device.start().version == 0
    (large.folder / "v1" / "large.onnx").write_bytes(content)
    assert device.check().outcome == "installed"
    assert device.start().version == 1


def test_within_a_check_a_download_that_comes_forward_is_not_given_up(
    device: Device, large: Publisher, server: Server, limits: Limits
) -> None:
    server.cut_after = KIB_64
    limits(ATTEMPTS=2)
    assert device.check().outcome == "installed"
    assert server.sent["large.onnx"] == large.model.stat().st_size


def test_without_ranges_the_download_starts_over(device: Device, server: Server, limits: Limits) -> None:
    limits(ATTEMPTS=3)
    server.ranges, server.cut_after = False, 100_000
    assert device.check().outcome == "postponed"
    assert part_of(device).stat().st_size == 100_000
    server.cut_after = None
    assert device.check().outcome == "installed"
    assert server.starts[-1] == 0
    assert device.start().version == 1


def test_a_part_of_other_bytes_is_thrown_away_and_fetched_anew(device: Device, server: Server, limits: Limits) -> None:
    limits(ATTEMPTS=1)
    server.cut_after = 100_000
    assert device.check().outcome == "postponed"
    part_of(device).write_bytes(b"x" * 100_000)
    server.cut_after = None
    assert device.check().outcome == "installed"
    assert device.start().version == 1


@pytest.mark.parametrize("left", [b"", b"x" * 10_000_000], ids=["empty", "too long"])
def test_any_part_can_be_gone_on_with(device_for: MakeDevice, large: Publisher, serve: Serve, left: bytes) -> None:
    device = device_for(large, serve(large.folder).url)
    part_of(device).parent.mkdir(parents=True)
    part_of(device).write_bytes(left)
    assert device.check().outcome == "installed"


def test_no_more_than_was_signed_is_written(device: Device, server: Server) -> None:
    server.extra = b"x" * 20_000_000
    result = device.check()
    assert result.outcome == "refused"
    assert sum(path.stat().st_size for path in device.slots.folder.rglob("*")) < 1_500_000
    assert device.start().version == 0


def test_a_huge_release_file_is_not_read(device_for: MakeDevice, publisher: Publisher, serve: Serve) -> None:
    publisher.folder.mkdir()
    (publisher.folder / "release.json").write_bytes(b" " * 30_000_000)
    server = serve(publisher.folder)
    for source in (server.url, publisher.folder):
        assert "at most 1,000,000 bytes" in device_for(publisher, source).check().reason


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "//[", "SELF"])
def test_a_redirect_goes_nowhere_but_to_http(device: Device, server: Server, target: str) -> None:
    server.redirect = server.url if target == "SELF" else target
    assert device.check().outcome == "postponed"
    assert device.start().version == 0


def test_a_redirect_to_another_server_is_followed(device_for: MakeDevice, large: Publisher, serve: Serve) -> None:
    server, other = serve(large.folder), serve(large.folder)
    server.redirect = other.url
    assert read_envelope(open_source(server.url)) == (large.folder / "release.json").read_bytes()


def test_a_server_that_sends_a_byte_now_and_then_holds_nobody_beyond_his_patience(
    device: Device, server: Server, limits: Limits
) -> None:
    server.pause_s = 0.02
    limits(PATIENCE_S=0.3)
    results = []
    thread = threading.Thread(target=lambda: results.append(device.check()), daemon=True)
    thread.start()
    thread.join(20)
    assert [result.outcome for result in results] == ["postponed"]
    assert part_of(device).stat().st_size > 0


def test_a_header_that_drips_holds_nobody_beyond_the_timeout(
    device_for: MakeDevice, publisher: Publisher, limits: Limits
) -> None:
    with dripping() as port, soon():
        limits(TIMEOUT_S=0.3)
        device = device_for(publisher, f"http://127.0.0.1:{port}/release.json")
        result = device.check()
    assert result.outcome == "postponed"
    assert "no complete answer within 0.3 s" in result.reason


def test_a_body_may_take_longer_than_its_header(
    device_for: MakeDevice, large: Publisher, serve: Serve, limits: Limits
) -> None:
    server = serve(large.folder)
    server.pause_s = 0.02
    limits(TIMEOUT_S=0.3)
    with open_source(server.url).opened("v1/large.onnx", 0) as (_, body):
        begin = time.monotonic()
        for _ in range(25):
            assert next(body)
    assert time.monotonic() - begin > 0.4


def test_without_room_nothing_is_fetched(
    device: Device, large: Publisher, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 10**6, 10**6))
        result = device.check()
    assert result.outcome == "postponed"
    assert "free bytes for a model update" in result.reason
    assert "large.onnx" not in server.sent
    assert device.check().outcome == "installed"


def test_a_disk_that_is_full_before_it_said_so_gets_its_room_back(
    device_for: MakeDevice, large: Publisher, serve: Serve
) -> None:
    resource = pytest.importorskip("resource")
    import signal

    device = device_for(large, serve(large.folder).url)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # A write beyond this fails, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        result = device.check()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert result.outcome == "postponed"
    assert "a disk that can store a model update" in result.reason
    assert not list(device.slots.folder.glob("v1*"))
    assert device.start().version == 0
    assert device.check().outcome == "installed"
