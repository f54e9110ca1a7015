from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from agridistill.data.datamodule import Batch, PhotoDataModule, PhotoDataset, ViewSampler, collate
from agridistill.data.samples import Sample, scan
from agridistill.data.views import Augmentation
from agridistill.manifest import Preprocessing
from agridistill.preprocess import read_photo, to_pixels


def module(leaves: Path, workers: int, batch_size: int = 8) -> PhotoDataModule:
    samples = scan(leaves).samples[:44]
    return PhotoDataModule(
        leaves, samples, samples[:10], Preprocessing(32), Augmentation(), batch_size=batch_size, seed=3, workers=workers
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


def test_processes_share_an_epoch_without_overlap() -> None:
    samples = [Sample(f"a/{number}.jpg", 0, str(number)) for number in range(11)]
    whole = list(ViewSampler(samples, seed=1, training=True))
    parts = [list(ViewSampler(samples, seed=1, training=True, rank=rank, world=2)) for rank in range(2)]
    assert sorted(parts[0] + parts[1]) == sorted(whole)
    assert not set(parts[0]) & set(parts[1])


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
        batch = collate([dataset[0, -1], dataset[1, -1]])
    assert batch.position.tolist() == [0]
    assert "left out" in caplog.text
    assert "bad.png" in caplog.text


def test_a_batch_without_any_readable_photo_is_none() -> None:
    assert collate([None, None]) is None
