"""Names of the formats of `refseg data import` and `export`."""

FORMATS = {
    "coco": "COCO (also from CVAT)",
    "label-studio": "Label Studio",
    "labelme": "labelme",
    "yolo": "YOLO segmentation",
    "sa-co": "SA-Co",
    "reasonseg": "ReasonSeg",
    "gseval": "GSEval",
    "phrasecut": "PhraseCut",
    "phrase-lists": "RefSegRS or RISBench",
    "finecops": "FineCops-Ref",
    "pbench": "PBench",
    "ref-l4": "Ref-L4",
}
WRITTEN = ("coco", "label-studio", "labelme", "yolo", "sa-co")  # by `export`
