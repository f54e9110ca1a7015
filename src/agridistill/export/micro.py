"""Writes a `.tflite` model as C source for a microcontroller, and measures the memory and operators that it needs."""

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
    """The operators and the memory that TensorFlow Lite Micro needs for a model, and the scale of its output.

    Attributes:
        operators: TensorFlow Lite's names of the operators to register.
        arena_bytes: smallest tensor arena in bytes, measured on this machine with 8-byte pointers; a device with 4-byte
            pointers needs less. None if `tflite-micro` is not installed.
        output_scale: logit = (level - output_zero_point) * output_scale.
        output_zero_point: the int8 level of a logit of 0.
    """

    operators: tuple[str, ...]
    arena_bytes: int | None
    output_scale: float
    output_zero_point: int


def micro_needs(content: bytes) -> MicroNeeds:
    """Determines operators, memory and output scale for TensorFlow Lite Micro from the content of a `.tflite` file.

    The file must have int8 logits.

    Raises:
        ModelError: TensorFlow Lite Micro cannot load the model into 256 MiB.
    """
    scale, zero_point = output_levels(content)
    return MicroNeeds(operator_names(content), _arena_bytes(content), scale, zero_point)


def c_sources(content: bytes, needs: MicroNeeds, name: str, classes: tuple[str, ...]) -> dict[str, str]:
    """Writes the content of a `.tflite` file as C source.

    Args:
        content: the content of the file.
        needs: what `micro_needs` returned for it.
        name: NAME of the files; the C identifiers are made from it.
        classes: class names in the order of the logits.

    Returns:
        The texts of `NAME.h` and `NAME.c` under the keys ".h" and ".c".
    """
    # Most compilers for microcontrollers accept only ASCII letters in a name.
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
    """Returns a C string literal; bytes beyond ASCII become octal escapes, which always end after three digits."""
    signs = (
        f"\\{byte:03o}" if byte < 32 or byte > 126 or chr(byte) in '"\\?' else chr(byte)
        for byte in text.encode("utf-8", "surrogateescape")
    )
    return '"' + "".join(signs) + '"'


def _arena_bytes(content: bytes) -> int | None:
    """Returns the size of the tensor arena that TensorFlow Lite Micro reports, or None if it is not installed.

    It runs in another process.
    """
    if find_spec("tflite_micro") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.tflite"
        file.write_bytes(content)
        words = [sys.executable, "-c", _ASK, str(file), str(_MOST_ARENA)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    found = re.search(r"Arena allocation total (\d+) bytes", done.stdout + done.stderr)
    if found is None:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1][:200]
        raise ModelError(
            "a model that TensorFlow Lite Micro can load",
            reason,
            "report this as a bug, with your version of tflite-micro",
        )
    return -(-int(found[1]) // _ALIGNMENT) * _ALIGNMENT


def require_micro_target(out: Path, precision: str) -> None:
    """Checks that an export for microcontrollers can write `NAME.tflite`, `NAME.c` and `NAME.h`.

    Raises:
        ModelError: the target is not an int8 `.tflite` file, or another file has the name `NAME.c` or `NAME.h`.
    """
    if (out.suffix, precision) != (".tflite", "int8"):
        raise ModelError(
            "an int8 .tflite file for --micro", f"{precision} '{out.name}'", "pass --out NAME.tflite --precision int8"
        )
    for path in (out.with_suffix(suffix) for suffix in (".c", ".h")):
        if path.exists() and not (path.is_file() and path.read_bytes().startswith(_MARK.encode())):
            raise ModelError(
                f"no other file where the C source '{path.name}' goes",
                f"'{path}', which is another file",
                "choose another name or folder",
            )
