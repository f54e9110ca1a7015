import subprocess
import sys
from pathlib import Path

import pytest

from agridistill.benchmark.host import bare_interpreter_bytes, describe_host, instructions, processor_name

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
    ("told", "name", "known"),
    [
        (XEON, "Some(R) Xeon(R)", ("avx2", "avx512f", "avx512_vnni", "amx_int8")),
        (RASPBERRY, "Raspberry Pi 5 Model B Rev 1.0", ("asimd", "asimddp")),
    ],
)
def test_the_processor_and_its_instructions_are_read(
    tmp_path: Path, told: str, name: str, known: tuple[str, ...]
) -> None:
    (tmp_path / "cpuinfo").write_text(told)
    assert processor_name(tmp_path / "cpuinfo") == name
    assert instructions(tmp_path / "cpuinfo") == known


def test_what_the_system_does_not_tell_is_unknown_and_not_absent(tmp_path: Path) -> None:
    assert processor_name(tmp_path / "none")
    assert instructions(tmp_path / "none") is None


def test_versions_are_of_what_is_installed() -> None:
    host = describe_host(["onnxruntime", "no-such-library"])
    assert host.versions["no-such-library"] is None
    assert host.to_json()["versions"]["numpy"].count(".") == 2
    assert host.date_utc.endswith("+00:00")
    assert host.cores >= 1


def test_peak_memory_counts_what_was_freed_and_not_the_parents() -> None:
    kept = b"x" * 150_000_000  # the child must not be told of these
    code = """
from agridistill.benchmark.memory import peak_memory_bytes
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
