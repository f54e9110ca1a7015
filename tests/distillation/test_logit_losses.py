"""Losses on scores against slow references in float64, and at their limits."""

import numpy as np
import pytest
import torch

from agridistill.distillation.logit_losses import cross_entropy_loss, kd_loss


def draw(*shape, seed=0, scale=3.0):
    return np.random.default_rng(seed).normal(size=shape) * scale


def reference_softmax(scores):
    exponentials = [np.exp(score - max(scores)) for score in scores]
    return [value / sum(exponentials) for value in exponentials]


def reference_kd(student, teacher, temperature):
    total = 0.0
    for student_row, teacher_row in zip(student, teacher, strict=True):
        q, p = reference_softmax(student_row / temperature), reference_softmax(teacher_row / temperature)
        total += sum(p_k * np.log(p_k / q_k) for p_k, q_k in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


def reference_cross_entropy(logits, target, smoothing):
    total = 0.0
    for row, label in zip(logits, target, strict=True):
        for k, probability in enumerate(reference_softmax(row)):
            total -= ((1 - smoothing) * (k == label) + smoothing / len(row)) * np.log(probability)
    return total / len(logits)


class TestCrossEntropy:
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_equals_a_slow_reference(self, smoothing):
        logits, target = draw(4, 5), [0, 4, 2, 2]
        loss = cross_entropy_loss(torch.from_numpy(logits), torch.tensor(target), smoothing)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(reference_cross_entropy(logits, target, smoothing), rel=1e-5)

    def test_is_the_logarithm_of_the_classes_for_a_student_that_knows_nothing(self):
        assert cross_entropy_loss(torch.zeros(3, 10), torch.tensor([0, 5, 9])).item() == pytest.approx(np.log(10))

    def test_stays_in_float32_under_autocast(self):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = cross_entropy_loss(torch.zeros(3, 10, dtype=torch.bfloat16), torch.tensor([0, 5, 9]))
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(np.log(10))


class TestKd:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 10.0])
    @pytest.mark.parametrize("classes", [2, 10])
    def test_equals_a_slow_reference(self, temperature, classes):
        student, teacher = draw(4, classes), draw(4, classes, seed=1)
        loss = kd_loss(torch.from_numpy(student), torch.from_numpy(teacher), temperature)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(reference_kd(student, teacher, temperature), rel=1e-4)

    def test_tends_to_the_distance_of_centred_logits_at_high_temperature(self):
        student, teacher = draw(4, 6, scale=1.0), draw(4, 6, seed=1, scale=1.0)
        difference = (student - student.mean(1, keepdims=True)) - (teacher - teacher.mean(1, keepdims=True))
        limit = (difference**2).sum(axis=1).mean() / (2 * 6)
        assert kd_loss(torch.from_numpy(student), torch.from_numpy(teacher), 40.0).item() == pytest.approx(
            limit, rel=0.03
        )

    def test_is_zero_with_zero_gradient_where_both_agree_up_to_a_constant(self):
        teacher = torch.from_numpy(draw(4, 6))
        student = (teacher + 3.0).requires_grad_()
        loss = kd_loss(student, teacher, 4.0)
        loss.backward()
        assert loss.item() == pytest.approx(0.0, abs=1e-5)
        assert student.grad.abs().max() < 1e-5
        assert kd_loss(teacher, teacher, 4.0).item() == 0.0

    def test_looks_from_the_teacher_to_the_student(self):
        sure, unsure = torch.tensor([[8.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        assert kd_loss(unsure, sure, 1.0).item() == pytest.approx(np.log(2), abs=1e-2)
        assert kd_loss(sure, unsure, 1.0).item() == pytest.approx(4 - np.log(2), abs=1e-2)

    def test_has_the_gradient_of_finite_differences(self):
        student = torch.from_numpy(draw(3, 4, scale=1.0)).requires_grad_()
        teacher = torch.from_numpy(draw(3, 4, seed=1, scale=1.0))
        assert torch.autograd.gradcheck(
            lambda logits: kd_loss(logits, teacher, 4.0).double(), student, eps=1e-2, atol=2e-3, rtol=2e-2
        )

    @pytest.mark.parametrize(("dtype", "value"), [(torch.float16, 6e4), (torch.bfloat16, 1e30), (torch.float16, 6e-8)])
    def test_is_finite_at_the_ends_of_half_precision(self, dtype, value):
        student = torch.tensor([[value, -value]], dtype=dtype, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = kd_loss(student, torch.tensor([[-1.0, 1.0]], dtype=dtype), 4.0)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert student.grad.isfinite().all()
