"""Publishing: writes a signed release for devices from a model, golden photos and a key."""

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
from agridistill.runtime.engines import SUFFIXES
from agridistill.runtime.predictor import Predictor, expand
from agridistill.storage import replacing, sync_folder

MAX_GOLDEN_PHOTOS = 200
_NAMED_PHOTOS = 5


@dataclass(frozen=True)
class PublishSettings:
    """Settings of a release to publish: its version and channel, the test on devices, and changes of keys."""

    version: int  # grows from release to release
    channel: str = "default"  # a device only takes releases of its channel
    minimum_agreement: float = 0.9  # share of golden photos that a device must answer right, above 0 and at most 1
    base_url: str = ""  # URL of the folder with the releases, needed for releases that are sent by MQTT
    trust: tuple[bytes, ...] = ()  # public keys of 32 bytes that devices trust from now on
    revoke: tuple[str, ...] = ()  # ids of keys that devices no longer trust


@dataclass(frozen=True)
class PublishResult:
    """The result of `publish`: where the release is, what it contains, and how the model did on the golden photos."""

    release: str  # path of its `release.json`
    version: int
    key_ids: tuple[str, ...]  # ids of the keys that signed it
    files: int
    size_bytes: int  # size of the files that a device downloads
    golden_photos: int
    agreement: float  # share of golden photos that the model answers right on this machine, 0 to 1
    unchanged: bool  # the same release existed already, so nothing was written

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON of `agridistill publish --json`: all fields by name."""
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
    """Publishes a model as a signed release: writes its files to `OUT/vVERSION/`, and then `OUT/release.json`.

    Devices see the new version when `release.json` is replaced.

    Args:
        model: an exported model file (.onnx or .tflite), with its manifest next to it.
        golden: folder of golden photos, which test the model on each device. Subfolders name the expected class;
            without subfolders, a device must give the same answers as the model on this machine.
        out: folder from which devices download; it holds the releases of all versions.
        keys: private keys that sign the release; a device must trust at least one of them.
        settings: version, channel and further settings of the release.
        progress: called after each golden photo with the number of finished photos, and of all.

    Raises:
        EdgeError: there is no key, the version or a higher one is published already, or a setting is not allowed.
        ModelError: `model` is not an exported model, or answers too few golden photos right.
        DataError: a golden photo cannot be read.
    """
    if model.suffix not in SUFFIXES or not model.is_file():
        raise ModelError("an exported model (.onnx, .tflite)", f"'{model}'", "run `agridistill export` first")
    if not keys:
        raise EdgeError("a private key to sign the release", "none", "name it with --key, or create one with --new-key")
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
        raise EdgeError(
            "a key that devices trust after this release",
            "only signing keys that --revoke-key revokes",
            "add the next key with --trust-key",
        )
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
        raise EdgeError(
            f"at most {MAX_GOLDEN_PHOTOS} golden photos", f"{len(photos)} in '{folder}'", "remove some of them"
        )
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
            raise EdgeError(
                "golden photos in folders named after their class",
                f"'{photo}'",
                f"name its folder after a class of the model ({', '.join(predictor.manifest.classes[:10])})",
            )
    wrong = [photo for photo, label, answer in zip(photos, labels, answers, strict=True) if label != answer]
    agreement = (len(photos) - len(wrong)) / len(photos)
    if agreement < minimum:
        named = ", ".join(f"'{photo}'" for photo in wrong[:_NAMED_PHOTOS])
        named += f" and {len(wrong) - _NAMED_PHOTOS} more" if len(wrong) > _NAMED_PHOTOS else ""
        raise ModelError(
            f"a model that answers at least {100 * minimum:g} % of its golden photos right",
            f"{100 * agreement:.1f} % (wrong: {named})",
            "use other photos or lower --minimum-agreement",
        )
    return photos, labels, agreement


def _release(
    contents: dict[str, Path], model: Path, classes: tuple[str, ...], labels: dict[str, str], settings: PublishSettings
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
        raise EdgeError("settings that are allowed in a release", problem_of(error), "correct this value") from None


def _is_published(out: Path, release: Release) -> bool:
    """Whether the same release is published already.

    Raises:
        EdgeError: a release with a higher version is published, or another one with the same version.
    """
    path = out / RELEASE_NAME
    if not path.exists():
        return False
    published = stored_release(path.read_bytes())
    if published.version > release.version:
        raise EdgeError(
            f"a version above {published.version}",
            f"version {release.version}",
            "use a higher --version, because devices refuse lower ones",
        )
    if published.version < release.version:
        return False
    if published.model_copy(update={"created": release.created}) != release:
        raise EdgeError(
            "a version that is not published yet",
            f"version {release.version}, which is in '{out}' with other content",
            f"publish with --version {release.version + 1}",
        )
    return True


def _write(out: Path, release: Release, contents: dict[str, Path], envelope: bytes) -> None:
    if len(envelope) > MAX_RELEASE_BYTES:
        raise EdgeError(
            f"a {RELEASE_NAME} of at most {MAX_RELEASE_BYTES:,} bytes",
            f"{len(envelope):,} bytes",
            "use fewer golden photos",
        )
    folder = out / release.folder
    for name, path in contents.items():
        with replacing(folder / name) as temporary:
            shutil.copyfile(path, temporary)
    sync_folder(folder)
    # Written last: until then a device finds the previous release, whose files are still there.
    with replacing(out / RELEASE_NAME) as temporary:
        temporary.write_bytes(envelope)
    sync_folder(out)
