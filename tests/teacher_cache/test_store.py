"""The teacher's cache: small, exact, never stale, never damaged, whatever kills the process that builds it."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from agridistill.errors import RunError
from agridistill.teacher_cache import store
from agridistill.teacher_cache.store import (
    BLOCK_PHOTOS,
    Block,
    CacheLayout,
    TeacherCache,
    building,
    digest_of,
    read_document,
)

KEY = {"teacher weights": "aa", "augmentation.min_scale": 0.5}
LAYOUT = CacheLayout(photos=BLOCK_PHOTOS + 10, num_classes=3, maps={32: (2, 2), 16: (4, 4)})


def records_of(block: Block, layout: CacheLayout = LAYOUT) -> NDArray[np.void]:
    rng = np.random.default_rng((block.view, block.start))
    records = layout.blank_records(block.stop - block.start)
    records["seed"] = rng.integers(0, 2**32, len(records), np.uint32)
    for name in records.dtype.names[1:]:  # type: ignore[index]
        records[name] = rng.normal(size=records[name].shape)
    return records


def build(cache: TeacherCache) -> int:
    missing = cache.missing()
    for block in missing:
        cache.write(block, records_of(block))
    return len(missing)


def test_ten_classes_and_a_7x7_map_take_122_bytes_a_view() -> None:
    assert CacheLayout(1, 10, {32: (7, 7)}).dtype.itemsize == 122


def test_what_was_written_is_read_back_in_half_precision(tmp_path: Path) -> None:
    with TeacherCache(tmp_path / "c", KEY, LAYOUT, views=2) as cache:
        assert build(cache) == 4
    with TeacherCache(tmp_path / "c", KEY, LAYOUT, views=2) as cache:
        assert cache.missing() == []
        stored = cache.read(np.array([3, BLOCK_PHOTOS + 1, 3]), np.array([1, 0, 0]))
        blocks = list(LAYOUT.blocks(2))
        for row, (block, place) in enumerate([(blocks[2], 3), (blocks[1], 1), (blocks[0], 3)]):
            assert stored[row].tobytes() == records_of(block)[place].tobytes()
    assert (tmp_path / "c" / "records.bin").stat().st_size == LAYOUT.bytes_for(2)


def test_more_views_keep_what_is_built_and_fewer_use_it(tmp_path: Path) -> None:
    with TeacherCache(tmp_path / "c", KEY, LAYOUT, views=1) as cache:
        build(cache)
    with TeacherCache(tmp_path / "c", KEY, LAYOUT, views=3) as cache:
        assert [block.view for block in cache.missing()] == [1, 1, 2, 2]
        build(cache)
    with TeacherCache(tmp_path / "c", KEY, LAYOUT, views=2) as cache:
        assert cache.missing() == []


def test_each_flipped_byte_of_a_block_is_detected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layout = CacheLayout(photos=5, num_classes=3, maps={16: (2, 2)})
    with TeacherCache(tmp_path / "c", KEY, layout, views=1) as cache:
        block = cache.missing()[0]
        cache.write(block, records_of(block, layout))
        whole = (tmp_path / "c" / "records.bin").read_bytes()
        for place in range(len(whole)):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << (place % 8)
            (tmp_path / "c" / "records.bin").write_bytes(damaged)
            assert cache.missing() == [block]
        assert "damaged" in caplog.text
        (tmp_path / "c" / "records.bin").write_bytes(whole)
        assert cache.missing() == []


def test_a_damaged_checksum_is_as_good_as_a_damaged_block(tmp_path: Path) -> None:
    with TeacherCache(tmp_path / "c", KEY, LAYOUT, views=1) as cache:
        build(cache)
        checksums = tmp_path / "c" / "checksums.bin"
        whole = checksums.read_bytes()
        for place in range(len(whole)):
            damaged = bytearray(whole)
            damaged[place] ^= 0x40
            checksums.write_bytes(damaged)
            assert [block.number for block in cache.missing()] == [place // 8]


def test_a_block_without_its_checksum_is_built_again(tmp_path: Path) -> None:
    with TeacherCache(tmp_path / "c", KEY, LAYOUT, views=1) as cache:
        build(cache)
        with (tmp_path / "c" / "checksums.bin").open("r+b") as file:
            file.write(bytes(8))
        assert [block.number for block in cache.missing()] == [0]


@pytest.mark.parametrize(
    ("key", "layout", "named"),
    [
        ({**KEY, "augmentation.min_scale": 0.7}, LAYOUT, "augmentation.min_scale: 0.5 in the cache, 0.7 in this run"),
        ({**KEY, "teacher weights": "bb"}, LAYOUT, "teacher weights: aa in the cache, bb in this run"),
        ({**KEY, "version of timm": "2"}, LAYOUT, "version of timm: absent in the cache, 2 in this run"),
        (KEY, CacheLayout(LAYOUT.photos, 4, LAYOUT.maps), "'num_classes': 4"),
    ],
)
def test_a_stale_cache_is_refused_with_the_reason(
    tmp_path: Path, key: dict[str, str | float], layout: CacheLayout, named: str
) -> None:
    TeacherCache(tmp_path / "c", KEY, LAYOUT, views=1).close()
    before = (tmp_path / "c" / "cache.json").read_bytes()
    with pytest.raises(RunError, match="one that differs: ") as reported:
        TeacherCache(tmp_path / "c", key, layout, views=1)
    assert named in str(reported.value)
    assert (tmp_path / "c" / "cache.json").read_bytes() == before


def test_a_key_names_its_folder_and_can_be_read_back(tmp_path: Path) -> None:
    assert digest_of(KEY) == digest_of(dict(reversed(KEY.items()))) != digest_of({**KEY, "more": 1})
    assert read_document(tmp_path) is None
    assert read_document(tmp_path / "no" / "folder") is None
    TeacherCache(tmp_path / "c", KEY, LAYOUT, views=1).close()
    assert read_document(tmp_path / "c") == (KEY, LAYOUT)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 1, "key": {}, "layout": {"maps": 3}}'])
def test_a_damaged_document_is_reported_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "cache.json").write_text(content)
    with pytest.raises(RunError, match="expected a readable teacher cache"):
        TeacherCache(tmp_path, KEY, LAYOUT, views=1)


def test_a_cache_of_a_later_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache.json").write_text('{"format": 99, "key": {}, "layout": {}}')
    with pytest.raises(RunError, match="format 99"):
        TeacherCache(tmp_path, KEY, LAYOUT, views=1)


def test_a_folder_that_cannot_be_written_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="expected a writable teacher cache"):
        TeacherCache(tmp_path / "file" / "cache", KEY, LAYOUT, views=1)


def test_a_disk_without_room_says_so_before_the_work_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = LAYOUT.bytes_for(1) - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=room))
    with pytest.raises(RunError, match=r"expected room for the teacher cache.*finished blocks are kept"):
        TeacherCache(tmp_path / "c", KEY, LAYOUT, views=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=room + 1))
    TeacherCache(tmp_path / "c", KEY, LAYOUT, views=1).close()


def test_records_without_their_document_are_not_taken_for_ours(tmp_path: Path) -> None:
    with TeacherCache(tmp_path / "c", KEY, LAYOUT, views=1) as cache:
        build(cache)
    (tmp_path / "c" / "cache.json").unlink()
    with TeacherCache(tmp_path / "c", {**KEY, "teacher weights": "bb"}, LAYOUT, views=1) as other:
        assert len(other.missing()) == LAYOUT.blocks_per_view


def test_a_file_that_was_cut_off_is_reported_when_it_is_read(tmp_path: Path) -> None:
    with TeacherCache(tmp_path / "c", KEY, LAYOUT, views=1) as cache:
        build(cache)
        os.truncate(tmp_path / "c" / "records.bin", 10)
        with pytest.raises(RunError, match=r"whose end is missing; delete the folder"):
            cache.read(np.array([LAYOUT.photos - 1]), np.array([0]))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_reading_keeps_no_record_in_memory(tmp_path: Path) -> None:
    layout = CacheLayout(40_000, 64, {16: (16, 16)})  # 26 MB a view
    with TeacherCache(tmp_path / "c", KEY, layout, views=1) as cache:
        (tmp_path / "c" / "records.bin").write_bytes(os.urandom(1 << 20) * 26)
        rng = np.random.default_rng(0)
        cache.read(np.arange(64), np.zeros(64, np.int64))
        before = _resident_bytes()
        for _ in range(100):
            cache.read(rng.integers(0, 40_000, 64), np.zeros(64, np.int64))
        assert _resident_bytes() - before < 4 << 20


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_disk_that_fills_up_keeps_what_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with TeacherCache(tmp_path / "c", KEY, LAYOUT, views=2) as cache:
        first, second, *_ = cache.missing()
        cache.write(first, records_of(first))
        with monkeypatch.context() as patch:
            patch.setattr(store, "_write_at", full)
            with pytest.raises(RunError, match="No space left"):
                cache.write(second, records_of(second))
        assert [block.number for block in cache.missing()] == [1, 2, 3]


def test_a_second_builder_waits_and_finds_the_work_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    built: list[int] = []

    def second() -> None:
        with building(tmp_path / "c"), TeacherCache(tmp_path / "c", KEY, LAYOUT, views=1) as cache:
            built.append(build(cache))

    with caplog.at_level(logging.WARNING):
        with building(tmp_path / "c"), TeacherCache(tmp_path / "c", KEY, LAYOUT, views=1) as cache:
            other = threading.Thread(target=second)
            other.start()
            deadline = time.monotonic() + 60
            while "waits until it ends" not in caplog.text:
                assert time.monotonic() < deadline, "the second builder logs nothing"
                time.sleep(0.01)
            assert build(cache) == 2
        other.join()
    assert built == [0]


BUILDER = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
print("begun", flush=True)
import test_store as test
from pathlib import Path
folder = Path(sys.argv[1])
with test.building(folder), test.TeacherCache(folder, test.KEY, test.LARGE, views=test.VIEWS) as cache:
    print("opened", flush=True)
    for block in cache.missing():
        cache.write(block, test.records_of(block, test.LARGE))
        time.sleep(float(sys.argv[2]))
"""
KILLS = int(os.environ.get("AGRIDISTILL_KILLS", "6"))
LARGE, VIEWS = CacheLayout(photos=10 * BLOCK_PHOTOS + 7, num_classes=10, maps={32: (7, 7)}), KILLS


@pytest.mark.slow
def test_kills_at_random_moments_change_no_byte(tmp_path: Path) -> None:
    rng = random.Random(0)
    for number in range(KILLS):
        command = [sys.executable, "-c", BUILDER, str(tmp_path / "killed"), "0.01"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as builder:
            assert builder.stdout is not None
            builder.stdout.readline()
            # Every third while it starts, the others while it writes: a view takes 0.11 s or more.
            if number % 3:
                builder.stdout.readline()
                time.sleep(rng.random() * 0.1)
            else:
                time.sleep(rng.random() * 0.5)
            builder.send_signal(signal.SIGKILL)
    with TeacherCache(tmp_path / "killed", KEY, LARGE, views=VIEWS) as cache:
        assert 0 < len(cache.missing()) < VIEWS * LARGE.blocks_per_view
    for name in ("killed", "whole"):
        subprocess.run([sys.executable, "-c", BUILDER, str(tmp_path / name), "0"], check=True)
    for name in ("records.bin", "checksums.bin", "cache.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_forgotten_photo_has_its_block_built_again(tmp_path: Path) -> None:
    with TeacherCache(tmp_path / "c", KEY, LAYOUT, views=2) as cache:
        build(cache)
        assert cache.built()
        cache.forget(np.array([BLOCK_PHOTOS + 2, BLOCK_PHOTOS + 3]), np.array([1, 1]))
        assert not cache.built()
        assert [block.number for block in cache.missing()] == [3]


def test_processes_look_after_different_blocks(tmp_path: Path) -> None:
    with TeacherCache(tmp_path / "c", KEY, LAYOUT, views=2) as cache:
        shares = [cache.missing(rank, 3) for rank in range(3)]
        assert sorted(block for share in shares for block in share) == cache.missing()
        assert [len(share) for share in shares] == [2, 1, 1]
