"""What must hold for every model: batches for it, and the comparisons that several tests share."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import torch
import torch.nn.functional as F

from refseg.analysis.synthetic import dummy_batch, vocabulary_size
from refseg.engine.run import build_model, load_config
from refseg.models import RefSegmentor
from refseg.structures import Batch, SampleMeta


def tiny_model(config: str, **overrides: object) -> RefSegmentor:
    """The config's model, shrunk as its base file says, with `overrides` of keys below `model.`; fixed weights."""
    cfg = load_config(config)
    cfg.merge_from_dict(cfg.get("_tiny", {}))
    cfg.merge_from_dict({f"model.{key}": value for key, value in overrides.items()})
    torch.manual_seed(0)
    return build_model(cfg)


def num_parameters(config: str) -> int:
    """The number of parameters at full size, of a model that takes no memory."""
    linspace = torch.linspace  # of which mmdet's Swin reads numbers
    on_cpu = mock.patch.object(torch, "linspace", lambda *args: linspace(*args, device="cpu"))
    with torch.device("meta"), on_cpu:
        return sum(parameter.numel() for parameter in build_model(load_config(config)).parameters())


def prepared(model: RefSegmentor, **kwargs: object) -> Batch:
    settings: dict = dict(shape=(64, 96), num_images=2, expressions_per_image=3, num_words=5)
    settings |= dict(vocab_size=vocabulary_size(model)) | kwargs
    return model.data_preprocessor(dummy_batch(**settings), True)["batch"]


def logits_of(model: RefSegmentor, batch: Batch) -> torch.Tensor:
    """Mask logits; of models without a merged mask, those of the instances plus their relevance."""
    model.eval()
    with torch.no_grad():
        prediction = model(batch)
    if prediction.mask_logits is None:
        return prediction.instances.mask_logits + prediction.instances.relevance[..., None, None]
    return prediction.mask_logits


def only(batch: Batch, expression: int) -> Batch:
    """The batch with one of its expressions and the image of that."""
    image = int(batch.image_of[expression])
    meta = batch.metas[image]
    return replace(
        batch,
        images=batch.images[image : image + 1],
        pixel_mask=batch.pixel_mask[image : image + 1],
        image_of=torch.tensor([0]),
        tokens=replace(batch.tokens, text_of=batch.tokens.text_of[expression : expression + 1]),
        metas=[replace(meta, expression_ids=meta.expression_ids[:1], texts=meta.texts[:1])],
    )


def with_padded_words(batch: Batch, number: int = 4) -> Batch:
    ids, mask = (F.pad(tensor, (0, number)) for tensor in (batch.tokens.ids, batch.tokens.word_mask))
    word_of = F.pad(batch.tokens.word_of, (0, number), value=-1)
    return replace(batch, tokens=replace(batch.tokens, ids=ids, word_mask=mask, word_of=word_of))


def padded_images(batch: Batch, height: int, width: int) -> Batch:
    """The batch as if every image filled only the upper left (height, width) of the input."""
    pixel_mask = torch.zeros_like(batch.pixel_mask)
    pixel_mask[:, :height, :width] = True
    metas = [SampleMeta(m.image_id, m.image_path, (height, width), (height, width), m.expression_ids, m.texts)
             for m in batch.metas]  # fmt: skip
    return replace(batch, pixel_mask=pixel_mask, images=batch.images * pixel_mask[:, None], metas=metas)


def is_key_bias(name: str) -> bool:
    """Biases of keys, which a softmax does not see; BEiT-3 has one for each stream."""
    return name.endswith("bias") and "key" in name.split(".")


def parameters_without_gradient(model: RefSegmentor, batch: Batch) -> set[str]:
    """Names of trained parameters that a training step leaves without a gradient, or with one of zeros."""
    model.train()
    model.zero_grad()
    model.parse_losses(model(batch, mode="loss"))[0].backward()
    names = {n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    model.zero_grad()
    return names


def check_phrases_one_by_one(model: RefSegmentor) -> None:
    """Many phrases at once have the same logits as one by one."""
    batch = prepared(model)
    together = logits_of(model, batch)
    for expression in range(batch.num_expressions):
        alone = logits_of(model, only(batch, expression))
        torch.testing.assert_close(alone[0], together[expression], atol=1e-5, rtol=1e-4)


def check_padded_words(model: RefSegmentor) -> None:
    """Padded words change nothing."""
    batch = prepared(model)
    torch.testing.assert_close(
        logits_of(model, batch), logits_of(model, with_padded_words(batch)), atol=1e-5, rtol=1e-4
    )


def check_bfloat16(model: RefSegmentor, batch: Batch) -> dict[str, torch.Tensor]:
    """Losses, gradients, and mask logits are finite under bf16 autocast. Their distance from fp32 depends on the CPU.

    Returns the gradients by parameter name.
    """
    model.train()
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        losses, log = model.parse_losses(model(batch, mode="loss"))
        logits = logits_of(model, batch)
    losses.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert all(torch.isfinite(value) for value in log.values())
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert torch.isfinite(logits.float()).all() and logits.any()
    return gradients


def check_finite_without_targets(model: RefSegmentor) -> None:
    """Losses are finite where images are padded and nothing is referred to."""
    batch = padded_images(prepared(model), 40, 64)
    nothing = replace(batch, referents=[torch.zeros_like(refers) for refers in batch.referents])
    model.train()
    for name, loss in model(nothing, mode="loss").items():
        assert torch.isfinite(loss), name
