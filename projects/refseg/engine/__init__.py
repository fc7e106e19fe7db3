"""Training with mmengine's runner: loop, hooks, optimizers and their wrappers, visualization backends."""

from refseg.engine.checkpoint import SafeCheckpointHook, best_checkpoint, latest_checkpoint
from refseg.engine.hooks import ProgressBarHook, StepSeedHook, TextTruncationHook, TimeLimitHook
from refseg.engine.loop import ResumableTrainLoop
from refseg.engine.muon import MuonAdamW, MuonConstructor
from refseg.engine.nonfinite import GuardedAmpOptimWrapper, GuardedOptimWrapper, NonFiniteLossHook
from refseg.engine.param_groups import EncoderRatesConstructor
from refseg.engine.runner import RefRunner
from refseg.engine.screen import ScreenHook
from refseg.engine.vis_backends import OptionalWandbBackend

__all__ = [
    "GuardedAmpOptimWrapper",
    "GuardedOptimWrapper",
    "MuonAdamW",
    "MuonConstructor",
    "EncoderRatesConstructor",
    "NonFiniteLossHook",
    "OptionalWandbBackend",
    "ProgressBarHook",
    "RefRunner",
    "ResumableTrainLoop",
    "SafeCheckpointHook",
    "ScreenHook",
    "StepSeedHook",
    "TextTruncationHook",
    "TimeLimitHook",
    "best_checkpoint",
    "latest_checkpoint",
]
