"""`agridistill publish`: a signed release of a model, which devices fetch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agridistill.cli import options
from agridistill.cli.output import next_command, print_json, progress_bar, stderr

if TYPE_CHECKING:
    from agridistill.edge.updates.publishing import PublishResult, PublishSettings

_KEY_ID = re.compile(r"[0-9a-f]{16}")


def publish(
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="Exported model, or one that comes along (tomato).")
    ] = None,
    key: Annotated[list[Path] | None, typer.Option("--key", help="Private key that signs; repeatable.")] = None,
    version: Annotated[int | None, typer.Option("--version", min=1, help="Above the last one.")] = None,
    golden: Annotated[
        Path | None, typer.Option("--golden", help="Photos in class folders, or photos that the model answers now.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder that devices will see.")] = None,
    base_url: Annotated[str, typer.Option("--base-url", help="Its address, for releases sent by MQTT.")] = "",
    channel: Annotated[str, typer.Option("--channel", help="Which devices take it.")] = "default",
    minimum_agreement: Annotated[
        float, typer.Option("--minimum-agreement", min=0.0, max=1.0, help="Share of golden photos to get right.")
    ] = 0.9,
    trust_key: Annotated[
        list[Path] | None, typer.Option("--trust-key", help="Public key to trust from now on; repeatable.")
    ] = None,
    revoke_key: Annotated[
        list[str] | None, typer.Option("--revoke-key", metavar="ID", help="Key to trust no more; repeatable.")
    ] = None,
    new_key: Annotated[Path | None, typer.Option("--new-key", help="Only make a key: this file and FILE.pub.")] = None,
    json: options.Json = False,
) -> None:
    """Sign a release of an exported model; devices fetch it, try it, and return to the old one if it fails.

    A key's password is read from AGRIDISTILL_KEY_PASSWORD.
    """
    _require_edge_extra()
    if new_key is not None:
        _make_key(new_key, json=json)
        return
    named = {"MODEL": model, "--key": key or None, "--version": version, "--golden": golden, "--out": out}
    if not key or model is None or golden is None or out is None or version is None:
        missing = [name for name, value in named.items() if value is None]
        raise typer.BadParameter(f"{', '.join(missing)} missing (or --new-key FILE to make a key)")
    from agridistill.edge.updates.publishing import PublishSettings
    from agridistill.edge.updates.publishing import publish as write
    from agridistill.edge.updates.release import read_private_key, read_public_key
    from agridistill.runtime.shipped import model_path
    from agridistill.storage import require_writable

    for name in revoke_key or []:
        if not _KEY_ID.fullmatch(name):
            raise typer.BadParameter(f"--revoke-key takes a key's id of 16 hexadecimal digits, not '{name}'")
    settings = PublishSettings(
        version=version,
        channel=channel,
        minimum_agreement=minimum_agreement,
        base_url=base_url,
        trust=tuple(read_public_key(path) for path in trust_key or []),
        revoke=tuple(revoke_key or []),
    )
    for path in key or []:
        if path.resolve().is_relative_to(out.resolve()):
            raise typer.BadParameter(f"the private key '{path}' lies in '{out}', which devices will see")
    require_writable(out, folder=True)
    keys = [read_private_key(path) for path in key or []]
    with progress_bar("golden photos") as progress:
        result = write(model_path(model), golden, out, keys, settings, progress=progress)
    _show(result, settings, json=json)
    next_command("watch", "SOURCE", "--model", model, "--config", "watch.toml")


def _make_key(path: Path, *, json: bool) -> None:
    from agridistill.edge.updates.release import PUBLIC_SUFFIX, create_key

    identity, public = create_key(path), f"{path}{PUBLIC_SUFFIX}"
    if json:
        print_json({"key_id": identity, "private_key": str(path), "public_key": public})
    else:
        stderr.print(f"key {identity}: '{path}' signs, keep it secret; '{public}' goes onto the devices", markup=False)
    next_command("publish", "MODEL", "--key", path, "--version", "1", "--golden", "PHOTOS", "--out", "FOLDER")


def _show(result: PublishResult, settings: PublishSettings, *, json: bool) -> None:
    if json:
        print_json(result.to_json())
        return
    was = "was there already" if result.unchanged else "written"
    stderr.print(
        f"{result.release}: version {result.version} {was}, {result.files} files, {result.size_bytes / 1e6:.2f} MB, "
        f"signed by {', '.join(result.key_ids)}; of {result.golden_photos} golden photos "
        f"{100 * result.agreement:.1f} % right here, {100 * settings.minimum_agreement:g} % wanted on a device",
        markup=False,
    )


def _require_edge_extra() -> None:
    from agridistill.errors import MissingExtraError

    try:
        import cryptography  # noqa: F401 - told before anything is done
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "cryptography, to sign releases", f"no module '{error.name}'", "pip install 'agridistill[edge]'"
        ) from None
