"""Names of the formats of `refseg data import` and `export`."""

FORMATS = {
    "coco": "COCO (also from CVAT)",
    "label-studio": "Label Studio",
    "labelme": "labelme",
    "yolo": "YOLO segmentation",
    "sa-co": "SA-Co",
    "reasonseg": "ReasonSeg",
    "gseval": "GSEval",
}
WRITTEN = tuple(name for name in FORMATS if name not in ("reasonseg", "gseval"))  # by `export`
