import mmengine.registry as root
import torch
from mmengine.registry import DefaultScope, Registry

from refseg import registry


def test_every_root_registry_has_a_child() -> None:
    for name in dir(root):
        if isinstance(parent := getattr(root, name), Registry):
            child = getattr(registry, name)
            assert child.parent is parent and child.scope == "refseg", name


def test_components_of_all_packages_are_found() -> None:
    with DefaultScope.overwrite_default_scope("refseg"):
        assert type(root.HOOKS.build(dict(type="StepSeedHook"))).__module__ == "refseg.engine.hooks"
        assert type(root.HOOKS.build(dict(type="IterTimerHook"))).__module__.startswith("mmengine.")
        neck = registry.MODELS.build(dict(type="mmdet.FPN", in_channels=[4, 8], out_channels=4, num_outs=2))
        head = registry.MODELS.build(dict(type="mmseg.FCNHead", in_channels=4, channels=4, num_classes=2))
    levels = neck([torch.ones(1, 4, 8, 8), torch.ones(1, 8, 4, 4)])
    assert [level.shape for level in levels] == [(1, 4, 8, 8), (1, 4, 4, 4)]
    assert head([levels[0]]).shape == (1, 2, 8, 8)
