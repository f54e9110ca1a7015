"""The objective is the weighted sum that it names, teaches the student alone and refuses a wrong teacher."""

import numpy as np
import pytest
import torch

from agridistill.errors import ConfigError, ModelError
from agridistill.losses.maps import attention_distance, match_resolution
from agridistill.losses.methods import get_method
from agridistill.losses.objective import DistillationObjective, StagePair, attention_schedule

PAIRS = (StagePair(16, 16), StagePair(32, 32, weight=0.5))
CHANNELS = {16: 6, 32: 12}


@pytest.fixture
def batch():
    """A student's and a teacher's answers to the same four photos."""
    torch.manual_seed(0)
    return {
        "student_logits": torch.randn(4, 5, requires_grad=True),
        "student_features": {
            16: torch.randn(4, 6, 8, 8, requires_grad=True),
            32: torch.randn(4, 12, 4, 4, requires_grad=True),
        },
        "target": torch.tensor([0, 1, 2, 4]),
        "teacher_logits": torch.randn(4, 5, requires_grad=True),
        "teacher_maps": {
            16: torch.rand(4, 4, 4, requires_grad=True),
            32: torch.rand(4, 4, 4, requires_grad=True),
        },
    }


def objective_of(method, **settings):
    return DistillationObjective(get_method(method), **{"pairs": PAIRS} | settings)


class TestSchedule:
    def test_rises_linearly_then_falls_as_half_a_cosine(self):
        for progress in np.linspace(0, 1, 21):
            expected = progress / 0.2 if progress < 0.2 else (1 + np.cos(np.pi * (progress - 0.2) / 0.8)) / 2
            assert attention_schedule(progress, warmup=0.2) == pytest.approx(expected, abs=1e-12)

    def test_ends_and_turning_point(self):
        assert attention_schedule(0.0) == 0.0
        assert attention_schedule(0.1) == 1.0
        assert attention_schedule(1.0) == pytest.approx(0.0)
        assert attention_schedule(1.5) == pytest.approx(0.0)

    def test_without_warmup_starts_full_and_without_decay_stays_full(self):
        assert attention_schedule(0.0, warmup=0.0) == 1.0
        assert [attention_schedule(p, decay="none") for p in (0.05, 0.1, 0.5, 1.0)] == [0.5, 1.0, 1.0, 1.0]


class TestSum:
    @pytest.mark.parametrize("progress", [0.0, 0.05, 0.5, 1.0])
    def test_total_is_the_weighted_sum_of_the_named_terms(self, batch, progress):
        terms = objective_of("hybrid", label_smoothing=0.1)(**batch, progress=progress)
        assert set(terms) == {"ce", "kd", "attention", "attention_s16_t16", "attention_s32_t32", "total"}
        torch.testing.assert_close(terms["attention"], terms["attention_s16_t16"] + 0.5 * terms["attention_s32_t32"])
        weight = 5.0 * attention_schedule(progress)
        torch.testing.assert_close(terms["total"], 0.1 * terms["ce"] + 0.9 * terms["kd"] + weight * terms["attention"])

    def test_a_pair_is_the_distance_of_its_matched_maps(self, batch):
        terms = objective_of("at")(**batch)
        student = batch["student_features"][16].square().mean(dim=1)
        expected = attention_distance(*match_resolution(student, batch["teacher_maps"][16]))
        torch.testing.assert_close(terms["attention_s16_t16"], expected)

    def test_settings_reach_the_losses(self, batch):
        plain = objective_of("hybrid")(**batch)
        assert objective_of("hybrid", temperature=1.0)(**batch)["kd"] != plain["kd"]
        assert objective_of("hybrid", label_smoothing=0.2)(**batch)["ce"] != plain["ce"]
        assert objective_of("hybrid", distance="kl")(**batch)["attention"] != plain["attention"]
        with_decay, without = (
            objective_of("hybrid", decay=decay)(**batch, progress=0.9) for decay in ("cosine", "none")
        )
        assert without["total"] > with_decay["total"]
        late, early = (objective_of("hybrid", warmup=warmup)(**batch, progress=0.1) for warmup in (0.5, 0.1))
        assert early["total"] > late["total"]

    def test_hybrid_without_attention_is_kd(self, batch):
        hybrid = objective_of("hybrid", w_att=0.0)(**batch, progress=0.5)
        kd = objective_of("kd")(**batch, progress=0.5)
        assert set(hybrid) == {"ce", "kd", "total"}
        assert torch.equal(hybrid["total"], kd["total"])

    def test_kd_without_its_term_is_ce_and_needs_no_teacher(self, batch):
        alone = {name: batch[name] for name in ("student_logits", "student_features", "target")}
        kd = objective_of("kd", w_ce=1.0, w_kd=0.0)(**alone)
        assert set(kd) == {"ce", "total"}
        assert torch.equal(kd["total"], objective_of("ce")(**alone)["total"])
        assert torch.equal(kd["total"], kd["ce"])

    def test_cross_entropy_without_weight_is_reported_but_not_taught(self, batch):
        terms = objective_of("kd", w_ce=0.0)(**batch)
        assert terms["ce"] > 0
        assert not terms["ce"].requires_grad
        torch.testing.assert_close(terms["total"], 0.9 * terms["kd"])

    def test_two_classes_are_finite(self, batch):
        scores = torch.tensor([[1e4, -1e4]] * 4)
        terms = objective_of("hybrid")(
            **batch | {"student_logits": scores, "teacher_logits": -scores, "target": torch.tensor([0, 1, 0, 1])}
        )
        assert all(value.isfinite() for value in terms.values())

    def test_terms_are_float32_under_autocast_and_equal_those_without(self, batch):
        expected = objective_of("hybrid", alignment="learned", student_channels=CHANNELS)(**batch, progress=0.5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = objective_of("hybrid", alignment="learned", student_channels=CHANNELS)(**batch, progress=0.5)
        assert {value.dtype for value in terms.values()} == {torch.float32}
        assert all(torch.equal(value, expected[name]) for name, value in terms.items())

    @pytest.mark.parametrize("distance", ["l2", "kl", "cosine"])
    def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it(self, batch, distance):
        maps = {stride: 7.0 * f.detach().square().mean(1) for stride, f in batch["student_features"].items()}
        same = batch | {"teacher_logits": batch["student_logits"].detach(), "teacher_maps": maps}
        terms = objective_of("hybrid", w_ce=0.0, distance=distance)(**same, progress=0.1)
        terms["total"].backward()
        assert terms["total"].item() == pytest.approx(0.0, abs=1e-6)
        assert batch["student_features"][16].grad.abs().max() < 1e-5


class TestGradients:
    def test_reach_the_student_alone(self, batch):
        objective_of("hybrid")(**batch, progress=0.5)["total"].backward()
        for tensor in (batch["student_logits"], *batch["student_features"].values()):
            assert tensor.grad.abs().sum() > 0
        for tensor in (batch["teacher_logits"], *batch["teacher_maps"].values()):
            assert tensor.grad is None

    def test_work_with_a_teacher_from_inference_mode(self, batch):
        with torch.inference_mode():
            teacher = {
                "teacher_logits": batch["teacher_logits"] * 1.0,
                "teacher_maps": {stride: maps * 1.0 for stride, maps in batch["teacher_maps"].items()},
            }
        for distance in ("l2", "kl", "cosine"):
            objective_of("hybrid", distance=distance)(**batch | teacher, progress=0.5)["total"].backward()
        assert batch["student_features"][32].grad.abs().sum() > 0

    def test_learning_brings_the_student_to_the_teacher(self, batch):
        objective = objective_of("hybrid", alignment="learned", student_channels=CHANNELS, decay="none")
        student = [batch["student_logits"], *batch["student_features"].values()]
        optimizer = torch.optim.Adam([*student, *objective.parameters()], lr=0.05)
        first = None
        for _ in range(100):
            terms = objective(**batch, progress=0.5)
            first = first or {name: value.item() for name, value in terms.items()}
            optimizer.zero_grad()
            terms["total"].backward()
            optimizer.step()
        for name in ("kd", "attention_s16_t16", "attention_s32_t32"):
            assert terms[name] < 0.2 * first[name]


class TestAlignment:
    def test_learned_equals_fixed_before_it_has_learned(self, batch):
        fixed = objective_of("hybrid")(**batch, progress=0.5)
        learned = objective_of("hybrid", alignment="learned", student_channels=CHANNELS)(**batch, progress=0.5)
        for name, value in fixed.items():
            torch.testing.assert_close(learned[name], value)

    def test_one_projection_for_each_of_the_teachers_heads(self, batch):
        heads = torch.rand(4, 3, 4, 4)
        objective = objective_of(
            "at", pairs=[StagePair(16, 16)], alignment="learned", student_channels=CHANNELS, teacher_maps={16: 3}
        )
        terms = objective(**batch | {"teacher_maps": {16: heads}}, progress=0.5)
        student = batch["student_features"][16].square().mean(dim=1)
        each = [attention_distance(*match_resolution(student, heads[:, head])) for head in range(3)]
        torch.testing.assert_close(terms["attention"], torch.stack(each).mean())
        terms["total"].backward()
        (weight,) = objective.projections.parameters()
        assert weight.shape == (3, 6)
        assert (weight.grad.abs().sum(dim=1) > 0).all()

    @pytest.mark.parametrize("alignment", ["fixed", "learned"])
    def test_heads_are_averaged_where_one_map_is_wanted(self, batch, alignment):
        heads = {16: torch.rand(4, 3, 4, 4), 32: torch.rand(4, 2, 4, 4)}
        means = {stride: maps.mean(dim=1) for stride, maps in heads.items()}
        objective = objective_of("at", alignment=alignment, student_channels=CHANNELS)
        torch.testing.assert_close(
            objective(**batch | {"teacher_maps": heads})["attention"],
            objective(**batch | {"teacher_maps": means})["attention"],
        )

    def test_fixed_parts_have_nothing_to_train(self):
        assert list(objective_of("hybrid").parameters()) == []
        ce = objective_of("ce", alignment="learned", student_channels=CHANNELS)
        assert list(ce.parameters()) == []


class TestWrongTeacher:
    def test_other_classes_are_reported(self, batch):
        with pytest.raises(
            ModelError, match="a teacher with the student's 5 classes; got a teacher with 7; train the teacher"
        ):
            objective_of("kd")(**batch | {"teacher_logits": torch.randn(4, 7)})

    def test_missing_logits_are_reported(self, batch):
        with pytest.raises(ModelError, match="the teacher's logits for w_kd > 0; got none"):
            objective_of("kd")(**batch | {"teacher_logits": None})

    @pytest.mark.parametrize(("maps", "got"), [(None, "none"), ({32: torch.rand(4, 4, 4)}, r"strides \[32\]")])
    def test_missing_maps_are_reported(self, batch, maps, got):
        with pytest.raises(ModelError, match=rf"the teacher's attention maps at stride 16; got {got}"):
            objective_of("at")(**batch | {"teacher_maps": maps})

    def test_missing_features_are_reported(self, batch):
        with pytest.raises(ModelError, match="the student's features at stride 16"):
            objective_of("at")(**batch | {"student_features": {}})

    def test_another_batch_is_reported(self, batch):
        with pytest.raises(ModelError, match="teacher's maps for the student's 4 photos; got maps for 3"):
            objective_of("at")(**batch | {"teacher_maps": {16: torch.rand(3, 4, 4), 32: torch.rand(4, 4, 4)}})
        with pytest.raises(ModelError, match=r"teacher's logits of shape \(4, 5\); got \(1, 5\)"):
            objective_of("kd")(**batch | {"teacher_logits": torch.randn(1, 5)})

    def test_another_number_of_heads_is_reported(self, batch):
        objective = objective_of(
            "at", pairs=PAIRS[:1], alignment="learned", student_channels=CHANNELS, teacher_maps={16: 3}
        )
        with pytest.raises(ModelError, match=r"student \(4, 3, 4, 4\) and teacher \(4, 2, 4, 4\)"):
            objective(**batch | {"teacher_maps": {16: torch.rand(4, 2, 4, 4)}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"w_kd": -1.0}, "w_kd >= 0; got -1.0"),
        ({"w_att": float("nan")}, "w_att >= 0; got nan"),
        ({"w_ce": 0.0, "w_kd": 0.0, "w_att": 0.0}, "w_ce, w_kd or w_att above 0"),
        ({"temperature": 0.0}, "a temperature above 0; got 0.0"),
        ({"label_smoothing": 1.0}, r"label smoothing in \[0, 1\); got 1.0"),
        ({"warmup": 1.0}, r"a warm-up share in \[0, 1\); got 1.0"),
        ({"pairs": ()}, "at least one pair of stages for w_att > 0 or w_hint > 0; got none"),
        (
            {"pairs": (StagePair(16, 16), StagePair(16, 16))},
            "each pair of stages once; got attention_s16_t16, attention",
        ),
        ({"pairs": (StagePair(16, 16, weight=0.0),)}, "pair weights above 0; got 0.0"),
        ({"alignment": "learned", "student_channels": {16: 6}}, r"student_channels at stride 32; got strides \[16\]"),
        ({"teacher_maps": {16: 3}}, "one teacher map for each stage with fixed alignment; got 3"),
        ({"distance": "L2"}, "a known distance; got 'L2'; did you mean 'l2'"),
        ({"alignment": "learnt"}, "a known alignment; got 'learnt'; did you mean 'learned'"),
        ({"decay": "cos"}, "a known decay; got 'cos'; did you mean 'cosine'"),
    ],
)
def test_a_setting_out_of_range_is_reported(settings, message):
    with pytest.raises(ConfigError, match=message):
        objective_of("hybrid", **settings)


class TestWithoutLabels:
    """Half of the photos of an epoch have labels; of the four in this batch, the first and the last."""

    def settings(self):
        return {"label_smoothing": 0.1, "labelled_share": 0.5, "warmup": 0.0, "decay": "none"}

    def test_each_term_is_the_mean_over_the_photos_that_have_it(self, batch):
        batch["target"] = torch.tensor([0, -1, -1, 4])
        terms = objective_of("hybrid", **self.settings())(**batch)
        logits, teacher = batch["student_logits"], batch["teacher_logits"]
        expected = 0.0
        for row, label in ((0, 0), (3, 4)):
            wanted = torch.full((5,), 0.1 / 5)
            wanted[label] += 0.9
            expected = expected - (wanted * logits[row].log_softmax(0)).sum() / 2
        soft = (teacher / 4).softmax(1)
        kd = 16 * (soft * ((teacher / 4).log_softmax(1) - (logits / 4).log_softmax(1))).sum(1).mean()
        torch.testing.assert_close(terms["ce"], expected)
        torch.testing.assert_close(terms["kd"], kd)
        torch.testing.assert_close(terms["total"], 0.1 * expected + 0.9 * kd + 5.0 * terms["attention"])

    def test_a_photo_without_a_label_learns_by_the_teacher_alone(self, batch):
        batch["target"] = torch.tensor([0, -1, -1, 4])
        objective_of("kd", w_ce=1.0, **self.settings())(**batch)["total"].backward()
        logits, teacher = batch["student_logits"].detach(), batch["teacher_logits"].detach()
        # The derivative of T^2 KL / B, with T = 4 and B = 4.
        expected = 0.9 * 4 * ((logits / 4).softmax(1) - (teacher / 4).softmax(1)) / 4
        torch.testing.assert_close(batch["student_logits"].grad[1:3], expected[1:3])

    def test_a_batch_without_labels_has_a_cross_entropy_of_0_with_gradients(self, batch):
        batch["target"] = torch.full((4,), -1)
        terms = objective_of("ce", **self.settings())(**batch)
        assert terms["ce"] == 0
        terms["total"].backward()
        assert torch.equal(batch["student_logits"].grad, torch.zeros(4, 5))

    def test_the_mean_over_processes_is_the_value_of_the_whole_batch(self, batch):
        target, logits = torch.tensor([0, 3, 2, -1]), batch["student_logits"]
        whole, *parts = (
            objective_of("ce", **self.settings())(logits[rows], {}, target[rows])["ce"]
            for rows in (slice(0, 4), slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4))
        )
        torch.testing.assert_close(torch.stack(parts).mean(), whole)

    def test_labels_for_all_photos_give_the_ordinary_mean(self, batch):
        whole = objective_of("ce", label_smoothing=0.1)(**batch)["ce"]
        torch.testing.assert_close(
            whole, torch.nn.functional.cross_entropy(batch["student_logits"], batch["target"], label_smoothing=0.1)
        )
