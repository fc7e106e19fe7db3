"""`refseg serve`: serve a model as an HTTP API, for programs and for Label Studio."""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import sys
from pathlib import Path

from refseg.cli.demo import LIMITS as PAGE_LIMITS
from refseg.cli.demo import LOCAL
from refseg.cli.options import MODEL, WEIGHTS, add_model_options, open_inferencer
from refseg.demo.limits import Limits
from refseg.errors import UsageError

TOKEN = "REFSEG_TOKEN"
LIMITS = {field: option for field, option in PAGE_LIMITS.items() if field != "answered_megapixels"} | {
    "megapixels": ("--max-megapixels", float, "N", "largest image"),
    "kept_images": ("--keep-images", int, "N", "images whose encodings stay in memory"),
    "kept_minutes": ("--keep-minutes", float, "N", "time until an unused image is deleted from memory"),
    "waiting": ("--max-waiting", int, "N", "requests in the queue"),
}
DEFAULTS = Limits(megapixels=24, per_minute=120)  # programs ask more often than people; masks have the image's size

EXAMPLES = """
refseg serve refshapes
refseg serve work_dirs/quickstart --port 9090 --label-studio-files ~/.local/share/label-studio/media
refseg serve instalign_swinb weights.pth --host 0.0.0.0 --token "$(openssl rand -hex 32)"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL)
    parser.add_argument("weights", nargs="?", help=WEIGHTS)
    parser.add_argument("--device", help="default: cuda if available")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    add_model_options(parser)
    group = parser.add_argument_group("server")
    group.add_argument("--host", default=LOCAL[0], help="address to listen on (default: %(default)s; 0.0.0.0: all)")
    group.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0: any free port")
    group.add_argument("--token", help=f"what clients must send (default: ${TOKEN}, or none)")
    group = parser.add_argument_group("images of Label Studio")
    files = "folder of its uploads or local storage (may be repeated)"
    group.add_argument("--label-studio-files", metavar="DIR", action="append", default=[], help=files)
    group.add_argument("--allow-url", action="store_true", help="allow images from public web addresses")
    private = "allow images from this machine and its private network too"
    group.add_argument("--allow-private-url", action="store_true", help=private)
    group = parser.add_argument_group("limits")
    for field, (option, kind, metavar, text) in LIMITS.items():
        default, help_text = getattr(DEFAULTS, field), f"{text} (default: %(default)s)"
        group.add_argument(option, dest=field, type=kind, default=default, metavar=metavar, help=help_text)


def main(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    limits = Limits(**{field: getattr(args, field) for field in LIMITS})
    token = args.token if args.token is not None else os.environ.get(TOKEN)
    if token is not None and not (token.isascii() and token.isprintable() and token and " " not in token):
        raise UsageError("--token must be ASCII text without spaces, and not empty. Try `openssl rand -hex 32`")
    for folder in args.label_studio_files:
        if not Path(folder).is_dir():
            raise UsageError(f"--label-studio-files: {folder} is not a folder")
    if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "python_multipart")):
        raise UsageError("the HTTP API needs FastAPI and uvicorn. Install them: pip install 'refseg[demo]'")
    listening = listen(args.host, args.port)  # before the model is loaded, which may take minutes
    with listening:
        inferencer = open_inferencer(args)
        import uvicorn

        from refseg.demo.api import Service, build
        from refseg.demo.label_studio import ImageSources

        folders = [Path(folder).expanduser() for folder in args.label_studio_files]
        sources = ImageSources(folders, args.allow_url or args.allow_private_url, args.allow_private_url)
        service = Service(inferencer, limits, sources)
        is_local = args.host in LOCAL
        app = build(service, token=token, hosts=LOCAL if is_local else None)
        # Errors only: access logs would hold addresses of clients
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, ws="none", timeout_graceful_shutdown=5
        )
        address = f"[{args.host}]" if ":" in args.host else args.host
        print(f"serving on http://{address}:{listening.getsockname()[1]} (Ctrl+C ends it)", flush=True)
        if not is_local and token is None:
            warning = f"warning: there is no token. Anyone who can reach {args.host} can use the model"
            print(f"{warning}. Pass --token, and put a proxy with encryption in front", file=sys.stderr, flush=True)
        uvicorn.Server(config).run(sockets=[listening])
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address."""
    try:
        if not 0 <= port < 2**16:
            raise OSError("ports are numbers below 65536")
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UsageError(
            f"cannot start a server on {host}, port {port}: {error}. Choose another port with --port"
        ) from None
