"""`refseg demo` as it runs: a server of its own, asked by a program and by a real Chromium without a window."""

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
    """Of the first image: one that the model finds, one of which it says "nothing here", and what lies between."""

    found: str
    nothing: str
    no_target_threshold: float


@pytest.fixture(scope="module")
def phrases(work_dir: Callable[[str], Path], refshapes_images: list[str]) -> Phrases:
    """Random weights find something for every phrase, with some probability or other that there is nothing."""
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
    """With InstAlign and the test images of RefShapes."""
    no_target = f"model.postprocess.no_target_threshold={phrases.no_target_threshold}"
    options = ["--cfg-options", no_target, "model.postprocess.instance_threshold=0"]
    with serving(work_dir(MODEL), tmp_path_factory.mktemp("tmp"), "--max-upload", "1", *options) as started:
        yield started


@contextmanager
def serving(model: Path, temporary: Path, *options: str) -> Iterator[Server]:
    """`refseg demo`, ended as a service manager would."""
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
        end = time.monotonic() + 90
        while f"open http://127.0.0.1:{port}/" not in log.read_text():
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        (files,) = temporary.glob("refseg-demo-*")
        yield Server(f"http://127.0.0.1:{port}", files, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
        assert not files.exists(), "uploads stay"
    finally:
        process.kill()


# Asked by a program ---------------------------------------------------------------------------------------------------


def fetch(url: str, content: Any = None, **headers: str) -> tuple[int, bytes]:
    body = content if content is None or isinstance(content, bytes) else json.dumps(content).encode()
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    kind = {"Content-Type": "application/json"} if body is not None else {}
    try:
        with direct.open(urllib.request.Request(url, body, kind | headers), timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_nothing_is_fetched_from_elsewhere(server: Server) -> None:
    """The theme's fonts are the system's, and analytics are off."""
    config = json.loads(fetch(f"{server.url}/config")[1])
    assert config["analytics_enabled"] is False
    style = fetch(f"{server.url}/theme.css")[1]
    assert not any(word in style for word in (b"@import", b"@font-face", b"url(http", b"url('http", b'url("http'))


def test_files_outside_are_neither_served_nor_read(server: Server) -> None:
    (example,) = (server.files / "examples/0").glob("*.png")
    status, content = fetch(f"{server.url}/gradio_api/file={example}")
    assert (status, content) == (200, example.read_bytes())
    for path in ("/etc/passwd", f"{server.files}/../log", "http://example.org/a.png"):
        assert fetch(f"{server.url}/gradio_api/file={path}")[0] == 403
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, "a square", 0.5]
        assert fetch(f"{server.url}/gradio_api/queue/join", dict(data=data, fn_index=0, session_hash="x"))[0] == 403


def test_the_queue_cannot_be_passed_by(server: Server) -> None:
    config = json.loads(fetch(f"{server.url}/config")[1])
    (asking,) = (one["id"] for one in config["dependencies"] if len(one["inputs"]) == 3)
    content = dict(data=[None, "a square", 0.5], fn_index=asking, session_hash="x")
    assert fetch(f"{server.url}/gradio_api/run/predict", content)[0] != 200
    assert fetch(f"{server.url}/gradio_api/call/asked", content)[0] == 404


def test_a_proxys_word_counts_for_who_asks(server: Server) -> None:
    """30 a minute of each address that a proxy on this machine names. The uploads have no content."""

    def status(address: str) -> int:
        return fetch(f"{server.url}/gradio_api/upload", b"", **{"X-Forwarded-For": address})[0]

    assert all(status("192.0.2.1") == 400 for _ in range(30))
    assert (status("192.0.2.1"), status("192.0.2.2")) == (429, 400)


def test_old_files_go_while_requests_come(work_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """Files are kept for 1.2 s. Gradio's own cleanup ends with the first change of a set that it walks over; here,
    whatever was uploaded goes, folders and Gradio's notes of it too, and the examples stay."""
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
            assert time.monotonic() < end, "uploads stay"
            time.sleep(0.2)
        assert examples <= set(server.files.rglob("*"))


# In a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements/dev.txt)")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        pytest.skip(f"no Chromium here: none of {', '.join(names)}")
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=chromium, args=[*as_root, "--disable-dev-shm-usage"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The page, loaded; at the end, no script of it may have failed, and none asked another server."""
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


def test_phrases_about_an_upload(page: Any, phrases: Phrases, refshapes_images: list[str]) -> None:
    """Upload, two phrases, masks on the page and in the zip, one of them empty; then another threshold."""
    upload(page, Path(refshapes_images[0]))
    page.wait_for_selector("#about >> text=96 x 96 pixels")
    ask(page, f"{phrases.found}\n{phrases.nothing}", "0.1")
    page.wait_for_selector("#answers article >> nth=1")
    found, nothing = page.query_selector_all("#answers article")
    assert found.query_selector("h3 bdi") and phrases.found.split()[0] in found.query_selector("h3").inner_text()
    assert nothing.query_selector("h3").inner_text() == f"\u201c{phrases.nothing}\u201d"
    assert not nothing.query_selector("img"), "there is nothing to be seen"
    assert "of the image, score" in found.inner_text()
    assert not found.query_selector("td"), "words of objects, which nobody measured"
    assert "Nothing here: no-target probability" in nothing.query_selector(".nothing").inner_text()
    assert page.evaluate("[...document.querySelectorAll('#answers img')].every(one => one.naturalWidth >= 320)")
    assert "the image was encoded before" in page.inner_text("#timing")

    with page.expect_download() as download:
        page.click("#masks")
    with zipfile.ZipFile(download.value.path()) as archive:
        masks = {name: np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()}
    assert {mask.shape for mask in masks.values()} == {(96, 96)}
    assert [mask.any() for name, mask in masks.items() if "object" not in name] == [True, False]
    with page.expect_download() as download:
        page.click("#json")
    told = json.loads(Path(download.value.path()).read_text())["phrases"]
    assert [phrase["nothing_here"] for phrase in told] == [False, True]

    before = found.inner_text()
    ask(page, phrases.found, "0.9")
    page.wait_for_function("document.querySelectorAll('#answers article').length == 1")
    assert page.inner_text("#answers article") != before


def test_an_example_on_a_phone(page: Any) -> None:
    """The whole page fits the width of a phone."""
    page.set_viewport_size({"width": 390, "height": 844})
    page.click(".gallery-item >> nth=0")
    page.wait_for_function("document.querySelector('#phrases textarea').value != ''")
    page.wait_for_selector("#image img")
    page.click("#ask")
    page.wait_for_selector("#answers article")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_mistakes_are_told(page: Any, tmp_path: Path, refshapes_images: list[str]) -> None:
    """No image; a file that is none, which the page lets go of; no phrase."""
    page.click("#ask")
    page.wait_for_selector("text=There is no phrase yet")
    page.fill("#phrases textarea", "a dog")
    page.click("#ask")
    page.wait_for_selector("text=There is no image yet")
    (tmp_path / "bad.png").write_bytes(b"no image")
    upload(page, tmp_path / "bad.png")
    page.wait_for_selector("text=bad.png is no image that can be read")
    page.wait_for_selector("#image img", state="detached")
    upload(page, Path(refshapes_images[0]))
    page.wait_for_selector("#about >> text=96 x 96 pixels")


@pytest.fixture
def behind_nginx(work_dir: Callable[[str], Path], tmp_path: Path) -> Iterator[str]:
    """The page's address behind nginx, with the block that the docs have."""
    nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if nginx is None:
        pytest.skip("no nginx here")
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
                    assert proxy.poll() is None and time.monotonic() < end, "nginx does not take the block"
                    time.sleep(0.1)
                yield f"http://127.0.0.1:{listening}/refseg/"
            finally:
                proxy.terminate()


def test_behind_nginx_as_the_docs_have_it(behind_nginx: str, browser: Any, refshapes_images: list[str]) -> None:
    """An upload, an answer as a stream, a download, and a file that nginx refuses."""
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
    """1 MB is the limit of this server."""
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    upload(page, tmp_path / "large.png")
    page.wait_for_selector("text=/at most 1 MB|maximum allowed size/")
