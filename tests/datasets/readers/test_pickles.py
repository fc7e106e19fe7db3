import os
import pickle
import pickletools
from pathlib import Path

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


def test_an_attack_is_refused_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(os, "system", called.append)
    (tmp_path / "refs.p").write_bytes(ATTACK)
    with pytest.raises(DataError, match=r"refs\.p: asks for os\.system.*may be an attack"):
        load_pickle(tmp_path / "refs.p")
    assert not called
    pickle.loads(ATTACK)
    assert called == ["true"], "without the restriction it runs"


def test_even_harmless_classes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "refs.p").write_bytes(pickle.dumps([Path("x")]))
    with pytest.raises(DataError, match="asks for"):
        load_pickle(tmp_path / "refs.p")


@pytest.mark.parametrize(
    ("byte_string", "text"),
    [(b"a dog", "a dog"), ("café".encode(), "café"), ("café".encode("latin-1"), "café")],
)
def test_byte_strings_of_python_2(tmp_path: Path, byte_string: bytes, text: str) -> None:
    """Python 2 wrote `str` with the opcode SHORT_BINSTRING: 'U', the length, the bytes. Here: [{'sent': <it>}]."""
    pickled = b"\x80\x02]}U\x04sentU" + bytes([len(byte_string)]) + byte_string + b"sa."
    assert next(pickletools.genops(pickled))[0].name == "PROTO"
    (tmp_path / "refs.p").write_bytes(pickled)
    assert load_pickle(tmp_path / "refs.p") == [{"sent": text}]


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps(PLAIN)[:-9], b"\x80\x02]U", b"\x80\xff"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "refs.p").write_bytes(content)
    with pytest.raises(DataError, match=r"refs\.p: truncated, or not a pickle"):
        load_pickle(tmp_path / "refs.p")


def test_a_persistent_id_is_refused(tmp_path: Path) -> None:
    (tmp_path / "refs.p").write_bytes(b"Pelsewhere\n.")
    with pytest.raises(DataError, match="outside the file"):
        load_pickle(tmp_path / "refs.p")
