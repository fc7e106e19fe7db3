"""`refseg demo`: serve the web page from this machine, without other network access."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from refseg.cli.options import WEIGHTS, add_model_options, open_inferencer
from refseg.demo.limits import Limits
from refseg.errors import UsageError
from refseg.shipped import REFSHAPES

LOCAL = ("127.0.0.1", "localhost", "::1")

LIMITS = {  # field of `Limits`: option, type, metavar, help
    "upload_mb": ("--max-upload", float, "MB", "largest file"),
    "answered_megapixels": ("--max-megapixels", float, "N", "larger images are reduced to this size"),
    "phrases": ("--max-phrases", int, "N", "phrases in one request"),
    "per_minute": ("--per-minute", int, "N", "requests of one client per minute"),
    "kept_minutes": ("--keep-minutes", float, "N", "time until files are deleted"),
}

EXAMPLES = """
refseg demo
refseg demo work_dirs/quickstart
refseg demo work_dirs/quickstart --clicks facebook/sam2.1-hiera-tiny --allow-download
refseg demo instalign_swinb weights.pth --port 8000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = "work directory, checkpoint, or config (default: refshapes, which ships and knows drawn shapes only)"
    parser.add_argument("model", nargs="?", default=REFSHAPES, help=model)
    parser.add_argument("weights", nargs="?", help=WEIGHTS)
    parser.add_argument("--device", help="default: cuda if available")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--examples", metavar="FILE", help='example inputs: lines of {"image": path, "texts": [...]}')
    clicks = "SAM 2 or EdgeTAM, which corrects answers by clicks (default: that of the model, if it has one)"
    parser.add_argument("--clicks", metavar="NAME|FOLDER", help=clicks)
    add_model_options(parser)
    group = parser.add_argument_group("server")
    group.add_argument("--host", default=LOCAL[0], help="address to listen on (default: %(default)s; 0.0.0.0: all)")
    group.add_argument("--port", type=int, help="default: the first free port from 7860")
    group.add_argument("--root-path", default="", metavar="/PATH", help="path prefix that a proxy adds")
    group = parser.add_argument_group("limits")
    for field, (option, kind, metavar, text) in LIMITS.items():
        default, help_text = getattr(Limits(), field), f"{text} (default: %(default)s)"
        group.add_argument(option, dest=field, type=kind, default=default, metavar=metavar, help=help_text)


def main(args: argparse.Namespace) -> int:
    """Serve until interrupted, then delete all uploads and results."""
    limits = Limits(**{field: getattr(args, field) for field in LIMITS})
    root_path = args.root_path
    if root_path and (not root_path.startswith("/") or root_path.endswith("/")):
        raise UsageError(f"--root-path must begin with / and not end with it, as /refseg does; not {root_path!r}")
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("the web page needs Gradio. Install it: pip install 'refseg[demo]'")
    with tempfile.TemporaryDirectory(prefix="refseg-demo-", ignore_cleanup_errors=True) as folder:
        files = Path(folder).resolve()
        prepare_environment(files, args.host)
        inferencer = open_inferencer(args, clicks=args.clicks)

        from refseg.demo import app, examples
        from refseg.demo.page import Page

        page = Page(inferencer, limits)
        config = inferencer.loaded.config
        chosen = examples.read_examples(args.examples) if args.examples else examples.default_examples(config)
        offered = examples.copy_examples(chosen[: examples.MAX_EXAMPLES], files / "examples")
        blocks = app.launch(page, files, offered, host=args.host, port=args.port, root_path=root_path)
        print(f"open {blocks.local_url} (Ctrl+C ends it)", flush=True)
        if args.host not in LOCAL:
            print(f"note: there is no password. Anyone who can reach {args.host} can use the page", file=sys.stderr)
        app.serve(blocks)
    return 0


def prepare_environment(files: Path, host: str) -> None:
    """Set the variables that Gradio reads at import: its folders, and no analytics.

    At start, Gradio sends a request to its own server. It must not go through a proxy.
    """
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_TEMP_DIR=str(files),
        GRADIO_EXAMPLES_CACHE=str(files / "cached"),
        GRADIO_ANALYTICS_MAX_EVENTS="100",  # kept in memory
        HF_HUB_DISABLE_TELEMETRY="1",
    )
    direct = ",".join(dict.fromkeys([*os.environ.get("NO_PROXY", "").split(","), *LOCAL, host])).strip(",")
    os.environ.update(NO_PROXY=direct, no_proxy=direct)
