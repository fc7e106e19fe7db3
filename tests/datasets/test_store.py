import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refseg.datasets.store import from_annotations, open_store
from refseg.records import AnnotatedInstance, Annotations, Expression, Problem, Record

texts = st.text(max_size=8)
numbers = st.floats(-50, 50, allow_nan=False)
segmentations = st.one_of(
    st.lists(st.lists(numbers, min_size=6, max_size=10), min_size=1, max_size=3),
    st.binary(min_size=1, max_size=9).map(lambda counts: {"size": [3, 4], "counts": counts}),
    st.text("abc/.é", min_size=1),
)
instances = st.builds(
    AnnotatedInstance,
    texts,
    segmentations,
    st.none() | st.sampled_from(["a", "b"]),
    st.none() | st.tuples(*[numbers] * 4),
    st.booleans(),
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    objects = draw(st.lists(instances, max_size=3))
    indices = st.lists(st.integers(0, len(objects) - 1), unique=True).map(tuple) if objects else st.just(())
    expression = st.builds(
        Expression, texts, texts, indices, st.none() | st.sampled_from(["train", "val"]), texts, st.none() | texts,
        st.dictionaries(texts, st.integers() | texts | st.lists(st.integers())),
    )  # fmt: skip
    return Record(draw(texts), draw(texts), (3, 4), objects, draw(st.lists(expression, max_size=4)))


def plain(record: Record) -> Record:
    """Turn polygons, which the store returns as arrays, into lists."""
    for instance in record.instances:
        if isinstance(instance.segmentation, list):
            instance.segmentation = [list(map(float, polygon)) for polygon in instance.segmentation]
    return record


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.lists(records(), max_size=4))
def test_records_survive_a_round_trip(tmp_path: Path, given_records: list[Record]) -> None:
    problem = Problem("file, ref 3", "is bad", "val")
    store = from_annotations(Annotations(given_records, [problem]), sources=[1])
    store.save(tmp_path / "x.columns")
    for copy in (store, open_store(tmp_path / "x.columns"), pickle.loads(pickle.dumps(store))):
        assert [plain(copy.record(i)) for i in range(len(copy))] == [plain(record) for record in given_records]
        assert copy.problems == [problem] and copy.info["sources"] == [1]


def small() -> Annotations:
    one = AnnotatedInstance("1", [[0.0, 0, 2, 0, 2, 2]], "cat")
    two = AnnotatedInstance("2", [[0.0, 0, 2, 0, 2, 2]])
    first = [Expression("a", "x", (0,), "train", "o"), Expression("b", "y", (0, 1), "val", "o")]
    second = [Expression("c", "z", (), "train", "o")]
    return Annotations([Record("i", "i.png", (3, 4), [one, two], first), Record("j", "j.png", (5, 6), [], second)])


def test_columns() -> None:
    store = from_annotations(small())
    assert (len(store), store.num_instances, store.num_expressions) == (2, 2, 3)
    assert store.image_of_expression.tolist() == [0, 0, 1] and store.num_referents.tolist() == [1, 2, 0]
    assert [store.splits[code] for code in store.split_of_expression] == ["train", "val", "train"]
    assert store.category_of_instance.tolist() == [0, -1] and store.categories == ["cat"]
    assert store.object_of_expression.tolist() == [0, 0, 1], "objects of different images are different"
    assert store.image_path(1) == "j.png" and store.size(1) == (5, 6)


def test_record_with_chosen_expressions() -> None:
    record = from_annotations(small()).record(0, [1])
    assert [e.expression_id for e in record.expressions] == ["b"] and len(record.instances) == 2


def test_opened_store_is_memory_mapped(tmp_path: Path) -> None:
    from_annotations(small()).save(tmp_path / "x.columns")
    store = open_store(tmp_path / "x.columns")
    assert len(pickle.dumps(store)) < 500, "a worker opens the file again"
    with pytest.raises(ValueError, match="read-only"):
        store.arrays["numbers"][0] = 1
    assert all(np.asarray(array).base is not None for array in store.arrays.values())


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:40], lambda b: b"x" + b[1:], lambda b: b""])
def test_damaged_files_are_not_opened(tmp_path: Path, damage) -> None:
    from_annotations(small()).save(tmp_path / "x.columns")
    (tmp_path / "x.columns").write_bytes(damage((tmp_path / "x.columns").read_bytes()))
    with pytest.raises(ValueError):
        open_store(tmp_path / "x.columns")


def test_failed_save_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        from_annotations(small()).save(tmp_path / "x.columns")
    assert not list(tmp_path.iterdir())
