"""Synthetic batches for counting, timing and tests."""

from __future__ import annotations

import torch

from refseg.structures import Batch, SampleMeta, TextTokens


def dummy_batch(
    *,
    shape: tuple[int, int],
    num_images: int = 1,
    expressions_per_image: int = 1,
    num_words: int = 20,
    vocab_size: int = 100,
    num_instances: int = 2,
) -> dict[str, Batch]:
    """Make a batch of random uint8 images and random texts, in the form of `collate_samples`.

    The last expression of each image has no target if the image has several.
    """
    draw = torch.Generator().manual_seed(0)
    height, width = shape
    total = num_images * expressions_per_image
    masks = torch.zeros(num_images, num_instances, height, width, dtype=torch.bool)
    for i in range(num_instances):
        masks[:, i, height * i // num_instances : height * (i + 1) // num_instances] = True
    referents = [torch.tensor([j == k % num_instances for j in range(num_instances)]) for k in range(total)]
    if expressions_per_image > 1:
        for image in range(num_images):
            referents[(image + 1) * expressions_per_image - 1] = torch.zeros(num_instances, dtype=torch.bool)
    names = tuple(str(k) for k in range(expressions_per_image))
    metas = [SampleMeta(str(i), f"{i}.png", shape, shape, names, names) for i in range(num_images)]
    tokens = TextTokens(
        ids=torch.randint(5, max(vocab_size, 6), (total, num_words), generator=draw),
        word_mask=torch.ones(total, num_words, dtype=torch.bool),
        text_of=torch.arange(total),
        word_of=torch.zeros(total, num_words, dtype=torch.long),  # texts are of one word
    )
    batch = Batch(
        images=torch.randint(0, 256, (num_images, 3, height, width), generator=draw, dtype=torch.uint8),
        pixel_mask=torch.ones(num_images, height, width, dtype=torch.bool),
        tokens=tokens,
        image_of=torch.arange(num_images).repeat_interleave(expressions_per_image),
        metas=metas,
        instance_masks=list(masks),
        referents=referents,
        ground_truth=[None] * num_images,
    )
    return {"batch": batch}


def vocabulary_size(model: torch.nn.Module) -> int:
    """Return the smallest vocabulary size among the model's text encoders."""
    sizes = [module.vocab_size for module in model.modules() if hasattr(module, "vocab_size")]
    return min(sizes, default=100)
