"""Open annotation files as a `RecordStore`, which is converted once and then memory-mapped.

The converted file is in `$REFSEG_CACHE` if that is set, else in `.refseg_cache` next to the annotations, else in the
user's cache folder. If none of them can be written, the data set works from memory. The file is converted again when a
source file changes: size and time are compared first, then a hash of the content. Of several processes that start at
once, one converts and the others wait.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from refseg.datasets.readers import READERS, Reader
from refseg.datasets.store import RecordStore, from_annotations, open_store
from refseg.errors import ConfigError, check_choice
from refseg.files import sha256_of
from refseg.paths import data_path
from refseg.records import Record

logger = logging.getLogger("refseg.data")
VERSION = 6  # raise it when a reader returns other records for the same files
LOCK_SECONDS = 1800


def open_annotations(*, format: str, **arguments: Any) -> RecordStore:
    """Open the annotations of a data set.

    Args:
        format: Name in `READERS`.
        **arguments: Arguments of that reader.
    """
    check_arguments(format, arguments)
    reader = READERS[format]
    files = [data_path(arguments[name]) for name in reader.files]
    if not all(file.is_file() for file in files):
        reader.read(**arguments)  # raises an error that names the missing file
    # The name of the cached file identifies the reader, its arguments and the source files.
    others = sorted((key, str(value)) for key, value in arguments.items() if key not in reader.files)
    identity = [VERSION, format, others, [str(file.resolve()) for file in files]]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    name = f"{files[0].parent.name}-{files[0].stem}-{digest}.columns"
    folders = [Path(chosen)] if (chosen := os.environ.get("REFSEG_CACHE")) else []
    folders.append(files[0].parent / ".refseg_cache")
    with suppress(RuntimeError):  # no home folder
        folders.append(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refseg" / "annotations")
    for folder in folders:
        place = folder / name
        if (store := _fresh(place, files)) is not None:
            return store
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{place}.lock", timeout=LOCK_SECONDS):
                store = _fresh(place, files)  # another process may have converted the files meanwhile
                if store is None:
                    logger.warning("converting %s (once)", files[0])
                    # Taken before reading: a file that changes while it is read will not match.
                    stamps = [{"name": f.name, "stat": _quick_stamp(f), "sha256": sha256_of(f)} for f in files]
                    _convert(reader, arguments, sources=stamps).save(place)
                    store = open_store(place)
            return store
        except (OSError, NotImplementedError, Timeout) as error:
            logger.info("%s cannot be used as a cache: %s", folder, error)
    logger.warning("no cache folder is writable for %s: every process reads it again", files[0])
    return _convert(reader, arguments)


def complete_paths(record: Record, root: Path) -> Record:
    """Prepend the image root to the paths of a record's image and mask files, in place."""
    record.image_path = str(root / record.image_path)
    for instance in record.instances:
        if isinstance(instance.segmentation, str):
            instance.segmentation = str(root / instance.segmentation)
    return record


def image_root_of(annotations: dict[str, Any], image_root: str | None) -> Path:
    """Return the folder that image paths are relative to: by default that of a JSONL or SA-Co file; others need it."""
    if image_root is not None:
        return data_path(image_root)
    if annotations["format"] not in ("jsonl", "saco"):
        raise ConfigError("image_root is needed: these annotations do not name the folder of their images")
    return data_path(annotations["file"]).parent


def generated_by(annotations: dict[str, Any]) -> dict[str, Any] | None:
    """Return the preset and generator version of RefShapes from its folder's meta.json, or None for other data."""
    file = data_path(annotations[READERS[annotations["format"]].files[0]])
    for folder in (file.parent, file.parent.parent):  # the official layouts have a folder of their own
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            return {"preset": meta["preset"]["name"], "generator_version": meta["generator_version"]}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def check_arguments(format: str, arguments: dict[str, Any]) -> None:
    """Raise ConfigError if a format is unknown or its reader does not take exactly these arguments."""
    check_choice("annotations.format", format, READERS)
    accepted = inspect.signature(READERS[format].read).parameters
    needed = {name for name, parameter in accepted.items() if parameter.default is parameter.empty}
    if not needed <= set(arguments) <= set(accepted):
        optional = f" (and may have {sorted(set(accepted) - needed)})" if needed != set(accepted) else ""
        raise ConfigError(f"annotations of format {format!r} need {sorted(needed)}{optional}, not {sorted(arguments)}")


def _convert(reader: Reader, arguments: dict[str, Any], **info: Any) -> RecordStore:
    # The garbage collector walks over millions of new objects again and again: 40 % of the time, for no garbage.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        annotations = reader.read(**arguments)
        # Stamps of the images whose sizes are part of the store.
        stamps = [[file, _quick_stamp(Path(file))] for file in annotations.opened]
        return from_annotations(annotations, opened=stamps, **info)
    finally:
        if was_enabled:
            gc.enable()


def _fresh(place: Path, files: list[Path]) -> RecordStore | None:
    """Return the saved store if it was made from these files as they are now."""
    try:
        store = open_store(place)
        sources, opened = store.info["sources"], store.info["opened"]
        if any(_quick_stamp(Path(file)) != stat for file, stat in opened):
            return None
    except Exception as error:  # missing, of an older version, or damaged in any way
        logger.debug("%s is not used: %s", place, error)
        return None
    quick = [_quick_stamp(file) for file in files]
    if [source["stat"] for source in sources] == quick:
        return store
    if [source["sha256"] for source in sources] != [sha256_of(file) for file in files]:
        return None
    # The files were touched or copied, not changed: save the new times.
    store.info["sources"] = [{**source, "stat": stat} for source, stat in zip(sources, quick, strict=True)]
    with suppress(OSError):  # without them the hashes will be compared again
        store.save(place)
    return store


def _quick_stamp(file: Path) -> list[int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]
