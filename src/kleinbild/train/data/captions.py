"""What can be measured of captions: empty, all alike, remnants of file names, phrases that say nothing, no trigger word.

Whether a caption is true of its picture cannot be measured here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePath

from kleinbild.train.data.examples import Example
from kleinbild.train.data.findings import Finding
from kleinbild.train.data.folders import counted, named

FILE_NAME = re.compile(
    r"\.(?:png|jpe?g|webp|gif|bmp|tiff?|avif)\b|\b(?:IMG|DSC[FN]?|PXL|DCIM|VID|MVIMG)[_-]?\d{3,}|\b[0-9a-f]{16,}\b",
    re.IGNORECASE,
)
BOILERPLATE = re.compile(
    r"^(?:this|the|an?) (?:image|picture|photo|photograph|illustration) (?:shows|depicts|features|displays|contains|of)\b"
    r"|^(?:in (?:this|the) (?:image|picture|photo)|(?:image|picture) of)\b",
    re.IGNORECASE,
)
ANSWER = re.compile(
    r"^(?:sure|certainly|of course|here is|here's)\b.*:|\bas an ai\b|^i(?:'m| am) sorry|^i can(?:'|no)t|<think>|\[/?INST\]",
    re.IGNORECASE,
)
MOST = 0.5  # of all captions, from which on a phrase says nothing


def caption_findings(
    examples: Sequence[Example],
    *,
    trigger_words: Sequence[str] = (),
    count_tokens: Callable[[str], int] | None = None,
    max_tokens: int = 0,
) -> Iterator[Finding]:
    """Of the examples that are no regularization. `count_tokens` is the model's tokenizer, with its limit."""
    yield from _several_lines(examples)
    examples = [one for example in examples for one in _one_by_one(example)]
    learned = [example for example in examples if not example.regularization]
    yield from _empty(learned)
    yield from _all_alike(learned, trigger_words)
    yield from _of_pattern(
        learned,
        FILE_NAME,
        "warning",
        "file names",
        "have parts of file names in their captions",
        "write what is to be seen",
    )
    yield from _of_pattern(
        learned, ANSWER, "warning", "answers", "have a captioner's words to its user as captions", "remove them"
    )
    yield from _named_like_files(learned)
    yield from _boilerplate(learned)
    yield from _without_trigger(examples, trigger_words)
    if count_tokens is not None:
        yield from _too_long(examples, count_tokens, max_tokens)


def _one_by_one(example: Example) -> Iterator[Example]:
    """An example for each of its captions, named by its line."""
    yield replace(example, wordings=())
    for number, caption in enumerate(example.wordings, 2):
        yield replace(example, caption=caption, wordings=(), name=f"{example.name}, line {number}")


def _several_lines(examples: Sequence[Example]) -> Iterator[Finding]:
    if names := tuple(example.name for example in examples if "\n" in example.caption.strip()):
        yield Finding(
            "note",
            "captions of several lines",
            f"{counted(len(names), 'caption')} of {len(examples)} have several lines, read as one text: {named(list(names))}",
            "set caption_lines=true if each line is a caption of its own",
            names,
        )


def _empty(examples: Sequence[Example]) -> Iterator[Finding]:
    if names := tuple(example.name for example in examples if not example.caption.strip()):
        yield Finding(
            "warning",
            "empty captions",
            f"{counted(len(names), 'picture')} of {len(examples)} have an empty caption: {named(list(names))}",
            "write what is to be seen, or give one caption for all that have none",
            names,
        )


def _all_alike(examples: Sequence[Example], trigger_words: Sequence[str]) -> Iterator[Finding]:
    captions = {example.caption for example in examples}
    if len(examples) < 3 or len(captions) > 1 or captions == {""}:
        return
    caption = captions.pop()
    is_trigger = caption.lower() in {word.lower() for word in trigger_words}
    yield Finding(
        "note" if is_trigger else "warning",
        "one caption",
        f"all {len(examples)} captions are the same: {caption[:80]!r}",
        "for a style or an edit that may be right; what varies between the pictures is learned as part of it",
    )


def _of_pattern(
    examples: Sequence[Example], pattern: re.Pattern[str], severity: str, kind: str, what: str, advice: str
) -> Iterator[Finding]:
    if names := tuple(example.name for example in examples if pattern.search(example.caption)):
        yield Finding(
            "warning" if severity == "warning" else "note",
            kind,
            f"{counted(len(names), 'picture')} {what}: {named(list(names))}",
            advice,
            names,
        )


def _named_like_files(examples: Sequence[Example]) -> Iterator[Finding]:
    def is_name(example: Example) -> bool:
        stem = PurePath(example.target).stem
        return example.caption == stem and bool(re.search(r"[\d_]", stem))

    if names := tuple(example.name for example in examples if is_name(example)):
        yield Finding(
            "warning",
            "file names",
            f"{counted(len(names), 'picture')} have the file's name as caption: {named(list(names))}",
            "write what is to be seen",
            names,
        )


def _boilerplate(examples: Sequence[Example]) -> Iterator[Finding]:
    names = tuple(example.name for example in examples if BOILERPLATE.search(example.caption.strip()))
    if len(names) >= 3 and len(names) > MOST * len(examples):
        yield Finding(
            "note",
            "boilerplate",
            f"{len(names)} of {len(examples)} captions begin like 'this image shows': the words say nothing",
            "remove them, since prompts will not begin so",
            names,
        )


def _without_trigger(examples: Sequence[Example], trigger_words: Sequence[str]) -> Iterator[Finding]:
    words = [word for word in trigger_words if word.strip()]

    def has(example: Example) -> bool:
        return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", example.caption, re.IGNORECASE) for word in words)

    if not words:
        return
    learned = [example for example in examples if not example.regularization]
    quoted = " or ".join(repr(word) for word in words)
    if names := tuple(example.name for example in learned if not has(example)):
        yield Finding(
            "warning",
            "no trigger word",
            f"{len(names)} of {len(learned)} captions lack the trigger word {quoted}: {named(list(names))}",
            "put it into every caption, or name no trigger word",
            names,
        )
    if names := tuple(example.name for example in examples if example.regularization and has(example)):
        yield Finding(
            "warning",
            "trigger word in regularization",
            f"{counted(len(names), 'regularization picture')} have the trigger word {quoted}: {named(list(names))}",
            "leave it out there: they show what the word does not mean",
            names,
        )


def _too_long(examples: Sequence[Example], count_tokens: Callable[[str], int], max_tokens: int) -> Iterator[Finding]:
    lengths = {caption: count_tokens(caption) for caption in {example.caption for example in examples}}
    if names := tuple(example.name for example in examples if lengths[example.caption] > max_tokens):
        longest = max(lengths.values())
        yield Finding(
            "error",
            "long captions",
            f"{counted(len(names), 'caption')} take up to {longest} tokens, the model reads {max_tokens}: {named(list(names))}",
            "shorten them",
            names,
        )
