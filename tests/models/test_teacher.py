from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from agridistill.errors import ModelError
from agridistill.manifest import Preprocessing
from agridistill.models import LiveTeacher, TeacherKind, create_model, load_backend, normalise_batch

SWIN = "swin_nano_patch4_window4_64"


def photos(size: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator)


def test_normalisation_of_a_batch_equals_the_definition() -> None:
    batch, preprocessing = photos(16), Preprocessing(16)
    mean, std = (np.reshape(each, (1, 3, 1, 1)) for each in (preprocessing.mean, preprocessing.std))
    assert np.allclose(normalise_batch(batch, preprocessing).numpy(), (batch.numpy() / 255 - mean) / std, atol=1e-6)


def test_the_teacher_is_frozen_and_stays_in_eval_mode() -> None:
    teacher = LiveTeacher(create_model(SWIN, 3, image_size=64, drop_path=0.5).train(), Preprocessing(64), strides=(16,))
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    first, second = teacher.outputs(photos()), teacher.outputs(photos())
    assert torch.equal(first[0], second[0])
    assert not first[0].requires_grad


@pytest.mark.parametrize(
    ("kind", "per_head", "shape"),
    [("activation", False, (2, 4, 4)), ("window", False, (2, 4, 4)), ("window", True, (2, 8, 4, 4))],
)
def test_maps_come_in_the_asked_kind(kind: str, per_head: bool, shape: tuple[int, ...]) -> None:
    model = create_model(SWIN, 3, image_size=64)
    teacher = LiveTeacher(model, Preprocessing(64), strides=(16,), kind=kind, per_head=per_head)  # type: ignore[arg-type]
    _, maps, _ = teacher.outputs(photos())
    assert maps[16].shape == shape
    assert maps[16].dtype == torch.float32
    assert teacher.map_counts() == {16: 8 if per_head else 1}


@pytest.mark.parametrize("kind", ["activation", "window"])
def test_features_come_beside_maps_of_each_kind(kind: TeacherKind) -> None:
    teacher = LiveTeacher(
        create_model(SWIN, 3, image_size=64), Preprocessing(64), strides=(16,), kind=kind, features=(16,)
    )
    _, maps, features = teacher.outputs(photos())
    assert features[16].shape == (2, teacher.feature_counts()[16], 4, 4)
    if kind == "activation":
        assert torch.allclose(maps[16], features[16].square().mean(1))


def test_a_student_of_another_size_shows_the_teacher_the_same_view_at_its_own() -> None:
    teacher = LiveTeacher(create_model(SWIN, 3, image_size=64), Preprocessing(64), strides=(16,))
    logits, maps, _ = teacher.outputs(photos(32))
    assert logits.shape == (2, 3)
    assert maps[16].shape == (2, 4, 4)


def test_a_teacher_without_stages_gives_logits_alone() -> None:
    teacher = LiveTeacher(create_model("mobilenetv3_small_050", 3), Preprocessing(64), strides=())
    logits, maps, features = teacher.outputs(photos())
    assert logits.shape == (2, 3)
    assert maps == features == {}


def test_bf16_teacher_answers_in_float32() -> None:
    model = create_model(SWIN, 3, image_size=64)
    exact = LiveTeacher(model, Preprocessing(64), strides=()).outputs(photos())[0]
    rounded = LiveTeacher(model, Preprocessing(64), strides=(), bf16=True).outputs(photos())[0]
    assert rounded.dtype == torch.float32
    assert torch.allclose(exact, rounded, atol=0.05)
    assert not torch.equal(exact, rounded)


def test_a_saved_network_predicts_what_it_predicted_when_saved(teacher_run: Path) -> None:
    backend = load_backend(teacher_run)
    pixels = photos().permute(0, 2, 3, 1).contiguous().numpy()
    with torch.inference_mode():
        expected = backend.model(normalise_batch(torch.from_numpy(pixels).permute(0, 3, 1, 2), Preprocessing(64)))
    assert np.allclose(backend.logits(pixels), expected.numpy(), atol=1e-5)
    assert backend.logits(pixels).dtype == np.float32


def test_changed_weights_are_refused(teacher_run: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", "model.safetensors"):
        (tmp_path / name).write_bytes((teacher_run / name).read_bytes())
    damaged = bytearray((tmp_path / "model.safetensors").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(damaged)
    with pytest.raises(ModelError, match="the file was changed or damaged"):
        load_backend(tmp_path)


@pytest.mark.parametrize("count", [1, 5, 33])
def test_a_photo_is_answered_in_a_batch_of_one_size(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model(SWIN, 3, image_size=64)
    teacher = LiveTeacher(model, Preprocessing(64), strides=(16,))
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    pixels = torch.randint(256, (40, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits, maps, _ = teacher.outputs(pixels)
    some_logits, some_maps, _ = teacher.outputs(pixels[-count:])
    assert set(sizes) == {32}
    assert torch.equal(some_logits, logits[-count:])
    assert torch.equal(some_maps[16], maps[16][-count:])
