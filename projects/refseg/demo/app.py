"""The page in Gradio. Importing this imports Gradio, which reads its environment then: `command` sets it first."""

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

from refseg.demo import shown
from refseg.demo.examples import Example
from refseg.demo.guard import Guard
from refseg.demo.limits import Limits, delete_old_files
from refseg.demo.page import Page
from refseg.errors import UsageError, UserError

# One thing at a time uses the model. Values come as the browser sent them: Page checks them.
MODEL_EVENT: dict[str, Any] = dict(
    preprocess=False, concurrency_id="model", concurrency_limit=1, api_visibility="private", show_progress="minimal"
)
LIGHT_EVENT: dict[str, Any] = dict(queue=False, api_visibility="private", show_progress="hidden")
SESSIONS = 32  # page views of which Gradio keeps the state, about 0.7 MB each; it would keep 10,000
SYSTEM_FONTS = ["system-ui", "sans-serif"]


def in_words(function: Callable) -> Callable:
    """Mistakes of the user's making become messages on the page. What else is raised is for the log."""

    @functools.wraps(function)
    def told(*args: Any) -> Any:
        try:
            return function(*args)
        except UserError as error:
            raise gr.Error(escape(str(error)), duration=None, print_exception=False) from None

    return told


def build(page: Page, files: Path, examples: Sequence[Example]) -> gr.Blocks:
    """`files`: the folder of uploads, examples and answers."""
    limits = page.limits

    @in_words
    def opened(image: Any) -> str:
        return escape(shown.told_of_image(page.open(*_file_of(image))))

    @in_words
    def asked(image: Any, text: Any, threshold: Any) -> tuple[str, str, dict, dict]:
        found = page.ask(*_file_of(image), text, threshold)
        masks, told = shown.write_downloads(found.answer, Path(tempfile.mkdtemp(dir=files)))
        first, second = (gr.update(value=str(file), visible=True) for file in (masks, told))
        return escape(shown.told_of_time(found)), shown.answers_html(found.answer), first, second

    def cleared() -> tuple[str, str, dict, dict]:
        return "", "", gr.update(visible=False), gr.update(visible=False)

    with gr.Blocks(title="refseg", analytics_enabled=False) as blocks:
        gr.Markdown(heading(page))
        with gr.Row():
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
                    label="Phrases, one on each line",
                    info=f"At most {limits.phrases}, of {limits.letters} letters each. Shift + Enter asks.",
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
                    info="From which probability on a pixel is mask",
                    elem_id="threshold",
                )
                ask = gr.Button("Find", variant="primary", elem_id="ask")
            with gr.Column(scale=3, min_width=320):
                timing = gr.HTML(elem_id="timing")
                answers = gr.HTML(elem_id="answers")
                with gr.Row():
                    masks = gr.DownloadButton("Masks (zip of PNG)", visible=False, elem_id="masks")
                    told = gr.DownloadButton("Answers (JSON)", visible=False, elem_id="json")
        if examples:
            rows = [[str(one.image), "\n".join(one.phrases)] for one in examples]
            gr.Examples(rows, [image, phrases], visible_columns=[0], api_visibility="private", cache_examples=False)
        results = [timing, answers, masks, told]
        image.change(cleared, None, results, **LIGHT_EVENT)
        image.clear(lambda: "", None, about, **LIGHT_EVENT)
        checked = image.upload(opened, image, about, **MODEL_EVENT)
        checked.failure(lambda: (None, ""), None, [image, about], **LIGHT_EVENT)
        asking = [ask.click, phrases.submit]
        gr.on(asking, asked, [image, phrases, threshold], results, scroll_to_output=True, **MODEL_EVENT)
    return blocks.queue(max_size=limits.waiting, api_open=False, default_concurrency_limit=1)


def heading(page: Page) -> str:
    loaded = page.inferencer.loaded
    return (
        "# refseg\nAn image and phrases go in, masks of what the phrases refer to come out. "
        f"Model: `{loaded.config.stem}`, `{loaded.checkpoint.name}`, on {page.inferencer.device}."
    )


def _file_of(image: Any) -> tuple[str | None, Any]:
    """Path and name in what the browser sends for an image. The guard has seen to it that the path is an upload's."""
    if image is None:
        return None, None
    if not isinstance(image, dict) or not isinstance(image.get("path"), str):
        raise UsageError("An image is an upload.")
    return image["path"], image.get("orig_name")


def launch(
    page: Page, files: Path, examples: Sequence[Example], *, host: str, port: int | None, root_path: str
) -> gr.Blocks:
    """A running server, in threads of its own."""
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
            css=shown.STYLE,
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
        raise UsageError(f"no server on {host}, port {port or '7860 to 7959'}: {error}. --port names another") from None
    return blocks


def clean(blocks: gr.Blocks, files: Path, limits: Limits) -> None:
    """Delete old uploads and answers, again and again. The files of the start, the examples, stay.

    Gradio's own `delete_cache` is not used. It walks over sets of file names to which requests add meanwhile, and ends
    for good with the first "Set changed size during iteration": every file after that would stay (Gradio 6.31).
    """
    seconds = 60 * limits.kept_minutes
    keep = {file for file in files.rglob("*") if file.is_file()}
    while blocks.is_running:
        time.sleep(min(60, seconds))
        deleted = {str(file) for file in delete_old_files(files, seconds, keep)}
        for names in blocks.temp_file_sets:  # Gradio's sets of the same files, for which nothing else forgets names
            names -= deleted


def serve(blocks: gr.Blocks) -> None:
    """Until somebody ends it."""
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    stop.wait()
    blocks.close(verbose=False)
