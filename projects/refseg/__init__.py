"""refseg: the open toolbox for referring segmentation.

Importing the package is light: torch, mmengine and the models load when they are first used.
"""

from refseg import compat
from refseg.version import __version__

compat.install_mmcv_ext_stand_in()

__all__ = ["__version__"]
