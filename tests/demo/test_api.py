"""The HTTP API of `refseg serve` with a real model: answers, sessions, limits, Label Studio, and its own schema."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="FastAPI is not installed (the extra demo)")

import uvicorn
from starlette.testclient import TestClient

from refseg.cli.serve import listen
from refseg.datasets.masks import decode
from refseg.demo import label_studio
from refseg.demo.api import Service, build
from refseg.demo.label_studio import ImageSources
from refseg.demo.limits import Limits
from refseg.inference.exports import decode_brush
from refseg.inference.inferencer import ReferringInferencer

LIMITS = Limits(per_minute=10_000, upload_mb=1, megapixels=1, kept_images=3)
PHRASES = ["the red circle", "a square"]


@pytest.fixture(scope="module")
def inferencer(work_dir: Callable[[str], Path]) -> ReferringInferencer:
    """InstAlign, with every query as an instance, because random weights might find none."""
    options = {"instance_threshold": 0.0, "no_target": "none"}
    return ReferringInferencer(work_dir("instalign_tiny_refshapes"), device="cpu", postprocess=options)


@pytest.fixture
def service(inferencer: ReferringInferencer, refshapes_images: list[str]) -> Service:
    return Service(inferencer, LIMITS, ImageSources([Path(refshapes_images[0]).parent]))


@pytest.fixture
def client(service: Service) -> TestClient:
    return TestClient(build(service))


@pytest.fixture
def image(refshapes_images: list[str]) -> bytes:
    return Path(refshapes_images[0]).read_bytes()


@pytest.fixture
def encodings(inferencer: ReferringInferencer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one with each encoded image."""
    counted: list[int] = []
    encode = inferencer.encode

    def counting(batch: object) -> object:
        counted.append(1)
        return encode(batch)

    monkeypatch.setattr(inferencer, "encode", counting)
    return counted


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


class TestSegment:
    def test_further_phrases_cost_only_the_decoder(
        self, client: TestClient, image: bytes, encodings: list[int]
    ) -> None:
        """A form, JSON with the same image, and JSON with its id: one encoding. Another image is the second one."""
        encodings.clear()
        form = client.post("/segment", files={"image": ("a.png", image)}, data={"phrases": PHRASES}).json()
        same = client.post("/segment", json={"image": base64_of(image), "phrases": PHRASES}).json()
        by_id = client.post("/segment", json={"image_id": form["image_id"], "phrases": ["all stars"]}).json()
        assert len(encodings) == 1
        assert (form["encoded"], same["encoded"], by_id["encoded"]) == (True, False, False)
        assert form["image_id"] == by_id["image_id"] == hashlib.sha256(image).hexdigest()
        assert form["phrases"] == same["phrases"] and len(by_id["phrases"]) == 1
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32)).save(buffer, "PNG")
        client.post("/segment", json={"image": base64_of(buffer.getvalue()), "phrases": ["a"]})
        assert len(encodings) == 2

    def test_same_answers_as_the_inferencer(
        self, client: TestClient, image: bytes, inferencer: ReferringInferencer, refshapes_images: list[str]
    ) -> None:
        body = {"image": f"data:image/png;base64,{base64_of(image)}", "phrases": PHRASES, "threshold": 0.4}
        found = client.post("/segment?masks=png", json=body).json()
        expected = inferencer(refshapes_images[0], PHRASES, postprocess={"threshold": 0.4, "max_instances": 20})
        for got, wanted in zip(found["phrases"], expected, strict=True):
            assert np.array_equal(decode(got["mask"]), wanted.mask) and got["text"] == wanted.text
            png = np.asarray(Image.open(io.BytesIO(base64.b64decode(got["mask_png"]))))
            assert np.array_equal(png, wanted.mask)
            assert len(got["instances"]) == len(wanted.instances) > 0
            for one, instance in zip(got["instances"], wanted.instances, strict=True):
                assert np.array_equal(decode(one["mask"]), instance.mask)
                assert tuple(one["box"]) == instance.box and one["score"] == instance.score

    def test_masks_have_the_size_of_the_image(self, inferencer: ReferringInferencer) -> None:
        """The model gets an image of a hundredth of the pixels. The masks have all of them."""
        buffer = io.BytesIO()
        Image.effect_noise((400, 200), 90).save(buffer, "PNG")
        client = TestClient(build(Service(inferencer, Limits(answered_megapixels=0.0008))))
        found = client.post("/segment", files={"image": buffer.getvalue()}, data={"phrases": "a square"}).json()
        masks = [found["phrases"][0], *found["phrases"][0]["instances"]]
        assert found["size"] == [200, 400] and all(one["mask"]["size"] == [200, 400] for one in masks)

    def test_repeated_phrases_and_lines(self, client: TestClient, image: bytes) -> None:
        sent = {"phrases": ["a  square\na square", "all\tstars"]}
        found = client.post("/segment", files={"image": image}, data=sent).json()
        assert [phrase["text"] for phrase in found["phrases"]] == ["a square", "a square", "all stars"]

    def test_nothing_is_here(self, work_dir: Callable[[str], Path], image: bytes) -> None:
        certain = {"no_target": "head", "no_target_threshold": 0.0}
        service = Service(
            ReferringInferencer(work_dir("instalign_tiny_refshapes"), device="cpu", postprocess=certain), LIMITS
        )
        answer = TestClient(build(service)).post("/segment", files={"image": image}, data={"phrases": "a dragon"})
        (phrase,) = answer.json()["phrases"]
        assert phrase["nothing_here"] and phrase["reason"] and 0 < phrase["no_target_prob"] <= 1
        assert phrase["unknown_words"] == ["dragon"] and phrase["instances"] == [] and phrase["score"] == 0
        assert not decode(phrase["mask"]).any()

    @pytest.mark.parametrize(
        ("changes", "status", "says"),
        [
            ({"image": None}, 422, "either image or image_id"),
            ({"image_id": "0" * 64}, 422, "either image or image_id"),
            ({"image": None, "image_id": "0" * 64}, 404, "Send the image again"),
            ({"image": None, "image_id": "../a"}, 422, "image_id"),
            ({"image": "%%%"}, 422, "not valid base64"),
            ({"image": "data:image/png,x"}, 422, "data:image/png;base64"),
            ({"image": base64_of(b"hello")}, 422, "Supported formats: JPEG, PNG"),
            ({"image": base64_of(bytes(2**20 + 1))}, 413, "limit: 1 MB"),
            ({"image": base64_of(bytes(3 * 2**20))}, 413, "limit: an image of 1 MB"),
            ({"phrases": []}, 422, "phrases"),
            ({"phrases": ["a", " \0"]}, 422, "Phrase 1 is empty"),
            ({"phrases": ["a"] * 17}, 422, "Too many phrases: 17 (limit: 16)"),
            ({"phrases": ["a" * 201]}, 422, "201 characters (limit: 200)"),
            ({"threshold": 1}, 422, "threshold"),
            ({"treshold": 0.5}, 422, "treshold"),
        ],
    )
    def test_errors_in_json(
        self, client: TestClient, image: bytes, changes: dict[str, Any], status: int, says: str
    ) -> None:
        response = client.post("/segment", json={"image": base64_of(image), "phrases": ["a"], **changes})
        assert response.status_code == status and says in response.json()["detail"]

    @pytest.mark.parametrize(
        ("content", "kind", "status"),
        [
            (b"{", "application/json", 422),
            (b"[" * 100_000, "application/json", 422),
            (b'{"phrases": ["a"], "image": "a", "threshold": NaN}', "application/json", 422),
            (b'{"phrases": ["\\ud800"], "image": "a"}', "application/json", 422),
            (b"\xff", "application/json; charset=utf-8", 422),
            (b"{}", "text/plain", 415),
            (b"x", "multipart/form-data", 400),
            (b"x", "multipart/form-data; boundary=a", 400),
        ],
    )
    def test_broken_bodies(self, client: TestClient, content: bytes, kind: str, status: int) -> None:
        response = client.post("/segment", content=content, headers={"content-type": kind})
        assert response.status_code == status and set(response.json()) == {"detail"}

    def test_errors_in_forms(self, client: TestClient, image: bytes) -> None:
        def status(data: dict[str, Any], files: Any) -> int:
            return client.post("/segment", data=data, files=files).status_code

        assert status({"phrases": "a", "threshold": "x"}, {"image": image}) == 422
        assert status({"phrases": "a", "image": "x"}, {"other": image}) == 422
        assert status({"phrases": "a"}, [("image", image), ("image", image)]) == 400
        assert status({"phrases": ["a"] * 100}, {"image": image}) == 400

    def test_bombs_are_not_decoded(self, client: TestClient, image: bytes) -> None:
        """The header of this PNG announces 60000 x 60000 pixels."""
        content = bytearray(image)
        content[16:24] = (60000).to_bytes(4, "big") * 2
        assert client.post("/segment", files={"image": bytes(content)}, data={"phrases": "a"}).status_code in (413, 422)


def test_model_and_docs(client: TestClient) -> None:
    model = client.get("/model").json()
    assert model["name"] == "instalign_tiny_refshapes" and model["version"].startswith("instalign_tiny_refshapes-")
    assert model["abilities"]["instances"] and model["abilities"]["shares_images"]
    assert model["postprocess"]["threshold"] == 0.5 and model["limits"]["upload_mb"] == 1
    assert client.get("/health").json() == {"status": "UP", "model_class": "refseg"}
    docs = client.get("/docs")
    assert "POST /segment" in docs.text and "default-src 'none'" in docs.headers["content-security-policy"]
    assert "http://" not in docs.text and "https://" not in docs.text and "<script" not in docs.text


def test_bugs_stay_on_the_server(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("secret path")

    monkeypatch.setattr(service, "model_body", broken)
    response = TestClient(build(service), raise_server_exceptions=False).get("/model")
    assert response.status_code == 500 and response.json() == {"detail": "Internal error. The server's log says more."}


def test_one_model_call_at_a_time(service: Service, image: bytes) -> None:
    """A call waits. The queue of one request is full, so the third request is refused."""
    service.limits = Limits(per_minute=100, waiting=1)
    running, release, segment = threading.Event(), threading.Event(), service.segment
    most, now = [0], [0]

    def slow(*args: Any) -> Any:
        now[0] += 1
        most[0] = max(most[0], now[0])
        running.set()
        release.wait(20)
        now[0] -= 1
        return segment(*args)

    service.segment = slow  # type: ignore[method-assign]
    statuses: list[int] = []
    with TestClient(build(service)) as client:

        def post() -> None:
            response = client.post("/segment", files={"image": image}, data={"phrases": "a"})
            statuses.append(response.status_code)

        threads = [threading.Thread(target=post) for _ in range(2)]
        threads[0].start()
        assert running.wait(20)
        threads[1].start()
        while service._num_requests < 2:
            time.sleep(0.01)
        assert client.get("/health").status_code == 200, "others are answered meanwhile"
        post()
        release.set()
        for thread in threads:
            thread.join()
    assert statuses == [503, 200, 200] and most == [1]


class TestLabelStudio:
    """Requests as Label Studio 1.x sends them."""

    LABELS = (
        '<View><Header value="x"/><Image name="img" value="$photo"/>'
        '<BrushLabels name="tag" toName="img"><Label value="a square" background="red"/>'
        '<Label value="the red circle" alias="circle"/></BrushLabels></View>'
    )
    # As `refseg data export` writes it
    AREAS = (
        '<View><Image name="image" value="$image"/><BrushLabels name="label" toName="image"><Label value="object"/>'
        '</BrushLabels><TextArea name="phrases" toName="image" perRegion="true"/>'
        '<TextArea name="negative_phrases" toName="image"/></View>'
    )

    def predict(self, client: TestClient, config: str, *data: dict[str, Any]) -> Any:
        tasks = [{"id": k, "data": one, "annotations": [], "meta": {}} for k, one in enumerate(data)]
        params = {"login": "a", "password": "b", "context": None}
        return client.post(
            "/predict", json={"tasks": tasks, "project": "1.2", "label_config": config, "params": params}
        )

    def test_connection(self, client: TestClient, service: Service) -> None:
        body = {"project": "1.2", "schema": self.LABELS, "hostname": "http://a", "access_token": "b"}
        assert client.post("/setup", json=body).json() == {"model_version": service.version}
        assert client.post("/setup", json={"schema": "<View/>"}).status_code == 422

    def test_brushes(
        self, client: TestClient, inferencer: ReferringInferencer, refshapes_images: list[str], service: Service
    ) -> None:
        name = Path(refshapes_images[0]).name
        (found,) = self.predict(client, self.LABELS, {"photo": f"/data/upload/{name}"}).json()["results"]
        wanted = inferencer(refshapes_images[0], PHRASES[::-1], postprocess={"max_instances": 20})
        expected = [(label, one) for label, phrase in zip(("a square", "circle"), wanted, strict=True)
                    for one in phrase.instances]  # fmt: skip
        assert found["model_version"] == service.version and len(found["result"]) == len(expected) > 2
        for region, (label, one) in zip(found["result"], expected, strict=True):
            assert (region["from_name"], region["to_name"], region["type"]) == ("tag", "img", "brushlabels")
            assert region["value"]["brushlabels"] == [label]
            size = region["original_height"], region["original_width"]
            assert np.array_equal(decode_brush(region["value"]["rle"], size), one.mask)
        assert found["score"] == min(region["score"] for region in found["result"])

    def test_polygons(self, client: TestClient, inferencer: ReferringInferencer, refshapes_images: list[str]) -> None:
        """Points are percentages of the image. `test_polygons_give_the_mask` draws them again."""
        config = self.LABELS.replace("BrushLabels", "PolygonLabels")
        (found,) = self.predict(client, config, {"photo": Path(refshapes_images[0]).name}).json()["results"]
        for region in found["result"]:
            points = np.array(region["value"]["points"])
            assert region["type"] == "polygonlabels" and region["value"]["closed"]
            assert points.shape[1] == 2 and 0 <= points.min() <= points.max() <= 100

    def test_phrases_of_tasks(self, client: TestClient, image: bytes) -> None:
        """They go into the text area of each region. The label is the only one of the config."""
        data = {"image": f"data:image/png;base64,{base64_of(image)}", "phrases": "a square\nall stars"}
        (found,) = self.predict(client, self.AREAS, data).json()["results"]
        brushes = [one for one in found["result"] if one["type"] == "brushlabels"]
        texts = {one["id"]: one["value"]["text"] for one in found["result"] if one["type"] == "textarea"}
        assert all(one["value"]["brushlabels"] == ["object"] for one in brushes)
        assert {one["id"] for one in brushes} == set(texts)
        assert {text for (text,) in texts.values()} == {"a square", "all stars"}
        without = self.AREAS.replace('perRegion="true"', "")
        (found,) = self.predict(client, without, data).json()["results"]
        assert found["result"][0]["meta"] == {"text": ["a square"]}
        response = self.predict(client, self.LABELS, {"photo": data["image"], "text": "a star"})
        assert response.status_code == 422 and "'a star' is not a label" in response.json()["detail"]

    def test_failed_tasks(self, client: TestClient, refshapes_images: list[str]) -> None:
        """Every task has a result, as Label Studio expects. If all fail, the request fails."""
        name = Path(refshapes_images[0]).name
        found = self.predict(client, self.LABELS, {"photo": "none.png"}, {"photo": name}).json()["results"]
        assert found[0]["result"] == [] and "No such image" in found[0]["error"]
        assert found[1]["result"] and found[1]["error"] is None
        response = self.predict(client, self.LABELS, {"photo": "none.png"})
        assert response.status_code == 422 and "No such image" in response.json()["detail"]

    @pytest.mark.parametrize(
        ("config", "says"),
        [
            ("<View", "not valid XML"),
            ('<!DOCTYPE a [<!ENTITY b "c">]><View/>', "document type"),
            ("<View/>", "no <BrushLabels> or <PolygonLabels>"),
            (LABELS.replace("$photo", "photo"), "no <BrushLabels>"),
            (LABELS.replace('toName="img"', 'toName="other"'), "no <BrushLabels>"),
            (AREAS.replace("object", ""), "No phrases"),
        ],
    )
    def test_unusable_configs(self, client: TestClient, image: bytes, config: str, says: str) -> None:
        source = f"data:image/png;base64,{base64_of(image)}"
        response = self.predict(client, config, {"image": source, "photo": source})
        assert response.status_code == 422 and says in response.json()["detail"]

    @pytest.mark.parametrize(
        ("source", "says"),
        [
            (None, "has no image"),
            (7, "has no image"),
            ("http://127.0.0.1/a.png", "needs --allow-url"),
            ("../refshapes.jsonl", "No such image"),
            ("/data/local-files/?d=../refshapes.jsonl", "No such image"),
            ("/data/local-files/?d=%2Fetc%2Fpasswd", "No such image"),
            ("%2e%2e/refshapes.jsonl", "No such image"),
            ("/etc/passwd", "No such image"),
            ("file:///etc/passwd", "No such image"),
            ("http:/[", "No such image"),
            ("\0", "No such image"),
            ("a" * 5000, "No such image"),
            ("", "has no image"),
        ],
    )
    def test_other_files_are_refused(self, client: TestClient, source: Any, says: str) -> None:
        response = self.predict(client, self.LABELS, {"photo": source})
        assert response.status_code == 422 and says in response.json()["detail"]

    def test_addresses_of_this_machine_are_refused(self, inferencer: ReferringInferencer) -> None:
        client = TestClient(build(Service(inferencer, LIMITS, ImageSources(allow_url=True))))
        response = self.predict(client, self.LABELS, {"photo": "http://localhost:1/a.png"})
        assert response.status_code == 422 and "not a public address" in response.json()["detail"]

    def test_corrected_predictions_come_back_by_data_import(
        self, client: TestClient, service: Service, refshapes_images: list[str], tmp_path: Path
    ) -> None:
        """Serve -> Label Studio's export of a submitted prediction -> `refseg data import` -> the same masks."""
        from refseg.cli import main

        name = Path(refshapes_images[0]).name
        data = {"image": f"/data/upload/{name}", "phrases": ["a square"]}
        (found,) = self.predict(client, self.AREAS, data).json()["results"]
        export = tmp_path / "export.json"
        export.write_text(json.dumps([{"id": 1, "data": data, "annotations": [{"result": found["result"]}]}]))
        images = str(Path(refshapes_images[0]).parent)
        out = tmp_path / "data.jsonl"
        command = ["data", "import", str(export), "--format", "label-studio", "--images", images, "--out", str(out)]
        assert main(command) == 0
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert {row["text"] for row in rows} == {"a square"}
        brushes = [one for one in found["result"] if one["type"] == "brushlabels"]
        masks = np.array([decode_brush(one["value"]["rle"], (one["original_height"], one["original_width"]))
                          for one in brushes])  # fmt: skip
        asked = service.segment(Path(refshapes_images[0]).read_bytes(), ("a square",), None)
        assert np.array_equal(masks, [one.mask for one in asked.answer[0].instances])


def test_names_agree_with_data_import() -> None:
    from refseg.data_tools.conversion import NEGATIVES

    assert label_studio.NEGATIVES == NEGATIVES


@pytest.fixture(scope="module")
def address(inferencer: ReferringInferencer) -> Iterator[str]:
    """A real server in a thread."""
    app = build(Service(inferencer, Limits(per_minute=10_000, upload_mb=0.1)))
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)


def test_real_client(address: str, image: bytes) -> None:
    import requests

    found = requests.post(f"{address}/segment", files={"image": image}, data={"phrases": PHRASES}, timeout=60)
    assert found.status_code == 200 and len(found.json()["phrases"]) == 2
    body = {"image_id": found.json()["image_id"], "phrases": ["a star"]}
    assert not requests.post(f"{address}/segment", json=body, timeout=60).json()["encoded"]
    # The answer to a large request arrives, whether its length is announced or not
    large = bytes(2**20)
    for content in (large, iter([large])):
        assert requests.post(f"{address}/segment", data=content, timeout=60).status_code == 413


def test_own_schema(address: str) -> None:
    """Schemathesis sends right and wrong requests of each operation. Answers must match the schema.

    A right request may still be refused, because a random text is rarely an image.
    """
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings
    from schemathesis.checks import load_all_checks
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    load_all_checks()
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    operations = [one.ok() for one in schema.get_all_operations()]
    assert {one.path for one in operations} == {"/segment", "/health", "/model", "/setup", "/predict"}
    statuses: set[int] = set()
    for operation in operations:
        for mode in schemathesis.GenerationMode:
            if mode.name == "NEGATIVE" and operation.path in ("/health", "/model"):
                continue  # nothing in these requests can be wrong

            @settings(max_examples=10, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def run(case: Any) -> None:
                response = case.call_and_validate(excluded_checks=[positive_data_acceptance])
                statuses.add(response.status_code)

            run()
    assert {200, 422} <= statuses
