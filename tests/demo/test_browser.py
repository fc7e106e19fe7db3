"""`refseg demo` as a running server, with requests from a program and from headless Chromium."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refseg.inference.inferencer import ReferringInferencer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed (the extra demo)"),
]

MODEL = "instalign_tiny_refshapes"
PATIENCE = 20_000  # milliseconds that a busy machine may take


@dataclass
class Phrases:
    """Two phrases about the first image: one that the model finds, and one that it rejects."""

    found: str
    nothing: str
    no_target_threshold: float


@pytest.fixture(scope="module")
def phrases(work_dir: Callable[[str], Path], refshapes_images: list[str]) -> Phrases:
    """Phrases on both sides of a threshold. Random weights give every phrase a mask and some no-target probability."""
    inferencer = ReferringInferencer(work_dir(MODEL), device="cpu", postprocess={"no_target": "none"})
    answer = inferencer(refshapes_images[0], ["the red circle", "all <b>squares</b>"])
    found, nothing = sorted(answer, key=lambda phrase: phrase.no_target_prob)
    assert found.mask.any() and nothing.no_target_prob - found.no_target_prob > 0.002
    return Phrases(found.text, nothing.text, (found.no_target_prob + nothing.no_target_prob) / 2)


@dataclass
class Server:
    url: str
    files: Path
    process: subprocess.Popen


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def server(
    work_dir: Callable[[str], Path], phrases: Phrases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with InstAlign and the test images of RefShapes."""
    no_target = f"model.postprocess.no_target_threshold={phrases.no_target_threshold}"
    options = ["--cfg-options", no_target, "model.postprocess.instance_threshold=0"]
    with serving(work_dir(MODEL), tmp_path_factory.mktemp("tmp"), "--max-upload", "1", *options) as started:
        yield started


@contextmanager
def serving(model: Path, temporary: Path, *options: str) -> Iterator[Server]:
    """Run `refseg demo`, and stop it with SIGTERM as a service manager does."""
    port = free_port()
    command = [sys.executable, "-m", "refseg.cli", "demo", str(model), "--device", "cpu", "--port", str(port), *options]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TMPDIR": str(temporary),
        "OMP_NUM_THREADS": "1",
    }
    environment |= {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}  # nothing listens there
    log = temporary / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, cwd=temporary)
    try:
        end = time.monotonic() + 300  # loading may take long on a busy machine
        while f"open http://127.0.0.1:{port}/" not in log.read_text():
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        (files,) = temporary.glob("refseg-demo-*")
        yield Server(f"http://127.0.0.1:{port}", files, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
        assert not files.exists(), "uploads are still there"
    finally:
        process.kill()


# Requests from a program ----------------------------------------------------------------------------------------------


def fetch(url: str, content: Any = None, **headers: str) -> tuple[int, bytes]:
    body = content if content is None or isinstance(content, bytes) else json.dumps(content).encode()
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    kind = {"Content-Type": "application/json"} if body is not None else {}
    try:
        with direct.open(urllib.request.Request(url, body, kind | headers), timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_page_needs_no_other_server(server: Server) -> None:
    """The theme uses system fonts, and analytics are off."""
    config = json.loads(fetch(f"{server.url}/config")[1])
    assert config["analytics_enabled"] is False
    style = fetch(f"{server.url}/theme.css")[1]
    assert not any(word in style for word in (b"@import", b"@font-face", b"url(http", b"url('http", b'url("http'))


def test_other_files_are_neither_served_nor_read(server: Server) -> None:
    (example,) = (server.files / "examples/0").glob("*.png")
    status, content = fetch(f"{server.url}/gradio_api/file={example}")
    assert (status, content) == (200, example.read_bytes())
    for path in ("/etc/passwd", f"{server.files}/../log", "http://example.org/a.png"):
        assert fetch(f"{server.url}/gradio_api/file={path}")[0] == 403
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, "a square", 0.5]
        assert fetch(f"{server.url}/gradio_api/queue/join", dict(data=data, fn_index=0, session_hash="x"))[0] == 403


def test_queue_cannot_be_bypassed(server: Server) -> None:
    config = json.loads(fetch(f"{server.url}/config")[1])
    (asking,) = (one["id"] for one in config["dependencies"] if len(one["inputs"]) == 3)
    content = dict(data=[None, "a square", 0.5], fn_index=asking, session_hash="x")
    assert fetch(f"{server.url}/gradio_api/run/predict", content)[0] != 200
    assert fetch(f"{server.url}/gradio_api/call/on_ask", content)[0] == 404


def test_clients_behind_a_trusted_proxy(server: Server) -> None:
    """The limit of 30 per minute applies to each address that a local proxy forwards. The uploads are empty."""

    def status(address: str) -> int:
        return fetch(f"{server.url}/gradio_api/upload", b"", **{"X-Forwarded-For": address})[0]

    assert all(status("192.0.2.1") == 400 for _ in range(30))
    assert (status("192.0.2.1"), status("192.0.2.2")) == (429, 400)


def test_old_files_are_deleted_under_load(work_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """Files are kept for 1.2 s. Uploads and their folders are deleted while requests arrive, and the examples stay."""
    with serving(work_dir(MODEL), tmp_path, "--keep-minutes", "0.02", "--per-minute", "1000") as server:
        examples = set((server.files / "examples").rglob("*"))
        assert examples
        content = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\na\r\n--x--\r\n'
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        for _ in range(60):
            status, answer = fetch(f"{server.url}/gradio_api/upload", content, **kind)
            assert status == 200
        (uploaded,) = json.loads(answer)
        end = time.monotonic() + 60
        while Path(uploaded).parent.exists():
            assert time.monotonic() < end, "uploads are still there"
            time.sleep(0.2)
        assert examples <= set(server.files.rglob("*"))


# In a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements/dev.txt)")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        pytest.skip(f"Chromium is not installed (tried {', '.join(names)})")
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=chromium, args=[*as_root, "--disable-dev-shm-usage"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """Load the page. At the end, check that no script failed and that it contacted no other server."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(PATIENCE)
    trouble: list[str] = []
    opened.on("pageerror", lambda error: trouble.append(str(error)))
    opened.on(
        "request",
        lambda request: None if request.url.startswith((server.url, "data:", "blob:")) else trouble.append(request.url),
    )
    opened.goto(server.url)
    opened.wait_for_selector("#ask")
    yield opened
    opened.close()
    assert trouble == []


def upload(page: Any, file: Path) -> None:
    page.set_input_files("#image input[type=file]", file)


def ask(page: Any, texts: str, threshold: str) -> None:
    page.fill("#phrases textarea", texts)
    page.fill("#threshold input[type=number]", threshold)
    page.press("#threshold input[type=number]", "Tab")
    page.click("#ask")


def test_upload_and_ask(page: Any, phrases: Phrases, refshapes_images: list[str]) -> None:
    """Upload an image, ask about two phrases, download the masks (one is empty), and change the threshold."""
    upload(page, Path(refshapes_images[0]))
    page.wait_for_selector("#about >> text=96 x 96 pixels")
    ask(page, f"{phrases.found}\n{phrases.nothing}", "0.1")
    page.wait_for_selector("#answers article >> nth=1")
    found, nothing = page.query_selector_all("#answers article")
    assert found.query_selector("h3 bdi") and phrases.found.split()[0] in found.query_selector("h3").inner_text()
    assert nothing.query_selector("h3").inner_text() == f"\u201c{phrases.nothing}\u201d"
    assert not nothing.query_selector("img"), "an empty answer has no picture"
    assert "of the image, score" in found.inner_text()
    assert not found.query_selector("td"), "words of objects, which are unmeasured"
    assert "Nothing here: no-target probability" in nothing.query_selector(".nothing").inner_text()
    assert page.evaluate("[...document.querySelectorAll('#answers img')].every(one => one.naturalWidth >= 320)")
    assert "the image was already encoded" in page.inner_text("#timing")

    with page.expect_download() as download:
        page.click("#masks")
    with zipfile.ZipFile(download.value.path()) as archive:
        masks = {name: np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()}
    assert {mask.shape for mask in masks.values()} == {(96, 96)}
    assert [mask.any() for name, mask in masks.items() if "object" not in name] == [True, False]
    with page.expect_download() as download:
        page.click("#json")
    answers = json.loads(Path(download.value.path()).read_text())["phrases"]
    assert [phrase["nothing_here"] for phrase in answers] == [False, True]

    before = found.inner_text()
    ask(page, phrases.found, "0.9")
    page.wait_for_function("document.querySelectorAll('#answers article').length == 1")
    assert page.inner_text("#answers article") != before


def test_example_on_a_phone(page: Any) -> None:
    """The page fits the width of a phone."""
    page.set_viewport_size({"width": 390, "height": 844})
    page.click(".gallery-item >> nth=0")
    page.wait_for_function("document.querySelector('#phrases textarea').value != ''")
    page.wait_for_selector("#image img")
    page.click("#ask")
    page.wait_for_selector("#answers article")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_error_messages(page: Any, tmp_path: Path, refshapes_images: list[str]) -> None:
    """No phrase, no image, and a file that is not an image, which the page removes."""
    page.click("#ask")
    page.wait_for_selector("text=Write at least one phrase")
    page.fill("#phrases textarea", "a dog")
    page.click("#ask")
    page.wait_for_selector("text=Upload one, or choose an example")
    (tmp_path / "bad.png").write_bytes(b"no image")
    upload(page, tmp_path / "bad.png")
    page.wait_for_selector("text=unknown format: bad.png")
    page.wait_for_selector("#image img", state="detached")
    upload(page, Path(refshapes_images[0]))
    page.wait_for_selector("#about >> text=96 x 96 pixels")


def test_clicks(
    work_dir: Callable[[str], Path], tiny_sam2: str, browser: Any, refshapes_images: list[str], tmp_path: Path
) -> None:
    """Add a point and a box to the second phrase, undo, reset, and ask for another image. Clicks are in its pixels."""
    options = ["--clicks", tiny_sam2, "--cfg-options", "model.postprocess.no_target=none"]
    with serving(work_dir(MODEL), tmp_path, *options) as server:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE)
        trouble: list[str] = []
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.goto(server.url)
        upload(page, Path(refshapes_images[0]))
        page.wait_for_selector("#about >> text=96 x 96 pixels")
        assert not page.is_visible("#clicks")
        ask(page, "the red circle\na square", "0.5")
        page.wait_for_selector("#picture img")
        assert "corrected by clicks" not in page.inner_text("#answers")

        def act(selector: str, **options: Any) -> None:
            """Click, and wait for a new picture."""
            before = page.get_attribute("#picture img", "src")
            page.click(selector, **options)
            page.wait_for_function(
                "before => document.querySelector('#picture img').getAttribute('src') != before", arg=before
            )

        def click(x: float, y: float) -> None:
            """Click on a place of the picture, in shares of its size."""
            box = page.locator("#picture img").bounding_box()
            act("#picture img", position={"x": x * box["width"], "y": y * box["height"]})

        def saved() -> list[list[dict]]:
            with page.expect_download() as download:
                page.click("#json")
            return [phrase["clicks"] for phrase in json.loads(Path(download.value.path()).read_text())["phrases"]]

        # A point on the second phrase's merged mask
        page.click("#mask input")
        act("[role=option] >> text=a square")
        click(0.25, 0.5)
        page.wait_for_selector("#answers article >> nth=1 >> text=corrected by clicks")
        first, second = saved()
        ((x, y, positive),) = second[0]["points"]
        assert first == [] and positive and abs(x - 24) <= 1 and abs(y - 48) <= 1
        # A box by two corners, the lower right one first
        page.click("#action >> text=Box")
        click(0.75, 0.75)
        click(0.5, 0.25)
        (clicks,) = saved()[1]
        assert all(abs(a - b) <= 1 for a, b in zip(clicks["box"], (48, 24, 73, 73), strict=True))
        # Undo the box, then everything
        act("#undo")
        assert saved()[1] == [{"points": [[x, y, True]], "box": None}]
        page.click("#reset")
        page.wait_for_selector("#answers >> text=corrected by clicks", state="detached")
        assert saved() == [[], []]
        # Another image hides the picture
        page.click(".gallery-item >> nth=1")
        page.wait_for_selector("#clicks", state="hidden")
        page.close()
        assert trouble == []


@pytest.fixture
def behind_nginx(work_dir: Callable[[str], Path], tmp_path: Path) -> Iterator[str]:
    """The address of the page behind nginx, configured as in the docs."""
    nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if nginx is None:
        pytest.skip("nginx is not installed")
    text = (Path(__file__).resolve().parents[2] / "docs" / "demo.md").read_text(encoding="utf-8")
    block = text[text.index("    location /refseg/ {") :].split("\n\n")[0]
    listening = free_port()
    with serving(work_dir(MODEL), tmp_path, "--root-path", "/refseg") as started:
        block = block.replace("http://127.0.0.1:7860", started.url)
        folders = "".join(
            f"{name}_temp_path {tmp_path / name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (tmp_path / "nginx.conf").write_text(
            f"user root; daemon off; pid {tmp_path}/pid; error_log {tmp_path}/errors; events {{}}\n"
            f"http {{ access_log off; {folders} server {{ listen 127.0.0.1:{listening};\n{block}\n}} }}"
        )
        with subprocess.Popen([nginx, "-c", tmp_path / "nginx.conf"], stderr=subprocess.DEVNULL) as proxy:
            try:
                end = time.monotonic() + 20
                while not (tmp_path / "pid").exists():
                    assert proxy.poll() is None and time.monotonic() < end, "nginx rejects its configuration"
                    time.sleep(0.1)
                yield f"http://127.0.0.1:{listening}/refseg/"
            finally:
                proxy.terminate()


def test_nginx_configuration_of_the_docs(behind_nginx: str, browser: Any, refshapes_images: list[str]) -> None:
    """Upload, streamed answer, download, and a file that nginx rejects as too large."""
    opened = browser.new_page()
    opened.set_default_timeout(PATIENCE)
    opened.goto(behind_nginx)
    opened.wait_for_selector("#ask")
    upload(opened, Path(refshapes_images[0]))
    opened.wait_for_selector("#about >> text=96 x 96 pixels")
    ask(opened, "the red circle", "0.5")
    opened.wait_for_selector("#answers article")
    with opened.expect_download() as download:
        opened.click("#masks")
    assert zipfile.is_zipfile(download.value.path())
    opened.close()
    assert fetch(f"{behind_nginx}gradio_api/upload", bytes(21 * 2**20))[0] == 413


def test_large_files_are_refused(page: Any, tmp_path: Path) -> None:
    """The limit of this server is 1 MB."""
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    upload(page, tmp_path / "large.png")
    page.wait_for_selector("text=/limit: 1 MB|maximum allowed size/")
