"""The visual concept injector by hand."""

from __future__ import annotations

import pytest
import torch

from refseg.analysis.latent_vg import mean_cosine
from refseg.errors import ConfigError
from refseg.models.latent_vg.concepts import VisualConceptInjector, relevant_patches

E, K, P, C, M = 2, 3, 7, 8, 4


def injector(**settings: object) -> VisualConceptInjector:
    torch.manual_seed(0)
    return VisualConceptInjector(**(dict(embed_dim=C, num_layers=2, num_concepts=M) | settings))


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    relevant = torch.tensor([[1, 0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 1, 1]], dtype=torch.bool)
    return torch.randn(E, K, C, generator=draw), torch.randn(E, P, C, generator=draw), relevant


def test_relevant_patches_by_hand() -> None:
    """Cosines 1, 0, 0.6 and -1, mean 0.15. Without the last, which is padding, the mean is 0.53."""
    patches = torch.tensor([[[2.0, 0], [0, 5], [3, 4], [-1, 0]]]).expand(2, -1, -1)
    valid = torch.tensor([[True] * 4, [True] * 3 + [False]])
    found = relevant_patches(patches, torch.tensor([[1.0, 0]]).expand(2, -1), valid)
    assert found.tolist() == [[True, False, True, False], [True, False, True, False]]
    patches = torch.tensor([[[1.0, 0], [3, 4], [0, 1], [9, 0]]])
    found = relevant_patches(patches, torch.tensor([[1.0, 0]]), torch.tensor([[True, True, True, False]]))
    assert found.tolist() == [[True, True, False, False]]


def test_equal_patches_are_not_relevant() -> None:
    """One patch has the mean's cosine and does not exceed it; nor does padding."""
    one = relevant_patches(torch.ones(1, 1, 2), torch.ones(1, 2), torch.ones(1, 1, dtype=torch.bool))
    none = relevant_patches(torch.ones(1, 3, 2), torch.ones(1, 2), torch.zeros(1, 3, dtype=torch.bool))
    assert not one.any() and not none.any()


def test_initial_concepts_are_orthogonal() -> None:
    concepts = injector().concepts.detach()
    torch.testing.assert_close(concepts @ concepts.t(), C * torch.eye(M), atol=1e-5, rtol=0)


@pytest.mark.parametrize("normalize", ["columns", "rows"])
@pytest.mark.parametrize("centered", [True, False])
def test_injector_matches_its_equations(normalize: str, centered: bool) -> None:
    module, (attributes, patches, relevant) = injector(normalize=normalize, centered=centered), inputs()
    for layer in range(2):
        rows = []
        for a, v, keep in zip(attributes, patches, relevant, strict=True):
            target = module.norm_patches[layer](v[keep] - v[keep].mean(0) if centered else v[keep])
            found = (module.concepts @ target.t() / C**0.5).softmax(-1) @ target  # (M, C)
            scores = module.query[layer](module.norm_attributes[layer](a)) @ module.norm_concepts[layer](found).t()
            weights = (scores / C**0.5).softmax(0 if normalize == "columns" else 1)  # (K, M)
            rows.append(a + module.out[layer](weights @ found))
        torch.testing.assert_close(module(layer, attributes, patches, relevant), torch.stack(rows))


def test_attributes_get_different_updates() -> None:
    """Patches of an image are alike: they differ by a tenth of their common part. With centered patches, the updates of
    attributes differ. Otherwise all concepts retrieve the common part, and all attributes get the same update."""
    draw = torch.Generator().manual_seed(1)
    attributes = torch.randn(4, 6, 64, generator=draw)
    patches = torch.randn(4, 1, 64, generator=draw) + 0.1 * torch.randn(4, 50, 64, generator=draw)
    relevant = torch.ones(4, 50, dtype=torch.bool)
    alike = []
    for centered in (True, False):
        module = injector(embed_dim=64, num_concepts=32, centered=centered)
        alike.append(mean_cosine(module(0, attributes, patches, relevant) - attributes).mean().item())
    assert alike[0] < 0.9 and alike[1] > 0.999


def test_irrelevant_patches_have_no_effect() -> None:
    module, (attributes, patches, relevant) = injector(), inputs()
    other = patches.masked_fill(~relevant[..., None], 40.0)
    torch.testing.assert_close(module(0, attributes, patches, relevant), module(0, attributes, other, relevant))


def test_no_update_without_relevant_patches() -> None:
    """Gradients stay finite."""
    module, (attributes, patches, relevant) = injector(), inputs()
    relevant[0] = False
    torch.nn.init.ones_(module.out[0].bias)
    patches.requires_grad_()
    found = module(0, attributes, patches, relevant)
    assert torch.equal(found[0], attributes[0]) and not torch.allclose(found[1], attributes[1])
    found.square().sum().backward()
    assert torch.isfinite(patches.grad).all() and not patches.grad[0].any()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in module.parameters())


def test_invalid_arguments_raise() -> None:
    for number in (0, C + 1):
        with pytest.raises(ConfigError, match="num_concepts must be in"):
            injector(num_concepts=number)
    with pytest.raises(ConfigError, match=r"normalize 'both'\. Valid values: columns, rows"):
        injector(normalize="both")
