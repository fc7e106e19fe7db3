"""Predict masks for many images and phrases into one folder, in one or several processes. A run that was killed can be
continued."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from refseg.datasets.tokenizers import UnknownWords
from refseg.errors import DataError, UsageError
from refseg.evaluation.prediction_file import row_to_json
from refseg.files import write_atomically
from refseg.inference.exports import write_coco, write_labelstudio
from refseg.inference.inferencer import ReferringInferencer, Task
from refseg.inference.inputs import ImageInput, check_phrases, find_images, is_url, pair_phrases
from refseg.inference.journal import Journal, Shards, lines_of
from refseg.inference.results import ImageAnswer, picture_png
from refseg.terminal import printable
from refseg.weights import describe_weights

SOME_FAILED = 3  # exit code if some images could not be read, and the others were answered
FORMATS = ("coco", "labelstudio", "masks")
JOURNAL = "predictions.jsonl"
PARTS = f"{JOURNAL}.parts"  # folder of the journals of several processes, as `refseg label` names it
NOT_IN_NAMES = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, slots=True)
class ImageTask:
    """The phrases of one image, and their ids in files."""

    image: str
    texts: tuple[str, ...]
    ids: tuple[str, ...]


# Tasks ---------------------------------------------------------------------------------------------------------------


def tasks_of(images: Iterable[str], texts: Iterable[str], jsonl: str | None) -> list[ImageTask]:
    """Read the tasks from the options or from a JSONL file. An image that is named twice gets all its phrases."""
    images, texts = list(images), list(texts)
    if jsonl is not None:
        if images or texts:
            raise UsageError("--jsonl already names images and phrases: leave out --image and --text.")
        return _merged(read_jsonl(jsonl))
    if not images or not texts:
        raise UsageError("Nothing to predict. Pass --image and --text, or --jsonl.")
    found = list(dict.fromkeys(one.name for one in find_images(images)[0]))
    return _merged((name, text, None) for name, of_image in zip(found, pair_phrases(texts, len(found)), strict=True)
                   for text in of_image)  # fmt: skip


def read_jsonl(file: str) -> Iterable[tuple[str, str, str | None]]:
    """Yield image, phrase and id from lines {"image", "texts"} or {"image", "text", "expression_id"}.

    Other keys are ignored, so that the file of a data set works too. Paths are relative to the file. Phrases without an
    id get that of `refseg.datasets.readers.jsonl`.
    """
    folder = Path(file).parent
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error})") from None
    count: Counter[str] = Counter()  # phrases of each image so far
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{file}, line {number}: "
        try:
            row = json.loads(line)
            image = row["image"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f'{place}expected {{"image": path, "texts": [phrase, ...]}}.') from None
        if not isinstance(image, str) or ("text" in row) == ("texts" in row):
            raise DataError(f"{place}'image' must be a path, together with exactly one of 'text' or 'texts'.")
        name = image if is_url(image) else os.path.normpath(folder / image)
        for text in check_phrases([row["text"]] if "text" in row else row["texts"], place):
            expression_id = f"{image}:{count[image]}" if row.get("expression_id") is None else str(row["expression_id"])
            count[image] += 1
            yield name, text, expression_id


def _merged(rows: Iterable[tuple[str, str, str | None]]) -> list[ImageTask]:
    of_image: dict[str, list[tuple[str, str | None]]] = {}
    for image, text, expression_id in rows:
        of_image.setdefault(image, []).append((text, expression_id))
    tasks = []
    for image, phrases in of_image.items():
        ids = tuple(given or f"{image}#{k}" for k, (_, given) in enumerate(phrases))
        tasks.append(ImageTask(image, tuple(text for text, _ in phrases), ids))
    twice = [name for name, count in Counter(name for task in tasks for name in task.ids).items() if count > 1]
    if twice:
        raise DataError(f"Expression ids must be unique, but {len(twice)} have several phrases, such as {twice[0]!r}.")
    return tasks


def output_names(images: Iterable[str]) -> dict[str, str]:
    """Name the files of each image: its name without the suffix, with a hash of its path if two names are equal."""
    names = {image: in_file_name(Path(image).stem, 80) or "image" for image in images}
    count = Counter(name.lower() for name in names.values())
    return {
        image: name if count[name.lower()] == 1 else f"{name}-{hashlib.sha256(image.encode()).hexdigest()[:8]}"
        for image, name in names.items()
    }


# Run ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Output:
    """Files that a run writes.

    Args:
        folder: Folder for the answers; None writes no files.
        formats: Files besides the prediction file: "coco", "labelstudio", "masks".
        show: Draw pictures.
        heat: Draw heat maps of each phrase.
        image_prefix: Prefix of images in labelstudio.json.
    """

    folder: Path | None
    formats: frozenset[str] = frozenset()
    show: bool = False
    heat: bool = False
    image_prefix: str = ""

    def files_of(self, task: ImageTask, name: str) -> list[Path]:
        """Return the files that belong to this image alone."""
        if self.folder is None:
            return []
        masks = phrase_files(self.folder / "masks" / name, task.texts) if "masks" in self.formats else []
        pictures = [self.folder / "pictures" / f"{name}.png"] if self.show else []
        return masks + pictures + (phrase_files(self.folder / "heat" / name, task.texts) if self.heat else [])


def phrase_files(folder: Path, texts: Iterable[str]) -> list[Path]:
    return [folder / f"{k}_{in_file_name(text, 60)}.png" for k, text in enumerate(texts)]


def in_file_name(text: str, most: int) -> str:
    """Keep the characters that are safe in file names, at most so many bytes: file systems count bytes."""
    return NOT_IN_NAMES.sub("_", text).strip("._").encode("utf-8", "ignore")[:most].decode("utf-8", "ignore")


def rows_of_answer(answer: ImageAnswer, ids: Iterable[str]) -> list[dict[str, Any]]:
    """Return the rows of the prediction file for an image, with notes for people."""
    rows = []
    for expression_id, phrase in zip(ids, answer, strict=True):
        row = row_to_json(replace(phrase, expression_id=expression_id))
        notes = {"image": answer.name, "text": phrase.text, "nothing_here": phrase.nothing_here}
        if phrase.nothing_here:
            notes["reason"] = phrase.reason
        if phrase.unknown_words:
            notes["unknown_words"] = list(phrase.unknown_words)
        if answer.note:
            notes["note"] = answer.note
        written = [one for one in phrase.raw_instances or () if one.mask.any()]
        if len(phrase.instances) < len(written):
            notes["shown"] = [k for k, one in enumerate(written) if one in phrase.instances]
        rows.append({"expression_id": expression_id, **notes, "score": round(phrase.score, 4), **row})
    return rows


def counted(number: int, what: str) -> str:
    """Return a number with its noun, such as "1 image" or "2 images"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


@dataclass(slots=True)
class Summary:
    """Counts of a run.

    Args:
        failures: Images that could not be read, and why.
        merged: Whether this process wrote the rows of several.
    """

    images: int = 0
    phrases: int = 0
    nothing: int = 0
    cut: int = 0
    kept: int = 0
    noted: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    merged: bool = False
    unknown: UnknownWords = field(default_factory=UnknownWords)

    def count(self, answer: ImageAnswer) -> None:
        """Add the answers of one image."""
        self.images += 1
        self.phrases += len(answer)
        self.nothing += sum(phrase.nothing_here for phrase in answer)
        self.cut += answer.num_cut
        self.noted += bool(answer.note)
        self.unknown.count(phrase.unknown_words for phrase in answer)

    def in_words(self, seconds: float) -> str:
        parts = [
            f"{counted(self.images, 'image')}, {counted(self.phrases, 'phrase')} ({self.nothing} of them: nothing "
            f"here) in {seconds:.1f} s"
        ]
        if self.kept:
            parts.append(f"{counted(self.kept, 'image')} done before")
        if self.cut:
            parts.append(f"{counted(self.cut, 'phrase')} longer than the model reads, and cut")
        if self.unknown.phrases:
            known = f"{counted(self.unknown.phrases, 'phrase')} with words that the model does not know"
            parts.append(f"{known}: {self.unknown.listed()}")
        if self.noted:
            parts.append(f"{counted(self.noted, 'image')} unlike those that the model knows: do not trust the answers")
        if self.failures:
            parts.append(f"{counted(len(self.failures), 'image')} could not be read")
        return "; ".join(parts)


def predict(
    inferencer: ReferringInferencer,
    tasks: list[ImageTask],
    output: Output,
    *,
    header: Mapping[str, Any] | None = None,
    restart: bool = False,
    max_failures: int = 100,
    rank: int = 0,
    world_size: int = 1,
) -> Summary:
    """Answer the tasks that are not answered yet.

    Of several processes, each answers every n-th image, one by one, and the last one to finish writes the rows of all,
    in the order of the tasks: for any number of processes above one, the same bytes.

    Args:
        inferencer: The model.
        tasks: Images with their phrases.
        output: Files to write.
        header: Everything that the answers depend on (`header_of`).
        restart: Start over, without the answers that are there.
        max_failures: Stop with an error after more unreadable images than this. Answers so far are kept.
        rank: Number of this process.
        world_size: Number of processes.

    Returns:
        Counts of this process.
    """
    folder = output.folder
    by_name = {task.image: task for task in tasks}
    names = output_names(by_name)
    summary = Summary()
    facts: dict[str, Any] = {"header": dict(header or {}), "tasks": {task.image: task.texts for task in tasks}}
    with ExitStack() as stack:
        # The journal, and the images that are in it or in those of other processes
        journal: Journal | None = None
        shards: Shards | None = None
        done: Collection[str] = ()
        if folder is not None:
            if restart:
                shutil.rmtree(folder / PARTS, ignore_errors=True)
            if world_size > 1 or (folder / PARTS).is_dir():  # from a run of several processes
                remedy = f"use another --out, or delete {folder} to start over"
                whose: dict[str, Any] = dict(rank=rank, world_size=world_size, merged=folder / JOURNAL)
                shards = Shards(folder / PARTS, **facts, remedy=remedy, **whose)
                done = shards.answered()
                journal = stack.enter_context(shards.open(summary.failures))
            else:
                journal = stack.enter_context(Journal(folder / JOURNAL, **facts, restart=restart))
                done = journal.done

        # An image is done if its rows and files are there
        todo: list[Task] = []
        for task in tasks[rank::world_size]:
            if task.image in done and all(file.is_file() for file in output.files_of(task, names[task.image])):
                summary.kept += 1
            else:
                todo.append((ImageInput(task.image, task.image), task.texts))

        hidden = True if rank else None  # one progress bar, of the first process
        with tqdm(total=len(todo), desc="predict", unit="image", disable=hidden, dynamic_ncols=True) as bar:

            def failed(source: ImageInput, error: DataError) -> None:
                summary.failures[source.name] = str(error)
                bar.update()
                bar.write(f"skipped: {error}", file=sys.stderr)
                if len(summary.failures) > max_failures:
                    raise DataError(f"Stopped: more than {max_failures} images could not be read (--max-failures).")

            for answer in inferencer.stream(todo, failed=failed, one_by_one=shards is not None):
                if journal is None:
                    for phrase in answer:
                        line = f"{answer.name}: \u201c{phrase.text}\u201d: {phrase.in_words}"
                        bar.write(printable(line), file=sys.stdout)
                    if answer.note:
                        bar.write(printable(f"note: {answer.name}: {answer.note}"), file=sys.stderr)
                else:
                    write_files(answer, output, by_name[answer.name], names[answer.name])
                    if answer.name not in done:
                        journal.write(rows_of_answer(answer, by_name[answer.name].ids))
                summary.count(answer)
                bar.update()
        if journal is not None and shards is None:
            write_whole(journal, output, by_name, summary.failures, inferencer.loaded.weights_name)

    # The last process of several writes the rows of all
    if folder is not None and shards is not None:
        with shards.all_done() as found:
            if found is not None:
                spans, failures = found
                with Journal(folder / JOURNAL, **facts, remedy=shards.remedy) as journal:
                    for image in by_name:
                        if image in spans and image not in journal.done:
                            journal.write(list(map(json.loads, lines_of(spans[image]))))
                    write_whole(journal, output, by_name, failures, inferencer.loaded.weights_name)
                summary.merged = True
    return summary


def write_whole(
    journal: Journal, output: Output, by_name: Mapping[str, ImageTask], failures: Mapping[str, str], version: str
) -> None:
    """Write the files for other programs, with all rows of these tasks, and the images that could not be read."""
    folder = journal.file.parent
    if "coco" in output.formats:
        write_coco(folder / "coco.json", (row for row in journal.rows() if row["image"] in by_name), by_name)
    if "labelstudio" in output.formats:
        rows = (row for row in journal.rows() if row["image"] in by_name)
        write_labelstudio(folder / "labelstudio.json", rows, prefix=output.image_prefix, version=version)
    lines = [json.dumps({"image": image, "error": error}) + "\n" for image, error in failures.items()]
    if lines:
        write_atomically(folder / "failures.jsonl", "".join(lines))
    else:
        (folder / "failures.jsonl").unlink(missing_ok=True)


def write_files(answer: ImageAnswer, output: Output, task: ImageTask, name: str) -> None:
    """Write the masks and pictures of one image."""
    if output.folder is None:
        return
    if "masks" in output.formats:
        for file, phrase in zip(phrase_files(output.folder / "masks" / name, task.texts), answer, strict=True):
            phrase.save_png(file)
    if output.show:
        answer.save_picture(output.folder / "pictures" / f"{name}.png")
    if output.heat:
        for number, file in enumerate(phrase_files(output.folder / "heat" / name, task.texts)):
            write_atomically(file, picture_png(answer.heat_picture(number)))


def header_of(inferencer: ReferringInferencer, cfg_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that answers depend on."""
    loaded = inferencer.loaded
    return {
        "config": loaded.config.name,
        "checkpoint": describe_weights(loaded.segmentor, loaded.checkpoint) | {"file": loaded.weights_name},
        "postprocess": asdict(inferencer.postprocess),
        "cfg_options": dict(cfg_options),
        "dtype": str(inferencer.dtype).removeprefix("torch."),
        "upright": inferencer.loading.upright,
    }
