"""A newer model that is signed, whole and right is installed; after anything else the old one runs on."""

from __future__ import annotations

import itertools
import json
import logging
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.edge.conftest import wait_for

from agridistill.edge import network
from agridistill.edge.updates import prepare, updater
from agridistill.edge.updates.proof import WITHOUT_PROOF
from agridistill.edge.updates.publishing import PublishSettings, publish
from agridistill.edge.updates.release import create_key, key_id, read_private_key, read_public_key
from agridistill.edge.updates.updater import Updater, UpdateResult, UpdateWorker
from agridistill.errors import EdgeError
from agridistill.manifest import read_manifest
from agridistill.runtime.backends import manifest_path
from agridistill.storage import only_one

from .conftest import Device, Publisher, Server, make_device, model_like

Serve = Callable[[Path], Server]
MakeDevice = Callable[..., Device]
Log = pytest.LogCaptureFixture


def test_a_release_is_installed_after_its_golden_photos_and_runs_from_the_next_start(
    device_for: MakeDevice, publisher: Publisher, serve: Serve
) -> None:
    publisher.publish(1)
    device = device_for(publisher, serve(publisher.folder).url)
    assert device.start().version == 0
    result = device.check()
    assert (result.outcome, result.version) == ("installed", 1)
    active = device.start()
    assert (active.version, active.trial) == (1, True)
    assert active.path.read_bytes() == publisher.model.read_bytes()
    assert device.check().outcome == "current"
    device.slots.confirm()
    assert not device.start().trial


@pytest.mark.usefixtures("without_golden")
def test_the_proof_of_a_release_is_on_the_device_signed(
    device: Device, publisher: Publisher, tmp_path: Path, colour_model: Path
) -> None:
    publisher.publish(1)
    assert device.check().outcome == "installed"
    device.start()
    device.slots.confirm()
    other = model_like(publisher.model, publisher.model.parent / "other.onnx", padding=10)
    publisher.publish(2, model=other, without_proof=True)
    assert device.check().outcome == "installed"
    assert (device.start().path.parent / "proof.json").read_bytes() == WITHOUT_PROOF
    (publisher.folder / "v2" / "proof.json").write_bytes(WITHOUT_PROOF.replace(b"true", b"null"))
    assert make_device(publisher, tmp_path / "second", colour_model).check().outcome == "refused"


def message_of(publisher: Publisher, server: Server) -> bytes:
    """A release that arrives as a message; its files lie on the server."""
    publisher.publish(1, base_url=server.url.removesuffix("release.json"))
    return (publisher.folder / "release.json").read_bytes()


@pytest.mark.usefixtures("without_golden")
@pytest.mark.parametrize("kind", ["folder", "text", "address", "folder's address", "message"])
def test_a_release_comes_from_a_stick_a_server_or_a_message(
    kind: str, device_for: MakeDevice, publisher: Publisher, serve: Serve
) -> None:
    server = serve(publisher.folder)
    envelope = message_of(publisher, server)
    if kind == "message":
        (publisher.folder / "release.json").unlink()
    source = {
        "folder": publisher.folder,
        "text": str(publisher.folder / "release.json"),
        "address": server.url + "?token=secret",
        "folder's address": server.url.removesuffix("release.json"),
        "message": envelope,
    }[kind]
    device = device_for(publisher, source)
    result = device.check()
    assert result.outcome == "installed", result.reason
    assert device.start().version == 1


def test_a_message_without_an_address_is_refused(device_for: MakeDevice, publisher: Publisher) -> None:
    publisher.publish(1)
    device = device_for(publisher, (publisher.folder / "release.json").read_bytes())
    result = device.check()
    assert result.outcome == "refused"
    assert "--base-url" in result.reason


def test_another_key_is_refused(device: Device, publisher: Publisher) -> None:
    publisher.publish(1, keys=[Ed25519PrivateKey.generate()])
    assert device.check().outcome == "refused"
    assert device.start().version == 0


@pytest.mark.usefixtures("without_golden")
def test_an_older_version_is_refused_also_after_a_return(device: Device, publisher: Publisher, tmp_path: Path) -> None:
    for version in (1, 2, 3):
        publisher.publish(version)
        shutil.copytree(publisher.folder, tmp_path / f"served {version}")
    device.source = tmp_path / "served 2"
    assert device.check().outcome == "installed"
    device.source = tmp_path / "served 1"
    assert device.check().outcome == "refused"
    device.slots.give_up(2, "it is slow")
    assert device.start().version == 0
    result = device.check()
    assert result.outcome == "refused"
    assert "a version above 2" in result.reason
    device.source = tmp_path / "served 2"
    assert "it is slow" in device.check().reason
    device.source = tmp_path / "served 3"
    assert device.check().outcome == "installed"


def test_a_release_of_another_channel_is_refused(device_for: MakeDevice, publisher: Publisher) -> None:
    publisher.publish(1, channel="potato")
    assert "for the channel 'default'" in device_for(publisher).check().reason


@pytest.mark.usefixtures("without_golden")
def test_the_running_version_of_another_channel_or_with_other_content_is_refused(
    device: Device, publisher: Publisher, tmp_path: Path
) -> None:
    publisher.publish(1)
    assert device.check().outcome == "installed"
    others = {}
    other_model = model_like(publisher.model, tmp_path / "new 2" / "leaf.onnx", padding=20)
    for name, settings in (
        ("channel", {"channel": "potato"}),
        ("content", {"model": other_model}),
        ("elsewhere", {"base_url": "https://other.example/"}),
    ):
        others[name] = tmp_path / name
        replace(publisher, folder=others[name]).publish(1, **settings)  # type: ignore[arg-type]
    device.source = others["channel"]
    result = device.check()
    assert (result.outcome, result.version) == ("refused", 1)
    assert "for the channel 'default'" in result.reason
    device.source = others["content"]
    result = device.check()
    assert (result.outcome, result.version) == ("refused", 1)
    assert "another release of the same version" in result.reason
    device.source = others["elsewhere"]
    assert device.check().outcome == "current"
    (device.slots.slot(1) / "release.json").write_bytes(b"damaged")
    device.source = others["content"]
    assert device.check().outcome == "current", "what runs is not known: nothing is said against the release"


def test_a_golden_check_that_was_killed_is_not_asked_for_again_soon(
    device: Device, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*given: object) -> None:
        raise prepare.KilledCheckError("answers", "one that was killed", "later")

    monkeypatch.setattr("agridistill.edge.updates.updater.check_golden", killed)
    publisher.publish(1)
    result = device.check()
    assert (result.outcome, result.patient) == ("postponed", True)
    assert set(result.to_json()) == {"outcome", "version", "reason"}


def test_a_model_that_answers_golden_photos_otherwise_is_refused_for_good(
    device: Device, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = model_like(publisher.model, publisher.model.parent / "other.onnx", classes=("red", "green"))
    with monkeypatch.context() as patch:
        # A publisher that does not look: `publish` itself would refuse it.
        patch.setattr("agridistill.edge.updates.publishing._golden", lambda folder, *rest: _labelled(folder))
        publisher.publish(1, model=other)
    result = device.check()
    assert result.outcome == "refused"
    assert "got 0 of 2" in result.reason
    assert device.start().version == 0
    shutil.rmtree(publisher.folder / "v1")
    assert "got 0 of 2" in device.check().reason, "it must not be fetched again"
    assert not list(device.slots.folder.glob("v1*"))


def test_a_model_with_other_classes_than_signed_is_refused(
    device: Device, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_of = prepare.Release.model_validate_json
    monkeypatch.setattr(
        prepare.Release,
        "model_validate_json",
        lambda payload: release_of(payload).model_copy(update={"classes": ("green", "red", "blue")}),
    )
    publisher.publish(1)
    assert "a model with the classes that its release names" in device.check().reason
    assert device.start().version == 0


def _labelled(folder: Path) -> tuple[list[Path], list[str], float]:
    photos = sorted(folder.rglob("*.png"))
    return photos, [photo.parent.name for photo in photos], 1.0


def _endless(model: Path) -> None:
    """Rewrites a model so that its answer never comes: a loop of 2^62 rounds in front of it."""
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper, kinds = onnx.helper, onnx.numpy_helper, onnx.TensorProto
    network = onnx.load(model)
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("Add", ["before", "one"], ["after"]),
        ],
        "round",
        [value("i", kinds.INT64, []), value("going", kinds.BOOL, []), value("before", kinds.FLOAT, [])],
        [value("goes_on", kinds.BOOL, []), value("after", kinds.FLOAT, [])],
        [numpy_helper.from_array(np.array(1, np.float32), "one")],
    )
    logits = network.graph.node[-1]
    logits.output[0] = "quick"
    loop = helper.make_node("Loop", ["rounds", "yes", "zero"], ["sum"], body=body)
    network.graph.node.extend([loop, helper.make_node("Add", ["quick", "sum"], ["logits"])])
    for name, content in (
        ("rounds", np.array(2**62, np.int64)),
        ("yes", np.array(True)),
        ("zero", np.array(0, np.float32)),
    ):
        network.graph.initializer.append(numpy_helper.from_array(content, name))
    onnx.save(network, model)
    read_manifest(manifest_path(model)).with_weights(model).write(manifest_path(model))


def test_a_model_that_never_answers_is_ended_and_refused(
    device_for: MakeDevice, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, limits: Callable[..., None]
) -> None:
    _endless(publisher.model)
    monkeypatch.setattr("agridistill.edge.updates.publishing._golden", lambda folder, *rest: _labelled(folder))
    publisher.publish(1)
    limits(GOLDEN_LIMIT_S=4)
    device = device_for(publisher)
    result = device.check()
    assert "answers all golden photos within" in result.reason
    assert device.start().version == 0


def test_a_model_that_takes_its_process_with_it_is_refused(
    device: Device, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publisher.publish(1)
    crashing = tmp_path / "python"
    crashing.write_text(f"#!{sys.executable}\nimport os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(prepare.sys, "executable", str(crashing))
    assert "fails with exit code -11" in device.check().reason
    assert device.start().version == 0


def test_a_file_that_is_no_model_is_refused_though_it_is_signed(
    device: Device, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.model.write_bytes(random.Random(3).randbytes(5000))
    manifest = read_manifest(manifest_path(publisher.model)).with_weights(publisher.model)
    manifest.write(manifest_path(publisher.model))
    monkeypatch.setattr("agridistill.edge.updates.publishing.open_artefact", lambda path: _Fake(manifest))
    monkeypatch.setattr("agridistill.edge.updates.publishing._golden", lambda folder, *rest: _labelled(folder))
    publisher.publish(1)
    assert "a model that runs on this device" in device.check().reason
    assert device.start().version == 0


class _Fake:
    def __init__(self, manifest: object) -> None:
        self.manifest = manifest


@pytest.mark.slow
@pytest.mark.usefixtures("without_golden")
def test_after_a_thousand_flipped_bits_the_old_model_runs_or_the_very_new_one(
    device: Device, publisher: Publisher
) -> None:
    publisher.publish(1)
    assert device.check().outcome == "installed"
    device.slots.confirm()
    publisher.publish(2)
    state = device.slots.folder
    before = shutil.copytree(state, state.with_name("before"))
    files = sorted(path for path in publisher.folder.rglob("*") if path.is_file() and path.parent.name != "v1")
    assert len(files) == 5
    sizes = [path.stat().st_size for path in files]
    rng, outcomes = random.Random(11), []
    for number in range(1000):
        # A third of the flips hits release.json, which is small; the rest hits bytes alike.
        path = files[0] if number % 3 == 0 else rng.choices(files, sizes)[0]
        content = path.read_bytes()
        place = rng.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        outcome = device.check().outcome
        path.write_bytes(content)
        outcomes.append(outcome)
        # Or the next check would not look at the files that are there already.
        shutil.rmtree(state / "v2.part", ignore_errors=True)
        active = device.slots.start()
        if outcome == "installed":
            assert path.name == "release.json", "only a bit that says nothing may be passed over"
            assert active.version == 2
            assert active.path.read_bytes() == (publisher.folder / "v2" / "leaf.onnx").read_bytes()
            shutil.rmtree(state)
            shutil.copytree(before, state)
        else:
            assert active.version == 1
    assert device.start().version == 1
    assert outcomes.count("refused") > 900
    assert device.check().outcome == "installed", "what was refused for damage is taken when it comes whole"
    assert device.start().version == 2


def new_key(folder: Path, name: str) -> tuple[Ed25519PrivateKey, bytes]:
    create_key(folder / name)
    return read_private_key(folder / name), read_public_key(folder / f"{name}.pub")


@pytest.mark.usefixtures("without_golden")
def test_a_new_key_counts_after_a_release_of_the_old_one_named_it_and_the_old_one_may_go(
    device: Device, device_for: MakeDevice, publisher: Publisher, tmp_path: Path
) -> None:
    key, public = new_key(tmp_path, "next.pem")
    publisher.publish(1, keys=[key], trust=(public,))
    assert device.check().outcome == "refused", "nobody may name himself"
    shutil.rmtree(publisher.folder)
    publisher.publish(1, trust=(public,))
    assert device.check().outcome == "installed"
    publisher.publish(2, keys=[key], revoke=(publisher.key_id,))
    assert device.check().outcome == "installed"
    publisher.publish(3)
    assert device.check().outcome == "refused", "the old key is gone"
    device = device_for(publisher)
    assert device.check().outcome == "refused", "also after a new start"
    device.slots.give_up(2, "it fails")
    assert device.check().outcome == "refused", "the return to an older model brings no key back"
    publisher.publish(4, keys=[key])
    assert device.check().outcome == "installed"


@pytest.mark.usefixtures("without_golden")
def test_a_release_never_removes_the_last_key(device: Device, publisher: Publisher, tmp_path: Path) -> None:
    other, _ = new_key(tmp_path, "other.pem")
    publisher.publish(1, keys=[other, publisher.key], revoke=(publisher.key_id,))
    result = device.check()
    assert result.outcome == "refused"
    assert "revokes all" in result.reason
    assert device.slots.pointer().removed_keys == ()


@pytest.mark.usefixtures("without_golden")
def test_keys_change_only_with_the_switch(device: Device, publisher: Publisher, tmp_path: Path) -> None:
    key, public = new_key(tmp_path, "next.pem")
    publisher.publish(1, trust=(public,))
    (publisher.folder / "v1" / "leaf.onnx").write_bytes(b"cut")
    assert device.check().outcome != "installed"
    publisher.publish(2, keys=[key])
    assert device.check().outcome == "refused"


@pytest.mark.usefixtures("without_golden")
def test_one_update_at_a_time(device: Device, publisher: Publisher) -> None:
    publisher.publish(1)
    device.slots.folder.mkdir(parents=True)
    with only_one(device.slots.folder / "update.lock", "test"):
        result = device.check()
    assert result.outcome == "postponed"
    assert "another process that uses it now" in result.reason
    assert device.check().outcome == "installed"


@pytest.mark.usefixtures("without_golden")
def test_a_model_whose_files_were_damaged_on_the_disk_is_fetched_again(device: Device, publisher: Publisher) -> None:
    publisher.publish(1)
    device.check()
    device.slots.confirm()
    (device.slots.slot(1) / "leaf.onnx").write_bytes(b"x")
    assert device.start().version == 0
    assert device.check().outcome == "installed"
    assert device.start().version == 1


def test_an_outage_is_told_once_and_its_end_once(
    device_for: MakeDevice, publisher: Publisher, serve: Serve, caplog: Log
) -> None:
    server = serve(publisher.folder)
    device = device_for(publisher, server.url + "?token=secret")
    caplog.set_level(logging.WARNING)
    server.status = 503
    for _ in range(3):
        assert device.check().outcome == "postponed"
    assert len(caplog.messages) == 1
    assert "status 503" in caplog.messages[0]
    assert "secret" not in caplog.text
    server.status = None
    publisher.publish(1)
    assert device.check().outcome == "installed"
    assert caplog.messages[1:] == ["model updates work again", "model version 1 is installed and is now on trial"]


def test_a_message_and_a_place_do_not_call_each_other_back(
    device: Device, publisher: Publisher, serve: Serve, caplog: Log
) -> None:
    server = serve(publisher.folder)
    message = message_of(publisher, server)
    server.status = 503
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        device.updater.check(message)
        device.updater.check(tmp := publisher.folder / "nowhere")
        assert not tmp.exists()
    assert [("update is postponed" in line) for line in caplog.messages] == [True, True]


def test_what_is_no_source_is_a_result_too(device: Device, tmp_path: Path) -> None:
    for source, outcome in (
        ("ftp://host/release.json", "refused"),
        ("https://user:word@host/release.json", "refused"),
        ("http://", "refused"),
        ("http://[", "refused"),
        ("http://host:99999/", "refused"),
        ("http://127.0.0.1:9/release.json", "postponed"),
        (tmp_path / "nowhere", "postponed"),
        (b"no release", "refused"),
    ):
        device.source = source  # type: ignore[assignment]
        result = device.check()
        assert result.outcome == outcome, source
        assert "word@" not in result.reason
    assert device.start().version == 0


def test_a_release_is_published_once_and_leaves_a_key(publisher: Publisher) -> None:
    publisher.publish(2)
    written = json.loads((publisher.folder / "release.json").read_text())
    publisher.publish(2)
    assert json.loads((publisher.folder / "release.json").read_text()) == written
    with pytest.raises(EdgeError, match="publish with --version 3"):
        publisher.publish(2, channel="other")
    with pytest.raises(EdgeError, match="a version above 2"):
        publisher.publish(1)
    with pytest.raises(EdgeError, match="a key that devices trust after this release"):
        publisher.publish(3, revoke=(key_id(publisher.public),))
    with pytest.raises(EdgeError, match="a private key to sign"):
        publish(publisher.model, publisher.golden, publisher.folder, [], PublishSettings(3))
    assert json.loads((publisher.folder / "release.json").read_text()) == written


POSTPONED = UpdateResult("postponed", 1, "away")


class Checks:
    """Stands in for the updater and the agent: gives results in turn, the last one for ever."""

    def __init__(self, *results: UpdateResult) -> None:
        self.results = list(results)
        self.asked: list[tuple[float, str | bytes]] = []
        self.model_changed = threading.Event()

    def check(self, source: str | bytes, stop: threading.Event) -> UpdateResult:
        self.asked.append((time.monotonic(), source))
        return self.results.pop(0) if len(self.results) > 1 else self.results[0]

    @property
    def sources(self) -> list[str | bytes]:
        return [source for _, source in self.asked]

    @property
    def pauses(self) -> list[float]:
        times = [at for at, _ in self.asked]
        return [after - before for before, after in itertools.pairwise(times)]

    def worker(self, source: str = "") -> UpdateWorker:
        return UpdateWorker(source, 6 * 3600, cast(Updater, self), self.model_changed.set)


@contextmanager
def running(worker: UpdateWorker) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(1)
        assert not thread.is_alive(), "it must stop at once, also while something waits for its next try"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    monkeypatch.setattr(updater, "_POLL_S", 0.002)
    monkeypatch.setattr(network.random, "uniform", lambda low, high: high)

    def pauses(first_s: float, longest_s: float) -> None:
        monkeypatch.setattr(updater, "_FIRST_RETRY_S", first_s)
        monkeypatch.setattr(updater, "_LONGEST_RETRY_S", longest_s)

    pauses(0.02, 3600)
    return pauses


def test_a_postponed_offer_is_tried_again_until_it_is_installed() -> None:
    checks = Checks(POSTPONED, POSTPONED, UpdateResult("installed", 1), UpdateResult("current", 1))
    worker = checks.worker()
    with running(worker):
        worker.offer(b"release")
        wait_for(checks.model_changed.is_set)
        time.sleep(0.1)
    assert checks.sources == [b"release"] * 3
    assert worker.last is not None
    assert worker.last.outcome == "installed"


def test_a_refused_offer_is_not_tried_again() -> None:
    checks = Checks(UpdateResult("refused", 1, "no"))
    worker = checks.worker()
    with running(worker):
        worker.offer(b"release")
        wait_for(lambda: checks.asked)
        time.sleep(0.1)
    assert checks.sources == [b"release"]


def test_pauses_double_up_to_a_limit(short: Callable[[float, float], None]) -> None:
    short(0.02, 0.08)
    checks = Checks(POSTPONED)
    with running(checks.worker("served/")):
        wait_for(lambda: len(checks.asked) >= 6)
    for pause, expected in zip(checks.pauses, (0.02, 0.04, 0.08, 0.08, 0.08), strict=False):
        assert expected <= pause < expected + 0.5


def test_no_pause_is_longer_than_the_regular_one(short: Callable[[float, float], None]) -> None:
    short(60, 3600)
    look = updater._Check("served/", 36)
    for _ in range(2000):
        look.postpone(patient=False)
        assert look.due_at - time.monotonic() <= 36


def test_a_look_that_failed_for_long_reasons_waits_for_long(short: Callable[[float, float], None]) -> None:
    look = updater._Check("served/", 3600)
    look.postpone(patient=True)
    assert 3500 < look.due_at - time.monotonic() <= 3600


def test_a_source_that_answers_again_is_looked_at_at_its_regular_pace() -> None:
    checks = Checks(POSTPONED, POSTPONED, UpdateResult("current", 1))
    with running(checks.worker("served/")):
        wait_for(lambda: len(checks.asked) == 3)
        time.sleep(0.15)
    assert len(checks.asked) == 3


def test_a_newer_offer_takes_the_place_of_a_postponed_one(short: Callable[[float, float], None]) -> None:
    short(0.05, 3600)
    checks = Checks(POSTPONED)
    worker = checks.worker()
    with running(worker):
        worker.offer(b"old")
        wait_for(lambda: checks.asked)
        worker.offer(b"new")
        wait_for(lambda: checks.sources.count(b"new") >= 3)
    old = checks.sources.count(b"old")
    assert set(checks.sources[old:]) == {b"new"}, "the old one must not come back"


def test_a_postponed_offer_does_not_keep_the_source_from_its_turn(short: Callable[[float, float], None]) -> None:
    short(3600, 3600)
    checks = Checks(POSTPONED)
    worker = checks.worker("served/")
    worker.offer(b"release")
    with running(worker):
        wait_for(lambda: len(checks.asked) == 2)
    assert checks.sources == [b"release", "served/"]
