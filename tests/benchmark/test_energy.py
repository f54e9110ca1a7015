from pathlib import Path

import pytest

from agridistill.benchmark.energy import EnergyCounter


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
