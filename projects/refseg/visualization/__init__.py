"""Pictures of predictions, training curves, and the HTML report of a run."""

from refseg.visualization.cases import Case, choose_cases
from refseg.visualization.curves import TrainingCurves, read_scalars, training_curves
from refseg.visualization.instances import CaseInstance
from refseg.visualization.overlay import PALETTE, overlay_masks, side_by_side, upscale
from refseg.visualization.report import Report, write_report
from refseg.visualization.svg import Curve, plot_svg

__all__ = [
    "PALETTE",
    "Case",
    "CaseInstance",
    "Curve",
    "Report",
    "TrainingCurves",
    "choose_cases",
    "overlay_masks",
    "plot_svg",
    "read_scalars",
    "side_by_side",
    "training_curves",
    "upscale",
    "write_report",
]
