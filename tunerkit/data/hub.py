"""Brings a datasets repository, of the hub or of this machine, into the shape of a folder of clips and captions.

A repository is downloaded once: when its download is complete, a note in the folder says so, and from then on the hub
is not asked again. So a run goes on offline, a dataset does not change between planning and training, and captions
that a person corrects in the folder stay corrected.

Where clips have no caption files beside them, the captions of the repository's own lists are written as such files,
into the downloaded copy. A repository folder of this machine is never written into: where captions have to be written,
its clips are linked into the cache folder first.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tunerkit.data.discover import IMAGE_EXTENSIONS, SOUND_EXTENSIONS, VIDEO_EXTENSIONS, Found, discover
from tunerkit.data.repository_captions import TABLES, repository_captions
from tunerkit.errors import DatasetError
from tunerkit.files import read_json, replacing, write_atomically, write_json

if TYPE_CHECKING:
    from tunerkit.config.dataset_document import DatasetConfig
    from tunerkit.config.settings import TrainConfig

COMPLETE = ".tunerkit-download.json"
"""Stands in a folder whose download is complete; names the repository and the revision."""

PACKED_EXTENSIONS = (".parquet", ".arrow", ".tar", ".tar.gz", ".zip")
"""Files that hold media inside; they would have to be unpacked."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

logger = logging.getLogger("tunerkit")


def local_folder(dataset: DatasetConfig, config: TrainConfig) -> Path:
    """The folder to look for the clips of a dataset of `type = huggingface` in.

    `dataset_name` is a folder of this machine if there is one of that name, else owner/name on the hub, downloaded into
    `instance_data_dir`, or where that is not set into `<cache>/datasets/<owner--name>`.

    Raises:
        DatasetError: the repository is not named, not found, not open to this account, out of reach, does not fit on
            the disk, or holds no media files; the message names the setting and the fix.
    """
    if not dataset.dataset_name:
        raise DatasetError(
            f"dataset '{dataset.id}': dataset_name is not set. Fix: set dataset_name to owner/name of a datasets "
            "repository on the hub, or to a folder that holds one."
        )
    repository = _local_repository(dataset)
    if repository is not None:
        if dataset.revision:
            logger.info("%s: revision has no effect on a folder of this machine", _where(dataset))
        return _prepared_copy(repository, dataset, config)
    if not _HUB_ID.fullmatch(dataset.dataset_name):
        raise DatasetError(
            f"{_where(dataset)} is neither an existing folder ({Path(dataset.dataset_name).absolute()}) nor a "
            "repository name. Fix: write owner/name as on the hub, or the path of a folder."
        )
    folder = _download_folder(dataset, config)
    if not _is_complete(folder, dataset) and _download(folder, dataset):
        write_json(folder / COMPLETE, _identity(dataset))
    media = _media(folder, dataset)
    if _reads_captions(dataset):
        _write_captions(folder, media, dataset)
    return folder


def possible_folders(dataset: DatasetConfig, config: TrainConfig) -> tuple[Path, ...]:
    """Every folder that the clips of a dataset may lie in; nothing is downloaded or looked up."""
    if dataset.type != "huggingface" or not dataset.dataset_name:
        return () if dataset.instance_data_dir is None else (Path(dataset.instance_data_dir),)
    repository = _local_repository(dataset)
    if repository is None:
        return (_download_folder(dataset, config),)
    return (_copy_folder(repository, config), repository)


# A repository on the hub ---------------------------------------------------------------------------------------


def _download_folder(dataset: DatasetConfig, config: TrainConfig) -> Path:
    if dataset.instance_data_dir is not None:
        return Path(dataset.instance_data_dir)
    name = (dataset.dataset_name or "").replace("/", "--")
    # Two revisions in one folder would leave the clips of both there.
    revision = f"@{dataset.revision.replace('/', '--')}" if dataset.revision else ""
    return config.cache_path / "datasets" / (name + revision)


def _identity(dataset: DatasetConfig) -> dict[str, str | None]:
    return {"dataset_name": dataset.dataset_name, "revision": dataset.revision}


def _is_complete(folder: Path, dataset: DatasetConfig) -> bool:
    """Whether the folder holds the whole repository.

    Raises:
        DatasetError: it holds another one.
    """
    note = folder / COMPLETE
    if not note.is_file():
        return False
    held = read_json(note)
    if held == _identity(dataset):
        return True
    revision = f" at revision {held['revision']}" if held.get("revision") else ""
    raise DatasetError(
        f"{_where(dataset)}: the folder {folder} holds {held.get('dataset_name')}{revision} already. Fix: set "
        "instance_data_dir to another folder, or delete that one."
    )


def _download(folder: Path, dataset: DatasetConfig) -> bool:
    """Fetch the media, caption and list files of the repository into `folder`.

    Returns:
        Whether the download is known to be complete; the hub client returns a folder that exists already unchecked
        when the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    assert dataset.dataset_name is not None
    logger.info("%s: downloading the repository into %s", _where(dataset), folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        snapshot_download(
            dataset.dataset_name,
            repo_type="dataset",
            revision=dataset.revision,
            local_dir=folder,
            allow_patterns=list(_patterns()),
        )
    except Exception as error:  # the client's errors have no common class
        reason, fix = _explain(error, dataset, folder)
        raise DatasetError(f"{_where(dataset)}: {reason}. Fix: {fix}.") from None
    names = _listing(folder, dataset)
    if names is None:
        logger.warning(
            "%s: the hub cannot be reached, so %s is used as it is; it may lack files of the repository",
            _where(dataset),
            folder,
        )
    elif not any(_is_media(name) for name in names):
        raise _no_media(folder, names, dataset)
    return names is not None


def _listing(folder: Path, dataset: DatasetConfig) -> list[str] | None:
    """Every file of the repository, as the download noted them; None where it did not reach the hub."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    assert dataset.dataset_name is not None
    try:
        tree = get_cached_repo_tree(
            dataset.dataset_name, repo_type="dataset", revision=dataset.revision, local_dir=folder
        )
    except CachedRepoTreeNotFoundError:
        return None
    return [entry.path for entry in tree]


def _patterns() -> Iterator[str]:
    """What is downloaded of a repository, as the client's patterns, which heed case."""
    for extension in sorted(VIDEO_EXTENSIONS | IMAGE_EXTENSIONS | SOUND_EXTENSIONS | {".txt"}):
        yield f"*{extension}"
        yield f"*{extension.upper()}"
    yield from (f"*{name}" for name in TABLES)


def _explain(error: Exception, dataset: DatasetConfig, folder: Path) -> tuple[str, str]:
    """What a failed download means and what to do about it."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/datasets/{dataset.dataset_name}"
    sign_in = "run `hf auth login`, or set HF_TOKEN"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    match error:
        case errors.GatedRepoError():
            return (
                "its authors have to grant access to this repository (gated)",
                f"ask for access at {page}, then {sign_in}",
            )
        case errors.RepositoryNotFoundError():
            return (
                "there is no such datasets repository on the hub, or it is private",
                f"check dataset_name; for a private one, {sign_in} of an account that may read it",
            )
        case errors.RevisionNotFoundError():
            return (
                f"the repository has no revision {dataset.revision!r}",
                f"set revision to a branch, tag or commit listed at {page}, or remove it",
            )
        case errors.HFValidationError():
            return "this is no name of a repository", "write dataset_name as owner/name"
        case errors.HfHubHTTPError() if status in (401, 403):
            return f"the hub refuses access (status {status})", f"{sign_in} of an account that may read it"
        case errors.HfHubHTTPError():
            return f"the hub answers with status {status}", "try again later, or use another mirror by HF_ENDPOINT"
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            partly = " completely" if isinstance(error, errors.IncompleteSnapshotError) else ""
            if constants.HF_HUB_OFFLINE:
                return (
                    f"HF_HUB_OFFLINE is set, and the repository is not downloaded{partly} to {folder} yet",
                    "remove HF_HUB_OFFLINE once to download it, or set dataset_name to a folder that holds it",
                )
            return (
                f"the hub ({constants.ENDPOINT}) cannot be reached, and the repository is not downloaded{partly} to "
                f"{folder} yet",
                "check the network, set HF_ENDPOINT to a mirror, or set dataset_name to a folder that holds it",
            )
    full = _full_disk(error)
    if full:
        return full.format(folder=folder), "free disk space, or set instance_data_dir or cache_dir to a larger disk"
    if isinstance(error, PermissionError):
        return f"no permission to write to {folder}", "set instance_data_dir or cache_dir to a folder that you may use"
    line = (str(error).strip().splitlines() or [""])[0]
    return (
        f"the download stopped ({type(error).__name__}: {line})",
        "check the network and run again: files that are there already are not downloaded a second time",
    )


def _full_disk(error: BaseException | None) -> str:
    """A sentence with `{folder}` where a disk that is full, or a quota, is behind an error; else empty."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "the disk of {folder} is full"
        error = error.__cause__ or error.__context__
    return ""


# A repository on this machine ----------------------------------------------------------------------------------


def _local_repository(dataset: DatasetConfig) -> Path | None:
    """The folder that `dataset_name` names, absolute; None where there is none."""
    folder = Path(os.path.abspath(Path(dataset.dataset_name or "").expanduser()))
    return folder if dataset.dataset_name and folder.is_dir() else None


def _copy_folder(repository: Path, config: TrainConfig) -> Path:
    digest = hashlib.sha256(str(repository).encode()).hexdigest()[:8]
    return config.cache_path / "datasets" / f"{repository.name}-{digest}"


def _prepared_copy(repository: Path, dataset: DatasetConfig, config: TrainConfig) -> Path:
    """The repository itself, or a copy with caption files where it has captions for clips that lack them."""
    media = _media(repository, dataset)
    captions = repository_captions(repository, [found.file for found in media]) if _reads_captions(dataset) else {}
    if not any(_lacks_caption(file) for file in captions):
        return repository
    folder = _copy_folder(repository, config)
    try:
        _mirror(repository, [found.file for found in media], captions, folder)
    except OSError as error:
        raise _not_written(error, folder, dataset) from error
    return folder


def _mirror(repository: Path, media: list[Path], captions: dict[Path, str], folder: Path) -> None:
    """Make `folder` hold the media and captions of the repository and no others."""
    wanted: set[Path] = set()
    for file in media:
        target = folder / file.relative_to(repository)
        _link(file, target)
        caption = file.with_suffix(".txt")
        text = captions.get(file, "").encode() if _lacks_caption(file) else caption.read_bytes()
        written = target.with_suffix(".txt")
        if text and written not in wanted and not (written.is_file() and written.read_bytes() == text):
            write_atomically(written, text)
        wanted |= {target, written} if text else {target}
    for file in folder.rglob("*"):
        if file.is_file() and not file.name.startswith(".") and file not in wanted:
            file.unlink(missing_ok=True)  # its clip was taken out of the repository


def _link(file: Path, target: Path) -> None:
    """A hard link, which takes no space, or where the file system has none a copy."""
    facts = file.stat()
    if target.is_file() and (target.stat().st_size, target.stat().st_mtime_ns) == (facts.st_size, facts.st_mtime_ns):
        return
    with replacing(target) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(file.resolve(), temporary)
        except OSError:
            shutil.copy2(file, temporary)


# Both ----------------------------------------------------------------------------------------------------------


def _where(dataset: DatasetConfig) -> str:
    return f"dataset '{dataset.id}': dataset_name = {dataset.dataset_name!r}"


def _not_written(error: OSError, folder: Path, dataset: DatasetConfig) -> DatasetError:
    reason = _full_disk(error).format(folder=folder) or f"{folder} cannot be written ({error.strerror or error})"
    return DatasetError(f"{_where(dataset)}: {reason}. Fix: free disk space there, or set cache_dir to another folder.")


def _reads_captions(dataset: DatasetConfig) -> bool:
    text = dataset.caption_strategy == "textfile" and not dataset.only_instance_prompt
    return text and dataset.has_clips


def _lacks_caption(media: Path) -> bool:
    return not media.with_suffix(".txt").exists()


def _is_media(name: str) -> bool:
    return Path(name).suffix.lower() in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS | SOUND_EXTENSIONS


def _media(folder: Path, dataset: DatasetConfig) -> tuple[Found, ...]:
    """The media files of a repository folder.

    Raises:
        DatasetError: there is none.
    """
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    if not any(_is_media(name) for name in names):
        raise _no_media(folder, names, dataset)
    return discover(folder, dataset.id).files if dataset.dataset_type != "audio" else ()


def _no_media(folder: Path, names: list[str], dataset: DatasetConfig) -> DatasetError:
    packed = [name for name in names if name.endswith(PACKED_EXTENSIONS)]
    if packed:
        return DatasetError(
            f"{_where(dataset)}: the repository holds its media inside {packed[0]}"
            f"{f' and {len(packed) - 1} more such files' if len(packed) > 1 else ''}. Fix: export them as files "
            "(<name>.mp4 with <name>.txt beside it) into a folder, and set type to local and instance_data_dir to it."
        )
    return DatasetError(
        f"{_where(dataset)}: the repository holds no video or image file (looked into {folder}). Fix: name a "
        "repository whose clips are files, such as .mp4."
    )


def _write_captions(folder: Path, media: tuple[Found, ...], dataset: DatasetConfig) -> None:
    """Write the captions of the repository's lists beside the clips that have none."""
    files = [found.file for found in media]
    if not any(_lacks_caption(file) for file in files):
        return
    captions = {file: text for file, text in repository_captions(folder, files).items() if _lacks_caption(file)}
    try:
        for file, text in captions.items():
            write_atomically(file.with_suffix(".txt"), text)
    except OSError as error:
        raise _not_written(error, folder, dataset) from error
    if captions:
        logger.info("%s: %d captions of its lists are written beside the clips", _where(dataset), len(captions))
