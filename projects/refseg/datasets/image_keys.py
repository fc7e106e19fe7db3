"""Which images of different data sets are the same image."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_COCO = re.compile(r"COCO_(?:train|val|test)20\d\d_(\d{12})\.\w+")
_COCO_2017 = re.compile(r"(?:train|val|test)2017/(\d{12})\.\w+")


def image_key(path: str, size: tuple[int, int]) -> str:
    """`coco:<id>` for a file that COCO named (ids are one numbering over train and val, 2014 and 2017; the bare numbers
    of 2017 in a folder of that name), else the file's name with the folder it lies in and its size.

    The folder tells 00001.jpg of one clip from that of another; a set whose images were copied to a folder of another
    name is not recognised, except by `refseg data leaks --by-content`.
    """
    place = PurePosixPath(path.replace("\\", "/"))
    coco = _COCO.fullmatch(place.name) or _COCO_2017.fullmatch("/".join(place.parts[-2:]))
    return f"coco:{int(coco[1])}" if coco else f"{'/'.join(place.parts[-2:])}:{size[0]}x{size[1]}"
