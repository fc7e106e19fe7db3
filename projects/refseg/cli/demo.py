"""`refseg demo`: the web page, on this machine and without a network."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from refseg.demo.limits import Limits
from refseg.engine import best_checkpoint
from refseg.errors import UsageError

QUICKSTART = "work_dirs/quickstart"
LOCAL = ("127.0.0.1", "localhost", "::1")

EXAMPLES = """
refseg demo work_dirs/quickstart
refseg demo instalign_swinb weights.pth --port 8000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.compat import dict_action

    limits = Limits()
    parser.add_argument("model", nargs="?", help=f"work directory, checkpoint, or config (default: {QUICKSTART})")
    parser.add_argument("weights", nargs="?", help="checkpoint or work directory, where MODEL is a config")
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--examples", metavar="FILE", help='lines of {"image": path, "texts": [...]} to try')
    parser.add_argument("--allow-download", action="store_true", help="let text encoders come from the hub")
    parser.add_argument("--cfg-options", nargs="+", action=dict_action(), default={}, metavar="KEY=VALUE")
    where = parser.add_argument_group("where")
    where.add_argument("--host", default=LOCAL[0], help="address to listen on; 0.0.0.0: all of this machine's")
    where.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    where.add_argument("--root-path", default="", metavar="/PATH", help="what a proxy puts in front of the addresses")
    most = parser.add_argument_group("limits")
    most.add_argument("--max-upload", type=float, default=limits.upload_mb, metavar="MB", help="of a file")
    most.add_argument(
        "--max-megapixels", type=float, default=limits.answered_megapixels, help="larger images are reduced to that"
    )
    most.add_argument("--max-phrases", type=int, default=limits.phrases, help="in one question")
    most.add_argument("--per-minute", type=int, default=limits.per_minute, help="questions of one client")
    most.add_argument("--keep-minutes", type=float, default=limits.kept_minutes, help="how long files are kept")


def main(args: argparse.Namespace) -> int:
    """Serves until it is interrupted; then, whatever was uploaded or answered is deleted."""
    limits = Limits(
        upload_mb=args.max_upload,
        answered_megapixels=args.max_megapixels,
        phrases=args.max_phrases,
        per_minute=args.per_minute,
        kept_minutes=args.keep_minutes,
    )
    check_root_path(args.root_path)
    if args.allow_download:
        os.environ["REFSEG_ALLOW_DOWNLOAD"] = "1"
    model = args.model or quickstart_model()
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("the page needs Gradio: pip install 'refseg[demo]'")
    with tempfile.TemporaryDirectory(prefix="refseg-demo-", ignore_cleanup_errors=True) as folder:
        files = Path(folder).resolve()
        prepare_environment(files, args.host)
        from refseg.inference.inferencer import ReferringInferencer

        inferencer = ReferringInferencer(
            model, args.weights, device=args.device, dtype=args.dtype, cfg_options=args.cfg_options
        )

        from refseg.demo import app, examples
        from refseg.demo.page import Page

        page = Page(inferencer, limits)
        chosen = (
            examples.examples_in(args.examples) if args.examples else examples.of_test_split(inferencer.loaded.config)
        )
        offered = examples.copied(chosen[: examples.MOST], files / "examples")
        blocks = app.launch(page, files, offered, host=args.host, port=args.port, root_path=args.root_path)
        print(f"open {blocks.local_url} (Ctrl+C ends it)", flush=True)
        if args.host not in LOCAL:
            print(f"note: whoever reaches {args.host} may use it; there is no password", file=sys.stderr)
        app.serve(blocks)
    return 0


def quickstart_model() -> str:
    """What `make demo` trained."""
    if not Path(QUICKSTART).is_dir() or best_checkpoint(QUICKSTART) is None:
        raise UsageError(
            f"no model is named, and there is none in {QUICKSTART}: `make demo` trains a small one in minutes. Or name "
            "a work directory, a checkpoint, or a config with weights"
        )
    return QUICKSTART


def check_root_path(root_path: str) -> None:
    if root_path and (not root_path.startswith("/") or root_path.endswith("/")):
        raise UsageError(f"--root-path begins with / and does not end with it, such as /refseg; not {root_path!r}")


def prepare_environment(files: Path, host: str) -> None:
    """What Gradio reads when it is imported: where its files are, and that it reports to nobody. When it starts, it
    asks its own server something: that must not go through a proxy."""
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_TEMP_DIR=str(files),
        GRADIO_EXAMPLES_CACHE=str(files / "cached"),
        GRADIO_ANALYTICS_MAX_EVENTS="100",  # which Gradio keeps in memory
        HF_HUB_DISABLE_TELEMETRY="1",
    )
    direct = ",".join(dict.fromkeys([*os.environ.get("NO_PROXY", "").split(","), *LOCAL, host])).strip(",")
    os.environ.update(NO_PROXY=direct, no_proxy=direct)
