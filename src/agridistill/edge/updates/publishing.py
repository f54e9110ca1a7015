"""Publishing: a model, golden photos and a key become a release for devices."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from agridistill.edge.updates.release import (
    MAX_RELEASE_BYTES,
    MODEL_SUFFIXES,
    RELEASE_NAME,
    GoldenPhoto,
    Release,
    ReleaseFile,
    TrustChange,
    key_id,
    problem_of,
    signed_release,
    stored_release,
)
from agridistill.errors import EdgeError, ModelError
from agridistill.manifest import composed, sha256_of
from agridistill.progress import ProgressCallback, silent
from agridistill.runtime.backends import manifest_path, open_artefact
from agridistill.runtime.predictor import Predictor
from agridistill.runtime.reading import expand
from agridistill.storage import replacing, sync_folder

MAX_GOLDEN_PHOTOS = 200
_NAMED_PHOTOS = 5


@dataclass(frozen=True)
class PublishSettings:
    """What a release holds beside its files."""

    version: int  # grows from release to release
    channel: str = "default"  # devices take the releases of one channel
    minimum_agreement: float = 0.9  # share of the golden photos that a device's own engine has to get right, above 0
    base_url: str = ""  # of the folder of the releases, for those that come by MQTT
    trust: tuple[bytes, ...] = ()  # public keys of 32 bytes that devices trust from now on
    revoke: tuple[str, ...] = ()  # ids of keys that they no longer trust


@dataclass(frozen=True)
class PublishResult:
    """A release that was written."""

    release: str  # path of its `release.json`
    version: int
    key_ids: tuple[str, ...]  # of the keys that signed it
    files: int
    size_bytes: int  # that a device downloads
    golden_photos: int
    agreement: float  # share of the golden photos that the model gets right here, 0 to 1
    unchanged: bool  # the very same release existed already

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        return asdict(self)


def publish(
    model: Path,
    golden: Path,
    out: Path,
    keys: Sequence[Ed25519PrivateKey],
    settings: PublishSettings,
    *,
    progress: ProgressCallback = silent,
) -> PublishResult:
    """Writes `OUT/vVERSION/…` and then `OUT/release.json`, which switches devices to it at once.

    Args:
        model: an exported file with its manifest beside it.
        golden: photos in folders of their class; or without folders, where the model's own answers here count.
        out: folder that is served to devices; it holds the releases of all versions.
        keys: that sign; a device needs one that it trusts.
        settings: version and the rest.
        progress: called with (photos answered, photos).

    Raises:
        EdgeError: no key, a version that was published already, or values that no release may have.
        ModelError: no exported model, or one that does not get its own golden photos right.
        DataError: golden photos that cannot be read.
    """
    if model.suffix not in MODEL_SUFFIXES or not model.is_file():
        raise ModelError("an exported model (.onnx, .tflite)", f"'{model}'", "run `agridistill export` first")
    if not keys:
        raise EdgeError("a key to sign with", "none", "name it with --key, or make one with --new-key")
    predictor = Predictor(open_artefact(model))
    photos, labels, agreement = _golden(golden, predictor, settings.minimum_agreement, progress)
    names = [f"golden-{number:03d}{photo.suffix.lower()}" for number, photo in enumerate(photos, 1)]
    contents = {
        model.name: model,
        manifest_path(model).name: manifest_path(model),
        **dict(zip(names, photos, strict=True)),
    }
    release = _release(contents, model, predictor.manifest.classes, dict(zip(names, labels, strict=True)), settings)
    own = [key_id(key.public_key().public_bytes_raw()) for key in keys]
    if set(own) <= set(settings.revoke) and not settings.trust:
        raise EdgeError("a key that is left", "one that signs its own end", "name the next one with --trust-key")
    unchanged = _is_published(out, release)
    if not unchanged:
        _write(out, release, contents, signed_release(release, keys))
    return PublishResult(
        release=str(out / RELEASE_NAME),
        version=release.version,
        key_ids=tuple(own),
        files=len(contents),
        size_bytes=release.size_bytes,
        golden_photos=len(photos),
        agreement=agreement,
        unchanged=unchanged,
    )


def _golden(
    folder: Path, predictor: Predictor, minimum: float, progress: ProgressCallback
) -> tuple[list[Path], list[str], float]:
    photos = expand([folder])
    if len(photos) > MAX_GOLDEN_PHOTOS:
        raise EdgeError(f"at most {MAX_GOLDEN_PHOTOS} golden photos", f"{len(photos)} in '{folder}'", "take fewer")
    answers = []
    for photo in photos:
        answers.append(predictor.predict(photo).label)
        progress(len(answers), len(photos))
    if all(photo.parent == folder for photo in photos):
        return photos, answers, 1.0
    label_of = {composed(label): label for label in predictor.manifest.classes}
    labels = [label_of.get(composed(photo.parent.name), photo.parent.name) for photo in photos]
    for photo, label in zip(photos, labels, strict=True):
        if label not in predictor.manifest.classes:
            known = ", ".join(predictor.manifest.classes[:10])
            raise EdgeError("golden photos in folders of the model's classes", f"'{photo}'", f"known: {known}")
    wrong = [photo for photo, label, answer in zip(photos, labels, answers, strict=True) if label != answer]
    agreement = (len(photos) - len(wrong)) / len(photos)
    if agreement < minimum:
        named = ", ".join(f"'{photo}'" for photo in wrong[:_NAMED_PHOTOS])
        named += f" and {len(wrong) - _NAMED_PHOTOS} more" if len(wrong) > _NAMED_PHOTOS else ""
        raise ModelError(
            f"a model that answers {100 * minimum:g} % of its golden photos right",
            f"{100 * agreement:.1f} % (wrong: {named})",
            "take other photos or lower --minimum-agreement",
        )
    return photos, labels, agreement


def _release(
    contents: dict[str, Path],
    model: Path,
    classes: tuple[str, ...],
    labels: dict[str, str],
    settings: PublishSettings,
) -> Release:
    base_url = settings.base_url and settings.base_url.rstrip("/") + "/"
    try:
        return Release(
            version=settings.version,
            created=datetime.now(UTC).replace(microsecond=0),
            channel=settings.channel,
            files=tuple(
                ReleaseFile(name=name, size_bytes=path.stat().st_size, sha256=sha256_of(path))
                for name, path in contents.items()
            ),
            model=model.name,
            classes=classes,
            golden=tuple(GoldenPhoto(photo=name, label=label) for name, label in labels.items()),
            minimum_agreement=settings.minimum_agreement,
            base_url=base_url,
            trust=TrustChange(add=tuple(key.hex() for key in settings.trust), remove=settings.revoke),
        )
    except ValidationError as error:
        raise EdgeError("values that a release may have", problem_of(error), "correct them") from None


def _is_published(out: Path, release: Release) -> bool:
    """Whether the very same release is published; EdgeError where a newer one is, or another one of this version."""
    path = out / RELEASE_NAME
    if not path.exists():
        return False
    published = stored_release(path.read_bytes())
    if published.version > release.version:
        raise EdgeError(f"a version above {published.version}", str(release.version), "devices take no older one")
    if published.version < release.version:
        return False
    if published.model_copy(update={"created": release.created}) != release:
        remedy = f"publish with --version {release.version + 1}"
        raise EdgeError("a new version", f"another release of version {release.version} in '{out}'", remedy)
    return True


def _write(out: Path, release: Release, contents: dict[str, Path], envelope: bytes) -> None:
    if len(envelope) > MAX_RELEASE_BYTES:
        raise EdgeError(
            f"a release.json of at most {MAX_RELEASE_BYTES:,} bytes", f"{len(envelope):,}", "take fewer photos"
        )
    folder = out / release.folder
    for name, path in contents.items():
        with replacing(folder / name) as temporary:
            shutil.copyfile(path, temporary)
    sync_folder(folder)
    # Last: a device that looks meanwhile finds the release before, whose files stay.
    with replacing(out / RELEASE_NAME) as temporary:
        temporary.write_bytes(envelope)
    sync_folder(out)
