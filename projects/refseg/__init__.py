"""refseg: the open toolbox for referring segmentation.

Importing the package is light: torch, mmengine and the models load when they are first used.
"""

from typing import TYPE_CHECKING, Any

from refseg import compat
from refseg.version import __version__

if TYPE_CHECKING:
    from refseg.finetuning.run import finetune
    from refseg.inference.inferencer import ReferringInferencer, segment
    from refseg.shipped import example_image

compat.install_mmcv_ext_stand_in()

__all__ = ["ReferringInferencer", "__version__", "example_image", "finetune", "segment"]


def __getattr__(name: str) -> Any:
    if name in ("ReferringInferencer", "segment"):
        from refseg.inference import inferencer

        return getattr(inferencer, name)
    if name == "finetune":
        from refseg.finetuning import run

        return run.finetune
    if name == "example_image":
        from refseg.shipped import example_image

        return example_image
    raise AttributeError(f"module 'refseg' has no attribute {name!r}")
