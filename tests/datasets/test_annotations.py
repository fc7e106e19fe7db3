import json
import logging
import multiprocessing
import os
from pathlib import Path

import pytest
from PIL import Image

from refer_files import annotation, ref, write_refer
from refseg.datasets import annotations as module
from refseg.datasets.annotations import open_annotations
from refseg.errors import ConfigError, DataError


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by one entry with each call of the reader."""
    calls: list[str] = []
    reader = module.READERS["refer"]

    def read(**arguments: str) -> object:
        calls.append(arguments["refs"])
        return reader.read(**arguments)

    read.__signature__ = __import__("inspect").signature(reader.read)  # type: ignore[attr-defined]
    monkeypatch.setitem(module.READERS, "refer", type(reader)(read, reader.files))
    return calls


def cache_of(folder: Path) -> list[Path]:
    return sorted(folder.glob(".refseg_cache/*.columns"))


def test_files_are_converted_once(tmp_path: Path, reads: list[str]) -> None:
    files = write_refer(tmp_path, [ref(1, 1), ref(2, [1, 2])])
    first, second = open_annotations(**files), open_annotations(**files)
    assert len(reads) == 1 and first.path == second.path == cache_of(tmp_path)[0]
    assert second.record(0).expressions == first.record(0).expressions


def test_one_cache_for_all_paths_of_a_file(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_refer(tmp_path / "data", [ref(1, 1)])
    open_annotations(**files)
    monkeypatch.chdir(tmp_path)
    named = {**files, "refs": "data/refs(unc).p", "instances": "data/instances.json"}
    open_annotations(**named)
    monkeypatch.setenv("REFSEG_DATA", str(tmp_path / "data"))
    open_annotations(**named)
    assert len(reads) == 1


@pytest.mark.parametrize("which", ["refs", "instances"])
def test_changed_files_are_converted_again(tmp_path: Path, reads: list[str], which: str) -> None:
    files = write_refer(tmp_path, [ref(1, 1)])
    assert open_annotations(**files).num_instances == 3
    before = os.stat(files[which])
    if which == "refs":
        write_refer(tmp_path, [ref(1, 1), ref(2, 2)])
    else:
        write_refer(tmp_path, [ref(1, 1)], annotations=[annotation(1)])
    assert os.stat(files[which]).st_mtime_ns != before.st_mtime_ns
    store = open_annotations(**files)
    assert (store.num_expressions, store.num_instances) == ((2, 3) if which == "refs" else (1, 1))
    assert len(reads) == 2 and len(cache_of(tmp_path)) == 1


def test_touched_files_are_not_converted_again(tmp_path: Path, reads: list[str]) -> None:
    files = write_refer(tmp_path, [ref(1, 1)])
    open_annotations(**files)
    os.utime(files["instances"], (1, 1))
    assert open_annotations(**files).num_expressions == 1 and len(reads) == 1
    hashed: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "sha256_of", hashed.append)
        open_annotations(**files)
    assert not hashed, "the new times are saved"


def test_truncated_cache_is_replaced(tmp_path: Path, reads: list[str]) -> None:
    files = write_refer(tmp_path, [ref(1, 1)])
    open_annotations(**files)
    cache_of(tmp_path)[0].write_bytes(b"half a file")
    assert open_annotations(**files).num_expressions == 1 and len(reads) == 2


def test_cache_of_an_older_version_is_replaced(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 3 did not store which instances are crowds."""
    files = write_refer(tmp_path, [ref(1, 1)], annotations=[annotation(1, iscrowd=1)])
    monkeypatch.setattr(module, "VERSION", 3)
    open_annotations(**files)
    monkeypatch.undo()
    assert open_annotations(**files).record(0).instances[0].is_crowd


def test_changed_image_sizes_are_noticed(tmp_path: Path) -> None:
    """The rows have no sizes. The image is missing at first, then there, then replaced by one of another size."""
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "text": "x", "targets": null}')
    files = dict(format="jsonl", file=str(tmp_path / "a.jsonl"))
    assert "cannot be read" in str(open_annotations(**files).problems[0])
    for size in ((5, 7), (6, 8)):
        Image.new("RGB", size[::-1]).save(tmp_path / "a.png")
        assert open_annotations(**files).record(0).size == size


@pytest.mark.parametrize("damage", ["header length", "name of an array", "dtype"])
def test_damaged_cache_is_replaced(tmp_path: Path, reads: list[str], damage: str) -> None:
    files = write_refer(tmp_path, [ref(1, 1)])
    open_annotations(**files)
    place = cache_of(tmp_path)[0]
    content = place.read_bytes()
    change = {"header length": (content[17:25], b"\xff" * 8), "name of an array": (b'"image_size"', b'"image_sizf"')}
    place.write_bytes(content.replace(*change.get(damage, (b'"<i8"', b'"<x8"')), 1))
    assert open_annotations(**files).num_expressions == 1 and len(reads) == 2


def fail(*_: object, **__: object) -> None:
    raise PermissionError(13, "read-only")


def test_read_only_data_folder(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_refer(tmp_path / "data", [ref(1, 1)])
    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda p, *a, **k: fail() if p.name == ".refseg_cache" else mkdir(p, *a, **k))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    store = open_annotations(**files)
    assert store.path.parent == tmp_path / "home/refseg/annotations"
    open_annotations(**files)
    assert len(reads) == 1 and not cache_of(tmp_path / "data")


def test_cache_folder_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_refer(tmp_path / "data", [ref(1, 1)])
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "fast"))
    assert open_annotations(**files).path.parent == tmp_path / "fast"


def test_no_writable_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = write_refer(tmp_path, [ref(1, 1)])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("os.fsync", fail)
    with caplog.at_level(logging.WARNING, "refseg.data"):
        store = open_annotations(**files)
    assert store.path is None and store.record(0).expressions[0].text == "Thing 1"
    assert "no cache folder is writable" in caplog.text


def test_reader_errors_are_raised(tmp_path: Path) -> None:
    files = write_refer(tmp_path, {"not": "a list"})
    with pytest.raises(DataError, match="holds a dict"):
        open_annotations(**files)
    with pytest.raises(DataError, match="annotation file not found"):
        open_annotations(format="jsonl", file=str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(format="cvs"), r"Unknown annotations\.format 'cvs'\. Valid values: jsonl, refer, saco, seqtr\."),
        (dict(format="jsonl", path="x"), r"need \['file'\], not \['path'\]"),
        (dict(format="refer", refs="x"), r"need \['instances', 'refs'\], not \['refs'\]"),
        (dict(format="seqtr", refs="x"), r"need \['file'\] \(and may have \['image_name'\]\), not \['refs'\]"),
    ],
)
def test_invalid_arguments(arguments: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        open_annotations(**arguments)


def _open(files: dict, start: object, out: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    store = open_annotations(**files)
    out.put((store.num_expressions, store.path is not None))  # type: ignore[attr-defined]


def test_several_processes_at_once(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "size": [4, 4], "text": f"t{i}", "targets": None} for i in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = dict(format="jsonl", file=str(tmp_path / "a.jsonl"))
    context = multiprocessing.get_context("fork")
    start, out = context.Event(), context.Queue()
    processes = [context.Process(target=_open, args=(files, start, out)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    assert [out.get(timeout=300) for _ in processes] == [(300, True)] * 4
    for process in processes:
        process.join(300)
    names = sorted(path.suffix for path in (tmp_path / ".refseg_cache").iterdir())
    assert names in ([".columns"], [".columns", ".lock"]), "no unfinished files"
