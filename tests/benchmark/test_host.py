import os
import subprocess
import sys
from pathlib import Path

import pytest

from agridistill.benchmark.result import EnergyCounter, bare_interpreter_bytes
from agridistill.host import describe_host, instructions, processor_name

XEON = """processor\t: 0
model name\t: Some(R) Xeon(R)
flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8 amx_tile

processor\t: 1
model name\t: another
"""
RASPBERRY = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm asimddp

Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""


@pytest.mark.parametrize(
    ("cpuinfo", "name", "known"),
    [
        (XEON, "Some(R) Xeon(R)", ("avx2", "avx512f", "avx512_vnni", "amx_int8")),
        (RASPBERRY, "Raspberry Pi 5 Model B Rev 1.0", ("asimd", "asimddp")),
    ],
)
def test_the_processor_and_its_instructions_are_read(
    tmp_path: Path, cpuinfo: str, name: str, known: tuple[str, ...]
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert processor_name(tmp_path / "cpuinfo") == name
    assert instructions(tmp_path / "cpuinfo") == known


def test_what_the_system_does_not_tell_is_unknown_and_not_absent(tmp_path: Path) -> None:
    assert processor_name(tmp_path / "none")
    assert instructions(tmp_path / "none") is None


def test_versions_are_of_what_is_installed() -> None:
    host = describe_host(["onnxruntime", "no-such-library"])
    assert host.versions["no-such-library"] is None
    assert host.versions["numpy"]
    assert host.date_utc.endswith("+00:00")
    assert host.cores >= 1


def test_peak_memory_counts_what_was_freed_and_not_the_parents() -> None:
    kept = b"x" * 150_000_000  # these must not count for the child
    code = """
from agridistill.benchmark.result import peak_memory_bytes
before = peak_memory_bytes()
held = b"x" * 50_000_000
del held
print(before, peak_memory_bytes())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < len(kept)
    assert 45_000_000 < after - before < 60_000_000


def test_a_bare_interpreter_takes_some_megabytes() -> None:
    peak = bare_interpreter_bytes()
    assert peak is not None
    assert 1_000_000 < peak < 40_000_000


def zone(root: Path, folder: str, name: str, energy_uj: int, range_uj: int = 1_000_000) -> Path:
    """A zone as Linux shows it; gives its counter."""
    (root / folder).mkdir(parents=True)
    (root / folder / "name").write_text(name + "\n")
    (root / folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    (root / folder / "energy_uj").write_text(f"{energy_uj}\n")
    return root / folder / "energy_uj"


def test_the_energy_is_what_the_packages_counted(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 100_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 0)
    counter = EnergyCounter(tmp_path)
    start = counter.read()
    first.write_text("350000\n")
    second.write_text("500000\n")
    assert counter.joules_since(start) == pytest.approx(0.75)


def test_a_counter_that_came_round_goes_on(tmp_path: Path) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", 900_000, range_uj=1_000_000)
    counter = EnergyCounter(tmp_path)
    start = counter.read()
    file.write_text("200000\n")
    assert counter.joules_since(start) == pytest.approx(0.3)


def test_energy_that_is_part_of_a_package_or_counted_twice_is_left_out(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    others = [
        zone(tmp_path, "intel-rapl:0:0", "core", 0),
        zone(tmp_path, "intel-rapl:0:1", "dram", 0),
        zone(tmp_path, "intel-rapl:1", "psys", 0),
        zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0),
    ]
    counter = EnergyCounter(tmp_path)
    start = counter.read()
    for file in (package, *others):
        file.write_text("250000\n")
    assert counter.joules_since(start) == pytest.approx(0.25)


def test_without_counters_nothing_is_measured(tmp_path: Path) -> None:
    counter = EnergyCounter(tmp_path / "absent")
    assert counter.read() is None
    assert counter.joules_since(None) is None


def test_counters_that_only_root_may_read_measure_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    counter = EnergyCounter(tmp_path)
    start = counter.read()
    read = Path.read_text

    def refuse(path: Path, *args: object, **options: object) -> str:
        if path == file:
            raise PermissionError
        return read(path)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert counter.read() is None
    assert counter.joules_since(start) is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not limit a process to some cores")
def test_cores_that_the_process_may_not_use_do_not_count() -> None:
    limit = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    code = f"{limit}; from agridistill.host import usable_cores; print(usable_cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
