"""The web page in Gradio. Gradio reads environment variables when it is imported, so `refseg demo` sets them first."""

import functools
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from refseg.demo import rendering
from refseg.demo.examples import Example
from refseg.demo.guard import Guard
from refseg.demo.limits import Limits, check_click, check_mask, delete_old_files
from refseg.demo.page import Correction, Page, Question
from refseg.errors import UsageError, UserError
from refseg.inference.clicks import Clicks

# One event at a time uses the model. Values arrive as the browser sent them, and Page checks them.
MODEL_EVENT: dict[str, Any] = dict(
    preprocess=False, concurrency_id="model", concurrency_limit=1, api_visibility="private", show_progress="minimal"
)
LIGHT_EVENT: dict[str, Any] = dict(queue=False, api_visibility="private", show_progress="hidden")
SESSIONS = 32  # page views whose state Gradio keeps, about 0.7 MB each (its default: 10,000)
ADD, REMOVE, BOX = "Add", "Remove", "Box"  # what a click on the picture does
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

    def show(question: Question, chosen: Any) -> tuple:
        """Answer a question, and return the values of `results`. `chosen` is the mask that clicks correct."""
        asked = page.ask(question)
        downloads = rendering.write_downloads(asked.answer, Path(tempfile.mkdtemp(dir=files)))
        masks, json = (gr.update(value=str(file), visible=True) for file in downloads)
        answered = escape(rendering.time_summary(asked)), rendering.answers_html(asked.answer), masks, json
        if not page.can_correct:
            return answered
        choices = rendering.mask_choices(asked.answer)
        if chosen not in [value for _, value in choices]:  # its object is gone
            chosen = str(check_mask(chosen)[0])
        picture = rendering.click_picture(asked.answer, *check_mask(chosen), question.corner)
        return *answered, question, gr.update(visible=True), gr.update(choices=choices, value=chosen), picture

    @show_user_errors
    def on_ask(image: Any, text: Any, threshold: Any) -> tuple:
        return show(Question(*_file_of(image), text, threshold), "0")

    @show_user_errors
    def on_choose(question: Question | None, chosen: Any) -> tuple:
        return show(replace(_asked(question), corner=None), chosen)

    @show_user_errors
    def on_click(question: Question | None, chosen: Any, action: Any, event: gr.EventData) -> tuple:
        question, mask = _asked(question), check_mask(chosen)
        asked = page.ask(question)
        shown = rendering.click_picture(asked.answer, *mask, None).shape
        place = event._data.get("index") if isinstance(event._data, dict) else None
        x, y = check_click(place, (shown[0], shown[1]), asked.opened.size)
        if action == BOX and question.corner is None:
            return show(replace(question, corner=(x, y)), chosen)
        if action == BOX:
            (x0, x1), (y0, y1) = sorted((x, question.corner[0])), sorted((y, question.corner[1]))
            clicks = Clicks(box=(x0, y0, x1 + 1, y1 + 1))
        else:
            clicks = Clicks(((x, y, action == ADD),))
        corrections = (*question.corrections, Correction(*mask, clicks))
        return show(replace(question, corrections=corrections, corner=None), chosen)

    @show_user_errors
    def on_undo(question: Question | None, chosen: Any) -> tuple:
        question = _asked(question)
        kept = question.corrections if question.corner else question.corrections[:-1]
        return show(replace(question, corrections=kept, corner=None), chosen)

    @show_user_errors
    def on_reset(question: Question | None, chosen: Any) -> tuple:
        return show(replace(_asked(question), corrections=(), corner=None), chosen)

    def clear_results() -> tuple:
        answered = "", "", gr.update(visible=False), gr.update(visible=False)
        return (*answered, None, gr.update(visible=False), gr.update(), None) if page.can_correct else answered

    with gr.Blocks(title="refseg", analytics_enabled=False) as blocks:
        gr.Markdown(
            "# refseg\nUpload an image and describe what to find. The page shows the masks of what each phrase refers "
            f"to. Model: `{loaded.name}`, `{loaded.weights_name}`, on {page.inferencer.device}."
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
                # Clicks
                if page.can_correct:
                    question = gr.State(None)
                    with gr.Group(visible=False, elem_id="clicks") as clicks:
                        mask = gr.Dropdown([], label="Correct this mask by clicks", filterable=False, elem_id="mask")
                        action = gr.Radio(
                            [
                                ("Add: the click is on the object", ADD),
                                ("Remove: the click is beside the object", REMOVE),
                                ("Box: click on two corners", BOX),
                            ],
                            value=ADD,
                            label="A click on the picture",
                            elem_id="action",
                        )
                        picture = gr.Image(
                            label="Click here",
                            format="png",
                            interactive=False,
                            buttons=[],
                            alt_text="The image with the mask. Click on it to correct the mask.",
                            elem_id="picture",
                        )
                        with gr.Row():
                            undo = gr.Button("Undo", elem_id="undo")
                            reset = gr.Button("Reset all", elem_id="reset")
        if examples:
            rows = [[str(example.image), "\n".join(example.phrases)] for example in examples]
            gr.Examples(rows, [image, phrases], visible_columns=[0], api_visibility="private", cache_examples=False)
        # Events
        results: list[Any] = [timing, answers, masks_button, json_button]
        if page.can_correct:
            results += [question, clicks, mask, picture]
            mask.input(on_choose, [question, mask], results, **MODEL_EVENT)
            picture.select(on_click, [question, mask, action], results, **MODEL_EVENT)
            undo.click(on_undo, [question, mask], results, **MODEL_EVENT)
            reset.click(on_reset, [question, mask], results, **MODEL_EVENT)
        image.change(clear_results, None, results, **LIGHT_EVENT)
        image.clear(lambda: "", None, about, **LIGHT_EVENT)
        uploaded = image.upload(on_upload, image, about, **MODEL_EVENT)
        uploaded.failure(lambda: (None, ""), None, [image, about], **LIGHT_EVENT)
        triggers = [find.click, phrases.submit]
        gr.on(triggers, on_ask, [image, phrases, threshold], results, scroll_to_output=True, **MODEL_EVENT)
    return blocks.queue(max_size=limits.waiting, api_open=False, default_concurrency_limit=1)


def _asked(question: Question | None) -> Question:
    """Return the question that the page keeps, unless it is too old."""
    if question is None:
        raise UsageError("The answer is no longer on the server. Press Find again.")
    return question


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
