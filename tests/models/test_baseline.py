from dataclasses import replace

import pytest
import torch

from refseg.analysis.synthetic import dummy_batch
from refseg.engine.run import build_model, load_config
from refseg.models import RefSegmentor
from refseg.structures import Batch


@pytest.fixture(scope="module")
def model() -> RefSegmentor:
    torch.manual_seed(0)
    return build_model(load_config("baseline_tiny_refshapes"))


def prepared(model: RefSegmentor, **kwargs: object) -> Batch:
    settings: dict = dict(shape=(32, 48), num_images=2, expressions_per_image=3, num_words=5)
    return model.data_preprocessor(dummy_batch(**settings | kwargs), True)["batch"]


def test_every_parameter_gets_a_gradient(model: RefSegmentor) -> None:
    model.train()
    losses = model(prepared(model), mode="loss")
    model.parse_losses(losses)[0].backward()
    unused = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    model.zero_grad()
    # softmax does not see what the key's bias adds to every score
    assert {n for n in unused if "key.bias" not in n} == set()


def test_phrases_together_equal_one_by_one(model: RefSegmentor) -> None:
    model.eval()
    batch = prepared(model)
    with torch.no_grad():
        together = model(batch)
        for e in range(batch.num_expressions):
            image = int(batch.image_of[e])
            alone = replace(
                batch,
                images=batch.images[image : image + 1],
                pixel_mask=batch.pixel_mask[image : image + 1],
                image_of=torch.tensor([0]),
                tokens=replace(batch.tokens, text_of=batch.tokens.text_of[e : e + 1]),
            )
            single = model(alone)
            torch.testing.assert_close(single.mask_logits[0], together.mask_logits[e], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(single.no_target_logit[0], together.no_target_logit[e], atol=1e-4, rtol=1e-4)


def test_padded_words_have_no_effect(model: RefSegmentor) -> None:
    model.eval()
    batch = prepared(model)
    pad = torch.nn.functional.pad
    tokens = replace(batch.tokens, ids=pad(batch.tokens.ids, (0, 4)), word_mask=pad(batch.tokens.word_mask, (0, 4)))
    with torch.no_grad():
        torch.testing.assert_close(
            model(batch).mask_logits, model(replace(batch, tokens=tokens)).mask_logits, atol=1e-5, rtol=1e-5
        )


def test_training_without_any_target(model: RefSegmentor) -> None:
    batch = prepared(model)
    batch.referents = [torch.zeros_like(r) for r in batch.referents]
    losses = model(batch, mode="loss")
    assert losses["loss_dice"].item() == 0 and all(torch.isfinite(v) for v in losses.values())
