"""Draw examples of a RefShapes preset: scenes with one phrase each and an outline around its referents.

python tools/dev/refshapes_sheet.py --preset base --out docs/images/refshapes_base.png
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from refseg.refshapes.draw import PAINT, STRIPE_PAINT
from refseg.refshapes.grammar import GroundedExpression
from refseg.refshapes.presets import PRESETS, GeneratedImage, Preset, draw_image, make_image
from refseg.visualization.captions import caption
from refseg.visualization.overlay import SKY_BLUE, Display, fit_for_display, overlay_masks

GAP = 10
CAPTION_LINES = 3
PATIENCE = 30  # scenes without a skill before the next skill is looked for


def examples(
    preset: Preset, split: str, count: int, skills: Sequence[str] = ()
) -> Iterator[tuple[GeneratedImage, int]]:
    """Yield ``count`` images, each with the index of one of its expressions. The skills take turns."""
    spec = preset.expressions
    wanted = list(skills) or list(dict.fromkeys([*spec.single_skills, *spec.several_skills, "no_target"]))
    turn = missed = 0
    for index in range(preset.images[split]):
        sample = make_image(preset, split, index)
        places = [k for k, e in enumerate(sample.expressions) if e.skill == wanted[turn % len(wanted)]]
        if places:
            yield sample, places[0]
            count -= 1
        missed = 0 if places else missed + 1
        turn += bool(places) or missed % PATIENCE == 0
        if not count:
            return


def panel(preset: Preset, sample: GeneratedImage, expression: GroundedExpression, width: int) -> np.ndarray:
    """Return a picture (H, width, 3) of the scene and its outlined referents, with skill and phrase below."""
    chosen = np.logical_or.reduce(sample.masks[list(expression.referents)], axis=0)  # (H, W)
    pixels, masks = fit_for_display(draw_image(preset, sample), chosen[None], Display(width, width))
    picture = np.full((width, width, 3), 255, np.uint8)
    shown = overlay_masks(pixels, masks, colors=(SKY_BLUE,), alpha=0.0)
    top, left = (width - shown.shape[0]) // 2, (width - shown.shape[1]) // 2
    picture[top : top + shown.shape[0], left : left + shown.shape[1]] = shown
    tag = f"{expression.skill}: {expression.change}" if expression.change else expression.skill
    strip = caption(f"[{tag}] {expression.text}", width, size=14, max_lines=CAPTION_LINES)
    return np.concatenate([picture, strip])


def sheet(preset: Preset, split: str = "train", *, count: int = 12, columns: int = 4, width: int = 192,
          skills: Sequence[str] = ()) -> np.ndarray:  # fmt: skip
    """Return the examples in a grid: (H, W, 3) uint8."""
    cells = [
        panel(preset, sample, sample.expressions[place], width)
        for sample, place in examples(preset, split, count, skills)
    ]
    height = max(cell.shape[0] for cell in cells)
    rows = -(-len(cells) // columns)
    whole = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), 255, np.uint8)
    for number, cell in enumerate(cells):
        top, left = GAP + number // columns * (height + GAP), GAP + number % columns * (width + GAP)
        whole[top : top + cell.shape[0], left : left + width] = cell
    return whole


def few_colors(picture: np.ndarray) -> Image.Image:
    """Reduce a picture to grays, the paints, and their mixtures with gray, so that its file is small despite noise."""
    paints = [*PAINT.values(), *STRIPE_PAINT.values(), SKY_BLUE]
    mixed = [tuple((part + 130) // 2 for part in paint) for paint in paints]
    colors = [*((level, level, level) for level in range(0, 256, 6)), *paints, *mixed]
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for color in colors for part in color])
    return Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="base")
    parser.add_argument("--split", default="train")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--skills", nargs="*", default=(), help="show these skills only")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    picture = sheet(PRESETS[args.preset], args.split, count=args.count, columns=args.columns, skills=args.skills)
    few_colors(picture).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
