from __future__ import annotations

from typing import Any

import pytest
import torch

from agridistill.data.loader import Batch
from agridistill.errors import ConfigError
from agridistill.losses.objective import DistillationObjective, StagePair
from agridistill.manifest import Preprocessing
from agridistill.models import LiveTeacher, create_model, normalise_batch
from agridistill.teacher_cache import UncachedTeacher
from agridistill.training.module import DistillationModule, learning_rate_factor
from agridistill.training.settings import FitSettings


def build(objective: DistillationObjective, teacher: LiveTeacher | None, **fit: Any) -> DistillationModule:
    return DistillationModule(
        create_model("mobilenetv3_small_050", 3),
        objective,
        FitSettings(lr=0.1, weight_decay=0.1, warmup=0.0, **fit),
        teacher=teacher,
        preprocessing=Preprocessing(64),
        num_classes=3,
        total_steps=10,
    )


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=generator)
    return Batch(pixels, torch.tensor([0, 1, 2, 0]), torch.arange(4), *torch.zeros(2, 4, dtype=torch.int64))


def test_the_teacher_is_no_part_of_what_is_trained_or_saved() -> None:
    teacher = LiveTeacher(
        create_model("swin_nano_patch4_window4_64", 3, image_size=64), Preprocessing(64), strides=(16,)
    )
    module = build(DistillationObjective(pairs=[StagePair(16, 16)]), UncachedTeacher(teacher))
    own = {id(parameter) for parameter in module.parameters()}
    assert not own & {id(parameter) for parameter in teacher.model.parameters()}
    assert not [key for key in module.state_dict() if "teacher" in key or "layers.2" in key]
    terms = module.loss_terms(batch(), progress=0.5)
    terms["total"].backward()
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert module.model.conv_stem.weight.grad.abs().sum() > 0  # type: ignore[union-attr]


def test_switching_to_train_mode_leaves_the_teacher_in_eval_mode() -> None:
    teacher = LiveTeacher(create_model("swin_nano_patch4_window4_64", 3, image_size=64), Preprocessing(64), strides=())
    build(DistillationObjective(w_att=0.0), UncachedTeacher(teacher)).train()
    assert not teacher.model.training


def test_a_student_that_is_its_own_teacher_has_nothing_to_learn_from_it() -> None:
    torch.manual_seed(1)
    module = build(DistillationObjective(w_ce=0.0, w_kd=1.0, w_att=5.0, pairs=[StagePair(16, 16)]), None)
    module.eval()
    module._teacher = UncachedTeacher(LiveTeacher(module.model, Preprocessing(64), strides=(16,)))
    terms = module.loss_terms(batch(), progress=0.1)
    assert terms["kd"].abs() < 1e-6
    assert terms["attention"].abs() < 1e-6


def test_only_weight_matrices_decay() -> None:
    module = build(DistillationObjective(w_kd=0.0, w_att=0.0), None)
    decayed, others = module.configure_optimizers()["optimizer"].param_groups
    assert decayed["weight_decay"] == 0.1
    assert others["weight_decay"] == 0.0
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(module.parameters()))


def test_the_learning_rate_peaks_once_and_ends_at_zero() -> None:
    factors = [learning_rate_factor(step / 1000, 0.1) for step in range(1001)]
    assert max(factors) == factors[100] == 1.0
    assert factors[-1] == 0.0
    assert factors[:101] == sorted(factors[:101])
    assert factors[100:] == sorted(factors[100:], reverse=True)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_photos_have_the_labels_of_both_by_their_shares(kind: str) -> None:
    module = build(DistillationObjective(w_ce=1.0, w_kd=0.0, w_att=0.0), None, **{kind: 1.0}).eval()
    # Each photo has one colour of its own: the shares can be read from the pixels.
    colours = torch.tensor([10, 90, 250])
    pixels = colours[:, None, None, None].expand(3, 3, 64, 64).to(torch.uint8)
    torch.manual_seed(0)
    whole = Batch(pixels, torch.tensor([0, 1, 2]), torch.arange(3), *torch.zeros(2, 3, dtype=torch.int64))
    mixed = module._mixed(whole)
    assert mixed.target.shape == (3, 3)
    torch.testing.assert_close(mixed.pixels.mean((1, 2, 3)), mixed.target @ colours.float(), rtol=1e-4, atol=1e-3)
    assert ((mixed.target > 0).sum(1) == 2).all()
    # The loss is linear in the labels.
    logits = module.model(normalise_batch(mixed.pixels, module.preprocessing))
    logarithms = -logits.log_softmax(1)
    expected = (mixed.target * logarithms).sum(1).mean()
    torch.testing.assert_close(module.loss_terms(mixed, 0.5)["total"], expected)


def test_without_mixing_a_batch_stays_as_it_is() -> None:
    module, whole = build(DistillationObjective(w_kd=0.0, w_att=0.0), None), batch()
    assert module._mixed(whole) is whole


def test_first_steps_see_small_photos_and_the_last_ones_whole_photos() -> None:
    module = build(DistillationObjective(w_kd=0.0, w_att=0.0), None, start_size=32)
    sizes: list[int] = []
    module.model.register_forward_pre_hook(lambda network, args: sizes.append(args[0].shape[-1]))
    for progress in (0.0, 0.5, 0.6, 1.0):
        module.loss_terms(batch(), progress)
    assert sizes == [32, 32, 64, 64]


def test_a_network_of_one_size_cannot_grow() -> None:
    module = DistillationModule(
        create_model("swin_nano_patch4_window4_64", 3, image_size=64),
        DistillationObjective(w_kd=0.0, w_att=0.0),
        FitSettings(model="swin_nano_patch4_window4_64", start_size=32),
        teacher=None,
        preprocessing=Preprocessing(64),
        num_classes=3,
        total_steps=10,
    )
    with pytest.raises(ConfigError, match="a network that takes photos of 32 and 64 px"):
        module.check_with_example()
