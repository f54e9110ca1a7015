"""Losses on scores against slow references in float64, and at their limits."""

import numpy as np
import pytest
import torch

from agridistill.losses import KDLoss, cross_entropy_loss, dist_loss, dkd_loss, kd_loss, standardised_kd_loss


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


TARGET = torch.tensor([0, 4, 2, 2])
WITH_LABELS = {
    "dkd": lambda student, teacher, t: dkd_loss(student, teacher, TARGET[: len(student)] % student.shape[1], t),
    "dist": dist_loss,
    "standardised": standardised_kd_loss,
}


def logits(seed=0, scale=3.0, shape=(4, 5)):
    return torch.from_numpy(draw(*shape, seed=seed, scale=scale))


def reference_dkd(student, teacher, target, temperature, alpha, beta):
    """Per photo and from plain probabilities, as the paper writes it: b of equation 1, p-hat of equation 3."""
    total = 0.0
    for student_row, teacher_row, label in zip(student, teacher, target, strict=True):
        q, p = reference_softmax(student_row / temperature), reference_softmax(teacher_row / temperature)
        tckd = p[label] * np.log(p[label] / q[label]) + (1 - p[label]) * np.log((1 - p[label]) / (1 - q[label]))
        nckd = 0.0
        for k in range(len(p)):
            if k != label:
                p_hat, q_hat = p[k] / (1 - p[label]), q[k] / (1 - q[label])
                nckd += p_hat * np.log(p_hat / q_hat)
        total += alpha * tckd + beta * nckd
    return temperature**2 * total / len(student)


class TestStandardised:
    @pytest.mark.parametrize("temperature", [1.0, 2.0])
    def test_is_kd_of_numpy_s_z_scores(self, temperature):
        student, teacher = draw(4, 5), draw(4, 5, seed=1)
        z_student, z_teacher = ((x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) for x in (student, teacher))
        loss = standardised_kd_loss(torch.from_numpy(student), torch.from_numpy(teacher), temperature)
        assert loss.item() == pytest.approx(reference_kd(z_student, z_teacher, temperature), rel=1e-5)

    def test_neither_shift_nor_size_of_the_logits_counts(self):
        student, teacher = logits(), logits(1)
        loss = standardised_kd_loss(student, teacher, 2.0)
        assert standardised_kd_loss(7 * student - 3, 0.1 * teacher + 20, 2.0).item() == pytest.approx(
            loss.item(), rel=1e-4
        )
        assert kd_loss(7 * student, teacher, 2.0).item() != pytest.approx(
            kd_loss(student, teacher, 2.0).item(), rel=0.1
        )


class TestDecoupled:
    @pytest.mark.parametrize(("temperature", "alpha", "beta"), [(4.0, 1.0, 8.0), (1.0, 0.5, 2.0)])
    def test_equals_the_papers_formula_in_plain_probabilities(self, temperature, alpha, beta):
        student, teacher = draw(4, 5), draw(4, 5, seed=1)
        loss = dkd_loss(
            torch.from_numpy(student), torch.from_numpy(teacher), TARGET, temperature, alpha=alpha, beta=beta
        )
        expected = reference_dkd(student, teacher, TARGET.tolist(), temperature, alpha, beta)
        assert loss.item() == pytest.approx(expected, rel=1e-5)

    def test_is_kd_where_the_others_weigh_what_the_teacher_leaves_them(self):
        # Equation 6 of the paper: KD = TCKD + (1 - p_target) NCKD, photo by photo.
        student, teacher = logits(), logits(1)
        parts = 0.0
        for i in range(4):
            left = 1 - torch.softmax(teacher[i] / 4, dim=0)[TARGET[i]].item()
            row = slice(i, i + 1)
            parts += dkd_loss(student[row], teacher[row], TARGET[row], 4.0, beta=left).item() / 4
        assert parts == pytest.approx(kd_loss(student, teacher, 4.0).item(), rel=1e-5)

    def test_two_classes_have_no_others_to_compare(self):
        student, teacher, target = logits(shape=(3, 2)), logits(1, shape=(3, 2)), torch.tensor([0, 1, 1])
        loss = dkd_loss(student, teacher, target, 4.0, beta=100.0)
        assert loss.item() == pytest.approx(kd_loss(student, teacher, 4.0).item(), rel=1e-5)

    def test_a_sure_teacher_s_opinion_of_the_others_still_counts(self):
        sure = torch.tensor([[30.0, 2.0, 0.0]])
        same, swapped = torch.tensor([[30.0, 2.0, 0.0]]), torch.tensor([[30.0, 0.0, 2.0]])
        target = torch.tensor([0])
        assert kd_loss(swapped, sure, 1.0).item() < 1e-10
        assert dkd_loss(swapped, sure, target, 1.0).item() > 1
        assert dkd_loss(same, sure, target, 1.0).item() == pytest.approx(0, abs=1e-6)


class TestCorrelation:
    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_equals_numpy_s_correlations(self, temperature):
        student, teacher = draw(4, 5), draw(4, 5, seed=1)
        q, p = (np.array([reference_softmax(row / temperature) for row in x]) for x in (student, teacher))
        inter = np.mean([1 - np.corrcoef(q[i], p[i])[0, 1] for i in range(4)])
        intra = np.mean([1 - np.corrcoef(q[:, k], p[:, k])[0, 1] for k in range(5)])
        loss = dist_loss(torch.from_numpy(student), torch.from_numpy(teacher), temperature)
        assert loss.item() == pytest.approx(temperature**2 * (inter + intra), rel=1e-4)

    def test_only_relations_count_not_the_probabilities(self):
        # Half as sure everywhere: another distribution, of the same order and proportions.
        p = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]], dtype=torch.float64)
        q = 0.5 * p + 0.5 / 3
        assert dist_loss(q.log(), p.log(), 1.0).item() == pytest.approx(0, abs=1e-5)
        assert kd_loss(q.log(), p.log(), 1.0).item() > 0.05

    def test_a_batch_of_one_photo_has_a_loss_and_a_gradient(self):
        student = logits(shape=(1, 5)).requires_grad_()
        loss = dist_loss(student, logits(1, shape=(1, 5)), 4.0)
        loss.backward()
        assert 16 <= loss.item() <= 48  # intra counts 1, inter 0 to 2
        assert student.grad.isfinite().all()


class TestEveryLogitDistance:
    @pytest.mark.parametrize("name", WITH_LABELS)
    def test_is_0_without_gradient_where_the_student_says_what_the_teacher_says(self, name):
        teacher = logits().float()
        student = teacher.clone().requires_grad_()
        loss = WITH_LABELS[name](student, teacher, 4.0)
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=2e-5)
        assert student.grad.abs().max() < 2e-5

    @pytest.mark.parametrize("name", WITH_LABELS)
    def test_has_the_gradient_of_finite_differences(self, name):
        student, teacher = logits(scale=1.0).requires_grad_(), logits(1, scale=1.0)
        assert torch.autograd.gradcheck(
            lambda x: WITH_LABELS[name](x, teacher, 2.0).double(), student, eps=1e-2, atol=4e-3, rtol=2e-2
        )

    @pytest.mark.parametrize("name", WITH_LABELS)
    @pytest.mark.parametrize("value", [0.0, 6e-8, 6e4])
    def test_is_finite_where_logits_are_equal_tiny_or_huge(self, name, value):
        student = torch.tensor([[value, -value, 0.0]] * 2, dtype=torch.float16, requires_grad=True)
        teacher = torch.tensor([[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float16)
        loss = WITH_LABELS[name](student, teacher, 4.0)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert student.grad.isfinite().all()

    def test_the_module_equals_the_function(self):
        student, teacher = logits(), logits(1)
        assert torch.equal(KDLoss(2.0)(student, teacher), kd_loss(student, teacher, 2.0))
