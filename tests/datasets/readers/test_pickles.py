import os
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refseg.datasets.readers.pickles import load_pickle
from refseg.errors import DataError

PLAIN = [{"ref_id": 1, "sentences": [{"raw": "a dog", "tokens": ["a", "dog"]}], "ann_id": [3, -1], "x": 1.5}]


# Calls os.system("true") when it is unpickled.
ATTACK = b"cos\nsystem\n(S'true'\ntR."


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_plain_values_of_any_protocol(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "refs.p").write_bytes(pickle.dumps(PLAIN, protocol=protocol))
    assert load_pickle(tmp_path / "refs.p") == PLAIN


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(7), 7),
        (np.uint8(255), 255),
        (np.float32(1.5), 1.5),
        (np.bool_(True), True),
        (np.str_("café"), "café"),
        (np.bytes_(b"dog"), "dog"),
        (np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
        (np.asfortranarray([[0.5, 1.5], [2.5, 3.5]]), [[0.5, 1.5], [2.5, 3.5]]),
        (np.array([1, 2], ">i4"), [1, 2]),
        (np.zeros((0, 3)), []),
        (OrderedDict(b=1, a=[np.int32(2)]), {"b": 1, "a": [2]}),
    ],
    ids=repr,
)
def test_numpy_and_ordered_dicts_become_plain_values(tmp_path: Path, value: Any, plain: Any, protocol: int) -> None:
    (tmp_path / "refs.p").write_bytes(pickle.dumps([{"x": value, "again": value}], protocol=protocol))
    ((found),) = load_pickle(tmp_path / "refs.p")
    assert found == {"x": plain, "again": plain}
    assert isinstance(found["x"], type(plain)) and not isinstance(found["x"], np.generic | np.ndarray)


def test_pickles_of_numpy_1(tmp_path: Path) -> None:
    content = pickle.dumps([np.int64(7), np.arange(2)], protocol=2).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core.multiarray" in content
    (tmp_path / "refs.p").write_bytes(content)
    assert load_pickle(tmp_path / "refs.p") == [7, [0, 1]]


@pytest.mark.parametrize(
    "value", [np.array([None]), np.datetime64("2020-01-01"), np.zeros(1, [("a", "i4")]), np.complex64(1)], ids=repr
)
def test_other_numpy_types_are_rejected(tmp_path: Path, value: Any) -> None:
    """Arrays of objects could contain any class."""
    (tmp_path / "refs.p").write_bytes(pickle.dumps(value))
    with pytest.raises(DataError, match="holds numpy values of type"):
        load_pickle(tmp_path / "refs.p")


def test_file_cannot_change_how_the_next_one_is_read(tmp_path: Path) -> None:
    """The opcode BUILD sets attributes of an object, here the default encoding of `_codecs.encode`."""
    content = b"\x80\x02c_codecs\nencode\n}N}U\x0c__defaults__U\x04xxxx\x85s\x86b."
    (tmp_path / "refs.p").write_bytes(content)
    with pytest.raises(DataError):
        load_pickle(tmp_path / "refs.p")
    (tmp_path / "good.p").write_bytes(pickle.dumps([b"dog", np.int64(7)], protocol=2))
    assert load_pickle(tmp_path / "good.p") == [b"dog", 7]


def test_attack_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(os, "system", called.append)
    (tmp_path / "refs.p").write_bytes(ATTACK)
    with pytest.raises(DataError, match=r"refs\.p: asks for os\.system.*an attack.*or JSON"):
        load_pickle(tmp_path / "refs.p")
    assert not called
    pickle.loads(ATTACK)
    assert called == ["true"], "plain pickle runs the attack"


def test_harmless_classes_are_rejected_too(tmp_path: Path) -> None:
    (tmp_path / "refs.p").write_bytes(pickle.dumps([Path("x")]))
    with pytest.raises(DataError, match="asks for"):
        load_pickle(tmp_path / "refs.p")


@pytest.mark.parametrize(
    ("byte_string", "text"),
    [(b"a dog", "a dog"), ("café".encode(), "café"), ("café".encode("latin-1"), "café")],
)
def test_byte_strings_of_python_2(tmp_path: Path, byte_string: bytes, text: str) -> None:
    """Python 2 wrote `str` as opcode 'U' (SHORT_BINSTRING), length, and bytes. The file is [{'sent': ...}]."""
    pickled = b"\x80\x02]}U\x04sentU" + bytes([len(byte_string)]) + byte_string + b"sa."
    assert next(pickletools.genops(pickled))[0].name == "PROTO"
    (tmp_path / "refs.p").write_bytes(pickled)
    assert load_pickle(tmp_path / "refs.p") == [{"sent": text}]


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps(PLAIN)[:-9], b"\x80\x02]U", b"\x80\xff"])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "refs.p").write_bytes(content)
    with pytest.raises(DataError, match=r"refs\.p: truncated, or not a pickle"):
        load_pickle(tmp_path / "refs.p")


def test_persistent_ids_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "refs.p").write_bytes(b"Pelsewhere\n.")
    with pytest.raises(DataError, match="outside the file"):
        load_pickle(tmp_path / "refs.p")
