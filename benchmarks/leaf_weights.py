"""Makes the leaf weights: what an EfficientNet-Lite0 knows from ImageNet, in a MobileNetV3, from photos without labels.

    python benchmarks/leaf_weights.py PHOTOS OUT --model mobilenetv3_large_100 --others PICTURES

The student begins as the teacher, pruned (`leaf_pruning`). Then it learns by gradient: teacher and student see the same
view, a crop of 5 to 100 % of the photo in any direction, in strongly changed colours, half of the batches mixed from
two photos (as in "The augmented image prior", Asano and Saeed 2023, arXiv 2112.00725, one photo's crops carry a
teacher's knowledge). The student matches the maps after each stage, the features before the classifier, and the logits.
Labels are not used. Only the training split is read. With --others, half of each batch is cut from pictures of other
things: leaves of a laboratory alone do not show what stands behind leaves in a field. A stopped run goes on from
OUT/last.ckpt.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from leaf_pruning import prune
from safetensors.torch import save_file
from torch import Tensor, nn

from agridistill.data.prepare import prepare_data
from agridistill.losses import kd_loss
from agridistill.models import create_model
from agridistill.preprocess import read_photo
from agridistill.storage import replacing

TEACHER, NUM_CLASSES = "efficientnet_lite0_even", 1000
SIDE = 224
MEAN, STD = 0.5, 0.5  # of the teacher's input, and so of the student's
PRUNING_VIEWS = 1024
LOG_EVERY, SAVE_EVERY_S = 50, 120.0


def photos_of(root: Path, folder: Path) -> np.ndarray:
    """The training photos, `(N, 224, 224, 3)` uint8, the centre of each; stored in `folder` under their fingerprint."""
    prepared = prepare_data(root)
    cache = folder / f"photos-{prepared.fingerprint[:16]}.npy"
    if not cache.exists():
        pixels = []
        for sample in prepared.train:
            image = read_photo(root / sample.path)
            scale = SIDE / min(image.size)
            image = image.resize((max(SIDE, round(image.width * scale)), max(SIDE, round(image.height * scale))))
            left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
            pixels.append(np.asarray(image.crop((left, top, left + SIDE, top + SIDE))))
        with replacing(cache) as temporary, temporary.open("wb") as file:
            np.save(file, np.stack(pixels))
    return np.load(cache, mmap_mode="r")


def tiles_of(folder: Path, cache: Path) -> np.ndarray:
    """Tiles of large pictures, `(N, 224, 224, 3)` uint8, from three scales of each picture; stored in `cache`."""
    if not cache.exists():
        tiles = []
        for path in sorted(folder.iterdir()):
            picture = read_photo(path)
            for rows in (2, 4, 8):
                scale = rows * SIDE / min(picture.size)
                pixels = np.asarray(picture.resize((round(picture.width * scale), round(picture.height * scale))))
                down, across = pixels.shape[0] // SIDE, pixels.shape[1] // SIDE
                cut = pixels[: down * SIDE, : across * SIDE].reshape(down, SIDE, across, SIDE, 3)
                tiles.append(cut.swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3))
        with replacing(cache) as temporary, temporary.open("wb") as file:
            np.save(file, np.concatenate(tiles))
    return np.load(cache, mmap_mode="r")


def drawn_from(pixels: np.ndarray, count: int, rng: torch.Generator) -> Tensor:
    """`count` pictures at random, `(count, 3, 224, 224)` float from 0 to 1."""
    chosen = torch.randint(len(pixels), (count,), generator=rng).numpy()
    return torch.from_numpy(pixels[np.sort(chosen)]).permute(0, 3, 1, 2).float().div_(255)


def crops(photos: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """A view of each photo: `(B, 3, S, S)` float from 0 to 1, cut in any direction."""
    count = len(photos)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=rng)

    side = uniform(0.05, 1.0).sqrt()
    ratio = uniform(-0.29, 0.29).exp()
    wide, high = side * ratio, side / ratio
    turn = uniform(-math.pi, math.pi) * (torch.rand(count, generator=rng) < 0.5)
    flip = torch.where(torch.rand(count, generator=rng) < 0.5, -1.0, 1.0)
    room = (1 - side).clamp_min(0)
    across, down = room * uniform(-1, 1), room * uniform(-1, 1)
    cosine, sine = turn.cos(), turn.sin()
    theta = torch.stack(
        [
            torch.stack([flip * wide * cosine, -high * sine, across], 1),
            torch.stack([flip * wide * sine, high * cosine, down], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [count, 3, size, size], align_corners=False)
    return F.grid_sample(photos, grid, padding_mode="reflection", align_corners=False)


def colours(views: Tensor, rng: torch.Generator) -> Tensor:
    """Views in changed light, contrast and colour, some grey, some with noise."""
    count = len(views)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=rng)

    def some(share: float) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=rng) < share

    views = views * uniform(0.5, 1.5)
    mean = views.mean((1, 2, 3), keepdim=True)
    views = mean + (views - mean) * uniform(0.5, 1.5)
    grey = views.mean(1, keepdim=True)
    views = grey + (views - grey) * torch.where(some(0.1), 0.0, uniform(0.3, 1.8))
    # A turn of the hue: of the colour's two axes about grey.
    hue = (uniform(-math.pi, math.pi) * some(0.5)).view(-1)
    axis = torch.full((3,), 3**-0.5)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) * 3**-0.5
    turned = (
        torch.eye(3) * hue.cos().view(-1, 1, 1)
        + cross * hue.sin().view(-1, 1, 1)
        + torch.outer(axis, axis) * (1 - hue.cos()).view(-1, 1, 1)
    )
    views = torch.einsum("bij,bjhw->bihw", turned, views)
    if torch.rand((), generator=rng) < 0.3:
        views = views + 0.06 * torch.randn(views.shape, generator=rng)
    return views.clamp(0, 1)


def mixed(views: Tensor, rng: torch.Generator) -> Tensor:
    """Half of the batches as they are, a quarter blended from two views each, a quarter with a box of another view."""
    draw, share = torch.rand(2, generator=rng).tolist()
    if draw < 0.5:
        return views
    other = views.flip(0)
    if draw < 0.75:
        return torch.lerp(views, other, share)
    size = views.shape[-1]
    side = round(size * math.sqrt(share))
    top, left = (torch.rand(2, generator=rng) * (size - side + 1)).int().tolist()
    views = views.clone()
    views[..., top : top + side, left : left + side] = other[..., top : top + side, left : left + side]
    return views


class Match(nn.Module):
    """The student under the teacher, stage by stage. Every term but `logits` is 1 - R^2: 0 if equal, 1 for a constant.

    MobileNetV3-Large and EfficientNet-Lite0 have the same widths after each of their first five stages, so channels are
    compared one by one; after the sixth, a learnt 1x1 convolution is between them.
    """

    STAGES = 5

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student = student
        self._teacher = [teacher.eval().requires_grad_(False)]
        widths = [_widths_of(model)[: self.STAGES] for model in (student, teacher)]
        if widths[0] != widths[1]:
            raise SystemExit(f"expected a student with stages of {widths[1]} channels; got {widths[0]}")
        self.to_sixth = nn.Conv2d(_widths_of(student)[5], _widths_of(teacher)[5], 1)
        for k, width in enumerate((*widths[1], self.to_sixth.out_channels, 1280)):
            self.register_buffer(f"mean{k}", torch.zeros(width))
            self.register_buffer(f"var{k}", torch.zeros(width))
        self.register_buffer("seen", torch.zeros(()))

    def _unexplained(self, k: int, found: Tensor, wanted: Tensor) -> Tensor:
        """The mean squared error of `found`, each channel in units of the variance of `wanted` so far."""
        mean, var = getattr(self, f"mean{k}"), getattr(self, f"var{k}")
        dims = [d for d in range(wanted.ndim) if d != 1]
        if self.training:
            share = max(0.01, 1 / (1 + self.seen.item()))
            mean.lerp_(wanted.mean(dims), share)
            shape = [1, -1] + [1] * (wanted.ndim - 2)
            var.lerp_((wanted - mean.view(shape)).square().mean(dims), share)
        return ((found - wanted).square().mean(dims) / (var + 1e-4 * var.mean())).mean()

    def forward(self, views: Tensor) -> dict[str, Tensor]:
        teacher, student = self._teacher[0], self.student
        maps = []
        with torch.no_grad():
            # Forwards alone are faster in bfloat16 on a processor that has it; the student's backward is not.
            with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
                x = teacher.bn1(teacher.conv_stem(views))
                for stage in teacher.blocks:
                    x = stage(x)
                    maps.append(x.float())
                pooled_t = teacher.forward_head(teacher.bn2(teacher.conv_head(x)), pre_logits=True)
                logits_t = teacher.get_classifier()(pooled_t).float()
            pooled_t = pooled_t.float()
        terms = {}
        x = student.bn1(student.conv_stem(views))
        for k in range(self.STAGES):
            x = student.blocks[k](x)
            terms[f"stage{k}"] = self._unexplained(k, x, maps[k])
        x = student.blocks[5](x)
        terms["stage5"] = self._unexplained(5, self.to_sixth(x), maps[5])
        pooled = student.forward_head(student.blocks[6](x), pre_logits=True)
        terms["pooled"] = self._unexplained(6, pooled, pooled_t)
        terms["logits"] = kd_loss(student.get_classifier()(pooled), logits_t, 1.0)
        if self.training:
            self.seen += 1
        terms["total"] = sum(terms.values(), torch.zeros(())) + terms["pooled"]
        return terms


def _widths_of(model: nn.Module) -> list[int]:
    """The width of the output of each stage of a timm network of inverted residuals."""
    with torch.no_grad():
        x, found = model.eval().bn1(model.conv_stem(torch.zeros(1, 3, 64, 64))), []
        for stage in model.blocks:
            x = stage(x)
            found.append(x.shape[1])
    return found


def drawn_views(photos: np.ndarray, others: np.ndarray | None, count: int, size: int, rng: torch.Generator) -> Tensor:
    """Normalised views `(count, 3, size, size)`, half of them of `others` if there are any."""
    if others is None:
        batch = drawn_from(photos, count, rng)
    else:
        batch = torch.cat([drawn_from(photos, count // 2, rng), drawn_from(others, count // 2, rng)])
    views = mixed(colours(crops(batch, size, rng), rng), rng)
    return ((views - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--others", type=Path, help="a folder of pictures of any things, the larger the better")
    parser.add_argument("--model", default="mobilenetv3_large_100")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--views", type=int, default=160_000)
    parser.add_argument("--lr", type=float, default=7e-4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    photos = photos_of(given.photos, given.out.parent)
    others = tiles_of(given.others, given.out / "others.npy") if given.others else None
    torch.manual_seed(given.seed)
    teacher = create_model(TEACHER, NUM_CLASSES, pretrained=True).to(memory_format=torch.channels_last)
    student = create_model(given.model, NUM_CLASSES).to(memory_format=torch.channels_last)
    match = Match(student, teacher).train()
    matrices = [each for each in match.parameters() if each.ndim > 1]
    vectors = [each for each in match.parameters() if each.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.03}, {"params": vectors, "weight_decay": 0.0}], lr=given.lr
    )
    steps, done, seconds = given.views // given.batch_size, 0, 0.0
    stored = given.out / "last.ckpt"
    log: list[dict[str, float]] = []
    if stored.exists():
        state = torch.load(stored, weights_only=True)
        match.load_state_dict(state["match"])
        optimizer.load_state_dict(state["optimizer"])
        done, seconds, log = state["done"], state["seconds"], state["log"]
        print(f"goes on at step {done:,} of {steps:,}", flush=True)
    else:
        rng = torch.Generator().manual_seed(given.seed + 10**9)
        many = range(PRUNING_VIEWS // given.batch_size)
        views = torch.cat([drawn_views(photos, others, given.batch_size, given.size, rng) for _ in many])
        matrix, shift = prune(student, teacher, views)
        with torch.no_grad():
            match.to_sixth.weight.copy_(matrix[..., None, None])
            match.to_sixth.bias.copy_(shift)
        match.train()
    start, saved, sums, summed = time.perf_counter() - seconds, time.perf_counter(), {}, 0
    while done < steps:
        progress = done / steps
        factor = max(0.01, progress / 0.03) if progress < 0.03 else 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = given.lr * factor
        # Seeded by step: a run that goes on draws what it would have drawn.
        rng = torch.Generator().manual_seed(given.seed * 1_000_003 + done)
        terms = match(drawn_views(photos, others, given.batch_size, given.size, rng))
        optimizer.zero_grad(set_to_none=True)
        terms["total"].backward()
        nn.utils.clip_grad_norm_(match.parameters(), 5.0)
        optimizer.step()
        done += 1
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value.item()
        summed += 1
        if done % LOG_EVERY == 0:
            now = time.perf_counter()
            log.append({"step": done, **{name: round(value / summed, 4) for name, value in sums.items()}})
            rate = done * given.batch_size / (now - start)
            left = (steps - done) * given.batch_size / rate / 60
            print(json.dumps(log[-1]), f"{rate:.0f} photos/s, {left:.0f} min left", flush=True)
            sums, summed = {}, 0
        if done == steps or time.perf_counter() - saved > SAVE_EVERY_S:
            saved = time.perf_counter()
            state = {
                "match": match.state_dict(),
                "optimizer": optimizer.state_dict(),
                "done": done,
                "seconds": saved - start,
                "log": log,
            }
            torch.save(state, stored.with_suffix(".new"))
            stored.with_suffix(".new").replace(stored)
    # Without the classifier of ImageNet: a user's classes get their own.
    head = f"{student.pretrained_cfg['classifier']}."
    halves = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in student.state_dict().items()
        if not name.startswith(head)
    }
    save_file(halves, given.out / f"{given.model}.safetensors")
    (given.out / "log.json").write_text(
        json.dumps({"arguments": {k: str(v) for k, v in vars(given).items()}, "log": log})
    )


if __name__ == "__main__":
    main()
