"""What a microcontroller's project needs beside a `.tflite` file: the model as a C array, memory and operators."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from agridistill.errors import ModelError
from agridistill.export.litert import operator_names, output_levels

_BYTES_A_LINE = 12
_ALIGNMENT = 16
_MARK = "/* Written by agridistill export. */\n"
_MOST_ARENA = 256 << 20
_ASK = (
    "import sys; from tflite_micro.python.tflite_micro import runtime; "
    "runtime.Interpreter.from_file(sys.argv[1], arena_size=int(sys.argv[2])).print_allocations()"
)


@dataclass(frozen=True)
class MicroNeeds:
    """What TensorFlow Lite Micro needs to run a file.

    Attributes:
        operators: to register, by TensorFlow Lite's names.
        arena_bytes: the least tensor arena, measured on this machine with pointers of 8 bytes: one with pointers of 4
            needs less. None where `tflite-micro` is not installed.
        output_scale: logit = (level - output_zero_point) * output_scale.
        output_zero_point: the level of 0.
    """

    operators: tuple[str, ...]
    arena_bytes: int | None
    output_scale: float
    output_zero_point: int


def micro_needs(content: bytes) -> MicroNeeds:
    """Measures the content of a `.tflite` file with int8 logits.

    Raises:
        ModelError: TensorFlow Lite Micro cannot hold it in memory.
    """
    scale, zero_point = output_levels(content)
    return MicroNeeds(operator_names(content), _arena_bytes(content), scale, zero_point)


def c_sources(content: bytes, needs: MicroNeeds, name: str, classes: tuple[str, ...]) -> dict[str, str]:
    """The content of a `.tflite` file as C source: the texts of `NAME.h` and `NAME.c` by their suffix.

    `classes` are in the order of the logits.
    """
    # Letters of other languages are no part of a name for most compilers of microcontrollers.
    symbol = re.sub(r"\W", "_", name, flags=re.ASCII)
    symbol = f"model_{symbol}" if symbol[:1].isdigit() else symbol
    rows = (content[at : at + _BYTES_A_LINE] for at in range(0, len(content), _BYTES_A_LINE))
    numbers = "\n".join("    " + " ".join(f"0x{byte:02x}," for byte in row) for row in rows)
    labels = "\n".join(f"    {_c_text(each)}," for each in classes)
    arena = "" if needs.arena_bytes is None else f"#define {symbol.upper()}_ARENA_BYTES {needs.arena_bytes}\n"
    header = (
        f"{_MARK}#pragma once\n#include <stddef.h>\n#include <stdint.h>\n\n"
        f"/* Input uint8 pixels (1, height, width, 3), RGB. Operators: {', '.join(needs.operators)}. */\n"
        f"#define {symbol.upper()}_CLASSES {len(classes)}\n{arena}"
        f"/* logit = (level - zero point) * scale */\n"
        f"#define {symbol.upper()}_OUTPUT_SCALE {needs.output_scale!r}f\n"
        f"#define {symbol.upper()}_OUTPUT_ZERO_POINT ({needs.output_zero_point})\n\n"
        '#ifdef __cplusplus\nextern "C" {\n#endif\n'
        f"extern const unsigned char {symbol}[];\nextern const size_t {symbol}_bytes;\n"
        f"extern const char *const {symbol}_labels[];\n"
        "#ifdef __cplusplus\n}\n#endif\n"
    )
    source = (
        f'{_MARK}#include "{name}.h"\n\n'
        f"#ifdef __cplusplus\nalignas({_ALIGNMENT})\n#else\n_Alignas({_ALIGNMENT})\n#endif\n"
        f"const unsigned char {symbol}[] = {{\n{numbers}\n}};\n"
        f"const size_t {symbol}_bytes = sizeof({symbol});\n"
        f"const char *const {symbol}_labels[] = {{\n{labels}\n}};\n"
    )
    return {".h": header, ".c": source}


def _c_text(text: str) -> str:
    """A string literal; what is not ASCII as octal escapes, which, unlike hexadecimal ones, end after three digits."""
    signs = (
        f"\\{byte:03o}" if byte < 32 or byte > 126 or chr(byte) in '"\\?' else chr(byte)
        for byte in text.encode("utf-8", "surrogateescape")
    )
    return '"' + "".join(signs) + '"'


def _arena_bytes(content: bytes) -> int | None:
    """The tensor arena that TensorFlow Lite Micro fills, as it reports it itself, in a process of its own."""
    if find_spec("tflite_micro") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.tflite"
        file.write_bytes(content)
        words = [sys.executable, "-c", _ASK, str(file), str(_MOST_ARENA)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    found = re.search(r"Arena allocation total (\d+) bytes", done.stdout + done.stderr)
    if found is None:
        reason = (done.stderr.strip().splitlines() or ["no word"])[-1][:200]
        raise ModelError("a model that TensorFlow Lite Micro can allocate", reason, "report it with the versions")
    return -(-int(found[1]) // _ALIGNMENT) * _ALIGNMENT


def require_micro_target(out: Path, precision: str) -> None:
    """Checks that `NAME.tflite` can be written, with `NAME.c` and `NAME.h` beside it.

    Raises:
        ModelError: no int8 `.tflite` file, or a source of that name that no export has written.
    """
    if (out.suffix, precision) != (".tflite", "int8"):
        raise ModelError("an int8 .tflite file for micro", f"{precision} '{out.name}'", "pass --precision int8")
    for path in (out.with_suffix(suffix) for suffix in (".c", ".h")):
        if path.exists() and not (path.is_file() and path.read_bytes().startswith(_MARK.encode())):
            raise ModelError(
                f"'{path.name}' free for the model's C source",
                f"another file at '{path}'",
                "choose another name or folder",
            )
