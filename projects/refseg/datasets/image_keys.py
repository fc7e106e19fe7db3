"""Which images of different data sets are the same image."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_COCO = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})\.\w+")


def image_key(path: str, size: tuple[int, int]) -> str:
    """`coco:<id>` for a file named as COCO names them (ids are one numbering over train and val, 2014 and 2017), else
    the file's name and size: RefCLEF's 12.jpg is hardly another set's 12.jpg when the size is the same too."""
    name = PurePosixPath(path.replace("\\", "/")).name
    coco = _COCO.fullmatch(name)
    return f"coco:{int(coco[1])}" if coco else f"{name}:{size[0]}x{size[1]}"
