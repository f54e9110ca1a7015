from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from agridistill.data.folder import UNLABELLED, Sample, scan
from agridistill.data.loader import (
    Batch,
    PhotoDataModule,
    PhotoDataset,
    Viewing,
    ViewKey,
    ViewSampler,
    collate,
    collate_two_sizes,
    whole_photos,
)
from agridistill.data.views import Augmentation, render_view, view_seed
from agridistill.manifest import Preprocessing
from agridistill.preprocess import read_photo, to_pixels


def module(leaves: Path, workers: int, batch_size: int = 8) -> PhotoDataModule:
    samples = scan(leaves).samples[:44]
    viewing = Viewing(leaves, samples, "", Preprocessing(32), Augmentation(), views=4)
    return PhotoDataModule(viewing, samples[:10], batch_size=batch_size, seed=3, workers=workers)


def epoch(loader: torch.utils.data.DataLoader[object], number: int) -> list[Batch]:
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    return list(loader)  # type: ignore[arg-type]


def test_batches_do_not_depend_on_the_number_of_workers(leaves: Path) -> None:
    alone = epoch(module(leaves, 0).train_dataloader(), 1)
    shared = epoch(module(leaves, 2).train_dataloader(), 1)
    assert len(alone) == len(shared) == 5
    for one, other in zip(alone, shared, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:-1], other[:-1], strict=True))


def test_epochs_differ_in_order_and_views_and_repeat_exactly(leaves: Path) -> None:
    loader = module(leaves, 0).train_dataloader()
    first, second, again = epoch(loader, 0), epoch(loader, 1), epoch(loader, 0)
    assert not torch.equal(first[0].position, second[0].position)
    assert set(first[0].seed.tolist()).isdisjoint(second[0].seed.tolist())
    assert torch.equal(first[0].pixels, again[0].pixels)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_teacher_gets_each_view_drawn_in_its_own_size(leaves: Path, workers: int) -> None:
    data = module(leaves, workers)
    plain = epoch(data.train_dataloader(), 1)
    data.viewing = replace(data.viewing, teacher_size=48)
    for alone, batch in zip(plain, epoch(data.train_dataloader(), 1), strict=True):
        assert torch.equal(alone.pixels, batch.pixels)
        assert torch.equal(alone.seed, batch.seed)
        assert batch.teacher_pixels is not None
        for position, seed, pixels in zip(batch.position, batch.seed, batch.teacher_pixels, strict=True):
            photo = read_photo(leaves / data.viewing.samples[position].path)
            view = render_view(photo, int(seed), data.viewing.augmentation, Preprocessing(48))
            assert np.array_equal(pixels.permute(1, 2, 0), view)


def test_a_view_shows_the_same_part_of_a_photo_in_every_size() -> None:
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8)).resize((300, 360), Image.Resampling.BICUBIC)
    corrupted = Augmentation(min_size=0.4, blur=0.02, jpeg=60)
    for seed in range(20):
        small, large = (render_view(photo, seed, corrupted, Preprocessing(size)) for size in (64, 192))
        reduced = np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling.BOX), np.float64)
        assert np.abs(reduced - small).mean() < 20  # of 255; two different views differ by 49 or more


def test_validation_shows_each_photo_once_and_as_it_is(leaves: Path) -> None:
    data = module(leaves, 0)
    batches = list(data.val_dataloader())
    assert [index for batch in batches for index in batch.position.tolist()] == list(range(10))  # type: ignore[attr-defined]
    assert all((batch.seed == -1).all() for batch in batches)  # type: ignore[attr-defined]
    expected = to_pixels(read_photo(leaves / data.val[0].path), Preprocessing(32))
    assert np.array_equal(batches[0].pixels[0].permute(1, 2, 0).numpy(), expected)  # type: ignore[attr-defined]


def test_pixels_are_channels_last_in_memory(leaves: Path) -> None:
    batch = next(iter(module(leaves, 0).train_dataloader()))
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    assert batch.pixels.dtype == torch.uint8


SAMPLES = [Sample(f"a/{number}.jpg", 0, str(number)) for number in range(43)]


def viewing(samples: Sequence[Sample], views: int) -> Viewing:
    return Viewing(Path("photos"), samples, "", Preprocessing(32), Augmentation(), views, seed=5)


def sampler(seed: int = 1, views: int = 3, rank: int = 0, world: int = 1, epoch: int = 0) -> ViewSampler:
    made = ViewSampler(viewing(SAMPLES, views), seed=seed, batch_size=8, rank=rank, world=world)
    made.set_epoch(epoch)
    return made


@pytest.mark.parametrize("world", [2, 4])
def test_processes_together_take_in_each_step_what_one_would_take(world: int) -> None:
    whole = list(sampler())
    parts = [list(sampler(rank=rank, world=world)) for rank in range(world)]
    assert len(whole) == 40
    assert {len(part) for part in parts} == {len(sampler(world=world))} == {40 // world}
    share = 8 // world
    for step in range(5):
        together = [key for part in parts for key in part[step * share : (step + 1) * share]]
        assert sorted(together) == sorted(whole[8 * step : 8 * (step + 1)])


def test_processes_share_the_validation_photos_without_overlap() -> None:
    parts = [whole_photos(43, rank, 3) for rank in range(3)]
    assert sorted(key for part in parts for key in part) == whole_photos(43)
    assert [len(part) for part in parts] == [15, 14, 14]


def test_each_photo_shows_each_of_its_views_once_before_any_again() -> None:
    seen: dict[int, list[int]] = {}
    for epoch in range(3):
        for key in sampler(epoch=epoch):
            seen.setdefault(key.position, []).append(key.view)
    assert all(len(views) == len(set(views)) for views in seen.values())
    assert {views[0] for views in seen.values()} == {0, 1, 2}


def test_runs_of_other_seeds_see_the_same_views_in_another_order() -> None:
    def seeds(seed: int) -> list[set[int]]:
        # Every photo is in some epoch's last, incomplete batch: only most of its views are met.
        return [{key.seed for key in sampler(seed=seed, epoch=epoch)} for epoch in range(3)]

    one, other = seeds(1), seeds(2)
    possible = {view_seed(5, view, sample.path) for view in range(3) for sample in SAMPLES}
    assert set().union(*one) <= possible
    assert set().union(*other) <= possible
    assert one[0] != other[0]


def test_a_small_last_batch_is_left_out_but_a_small_data_set_is_not(leaves: Path) -> None:
    assert [len(batch.target) for batch in module(leaves, 0, batch_size=40).train_dataloader()] == [40]
    assert [len(batch.target) for batch in module(leaves, 0, batch_size=100).train_dataloader()] == [44]


def test_a_photo_that_goes_bad_during_a_run_is_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "good.png")
    (tmp_path / "a" / "bad.png").write_bytes(b"\x89PNG")
    samples = [Sample("a/good.png", 0, "1"), Sample("a/bad.png", 0, "2")]
    dataset = PhotoDataset(tmp_path, samples, Preprocessing(8), None)
    with caplog.at_level(logging.WARNING):
        batch = collate([dataset[ViewKey(0, -1, -1)], dataset[ViewKey(1, -1, -1)]])
    assert batch.position.tolist() == [0]
    assert "left out" in caplog.text
    assert "bad.png" in caplog.text


def test_a_batch_without_any_readable_photo_is_none() -> None:
    assert collate([None, None]) is None
    assert collate_two_sizes([(None, None), (None, None)]) is None


class TestBalance:
    """Rare classes are seen as often as common ones."""

    COUNTS = (40, 4, 9)
    RARE = tuple(
        Sample(f"{label}/{n}.jpg", label, f"{label}/{n}") for label, count in enumerate(COUNTS) for n in range(count)
    )

    def sampler(self, *, epoch: int = 0, views: int = 50, **changes: int) -> ViewSampler:
        made = ViewSampler(viewing(self.RARE, views), balance=True, **{"seed": 1, "batch_size": 8} | changes)
        made.set_epoch(epoch)
        return made

    def test_each_class_is_seen_equally_often(self) -> None:
        for epoch in range(6):
            labels = [self.RARE[key.position].label for key in self.sampler(epoch=epoch)]
            assert len(labels) == 48  # as many as without balance
            assert np.bincount(labels).tolist() == [16, 16, 16]

    def test_what_is_left_over_goes_to_the_classes_in_turn(self) -> None:
        counts = np.zeros(3, int)
        for epoch in range(7):
            labels = [self.RARE[key.position].label for key in self.sampler(epoch=epoch, batch_size=10)]
            each = np.bincount(labels)
            assert each.sum() == 50
            assert sorted(each) == [16, 17, 17]
            counts += each
            assert np.ptp(counts) <= 1

    def test_the_frequencies_are_those_of_independent_draws_by_class_weights(self) -> None:
        # Reference: torch's sampler with replacement; ours has its expectation without its chance.
        weights = [1 / self.COUNTS[sample.label] for sample in self.RARE]
        draws = torch.utils.data.WeightedRandomSampler(weights, 480_000, generator=torch.Generator().manual_seed(0))
        expected = np.bincount(list(draws), minlength=len(self.RARE)) / 1000
        ours = np.zeros(len(self.RARE))
        for epoch in range(10):
            ours += np.bincount([key.position for key in self.sampler(epoch=epoch)], minlength=len(self.RARE))
        assert np.abs(ours - expected).max() <= 1.5
        for label in range(3):
            assert np.ptp(ours[[sample.label == label for sample in self.RARE]]) <= 1

    def test_each_photo_shows_each_of_its_views_once_before_any_again(self) -> None:
        seen: dict[int, list[int]] = {}
        for epoch in range(12):
            for key in self.sampler(epoch=epoch, views=7):
                seen.setdefault(key.position, []).append(key.view)
                assert key.seed == view_seed(5, key.view, self.RARE[key.position].path)
        for views in seen.values():
            for begin in range(0, len(views) - 6, 7):
                # Within an epoch the order is free; a photo comes at most 4 times in one.
                assert len(set(views[begin : begin + 7])) >= 4
        counts = [np.bincount(views, minlength=7) for views in seen.values()]
        assert max(np.ptp(each) for each in counts) <= 1

    def test_an_epoch_depends_on_no_other(self) -> None:
        whole = self.sampler()
        epochs = []
        for epoch in range(4):
            whole.set_epoch(epoch)
            epochs.append(list(whole))
        assert list(self.sampler(epoch=3)) == epochs[3]
        assert epochs[3] != epochs[2]
        assert list(self.sampler(epoch=3, seed=2)) != epochs[3]

    @pytest.mark.parametrize("world", [2, 4])
    def test_processes_together_take_what_one_would_take(self, world: int) -> None:
        whole = list(self.sampler())
        parts = [list(self.sampler(rank=rank, world=world)) for rank in range(world)]
        share = 8 // world
        for step in range(6):
            together = [key for part in parts for key in part[step * share : (step + 1) * share]]
            assert sorted(together) == sorted(whole[8 * step : 8 * (step + 1)])

    def test_equal_classes_are_each_seen_whole(self) -> None:
        samples = [Sample(f"{n % 2}/{n}.jpg", n % 2, str(n)) for n in range(16)]
        made = ViewSampler(viewing(samples, 3), seed=1, batch_size=8, balance=True)
        assert sorted(key.position for key in made) == list(range(16))


class TestWithoutLabels:
    """12 photos with labels, three times each, and 110 without."""

    LABELLED = tuple(
        Sample(f"{label}/{number}.jpg", label, "") for label in range(2) for number in range(3 + 6 * label)
    )
    OTHERS = tuple(Sample(f"new/{number}.jpg", UNLABELLED, "") for number in range(110))

    def viewing(self) -> Viewing:
        samples = (*(3 * self.LABELLED), *self.OTHERS)
        return replace(viewing(samples, 4), repeats=3, unlabelled_root=Path("new"))

    def epoch(self, number: int = 0, **changes: Any) -> list[ViewKey]:
        made = ViewSampler(self.viewing(), **{"seed": 1, "batch_size": 8} | changes)
        made.set_epoch(number)
        return list(made)

    def test_an_epoch_uses_each_photo_without_a_label_once_and_the_others_repeatedly(self) -> None:
        counts = Counter(self.viewing().samples[key.position].path for key in self.epoch(batch_size=2))
        assert {counts[sample.path] for sample in self.OTHERS} == {1}
        assert {counts[sample.path] for sample in self.LABELLED} == {3}

    def test_a_repeated_photo_has_another_view_each_time(self) -> None:
        seeds: dict[str, list[int]] = {}
        for number in range(4):
            for key in self.epoch(number, batch_size=2):
                seeds.setdefault(self.viewing().samples[key.position].path, []).append(key.seed)
        assert {len(set(seeds[sample.path])) for sample in self.LABELLED} == {12}
        # The views of a run without the other photos come first, so that both have the same.
        alone = {viewing(self.LABELLED, 12).key(view, 0).seed for view in range(12)}
        assert set(seeds[self.LABELLED[0].path]) == alone

    @pytest.mark.parametrize("balance", [False, True])
    def test_each_batch_has_nearly_as_many_photos_with_labels(self, balance: bool) -> None:
        keys = self.epoch(batch_size=16, balance=balance)
        counts = [sum(key.position < 36 for key in keys[start : start + 16]) for start in range(0, 144, 16)]
        assert len(keys) == 144
        assert max(abs(count - 16 * 36 / 146) for count in counts) <= 2

    def test_balance_concerns_the_photos_with_labels(self) -> None:
        counts = Counter(self.viewing().samples[key.position].label for key in self.epoch(batch_size=2, balance=True))
        assert counts == {0: 18, 1: 18, UNLABELLED: 110}

    def test_processes_together_take_what_one_would_take(self) -> None:
        whole, parts = self.epoch(), [self.epoch(rank=rank, world=2) for rank in range(2)]
        for step in range(18):
            together = [key for part in parts for key in part[4 * step : 4 * (step + 1)]]
            assert sorted(together) == sorted(whole[8 * step : 8 * (step + 1)])

    def test_the_head_is_fitted_to_the_photos_with_labels_alone(self) -> None:
        alone = self.viewing().with_labels()
        assert (tuple(alone.samples), alone.repeats, alone.unlabelled_root) == (self.LABELLED, 1, None)

    def test_photos_of_both_folders_are_read(self, tmp_path: Path) -> None:
        for folder, level in (("own", 10), ("new", 200)):
            (tmp_path / folder).mkdir()
            Image.new("RGB", (8, 8), (level, level, level)).save(tmp_path / folder / "1.png")
        samples = (Sample("1.png", 0, ""), Sample("1.png", UNLABELLED, ""))
        dataset = PhotoDataset(tmp_path / "own", samples, Preprocessing(8), None, unlabelled_root=tmp_path / "new")
        items = [dataset[ViewKey(position, -1, -1)] for position in range(2)]
        assert [(int(item[0].mean()), item[1]) for item in items if item] == [(10, 0), (200, UNLABELLED)]
