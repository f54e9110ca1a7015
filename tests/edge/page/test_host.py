import mmap
import sys
from pathlib import Path

import pytest

from agridistill.edge.state import disk_free_bytes, processor_celsius, resident_bytes

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def zone(thermal: Path, number: int, kind: str, temp: str) -> None:
    folder = thermal / f"thermal_zone{number}"
    folder.mkdir(parents=True)
    (folder / "type").write_text(kind + "\n")
    (folder / "temp").write_text(temp + "\n")


def test_the_hottest_zone_of_the_processor_counts_and_no_other_one(tmp_path: Path) -> None:
    zone(tmp_path, 0, "cpu-thermal", "48312")
    zone(tmp_path, 1, "soc_thermal", "51000")
    zone(tmp_path, 2, "battery", "80000")
    zone(tmp_path, 3, "x86_pkg_temp", "50999")
    assert processor_celsius(tmp_path) == 51.0


@pytest.mark.parametrize("temp", ["", "hot", "-274000", "200000"])
def test_a_sensor_that_tells_nonsense_is_passed_over(tmp_path: Path, temp: str) -> None:
    zone(tmp_path, 0, "cpu-thermal", temp)
    assert processor_celsius(tmp_path) is None
    zone(tmp_path, 1, "cpu-thermal", "40000")
    assert processor_celsius(tmp_path) == 40.0


def test_what_the_system_does_not_tell_is_none(tmp_path: Path) -> None:
    assert processor_celsius(tmp_path / "missing") is None
    assert resident_bytes(tmp_path / "missing") is None
    (tmp_path / "statm").write_text("12\n")
    assert resident_bytes(tmp_path / "statm") is None
    assert disk_free_bytes(tmp_path / "missing") is None


@linux
def test_memory_grows_by_what_is_taken() -> None:
    before = resident_bytes()
    # From the system: what an earlier test has freed the allocator may give again.
    with mmap.mmap(-1, 60_000_000) as taken:
        taken.write(b"1" * 60_000_000)
        after = resident_bytes()
    assert before is not None
    assert after is not None
    assert 40_000_000 < after - before < 100_000_000


def test_the_disk_has_room_within_its_size(tmp_path: Path) -> None:
    free = disk_free_bytes(tmp_path)
    assert free is not None
    assert 0 < free < 10**18
