"""Files for microcontrollers and accelerators: levels in and out, and the same bits in every reference kernel."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agridistill.errors import ModelError
from agridistill.export import litert
from agridistill.export.artefact import export
from agridistill.export.litert import (
    MicroNeeds,
    c_sources,
    micro_needs,
    operator_names,
    require_micro_target,
    to_litert,
    with_pixel_levels,
)
from agridistill.manifest import ModelManifest, Preprocessing, read_manifest
from agridistill.models import create_model, normalise_batch
from agridistill.models.int8 import calibrate, quantised, with_rounded_logits
from agridistill.runtime.engines import LiteRtBackend

pytestmark = pytest.mark.slow

NEEDS = MicroNeeds(("ADD", "CONV_2D"), 1024, 0.5, -3)


def test_c_sources_hold_the_bytes_and_labels_of_any_name() -> None:
    content = bytes(range(256)) * 2
    sources = c_sources(content, NEEDS, "2 leaf-int8", ("Late blight", 'rust "?"', "Fäule"))
    numbers = re.search(r"model_2_leaf_int8\[\] = \{(.*?)\};", sources[".c"], re.DOTALL)
    assert numbers is not None
    assert bytes(int(each, 16) for each in re.findall(r"0x[0-9a-f]{2}", numbers[1])) == content
    assert r'"rust \042\077\042"' in sources[".c"]
    assert r'"F\303\244ule"' in sources[".c"]
    assert "#define MODEL_2_LEAF_INT8_ARENA_BYTES 1024" in sources[".h"]
    assert "Operators: ADD, CONV_2D" in sources[".h"]


def test_names_in_the_c_sources_are_ascii() -> None:
    sources = c_sources(b"TFL3", NEEDS, "modèle-größe", ("a",))
    assert "const unsigned char mod_le_gr__e[]" in sources[".c"]
    assert "#define MOD_LE_GR__E_CLASSES 1" in sources[".h"]


def test_a_projects_own_source_is_not_replaced_and_an_earlier_export_is(tmp_path: Path) -> None:
    out = tmp_path / "main.tflite"
    for suffix, text in c_sources(b"TFL3", NEEDS, "main", ("a",)).items():
        out.with_suffix(suffix).write_text(text)
    require_micro_target(out, "int8")
    (tmp_path / "main.c").write_text("int main(void) { return 0; }\n")
    with pytest.raises(
        ModelError, match=r"expected no other file where the C source 'main.c' goes; got '.*main.c', which is another"
    ):
        require_micro_target(out, "int8")
    with pytest.raises(ModelError, match="which is another file"):
        export(tmp_path / "run", out, precision="int8", micro=True)


@pytest.mark.needs("cc")
@pytest.mark.parametrize("language", ["c", "c++"])
def test_c_sources_compile_and_say_what_they_were_given(language: str, tmp_path: Path) -> None:
    names = ("Late blight", 'rust "?"', "Fäule")
    for suffix, text in c_sources(b"TFL3 model", NEEDS, "leaf", names).items():
        (tmp_path / f"leaf{suffix}").write_text(text)
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "leaf.h"\nint main(void) { fwrite(leaf, 1, leaf_bytes, stdout); '
        'for (int i = 0; i < LEAF_CLASSES; ++i) printf("\\n%s", leaf_labels[i]); '
        'printf("\\n%.1f %d %d", LEAF_OUTPUT_SCALE, LEAF_OUTPUT_ZERO_POINT, (int)((size_t)leaf % 16)); }'
    )
    files = [str(tmp_path / name) for name in ("leaf.c", "main.c")]
    standard = "c11" if language == "c" else "c++17"
    words = ["cc", "-x", language, f"-std={standard}", "-Wall", "-Werror", *files, "-o", str(tmp_path / "show")]
    subprocess.run(words, check=True)
    shown = subprocess.run([str(tmp_path / "show")], check=True, capture_output=True).stdout.decode()
    assert shown.split("\n") == ["TFL3 model", *names, "0.5 -3 0"]


class TestFiles:
    """Of a network with squeeze-and-excitation, hard swish and everything else that ours may have."""

    @pytest.fixture(autouse=True)
    def converter(self) -> None:
        pytest.importorskip(
            "litert_torch", reason="needs litert-torch, which is not installed: pip install 'agridistill[litert]'"
        )

    @pytest.mark.filterwarnings("ignore")
    def test_int8_files_hold_integer_operators_but_for_the_logits(
        self, deployable: Callable[[bool], tuple[Any, ...]], patches: NDArray[np.uint8], tmp_path: Path
    ) -> None:
        network, manifest, *_ = deployable(True)
        content = to_litert(network, manifest.preprocessing, int8=True)
        assert operator_names(content) == (
            "ADD",
            "CONV_2D",
            "DEPTHWISE_CONV_2D",
            "DEQUANTIZE",
            "FULLY_CONNECTED",
            "HARD_SWISH",
            "MEAN",
            "MUL",
            "PAD",
            "QUANTIZE",
            "RESHAPE",
        )

    @pytest.mark.filterwarnings("ignore")
    def test_one_quantise_gives_the_bytes_of_the_arithmetic_that_it_replaces(
        self,
        deployable: Callable[[bool], tuple[Any, ...]],
        patches: NDArray[np.uint8],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        network, manifest, *_ = deployable(True)
        monkeypatch.setattr(litert, "with_pixel_levels", lambda content: content)
        plain = to_litert(network, manifest.preprocessing, int8=True)
        assert "CAST" in operator_names(plain)
        levels = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(1, 64, 64, 3)
        photos = np.concatenate([patches, levels])
        answers = [
            backend_of(content, manifest, tmp_path).logits(photos) for content in (plain, with_pixel_levels(plain))
        ]
        np.testing.assert_array_equal(*answers)

    @pytest.mark.filterwarnings("ignore")
    def test_a_float_file_is_refused(self, deployable: Callable[[bool], tuple[Any, ...]]) -> None:
        network, manifest, *_ = deployable(False)
        content = to_litert(network, manifest.preprocessing, int8=False)
        with pytest.raises(ModelError, match="expected a converted file that begins with CAST, SUB, MUL, QUANTIZE"):
            with_pixel_levels(content)

    @pytest.mark.filterwarnings("ignore")
    def test_a_run_becomes_a_file_and_c_sources(self, student_run: Path, tmp_path: Path) -> None:
        out = tmp_path / "leaf.tflite"
        result = export(student_run, out, precision="int8", micro=True, force=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "leaf.c",
            "leaf.h",
            "leaf.json",
            "leaf.learnt",
            "leaf.tflite",
        ]
        needs = read_manifest(out.with_suffix(".json")).measured["micro"]
        assert not {"DEQUANTIZE", "CAST", "SUB"} & set(needs["operators"])
        assert out.read_bytes()[4:8] == b"TFL3"
        assert result.parity.top1_agreement > 0.9

    @pytest.mark.parametrize(("name", "precision"), [("leaf.onnx", "int8"), ("leaf.tflite", "fp32")])
    def test_micro_is_an_int8_tflite_file(self, student_run: Path, tmp_path: Path, name: str, precision: Any) -> None:
        with pytest.raises(ModelError, match=f"expected an int8 .tflite file for --micro; got {precision} '{name}'"):
            export(student_run, tmp_path / name, precision=precision, micro=True)
        assert not list(tmp_path.iterdir())

    @pytest.mark.filterwarnings("ignore")
    def test_tflite_micro_gives_the_bits_of_the_reference_kernels(self, micro_file: Path) -> None:
        runtime = pytest.importorskip(
            "tflite_micro.python.tflite_micro.runtime", reason="needs TensorFlow Lite Micro: pip install tflite-micro"
        )
        arena = micro_needs(micro_file.read_bytes()).arena_bytes
        assert arena is not None
        interpreter = runtime.Interpreter.from_file(str(micro_file), arena_size=arena)
        backend = LiteRtBackend(micro_file, read_manifest(micro_file.with_suffix(".json")), reference=True)
        photos = np.random.default_rng(1).integers(0, 256, (100, 4, 4, 3), np.uint8).repeat(16, 1).repeat(16, 2)
        scale, zero_point = backend._scale, backend._zero_point
        for photo in photos:
            interpreter.set_input(photo[None], 0)
            interpreter.invoke()
            levels = np.asarray(interpreter.get_output(0))
            assert levels.dtype == np.int8
            np.testing.assert_array_equal((levels - np.float32(zero_point)) * scale, backend.logits(photo[None]))

    @pytest.mark.filterwarnings("ignore")
    def test_vela_leaves_no_operator_on_the_processor(self, micro_file: Path, tmp_path: Path) -> None:
        vela = shutil.which("vela", path=str(Path(sys.executable).parent))
        if vela is None:
            pytest.skip("needs Vela, which is not installed: pip install ethos-u-vela")
        words = [vela, "--accelerator-config", "ethos-u55-128", "--output-dir", str(tmp_path / "vela"), str(micro_file)]
        told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        assert re.search(r"CPU operators = 0 ", told), told

    @pytest.fixture
    def micro_file(self, tmp_path: Path) -> Path:
        """Of a network without squeeze-and-excitation, as microcontrollers run it."""
        torch.manual_seed(0)
        preprocessing = Preprocessing(64)
        network = create_model("mobilenetv3_small_minimal_100", 6).eval()
        batch = normalise_batch(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8), preprocessing)
        rounded = quantised(network, preprocessing)
        calibrate(rounded, [batch])
        file = tmp_path / "leaf.tflite"
        file.write_bytes(to_litert(with_rounded_logits(rounded, [batch]), preprocessing, int8=True))
        manifest = ModelManifest("mobilenetv3_small_minimal_100", tuple("abcdef"), preprocessing, "", "")
        manifest.with_weights(file).write(file.with_suffix(".json"))
        return file


def backend_of(content: bytes, manifest: ModelManifest, folder: Path) -> LiteRtBackend:
    file = folder / "leaf.tflite"
    file.write_bytes(content)
    return LiteRtBackend(file, manifest, threads=1, reference=True)
