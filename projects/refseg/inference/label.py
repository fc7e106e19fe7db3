"""Label images with a model as the teacher: `refseg label` writes rows of our JSONL with confidences.

Each process answers every n-th image and keeps its answers in a journal of its own, in the folder OUT.parts. The
process that finds all images answered merges the journals into OUT, in the order of the images. Images go through the
model one by one, so OUT has the same bytes for any number of processes and interruptions.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from refseg.datasets.masks import rle_to_json
from refseg.datasets.readers.checks import is_text, plain_text
from refseg.datasets.tokenizers import UnknownWords
from refseg.errors import DataError, UsageError
from refseg.files import sha256_of
from refseg.inference.inferencer import ReferringInferencer
from refseg.inference.inputs import ImageInput, check_phrases, find_images, is_url
from refseg.inference.journal import Shards, lines_of
from refseg.inference.predict import counted, read_jsonl
from refseg.inference.results import ImageAnswer, PhraseAnswer
from refseg.paths import path_to
from refseg.terminal import open_output

WRITTEN = "written.txt"  # in the folder OUT.parts: sha256 of each version of OUT that was written
UNKNOWN_WORDS = "with words that the model does not know"
UNLIKE = "of images unlike those that the model knows"
NO_PIXEL = "whose mask has no pixel at the size of the image"


@dataclass(frozen=True, slots=True)
class LabelTask:
    """The phrases of one image.

    Args:
        image: Path of the image in the output, relative to the output's folder.
        source: Path to open.
        texts: The phrases.
    """

    image: str
    source: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules for the answers that become rows.

    Args:
        confidence: Least confidence of a positive.
        negative_confidence: Least no-target probability of a negative.
        empty_is_negative: Whether "nothing here" is a negative if the model has no no-target probability.
    """

    confidence: float = 0.5
    negative_confidence: float = 0.9
    empty_is_negative: bool = False

    def reason_to_skip(self, phrase: PhraseAnswer) -> str:
        """Return why the answer to a phrase is not certain enough for a row, or "" if it is."""
        if phrase.unknown_words:
            return UNKNOWN_WORDS
        if not phrase.nothing_here:
            return "" if confidence_of(phrase) >= self.confidence else f"below --confidence {self.confidence:g}"
        if phrase.no_target_prob is None:
            hint = "without an object, by a model without no-target probability (--empty-is-negative accepts them)"
            return "" if self.empty_is_negative else hint
        if phrase.no_target_prob >= self.negative_confidence:
            return ""
        return f"without an object, but below --negative-confidence {self.negative_confidence:g}"


def confidence_of(phrase: PhraseAnswer) -> float | None:
    """Return the confidence of an answer.

    That of "nothing here" is the no-target probability, or None if the model has none. That of a mask is the mean
    probability of its pixels, times the probability that the phrase refers to something. Detectors with a mask model
    need both: they draw sharp masks in wrong boxes.
    """
    if phrase.nothing_here:
        return phrase.no_target_prob
    return phrase.score * (1 - (phrase.no_target_prob or 0.0))


@dataclass(frozen=True, slots=True)
class Splits:
    """Splits of the rows. An image is in "val" by a hash of its path, whatever the other images are.

    Args:
        name: Split of all images that are not in "val".
        val_share: Share of the images in "val".
        seed: Seed of the hash.
    """

    name: str = "train"
    val_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not is_text(self.name):
            raise UsageError(f"--split {self.name!r} is blank. Name a split, such as train.")

    def of_image(self, image: str) -> str:
        digest = hashlib.sha256(f"{self.seed}:{image}".encode()).digest()
        return "val" if int.from_bytes(digest[:8], "big") < self.val_share * 2**64 else self.name


# Tasks ----------------------------------------------------------------------------------------------------------------


def label_tasks(images: Iterable[str], phrases: str | None, vocabulary: Iterable[str], out: Path) -> list[LabelTask]:
    """Read the tasks from the options.

    Args:
        images: Files, folders and patterns.
        phrases: A text file with a phrase per line, for all images, or a JSONL file with images and their phrases.
        vocabulary: Phrases for all images, instead of `phrases`.
        out: The output. Image paths are relative to its folder.
    """
    images, vocabulary = list(images), list(vocabulary)
    if (phrases is None) == (not vocabulary):
        raise UsageError("Pass phrases with either --phrases FILE or --vocabulary PHRASE ...")
    if phrases is not None and Path(phrases).suffix == ".jsonl":
        if images:
            raise UsageError(f"{phrases} already names the images: leave out --images.")
        return _tasks_of_jsonl(phrases, out)
    if not images:
        raise UsageError("No images. Pass --images with files, folders or patterns.")
    if phrases is None:
        texts = check_phrases(vocabulary, "--vocabulary: ")
        check_distinct((text, f"--vocabulary, phrase {number}") for number, text in enumerate(texts))
    else:
        texts = read_phrases(phrases)
    found = {relative_image(one.name, out): one.name for one in find_images(images)[0]}
    return [LabelTask(image, source, texts) for image, source in found.items()]


def _tasks_of_jsonl(file: str, out: Path) -> list[LabelTask]:
    """Read lines {"image", "texts"} or {"image", "text"}, as `refseg predict --jsonl` does."""
    texts: dict[str, list[str]] = {}
    sources: dict[str, str] = {}
    for source, text, _ in read_jsonl(file):
        image = relative_image(source, out)
        sources[image] = source
        texts.setdefault(image, []).append(text)
    if not texts:
        raise DataError(f'{file} is empty. Write lines of {{"image": path, "texts": [phrase, ...]}}.')
    for image, of_image in texts.items():
        check_distinct((text, f"{file}, phrase {k} of {sources[image]}") for k, text in enumerate(of_image))
    return [LabelTask(image, sources[image], tuple(of_image)) for image, of_image in texts.items()]


def read_phrases(file: str) -> tuple[str, ...]:
    """Read a text file with one phrase per line. Blank lines are ignored."""
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}).") from None
    phrases = [(line.strip(), f"{file}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not phrases:
        raise DataError(f"{file} has no phrase. Write one phrase per line.")
    for text, place in phrases:
        if text.startswith("{"):
            raise DataError(f"{place} looks like JSON, not a phrase. Rename the file to *.jsonl to read it as JSONL.")
    check_distinct(phrases)
    return tuple(text for text, _ in phrases)


def check_distinct(phrases: Iterable[tuple[str, str]]) -> None:
    """Refuse a phrase that data sets cannot hold, or that occurs twice, apart from case and spaces.

    Args:
        phrases: Pairs of a phrase and its place.
    """
    first: dict[str, str] = {}
    for text, place in phrases:
        if not is_text(text):
            raise DataError(f"{place}: the phrase {text!r} holds half a character. Save the phrases in UTF-8.")
        before = first.setdefault(plain_text(text), place)
        if before != place:
            raise DataError(f"{place}: the phrase {text!r} repeats {before}. Remove one of them.")


def relative_image(source: str, out: Path) -> str:
    """Return the path of an image for a row of the output."""
    if is_url(source):
        raise UsageError(f"{source}: data sets read image files only. Download the image first.")
    if not is_text(source):
        raise DataError(f"{source!r}: the name of this file is not UTF-8. Rename the file.")
    return (_path_between(Path(source).parent, out.parent) / Path(source).name).as_posix()


_path_between = lru_cache(maxsize=None)(path_to)  # resolving links takes time, and many images share a folder


# Rows -----------------------------------------------------------------------------------------------------------------


def rows_of_answer(answer: ImageAnswer, task: LabelTask, rules: Rules) -> list[dict[str, Any]]:
    """Return the journal's rows of an image: a row for each phrase, with its targets or the reason to skip it."""
    rows = []
    for phrase in answer:
        row: dict[str, Any] = {"image": task.image, "text": phrase.text}
        reason = UNLIKE if answer.note else rules.reason_to_skip(phrase)
        targets = [] if reason else [rle_to_json(one.rle) for one in phrase.objects if one.mask.any()]
        if not reason and not phrase.nothing_here and not targets:
            reason = NO_PIXEL
        if reason:
            row |= {"skipped": reason, "unknown_words": list(phrase.unknown_words)}
        else:
            confidence = confidence_of(phrase)
            row |= {"size": list(answer.size), "targets": targets or None}
            row |= {"confidence": None if confidence is None else round(confidence, 4)}
        rows.append(row)
    rows[0]["cut"] = answer.num_cut
    return rows


def output_row(row: Mapping[str, Any], number: int, labeled_by: str, split: str) -> dict[str, Any]:
    """Return the output's row for a journal's row, which is phrase `number` of its image."""
    tags = {"labeled_by": labeled_by}
    if row["confidence"] is not None:  # an empty answer of a model without no-target probability has none
        tags = {"confidence": row["confidence"], **tags}
    kept = {key: row[key] for key in ("image", "size", "text", "targets")}
    return {"expression_id": f"{row['image']}#{number}", **kept, "tags": tags, "split": split}


@dataclass(slots=True)
class Summary:
    """Counts of the output.

    `skipped`: phrases without a row, by reason. `failures`: images that could not be read, and why.
    """

    images: int = 0
    phrases: int = 0
    positives: int = 0
    targets: int = 0
    negatives: int = 0
    cut: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    unknown: UnknownWords = field(default_factory=UnknownWords)
    failures: dict[str, str] = field(default_factory=dict)

    def count(self, rows: list[dict[str, Any]], split: str) -> None:
        """Add the journal's rows of one image."""
        self.images += 1
        self.phrases += len(rows)
        self.cut += rows[0]["cut"]
        for row in rows:
            if "skipped" in row:
                self.skipped[row["skipped"]] += 1
                self.unknown.count([tuple(row["unknown_words"])])
                continue
            self.splits[split] += 1
            self.positives += row["targets"] is not None
            self.negatives += row["targets"] is None
            self.targets += len(row["targets"] or ())

    def lines(self) -> list[str]:
        """Return the summary in words."""
        positives = f"{counted(self.positives, 'positive')} with {counted(self.targets, 'target')}"
        lines = [
            f"{counted(self.images, 'image')}, {counted(self.phrases, 'phrase')}: {positives}, "
            f"{counted(self.negatives, 'negative')}"
        ]
        if len(self.splits) > 1:
            lines.append("rows: " + ", ".join(f"{number} {split}" for split, number in sorted(self.splits.items())))
        for reason, number in self.skipped.most_common():
            words = f": {self.unknown.listed()}" if reason == UNKNOWN_WORDS else ""
            lines.append(f"skipped: {counted(number, 'phrase')} {reason}{words}")
        if self.failures:
            first = next(iter(self.failures.values()))
            lines.append(f"skipped: {counted(len(self.failures), 'image')} that could not be read (first: {first})")
        if self.cut:
            lines.append(f"note: the model read only the start of {counted(self.cut, 'phrase')}")
        return lines


# Run ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelRun:
    """One output and all that it depends on.

    Args:
        out: The JSONL file to write.
        tasks: All images with their phrases, of all processes.
        rules: Rules for the answers that become rows.
        splits: Splits of the rows.
        labeled_by: Name of the model in the rows.
        header: Everything that the model's answers depend on (`refseg.inference.predict.header_of`).
        rank: Number of this process.
        world_size: Number of processes.
    """

    out: Path
    tasks: list[LabelTask]
    rules: Rules
    splits: Splits
    labeled_by: str
    header: dict[str, Any]
    rank: int = 0
    world_size: int = 1

    @property
    def folder(self) -> Path:
        """Folder of the journals."""
        return Path(f"{self.out}.parts")

    @property
    def shards(self) -> Shards:
        return Shards(
            self.folder,
            header=self.header | asdict(self.rules),
            tasks={task.image: task.texts for task in self.tasks},
            remedy=f"use another --out, or delete {self.out} and {self.folder} to start over",
            rank=self.rank,
            world_size=self.world_size,
        )

    def answer(self, inferencer: ReferringInferencer, *, max_failures: int = 100) -> None:
        """Answer the images of this process that no journal has yet.

        Args:
            inferencer: The model.
            max_failures: Stop with an error after more unreadable images than this. Answers so far are kept.
        """
        self.check_output()
        shards = self.shards
        failures: dict[str, str] = {}
        done = shards.answered()
        todo = [task for task in self.tasks[self.rank :: self.world_size] if task.image not in done]
        by_source = {task.source: task for task in todo}
        # One progress bar, of the first process
        hidden = True if self.rank else None
        with (
            shards.open(failures) as journal,
            tqdm(total=len(todo), desc="label", unit="image", disable=hidden, dynamic_ncols=True) as bar,
        ):

            def failed(source: ImageInput, error: DataError) -> None:
                failures[by_source[source.name].image] = str(error)
                bar.update()
                bar.write(f"skipped: {error}", file=sys.stderr)
                if len(failures) > max_failures:
                    raise DataError(f"Stopped: more than {max_failures} images could not be read (--max-failures).")

            images = [(ImageInput(task.source, task.source), task.texts) for task in todo]
            for answer in inferencer.stream(images, failed=failed, one_by_one=True):
                journal.write(rows_of_answer(answer, by_source[answer.name], self.rules))
                bar.update()

    def merge(self) -> Summary | None:
        """Write the output from the journals of all processes. Return None if images are left."""
        with self.shards.all_done() as found:
            if found is None:
                return None
            done, failures = found
            summary = Summary()
            digest = hashlib.sha256()
            with open_output(self.out) as file:
                for task in self.tasks:
                    if task.image not in done:
                        summary.failures[task.image] = failures[task.image]
                        continue
                    rows, split = list(map(json.loads, lines_of(done[task.image]))), self.splits.of_image(task.image)
                    summary.count(rows, split)
                    for number, row in enumerate(rows):
                        if "skipped" not in row:
                            line = json.dumps(output_row(row, number, self.labeled_by, split)).encode() + b"\n"
                            digest.update(line)
                            file.write(line)
                if not summary.splits:
                    remedy = "Use other phrases, or lower --confidence or --negative-confidence, with another --out"
                    raise DataError("\n".join(["no answer is certain enough for a row", *summary.lines(), remedy]))
                # The version is noted before it is in place: a kill in between leaves a version that is known
                with (self.folder / WRITTEN).open("a") as versions:
                    versions.write(f"{digest.hexdigest()}\n")
            return summary

    def check_output(self) -> None:
        """Refuse an output that this run did not write, or that was edited since."""
        if self.out.suffix != ".jsonl":
            raise UsageError(f"--out {self.out} must end in .jsonl, by which other commands know the format.")
        if not self.out.exists():
            return
        versions = self.folder / WRITTEN
        if not versions.is_file():
            raise UsageError(f"{self.out} exists and was not made by this run. Use another --out, or delete it.")
        if sha256_of(self.out) not in versions.read_text().split():
            raise UsageError(
                f"{self.out} has changed since refseg label wrote it, and would be written again. Use another --out, "
                f"or rename the file to keep it."
            )
