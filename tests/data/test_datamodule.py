from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from agridistill.data.datamodule import (
    Batch,
    PhotoDataModule,
    PhotoDataset,
    PhotoSampler,
    ViewKey,
    ViewSampler,
    collate,
)
from agridistill.data.samples import Sample, scan
from agridistill.data.views import Augmentation, view_seed
from agridistill.manifest import Preprocessing
from agridistill.preprocess import read_photo, to_pixels


def module(leaves: Path, workers: int, batch_size: int = 8) -> PhotoDataModule:
    samples = scan(leaves).samples[:44]
    return PhotoDataModule(
        leaves,
        samples,
        samples[:10],
        Preprocessing(32),
        Augmentation(),
        batch_size=batch_size,
        seed=3,
        view_seed=3,
        views=4,
        workers=workers,
    )


def epoch(loader: torch.utils.data.DataLoader[object], number: int) -> list[Batch]:
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    return list(loader)  # type: ignore[arg-type]


def test_batches_do_not_depend_on_the_number_of_workers(leaves: Path) -> None:
    alone = epoch(module(leaves, 0).train_dataloader(), 1)
    shared = epoch(module(leaves, 2).train_dataloader(), 1)
    assert len(alone) == len(shared) == 5
    for one, other in zip(alone, shared, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_epochs_differ_in_order_and_views_and_repeat_exactly(leaves: Path) -> None:
    loader = module(leaves, 0).train_dataloader()
    first, second, again = epoch(loader, 0), epoch(loader, 1), epoch(loader, 0)
    assert not torch.equal(first[0].position, second[0].position)
    assert set(first[0].seed.tolist()).isdisjoint(second[0].seed.tolist())
    assert torch.equal(first[0].pixels, again[0].pixels)


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


def sampler(seed: int = 1, views: int = 3, rank: int = 0, world: int = 1, epoch: int = 0) -> ViewSampler:
    made = ViewSampler(SAMPLES, seed=seed, view_seed=5, views=views, batch_size=8, rank=rank, world=world)
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
    whole = list(PhotoSampler(SAMPLES))
    parts = [list(PhotoSampler(SAMPLES, rank=rank, world=3)) for rank in range(3)]
    assert sorted(key for part in parts for key in part) == sorted(whole)
    assert [len(PhotoSampler(SAMPLES, rank=rank, world=3)) for rank in range(3)] == [len(part) for part in parts]


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
