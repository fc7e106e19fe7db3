"""The web page in Gradio. Gradio reads environment variables when it is imported, so `refseg demo` sets them first."""

import functools
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from refseg.demo import rendering
from refseg.demo.examples import Example
from refseg.demo.guard import Guard
from refseg.demo.limits import Limits, delete_old_files
from refseg.demo.page import Page
from refseg.errors import UsageError, UserError

# One event at a time uses the model. Values arrive as the browser sent them, and Page checks them.
MODEL_EVENT: dict[str, Any] = dict(
    preprocess=False, concurrency_id="model", concurrency_limit=1, api_visibility="private", show_progress="minimal"
)
LIGHT_EVENT: dict[str, Any] = dict(queue=False, api_visibility="private", show_progress="hidden")
SESSIONS = 32  # page views whose state Gradio keeps, about 0.7 MB each (its default: 10,000)
SYSTEM_FONTS = ["system-ui", "sans-serif"]


def show_user_errors(function: Callable) -> Callable:
    """Show a UserError as a message on the page. Other errors go to the log."""

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        try:
            return function(*args)
        except UserError as error:
            raise gr.Error(escape(str(error)), duration=None, print_exception=False) from None

    return wrapped


def build(page: Page, files: Path, examples: Sequence[Example]) -> gr.Blocks:
    """Build the page.

    Args:
        page: Answers the questions.
        files: Folder of uploads, examples, and answers.
        examples: Images and phrases to try.
    """
    limits, loaded = page.limits, page.inferencer.loaded

    @show_user_errors
    def on_upload(image: Any) -> str:
        return escape(rendering.image_summary(page.open(*_file_of(image))))

    @show_user_errors
    def on_ask(image: Any, text: Any, threshold: Any) -> tuple[str, str, dict, dict]:
        asked = page.ask(*_file_of(image), text, threshold)
        downloads = rendering.write_downloads(asked.answer, Path(tempfile.mkdtemp(dir=files)))
        masks, json = (gr.update(value=str(file), visible=True) for file in downloads)
        return escape(rendering.time_summary(asked)), rendering.answers_html(asked.answer), masks, json

    def clear_results() -> tuple[str, str, dict, dict]:
        return "", "", gr.update(visible=False), gr.update(visible=False)

    with gr.Blocks(title="refseg", analytics_enabled=False) as blocks:
        gr.Markdown(
            "# refseg\nUpload an image and describe what to find. The page shows the masks of what each phrase refers "
            f"to. Model: `{loaded.config.stem}`, `{loaded.weights_name}`, on {page.inferencer.device}."
        )
        if loaded.note:
            gr.Markdown(f"**Note:** {loaded.note}.", elem_id="note")
        with gr.Row():
            # Inputs
            with gr.Column(scale=2, min_width=320):
                image = gr.Image(
                    label="Image",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    buttons=["fullscreen"],
                    height=320,
                    elem_id="image",
                )
                about = gr.HTML(elem_id="about")
                phrases = gr.Textbox(
                    label="Phrases, one per line",
                    info=f"Up to {limits.phrases} phrases, {limits.letters} characters each. Shift + Enter runs them.",
                    placeholder="the red circle on the left\nboth dogs",
                    lines=3,
                    max_lines=limits.phrases,
                    elem_id="phrases",
                )
                threshold = gr.Slider(
                    0.05,
                    0.95,
                    page.inferencer.postprocess.threshold,
                    step=0.01,
                    label="Threshold",
                    info="A pixel belongs to the mask if its probability is at least this value.",
                    elem_id="threshold",
                )
                find = gr.Button("Find", variant="primary", elem_id="ask")
            # Answers
            with gr.Column(scale=3, min_width=320):
                timing = gr.HTML(elem_id="timing")
                answers = gr.HTML(elem_id="answers")
                with gr.Row():
                    masks_button = gr.DownloadButton("Masks (zip of PNG)", visible=False, elem_id="masks")
                    json_button = gr.DownloadButton("Answers (JSON)", visible=False, elem_id="json")
        if examples:
            rows = [[str(example.image), "\n".join(example.phrases)] for example in examples]
            gr.Examples(rows, [image, phrases], visible_columns=[0], api_visibility="private", cache_examples=False)
        # Events
        results = [timing, answers, masks_button, json_button]
        image.change(clear_results, None, results, **LIGHT_EVENT)
        image.clear(lambda: "", None, about, **LIGHT_EVENT)
        uploaded = image.upload(on_upload, image, about, **MODEL_EVENT)
        uploaded.failure(lambda: (None, ""), None, [image, about], **LIGHT_EVENT)
        triggers = [find.click, phrases.submit]
        gr.on(triggers, on_ask, [image, phrases, threshold], results, scroll_to_output=True, **MODEL_EVENT)
    return blocks.queue(max_size=limits.waiting, api_open=False, default_concurrency_limit=1)


def _file_of(image: Any) -> tuple[str | None, Any]:
    """Return the path and name of the image that the browser sent. The guard has checked that the path is an upload."""
    if image is None:
        return None, None
    if not isinstance(image, dict) or not isinstance(image.get("path"), str):
        raise UsageError("The image must be an upload.")
    return image["path"], image.get("orig_name")


def launch(
    page: Page, files: Path, examples: Sequence[Example], *, host: str, port: int | None, root_path: str
) -> gr.Blocks:
    """Start the server in background threads.

    Args:
        page: Answers the questions.
        files: Folder of uploads, examples, and answers.
        examples: Images and phrases to try.
        host: Address to listen on.
        port: Port to listen on, or None for the first free one from 7860 on.
        root_path: Path under which a proxy serves the page.
    """
    blocks = build(page, files, examples)
    guard = Middleware(Guard, files=files, limits=page.limits, root_path=root_path)
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            root_path=root_path,
            max_file_size=page.limits.upload_bytes,
            state_session_capacity=SESSIONS,
            app_kwargs={"middleware": [guard], "docs_url": None, "redoc_url": None},
            theme=gr.themes.Default(font=SYSTEM_FONTS, font_mono=["ui-monospace", "monospace"]),
            css=rendering.STYLE,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            num_workers=0,
        )
        threading.Thread(target=clean, args=(blocks, files, page.limits), name="refseg-clean", daemon=True).start()
    except OSError as error:
        raise UsageError(
            f"cannot start a server on {host}, port {port or '7860 to 7959'}: {error}. Choose another port with --port"
        ) from None
    return blocks


def clean(blocks: gr.Blocks, files: Path, limits: Limits) -> None:
    """Delete old uploads and answers as long as the server runs. Files from before the start, the examples, stay.

    Gradio's `delete_cache` does not work under load (Gradio 6.31): it iterates over sets that requests change at the
    same time, and stops for good at the first "Set changed size during iteration".
    """
    seconds = 60 * limits.kept_minutes
    examples = {file for file in files.rglob("*") if file.is_file()}
    while blocks.is_running:
        time.sleep(min(60, seconds))
        deleted = {str(file) for file in delete_old_files(files, seconds, examples)}
        for names in blocks.temp_file_sets:  # Gradio never removes names from its sets of the same files
            names -= deleted


def serve(blocks: gr.Blocks) -> None:
    """Wait for SIGINT or SIGTERM, then stop the server."""
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    stop.wait()
    blocks.close(verbose=False)
