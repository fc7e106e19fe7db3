"""Training machinery on mmengine's runner: loop, hooks, optimisers and their wrappers, visualisation backends."""

from refseg.compat import allow_mmengine_checkpoints
from refseg.engine.checkpoint import SafeCheckpointHook, best_checkpoint, latest_checkpoint
from refseg.engine.hooks import ProgressBarHook, StepSeedHook, TextTruncationHook
from refseg.engine.loop import ResumableTrainLoop
from refseg.engine.muon import MuonAdamW, MuonConstructor
from refseg.engine.nonfinite import GuardedAmpOptimWrapper, GuardedOptimWrapper, NonFiniteLossHook
from refseg.engine.screen import QuietRunner, ScreenHook
from refseg.engine.vis_backends import OptionalWandbBackend

allow_mmengine_checkpoints()

__all__ = [
    "GuardedAmpOptimWrapper",
    "GuardedOptimWrapper",
    "MuonAdamW",
    "MuonConstructor",
    "NonFiniteLossHook",
    "OptionalWandbBackend",
    "ProgressBarHook",
    "QuietRunner",
    "ResumableTrainLoop",
    "SafeCheckpointHook",
    "ScreenHook",
    "StepSeedHook",
    "TextTruncationHook",
    "best_checkpoint",
    "latest_checkpoint",
]
