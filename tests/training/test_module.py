from __future__ import annotations

import torch

from agridistill.data.loader import Batch
from agridistill.losses.objective import DistillationObjective, StagePair
from agridistill.manifest import Preprocessing
from agridistill.models import LiveTeacher, create_model
from agridistill.training.module import DistillationModule, learning_rate_factor
from agridistill.training.settings import FitSettings


def build(objective: DistillationObjective, teacher: LiveTeacher | None) -> DistillationModule:
    return DistillationModule(
        create_model("mobilenetv3_small_050", 3),
        objective,
        FitSettings(lr=0.1, weight_decay=0.1, warmup=0.0),
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
    module = build(DistillationObjective(pairs=[StagePair(16, 16)]), teacher)
    own = {id(parameter) for parameter in module.parameters()}
    assert not own & {id(parameter) for parameter in teacher.model.parameters()}
    assert not [key for key in module.state_dict() if "teacher" in key or "layers.2" in key]
    terms = module.loss_terms(batch(), progress=0.5)
    terms["total"].backward()
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert module.model.conv_stem.weight.grad.abs().sum() > 0  # type: ignore[union-attr]


def test_switching_to_train_mode_leaves_the_teacher_in_eval_mode() -> None:
    teacher = LiveTeacher(create_model("swin_nano_patch4_window4_64", 3, image_size=64), Preprocessing(64), strides=())
    build(DistillationObjective(w_att=0.0), teacher).train()
    assert not teacher.model.training


def test_a_student_that_is_its_own_teacher_has_nothing_to_learn_from_it() -> None:
    module = build(DistillationObjective(w_ce=0.0, w_kd=1.0, w_att=5.0, pairs=[StagePair(16, 16)]), None)
    module.eval()
    module._teacher = LiveTeacher(module.model, Preprocessing(64), strides=(16,))
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
