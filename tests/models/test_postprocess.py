import math
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from refseg.analysis.synthetic import dummy_batch
from refseg.errors import ConfigError
from refseg.evaluation.protocols import get_protocol
from refseg.models.postprocess import (
    ImageResult,
    PostProcess,
    choose_instances,
    finish,
    reject,
    restore_masks,
    restore_regions,
    word_weights,
)
from refseg.structures import Batch, InstancePrediction, Prediction, RegionPrediction, SampleMeta, TextTokens

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def meta(original: tuple[int, int], content: tuple[int, int]) -> SampleMeta:
    return SampleMeta("i", "i.png", original, content, ("e",), ("text",))


@given(sizes, sizes, sizes, st.integers(0, 5), st.integers(1, 200))
def test_chunks_change_nothing_and_sizes_are_right(
    logits_size: tuple, content: tuple, original: tuple, count: int, max_elements: int
) -> None:
    logits = torch.randn(count, *logits_size, generator=torch.Generator().manual_seed(0))
    settings = dict(input_size=(content[0] + 2, content[1] + 1), meta=meta(original, content))
    whole = restore_masks(logits, **settings)
    assert whole.shape == (count, *original) and whole.dtype is torch.bool
    assert torch.equal(whole, restore_masks(logits, **settings, max_elements=max_elements))


def test_padding_is_cropped_before_the_resize() -> None:
    """Content 2 x 2 of a 4 x 4 input is all positive, the padding all negative: nothing of it may leak in."""
    logits = torch.full((1, 4, 4), -9.0)
    logits[:, :2, :2] = 9.0
    assert restore_masks(logits, input_size=(4, 4), meta=meta((8, 8), (2, 2))).all()


def test_same_as_interpolating_probabilities_at_half() -> None:
    logits = torch.randn(3, 5, 7)
    expected = F.interpolate(logits[None], (20, 30), mode="bilinear")[0].sigmoid() >= 0.5
    assert torch.equal(restore_masks(logits, input_size=(20, 30), meta=meta((20, 30), (20, 30))), expected)


def test_the_threshold_is_inclusive() -> None:
    """A probability of 3/4 (logit ln 3) is in the mask at 0.75 and not at 0.76; a logit of 0 is in at 0.5."""
    logits = torch.tensor([[[math.log(3), 0.0]]], dtype=torch.float64).float()
    settings = dict(input_size=(1, 2), meta=meta((1, 2), (1, 2)))
    assert restore_masks(logits, **settings, threshold=0.74).tolist() == [[[True, False]]]
    assert restore_masks(logits, **settings, threshold=0.76).tolist() == [[[False, False]]]
    assert restore_masks(logits, **settings, threshold=0.5).tolist() == [[[True, True]]]


def test_no_target_rules() -> None:
    """Masks of 0, 3 and 9 pixels; the head says 0.9, 0.5, 0.1."""
    masks = torch.zeros(3, 3, 3, dtype=torch.bool)
    masks[1, 0] = True
    masks[2] = True
    probs = torch.tensor([0.9, 0.5, 0.1])
    assert reject(masks, probs, PostProcess()).tolist() == [True, False, False]
    assert reject(masks, probs, PostProcess(no_target_threshold=0.05)).tolist() == [True, True, True]
    assert reject(masks, probs, PostProcess(no_target="area", min_area=4)).tolist() == [True, True, False]
    assert reject(masks, None, PostProcess()).tolist() == [True, False, False]
    assert reject(masks, 1 - probs, PostProcess()).tolist() == [True, False, True]
    assert reject(masks, 1 - probs, PostProcess(no_target="head")).tolist() == [False, False, True]
    assert reject(masks, None, PostProcess(no_target="head")).tolist() == [False, False, False]
    assert reject(masks, probs, PostProcess(no_target="none")).tolist() == [False, False, False]


@pytest.mark.parametrize(
    "bad",
    [
        dict(threshold=1.0),
        dict(no_target="maybe"),
        dict(no_target_threshold=50),
        dict(no_target_threshold=math.nan),
        dict(min_area=-1),
        dict(instance_threshold=1.1),
        dict(instance_threshold=math.nan),
        dict(max_instances=0),
        dict(max_elements=0),
    ],
)
def test_invalid_settings_raise(bad: dict) -> None:
    with pytest.raises(ConfigError, match=f"postprocess.{next(iter(bad))} must"):
        PostProcess(**bad)
    with pytest.raises(TypeError):
        PostProcess(treshold=0.5)


def test_probabilities_can_be_resized() -> None:
    """A column of logits 9 beside one of -1, resized to 3 columns with aligned corners. The middle one has a logit of
    4, so it is in the mask; its probability is the mean of 0.99988 and 0.26894, 0.63, and not above 0.65."""
    settings = dict(input_size=(1, 2), meta=meta((1, 3), (1, 2)), align_corners=True, threshold=0.65)
    logits = torch.tensor([[[9.0, -1.0]]])
    assert restore_masks(logits, **settings).tolist() == [[[True, True, False]]]
    assert restore_masks(logits, **settings, resize="probs").tolist() == [[[True, False, False]]]


def test_cgformers_masks() -> None:
    """Its test: bilinear to the input, sigmoid, bicubic to the image, above 0.5. Resizing logits is not the same."""
    logits = 6 * torch.randn(4, 9, 9, generator=torch.Generator().manual_seed(0))
    view = get_protocol("cgformer").view
    ways = {name: getattr(view, name) for name in ("interpolation", "align_corners", "resize", "threshold", "strict")}
    ours = restore_masks(logits, input_size=(18, 18), meta=meta((25, 31), (18, 18)), **ways)
    at_input = F.interpolate(logits[None], (18, 18), mode="bilinear", align_corners=True)
    theirs = F.interpolate(at_input.sigmoid(), (25, 31), mode="bicubic", align_corners=True)[0] > 0.5
    assert torch.equal(ours, theirs)
    of_logits = restore_masks(logits, input_size=(18, 18), meta=meta((25, 31), (18, 18)), **ways | {"resize": "logits"})
    assert not torch.equal(ours, of_logits)


def test_results_are_by_image_in_order_even_if_expressions_are_not() -> None:
    batch = dummy_batch(shape=(2, 2), num_images=2, expressions_per_image=2)["batch"]
    batch.images = batch.images.float()
    batch.image_of = torch.tensor([0, 1, 0, 1])
    logits = torch.tensor([1.0, -1.0, -1.0, 1.0])[:, None, None].expand(4, 2, 2)
    first, second = finish(Prediction(logits, torch.tensor([9.0, -9, -9, -9])), batch, PostProcess())
    assert first.masks.flatten(1).any(1).tolist() == [True, False]
    assert second.masks.flatten(1).any(1).tolist() == [False, True]
    assert first.rejected.tolist() == [True, True] and second.rejected.tolist() == [True, False]
    assert not first.final_masks().any() and second.final_masks()[1].all()


# Instances ------------------------------------------------------------------------------------------------------------


def columns(*numbers: int) -> torch.Tensor:
    """(2, 4) logits, 9 in these columns and -9 elsewhere."""
    logits = torch.full((2, 4), -9.0)
    logits[:, list(numbers)] = 9.0
    return logits


def queries(relevance: list[float], masks: list[torch.Tensor], attention: list | None = None) -> InstancePrediction:
    logits = torch.stack(masks) if masks else torch.zeros(0, 2, 4)
    weights = None if attention is None else torch.tensor(attention) if masks else torch.zeros(0, 1)
    return InstancePrediction(logits, torch.tensor(relevance), weights)


def batch_of(texts: list[list[str]], word_of: list[list[int]] | None, text_of: list[int] | None = None) -> Batch:
    """Images of 2 x 4, original size 4 x 8; a list of texts for each."""
    total = sum(map(len, texts))
    batch = dummy_batch(shape=(2, 4), num_images=len(texts), expressions_per_image=1)["batch"]
    words = None if word_of is None else torch.tensor(word_of)
    length = 1 if words is None else words.shape[1]
    return replace(
        batch,
        tokens=TextTokens(
            torch.ones(total, length, dtype=torch.long),
            torch.ones(total, length, dtype=torch.bool),
            torch.arange(total) if text_of is None else torch.tensor(text_of),
            word_of=words,
        ),
        image_of=torch.tensor([image for image, each in enumerate(texts) for _ in each]),
        metas=[SampleMeta(str(i), "", (4, 8), (2, 4), tuple(each), tuple(each)) for i, each in enumerate(texts)],
    )


def instances_of(batch: Batch, predicted: list[InstancePrediction] | None, **settings: object) -> list:
    """Per image `instances`."""
    prediction = Prediction(torch.zeros(batch.num_expressions, 2, 4), instances=predicted)
    return [result.instances for result in finish(prediction, batch, PostProcess(**settings))]


def test_token_weights_become_shares_of_words() -> None:
    """[CLS] the rhom ##bus, [SEP] and padding, of a text of three words, the last cut off. The first query gives 0.125
    to "the" and 0.25 + 0.3125 to "rhombus"; the rest, 0.3125, is outside of words."""
    attention = torch.tensor([[0.25, 0.125, 0.25, 0.3125, 0.0625, 0.0], [0.0, 0.0, 0.5, 0.5, 0.0, 0.0]])
    weights = word_weights(attention, torch.tensor([-1, 0, 1, 1, -1, -1]), 3)
    torch.testing.assert_close(weights, torch.tensor([[2 / 11, 9 / 11, 0.0], [0.0, 1.0, 0.0]]))
    assert word_weights(torch.ones(2, 2), torch.tensor([-1, -1]), 0).shape == (2, 0)
    assert word_weights(torch.ones(0, 2), torch.tensor([0, 1]), 2).shape == (0, 2)


def test_instances_by_hand() -> None:
    """Two images, the expressions of the first are 0 and 2, of the second 1. Relevances 0.25 and 0.5 (which counts),
    0.75 before 0.5, and none at all. 2 x 4 becomes 4 x 8: column c is columns 2c and 2c + 1, apart from blending, which
    columns 0 and 3 do not see on their outer side."""
    attention = [[0.5, 0.25, 0.25], [0.0, 0.25, 0.75]]
    instances = [
        queries([0.25, 0.5], [columns(0), columns(0, 1)], attention),
        queries([0.5, 0.75], [columns(2, 3), columns(0, 1, 2, 3)], attention),
        queries([0.0, 0.49], [columns(0), columns(1)], attention),
    ]
    batch = batch_of([["a b", "c"], ["d  e"]], [[-1, 0, 1], [-1, 0, 0], [0, 1, 1]], text_of=[0, 2, 1])
    batch.image_of = torch.tensor([0, 1, 0])
    first, second = instances_of(batch, instances)
    ((half,), nothing), ((whole, right),) = first, second
    assert nothing == []
    assert (half.score, half.words) == (0.5, [0.25, 0.75])
    assert half.mask.dtype == bool and half.mask.shape == (4, 8)
    assert half.mask.any(0).tolist() == half.mask.all(0).tolist() == [True] * 4 + [False] * 4
    assert (whole.score, whole.words) == (0.75, [0.0, 1.0]) and whole.mask.all()
    assert (right.score, right.words) == (0.5, [0.5, 0.5])
    assert right.mask.all(0).tolist() == [False] * 4 + [True] * 4


def test_max_instances_and_threshold() -> None:
    """Of equal ones the first query; the best first."""
    one = queries([0.625, 0.75, 0.25, 0.75], [columns(c) for c in range(4)])
    batch = batch_of([["a"]], None)

    def found(**settings: object) -> list[tuple[float, list[int]]]:
        (((*instances,),),) = instances_of(batch, [one], **settings)
        return [(each.score, each.mask[0].nonzero()[0].tolist()) for each in instances]

    third, first, last = (0.75, [2, 3]), (0.625, [0, 1]), (0.75, [6, 7])
    assert found() == [third, last, first]
    assert found(max_instances=2) == [third, last] and found(instance_threshold=0.75) == [third, last]
    assert found(instance_threshold=0.76) == [] and len(found(instance_threshold=0.0)) == 4
    assert all(each.words is None for each in instances_of(batch, [one])[0][0])


def test_pixel_threshold_and_empty_masks() -> None:
    """Probabilities of 3/4 everywhere: a mask at 0.7, none at 0.8, and then no instance."""
    batch = batch_of([["a"]], [[0]])
    one = queries([1.0], [torch.full((2, 4), math.log(3))], [[1.0]])
    (((instance,),),) = instances_of(batch, [one], threshold=0.7)
    assert instance.mask.all()
    assert instances_of(batch, [one], threshold=0.8) == [[[]]]


def test_results_without_instances() -> None:
    """Models that do not tell any, and the setting; none of any expression; an empty text; weights without a map."""
    batch = batch_of([["a"], [""]], [[0], [-1]])
    attended = [queries([1.0], [columns(1)], [[0.5]]), queries([1.0], [columns(1)], [[0.5]])]
    assert instances_of(batch, None) == [None, None]
    assert instances_of(batch, attended, instances=False) == [None, None]
    assert instances_of(batch, [queries([0.1], [columns(0)], [[1.0]])] * 2) == [[[]], [[]]]
    assert instances_of(batch, [queries([], [], []), queries([], [])]) == [[[]], [[]]]
    assert [found.words for ((found,),) in instances_of(batch, attended)] == [[1.0], []]
    assert [found.words for ((found,),) in instances_of(batch_of([["a"], [""]], None), attended)] == [None, None]


def test_instances_are_restored_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two images the first's instances are asked for, twice: once the one relevant query of three is restored."""
    restored = []

    def count(logits: torch.Tensor, **how: object) -> torch.Tensor:
        restored.append(len(logits))
        return restore_masks(logits, **how)

    monkeypatch.setattr("refseg.models.postprocess.restore_masks", count)
    instances = [queries([0.1, 0.9, 0.1], [columns(0)] * 3)] * 2
    batch = batch_of([["a"], ["b"]], None)
    first, _ = finish(Prediction(torch.zeros(2, 2, 4), instances=instances), batch, PostProcess())
    assert restored == []
    assert first.masks is first.masks and restored == [1]
    assert first.instances is first.instances and restored == [1, 1]


def test_results_can_be_pickled_and_moved_before_and_after() -> None:
    batch = batch_of([["a"]], [[0]])
    prediction = Prediction(torch.zeros(1, 2, 4), instances=[queries([0.75], [columns(1)], [[0.5]])])
    (result,) = finish(prediction, batch, PostProcess())
    for _ in range(2):
        for same in (pickle.loads(pickle.dumps(result)), result.to("cpu")):
            (((found,),),) = [same.instances]
            assert (found.score, found.words, found.mask.sum()) == (0.75, [1.0], 8)
        assert result.instances is not None  # and again, made


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 9), st.integers(1, 3), st.integers(0, 99))
def test_choice_against_loops(sizes: list[int], threshold: int, most: int, seed: int) -> None:
    """Expressions with different numbers of queries and equal relevances among them."""
    draw = torch.Generator().manual_seed(seed)
    instances = [
        InstancePrediction(
            torch.randn(n, 2, 4, generator=draw), torch.randint(0, 4, (n,), generator=draw) / 4, torch.rand(n, 3)
        )
        for n in sizes
    ]
    how = PostProcess(instance_threshold=threshold / 10, max_instances=most)
    chosen = choose_instances(instances, how)
    for all_queries, found in zip(instances, chosen, strict=True):
        relevance = all_queries.relevance.tolist()
        good = [i for i in range(len(relevance)) if relevance[i] >= threshold / 10]
        order = sorted(good, key=lambda i: (-relevance[i], i))[:most]
        assert found.relevance.tolist() == [relevance[i] for i in order]
        assert torch.equal(found.mask_logits, all_queries.mask_logits[order])
        assert torch.equal(found.word_attention, all_queries.word_attention[order])
    where = dict(
        input_size=(2, 4), meta=SampleMeta("i", "", (3, 5), (2, 3), ("e",) * len(sizes), ("a b",) * len(sizes))
    )
    words = torch.tensor([[0, 1, -1]] * len(sizes))
    result = ImageResult(
        where["meta"], None, torch.zeros(1, 2, 4), where["input_size"], chosen=chosen, word_of=words, settings=how
    )
    for found, query in zip(result.instances, chosen, strict=True):
        masks = restore_masks(query.mask_logits, **where)
        shown = [i for i, mask in enumerate(masks) if mask.any()]
        assert [each.score for each in found] == query.relevance[shown].tolist()
        words = query.word_attention[shown, :2]
        torch.testing.assert_close(
            torch.tensor([each.words for each in found]).view(-1, 2), words / words.sum(1, keepdim=True)
        )
        assert all((each.mask == masks[i].numpy()).all() for each, i in zip(found, shown, strict=True))


def test_nan_relevance_is_selected() -> None:
    """So that metrics find it; comparisons with it are false."""
    (chosen,) = choose_instances([queries([0.1, math.nan, 0.9], [columns(c) for c in range(3)])], PostProcess())
    assert math.isnan(chosen.relevance[0]) and chosen.relevance[1:].tolist() == pytest.approx([0.9])


# Regions --------------------------------------------------------------------------------------------------------------


def test_regions_of_words_by_hand() -> None:
    """Two places. "the doghouse x" has tokens [CLS] the dog house [SEP], x was cut off: the best score of dog and
    house, what either retrieved, and nothing of x. The image fills half of the input's height and all of its width."""
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.3], [0.4, -0.5], [-0.1, 0.6], [0.7, 0.8]])[None, :, None]
    retrieved = torch.tensor([[1, 0], [0, 1], [1, 0], [0, 1], [1, 1]])[None, :, None].bool()
    one = SampleMeta("i", "i.png", (20, 80), (32, 64), ("e",), ("the doghouse x",))
    word_of = torch.tensor([[-1, 0, 1, 1, -1]])
    (found,) = restore_regions(RegionPrediction(scores, retrieved), word_of, input_size=(64, 64), meta=one)
    assert found.scores.shape == (4, 1, 2) and found.extent == (0.5, 2.0)
    torch.testing.assert_close(
        found.scores[:, 0],
        torch.tensor([[0.9, 0.1], [0.2, 0.3], [0.4, 0.6], [math.nan, math.nan]]),
        equal_nan=True,
    )
    assert found.retrieved[:, 0].int().tolist() == [[1, 0], [0, 1], [1, 1], [0, 0]]


def test_regions_are_made_on_request_per_image() -> None:
    """Expression k of 4, two of each image, has scores of k."""
    batch = dummy_batch(shape=(8, 8), num_images=2, expressions_per_image=2, num_words=3)["batch"]
    scores = torch.arange(4.0)[:, None, None, None].expand(4, 3, 2, 2)
    prediction = Prediction(torch.zeros(4, 8, 8), regions=RegionPrediction(scores, scores > 1))
    results = finish(prediction, batch, PostProcess())
    assert not any("regions" in vars(result) for result in results)
    assert [one.scores.unique().item() for result in results for one in result.regions] == [0, 1, 2, 3]
    assert [one.retrieved.all().item() for one in results[1].regions] == [True, True]
    unknown = replace(batch, tokens=replace(batch.tokens, word_of=None))
    assert finish(prediction, unknown, PostProcess())[0].regions is None
