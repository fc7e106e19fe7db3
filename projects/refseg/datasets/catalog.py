"""Catalog of the field's data sets: locations of their files, expected counts, and sources.

Nothing here is downloaded or read. Counts were published or counted by others. Those that could not be traced to code
or a release note are marked unverified, and data that differs from them is not reported as wrong.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from refseg.errors import UsageError
from refseg.paths import data_path

TRAIN2014 = "data/images/train2014"


@dataclass(frozen=True)
class Counts:
    """Expected numbers of a split, None if unknown."""

    refs: int | None = None
    images: int | None = None
    sentences: int | None = None


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images. `files` is the number of images in the whole download."""

    path: str
    source: str
    terms: str
    files: int | None = None


@dataclass(frozen=True)
class Target:
    """A data set with one division into splits: one of the catalog, or one that a user names.

    Args:
        name: Name in commands, or as the user gave it.
        title: Description to show.
        annotations: As in a config.
        image_root: As in a config. Empty stands for the folder of `main_file`.
        refs: File of the refs below data/, if the set is one of the catalog.
        split_by: "image" if no image is in two splits, "object" if splits share images, None if unknown.
        counts: Expected numbers by split.
        seen_unseen: By split, the numbers of refs of COCO's seen and unseen classes in CGFormer's code.
        verified: Whether `counts` could be traced to a source.
        reference: Source of the counts.
        source: Address or command that the annotations come from.
        image_source: The same for the images.
        files: Expected SHA-256 by file.
        license: License of the annotations.
        protocol: Protocols that use the set.
        renamed: How to rename the download's file.
        notes: Peculiarities worth knowing.
    """

    name: str
    title: str
    annotations: dict[str, Any]
    image_root: str = ""
    refs: str = ""
    split_by: Literal["image", "object"] | None = None
    counts: dict[str, Counts] = field(default_factory=dict)
    seen_unseen: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)
    verified: bool = True
    reference: str = ""
    source: str = ""
    image_source: str = ""
    files: dict[str, str] = field(default_factory=dict)
    license: str = "none stated that we know of: ask its authors"
    protocol: str = ""
    renamed: str = ""
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Name of the folder of a set of the catalog."""
        return self.refs.split("/")[0]

    @property
    def main_file(self) -> Path:
        """The file of expressions."""
        return data_path(self.annotations.get("refs") or self.annotations["file"])

    @property
    def images(self) -> Path:
        """The folder that image paths are relative to."""
        return data_path(self.image_root) if self.image_root else self.main_file.parent


_COCO_TERMS = (
    "COCO's annotations are CC BY 4.0; the images belong to their Flickr authors, under COCO's terms of use "
    "(https://cocodataset.org/#termsofuse)"
)
IMAGE_FOLDERS = {
    folder.path: folder
    for folder in (
        ImageFolder(TRAIN2014, "COCO 2014 train images, https://cocodataset.org/#download", _COCO_TERMS, 82_783),
        ImageFolder(
            "data/images/trainval2014",
            "COCO 2014 train and val images in one folder, https://cocodataset.org/#download",
            _COCO_TERMS,
            82_783 + 40_504,
        ),
        ImageFolder(
            "data/images/saiapr_tc-12",
            "the 19,997 images of SAIAPR TC-12 that RefCLEF uses, named by https://github.com/lichengunc/refer",
            "IAPR TC-12 has its own terms: ask its distributor",
            19_997,
        ),
        ImageFolder(
            "data/images/rrsisd/JPEGImages",
            "the images of RRSIS-D, named by https://github.com/Lsan2401/RMSIN",
            "its images come from DIOR, with its own terms",
            17_402,
        ),
    )
}

_REFER = "https://github.com/lichengunc/refer"
_RIS = "RIS (LAVT's protocol): training draws one sentence per ref, evaluation takes every sentence"
_ANNOTATION_ID = "an annotation may be the target of several refs; samples are identified by ref and sentence"
_BY_OBJECT = "split by object: train has images of val and test, so results are not comparable to the image splits"
_EXIST = "negatives are sentences with exist = False; they refer to nothing. no_target='drop' removes them"


def _known(
    name: str,
    title: str,
    refs: str,
    *,
    image_root: str = TRAIN2014,
    verified: bool = True,
    counts: dict[str, tuple[int | None, int | None, int | None]] | None = None,
    **facts: Any,
) -> Target:
    """Return a set of the catalog. By default it is one of REFER's."""
    if "source" not in facts:
        facts |= dict(source=_REFER, license="its repository is under Apache-2.0")
    return Target(
        name,
        title,
        annotations=dict(format="refer", refs=f"data/{refs}", instances=f"data/{refs.split('/')[0]}/instances.json"),
        image_root=image_root,
        image_source=IMAGE_FOLDERS[image_root].source,
        refs=refs,
        counts={split: Counts(*numbers) for split, numbers in (counts or {}).items()},
        verified=verified,
        reference="published" if verified else "published, unverified",
        **facts,
    )


_SETS = (
    _known(
        "refcoco",
        "RefCOCO, UNC's splits",
        "refcoco/refs(unc).p",
        split_by="image",
        counts=dict(
            train=(42_404, 16_994, 120_624),
            val=(3_811, 1_500, 10_834),
            testA=(1_975, 750, 5_657),
            testB=(1_810, 750, 5_095),
        ),
        seen_unseen=dict(train=(35_473, None), val=(3_175, 445), test=(3_200, 394)),
        protocol=_RIS,
        notes=("testA is people, testB everything else", _ANNOTATION_ID),
    ),
    _known(
        "refcoco-google",
        "RefCOCO, Google's splits",
        "refcoco/refs(google).p",
        split_by="object",
        counts=dict(train=(40_000, 19_213, None), val=(5_000, 4_559, None), test=(5_000, 4_527, None)),
        protocol="older RIS and REC work",
        notes=(_BY_OBJECT,),
    ),
    _known(
        "refcoco+",
        "RefCOCO+, UNC's splits",
        "refcoco+/refs(unc).p",
        split_by="image",
        counts=dict(
            train=(42_278, 16_992, 120_191),
            val=(3_805, 1_500, 10_758),
            testA=(1_975, 750, 5_726),
            testB=(1_798, 750, 4_889),
        ),
        seen_unseen=dict(train=(35_375, None), val=(3_171, 444), test=(3_189, 394)),
        protocol=_RIS,
        notes=("its authors forbade words of location", _ANNOTATION_ID),
    ),
    _known(
        "refcocog",
        "RefCOCOg, UMD's splits",
        "refcocog/refs(umd).p",
        split_by="image",
        counts=dict(
            train=(42_226, 21_899, 80_512),
            val=(2_573, 1_300, 4_896),
            test=(5_023, 2_600, 9_602),
        ),
        seen_unseen=dict(train=(33_093, None), val=(2_000, 386), test=(3_935, 759)),
        protocol=_RIS,
        notes=("some papers call this split UNC's; it is UMD's",),
    ),
    _known(
        "refcocog-google",
        "RefCOCOg, Google's splits",
        "refcocog/refs(google).p",
        split_by="object",
        counts=dict(train=(44_822, 24_698, 85_474), val=(5_000, 4_650, 9_536)),
        seen_unseen=dict(train=(35_105, None), val=(3_923, 760)),
        protocol="RIS on 'val*'",
        notes=(_BY_OBJECT, "its test split was never released"),
    ),
    _known(
        "refclef",
        "RefCLEF (ReferIt), UNC's splits",
        "refclef/refs(unc).p",
        image_root="data/images/saiapr_tc-12",
        verified=False,
        protocol="RIS",
        notes=(
            "splits may be named testAB: such refs count in testA and in testB, as in REFER",
            "masks are lists of RLEs; the mask is their union",
        ),
    ),
    _known(
        "refclef-berkeley",
        "RefCLEF (ReferIt), Berkeley's splits",
        "refclef/refs(berkeley).p",
        image_root="data/images/saiapr_tc-12",
        verified=False,
        protocol="RIS",
        notes=(
            "REFER's authors say that 2 train images and 1 test image are missing",
            "the 54,127 / 5,842 / 60,103 sentences of papers are those of TransVG's lists, another selection",
        ),
    ),
    _known(
        "grefcoco",
        "gRefCOCO",
        "grefcoco/grefs(unc).json",
        split_by="image",
        source="https://github.com/henghuiding/gRefCOCO",
        counts=dict(
            train=(None, 16_994, 209_344),
            val=(None, 1_500, 16_870),
            testA=(None, 750, 18_712),
            testB=(None, 750, 14_933),
        ),
        verified=False,
        protocol="GRES and GREC (ReLA's protocol): every sentence, in training too",
        notes=(
            "ann_id is a list; [-1] refers to nothing",
            "the released file has 259,859 sentences, the paper 278,232",
            "reorganized on 2023-08-29 with new ids: files made from the earlier release do not fit",
            "images are split as in RefCOCO",
        ),
    ),
    _known(
        "ref-zom",
        "Ref-ZOM",
        "ref-zom/refs(final).p",
        image_root="data/images/trainval2014",
        source="https://github.com/toggle1995/RIS-DMMI",
        counts=dict(train=(None, 43_749, None), test=(None, 11_329, None)),
        verified=False,
        protocol="Ref-ZOM (DMMI's protocol): every sentence",
        renamed="Ref-ZOM(final).p -> refs(final).p",
        notes=("source = 'zero' refers to nothing, whatever ann_id says",),
    ),
    _known(
        "rrsisd",
        "RRSIS-D, remote sensing",
        "rrsisd/refs(unc).p",
        image_root="data/images/rrsisd/JPEGImages",
        source="https://github.com/Lsan2401/RMSIN",
        counts=dict(train=(12_181, None, 12_181), val=(1_740, None, 1_740), test=(3_481, None, 3_481)),
        verified=False,
        protocol=_RIS,
        notes=("oriented objects of 20 categories, seen from above",),
    ),
    *(
        _known(
            f"r{name.lower()}",
            f"R-{name}",
            f"r{name.lower()}/{file}",
            source="https://github.com/jianzongwu/robust-ref-seg",
            verified=False,
            protocol="R-RIS: positive and negative sentences of a ref",
            notes=(_EXIST, *notes),
        )
        for name, file, *notes in (
            ("RefCOCO", "refs(unc).p"),
            ("RefCOCO+", "refs(unc).p"),
            ("RefCOCOg", "refs(umd).p", "the name of its refs file is RefCOCOg's: rename the download if necessary"),
        )
    ),
)
SETS: dict[str, Target] = {known.name: known for known in _SETS}


def get_set(name: str) -> Target:
    """Return a set by name, or raise UsageError with a suggestion."""
    if name in SETS:
        return SETS[name]
    close = difflib.get_close_matches(name.lower(), SETS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"available: {', '.join(SETS)}"
    raise UsageError(f"no data set {name!r}; {hint}")
