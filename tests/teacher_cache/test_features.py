"""Compressed features lose only the components that they leave out, and a student learns from them as from the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from agridistill.errors import RunError
from agridistill.losses.maps import hint_loss
from agridistill.teacher_cache.features import (
    FEATURE_BYTES,
    decode,
    fit_projections,
    kept_channels,
    read_projections,
    write_projections,
)
from agridistill.teacher_cache.store import CacheLayout


def features_of_rank(rank: int, channels: int = 24, photos: int = 40) -> torch.Tensor:
    """Features `(photos, channels, 5, 5)` that vary in `rank` directions around a mean that is not 0."""
    generator = torch.Generator().manual_seed(rank)
    mixing = torch.randn(rank, channels, generator=generator)
    return torch.einsum("brhw,rc->bchw", torch.randn(photos, rank, 5, 5, generator=generator), mixing) + 3


def test_the_components_are_those_of_a_principal_component_analysis() -> None:
    from sklearn.decomposition import PCA

    features = features_of_rank(9) + 0.1 * features_of_rank(24)
    projection = fit_projections([{16: features[:15]}, {16: features[15:]}], {16: 4})[16]
    rows = features.permute(0, 2, 3, 1).flatten(0, 2).numpy()
    expected = PCA(4).fit(rows)
    assert np.allclose(projection.mean, expected.mean_, atol=1e-4)
    cosines = (projection.components / projection.components.norm(dim=1, keepdim=True)).numpy() @ expected.components_.T
    assert np.allclose(np.abs(cosines), np.eye(4), atol=1e-3)


def test_all_that_the_kept_components_hold_comes_back() -> None:
    features = features_of_rank(6)
    projection = fit_projections([{16: features}], {16: 6})[16]
    codes = projection.encode(features)
    assert codes.values.dtype == torch.int8
    assert codes.values.shape == (40, 6, 5, 5)
    # The rows are orthogonal with length sqrt(6 / 24): their transpose, times 24 / 6, undoes the projection.
    restored = torch.einsum("bkhw,kc->bchw", decode(codes), projection.components) * 24 / 6
    error = (restored + projection.mean[:, None, None] - features).abs().amax(dim=(1, 2, 3))
    assert (error <= 0.03 * features.abs().amax(dim=(1, 2, 3))).all()


def test_the_hint_loss_is_that_of_all_channels_but_for_what_is_left_out() -> None:
    features = features_of_rank(6)
    projection = fit_projections([{16: features}], {16: 6})[16]
    student = features_of_rank(6, photos=40).roll(1, 0)  # in the same subspace
    projected = torch.einsum("bchw,kc->bkhw", student - projection.mean[:, None, None], projection.components)
    compressed = hint_loss(projected, decode(projection.encode(features)))
    assert float(compressed) == pytest.approx(float(hint_loss(student, features)), rel=0.01)


def test_one_photo_of_zeros_and_a_large_one_keep_their_own_scale() -> None:
    features = features_of_rank(6)
    projection = fit_projections([{16: features}], {16: 6})[16]
    mean = projection.mean[:, None, None].expand(24, 5, 5)
    codes = projection.encode(torch.stack([mean, mean + 1e4 * (features[0] - mean)]))
    assert not decode(codes)[0].any()
    assert torch.isfinite(decode(codes)).all()
    assert torch.allclose(decode(codes)[1] / 1e4, decode(projection.encode(features[:1]))[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "stages", "kept"),
    [((384, 8, 8), 1, 56), ((768, 4, 4), 1, 225), ((384, 14, 14), 1, 18), ((20, 4, 4), 1, 20), ((96, 96, 96), 1, 1)],
)
def test_a_view_takes_at_most_4_kb(shape: tuple[int, int, int], stages: int, kept: int) -> None:
    assert kept_channels(shape, stages) == kept
    if kept > 1:
        assert kept * shape[1] * shape[2] <= FEATURE_BYTES
    for side in (8, 14):  # a map at stride 16 of photos of 128 and 224 px
        layout = CacheLayout(1, 10, {16: (side, side)}, {16: (kept_channels((384, side, side), 1), side, side)})
        assert layout.dtype.itemsize <= 4000


def test_two_stages_share_the_room() -> None:
    assert kept_channels((384, 8, 8), 2) == 28
    assert kept_channels((768, 4, 4), 2) == 112


def test_projections_are_read_as_written_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "projection.npz"
    projections = fit_projections([{8: features_of_rank(3), 16: features_of_rank(6)}], {8: 2, 16: 5})
    write_projections(path, projections)
    read = read_projections(path, [8, 16])
    for stride, projection in projections.items():
        assert all(torch.equal(*pair) for pair in zip(projection, read[stride], strict=True))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(RunError, match="none that can be read"):
        read_projections(path, [8, 16])
    path.unlink()
    with pytest.raises(RunError, match="delete the folder of this cache"):
        read_projections(path, [8, 16])


def test_photos_of_which_none_can_be_read_are_reported() -> None:
    with pytest.raises(RunError, match="readable training photos; got none; check the disk"):
        fit_projections([], {16: 4})
