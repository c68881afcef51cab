"""`kleinbild adapters`: those that are registered, and the files they come in. Only what reads tensors imports torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kleinbild.cli import options
from kleinbild.cli.terminal import printable, progress, result, result_json, result_table, say, when
from kleinbild.core.amounts import gigabytes
from kleinbild.core.errors import RequestError

if TYPE_CHECKING:
    from kleinbild.core.adapters import Card
    from kleinbild.model.adapters.convert import Converted
    from kleinbild.model.adapters.doctor import Diagnosis

MAX_RANK = 4096
EXACT = 1e-5  # of the largest number of ΔW: rounding

adapters = typer.Typer(
    help="Adapters (LoRA and others): those registered here, and files of every spelling.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A name from `kleinbild adapters list`.")]
File = Annotated[str, typer.Argument(metavar="FILE", help="A .safetensors file, or the name of a registered adapter.")]
Lenient = Annotated[bool, typer.Option("--lenient", help="Leave out keys that match no layer. Else they are an error.")]


def read_rank(text: str) -> int:
    return options.whole_number("--svd", text, 1, MAX_RANK)


@adapters.command("list")
def list_adapters(as_json: options.Json = False) -> None:
    """List the registered adapters."""
    from kleinbild.model.adapters.registry import cards

    known = cards()
    if as_json:
        result_json([asdict(card) for card in known])
        return
    columns = ("name", "family", "base", "size", "licence", "trigger words", "added")
    rows = [
        (c.name, c.family, c.base or "-", gigabytes(c.size_bytes), c.licence or "-", _words(c), when(c.created_at))
        for c in known
    ]
    result_table(columns, rows, numbers=["size"])
    if not known:
        say("none is registered; kleinbild adapters add FILE registers one")


@adapters.command()
def show(name: Name, as_json: options.Json = False) -> None:
    """Show what is known of a registered adapter."""
    from kleinbild.model.adapters.registry import adapters_folder, check_name, find

    card = find(check_name(name)).card
    assert card is not None  # it was asked for by its name
    place = adapters_folder() / name
    if as_json:
        result_json({**asdict(card), "path": str(place)})
        return
    strengths = ", ".join(f"{kind} {strength:g}" for kind, strength in card.strengths.items())
    facts = {
        "name": card.name,
        "family": card.family,
        "base": card.base or "nobody said",
        "trigger words": _words(card),
        "strengths": strengths or "1, nobody recommends another",
        "licence": card.licence or "nobody said",
        "size": gigabytes(card.size_bytes),
        "sha256": card.sha256,
        "added": when(card.created_at),
        "where": str(place),
    }
    for label, value in facts.items():
        result(f"{label + ':':<15}{printable(value)}")


@adapters.command()
def add(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors file of any spelling.")],
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="What requests call it. Default: the file's name, in lower case."),
    ] = None,
    trigger: Annotated[
        list[str] | None,
        typer.Option("--trigger", metavar="WORDS", help="Words that call up what it learned; may be repeated."),
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="TEXT", help="Its licence. Default: what the file says.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="In place of the one of this name.")] = False,
    lenient: Lenient = False,
) -> None:
    """Register an adapter: read it, strictly, and copy it to Kleinbild's folder.

    \b
      kleinbild adapters add crayon.safetensors --trigger "crayon drawing"
    """
    from kleinbild.model.adapters import registry

    file = file.expanduser()
    chosen = registry.check_name(name or _name_of(file))
    if not replace and chosen in [card.name for card in registry.cards()]:
        raise RequestError(
            f"there is an adapter called {chosen} already", "choose another --name, or add it with --replace"
        )
    with progress(f"reading {file.name}"):
        card = _card(file, chosen, tuple(trigger or ()), licence, lenient=lenient)
        place = registry.register(file, card)
    say(f"{card.name} is an adapter for {card.family}")
    result(str(place))


@adapters.command()
def remove(name: Name) -> None:
    """Remove a registered adapter, its file and what is known of it. There is no way back."""
    from kleinbild.model.adapters import registry

    registry.remove(name)
    say(f"{name} is removed")


@adapters.command()
def doctor(
    file: File,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="A model of its family, beside whose weights the changes are measured. Default: nano's for nano, else none.",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Say what an adapter file is: who wrote it, for which models, how strong it is, and who reads it wrongly."""
    from kleinbild.model.adapters.registry import find

    path = find(file).path
    with progress(f"looking at {path.name}"):
        diagnosis = _diagnosed(path, model)
    if as_json:
        result_json(diagnosis.to_json())
        return
    _tell(diagnosis)


@adapters.command()
def convert(
    file: File,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The new file.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="SPELLING",
            show_default=False,
            help="diffusers (ComfyUI and mflux read it, too), comfy, kohya, aitk, onetrainer, original, diffsynth or peft. "
            "Default: diffusers.",
        ),
    ] = "diffusers",
    svd: Annotated[
        Any,
        typer.Option(
            "--svd",
            metavar="RANK",
            parser=read_rank,
            help="Make LoRAs of at most this rank of all changes, and say what is lost. Else nothing is.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the new file if it is there.")] = False,
    lenient: Lenient = False,
) -> None:
    """Write an adapter in another program's spelling, and prove that it says the same.

    The proof: both files are read again, and the largest difference between their changes is told.

    \b
      kleinbild adapters convert crayon.safetensors --to kohya -o crayon-kohya.safetensors
    """
    from kleinbild.model.adapters.registry import find

    source, target = find(file).path, output.expanduser()
    if target.exists() and not force:
        raise RequestError(f"{target} is there already", "name another file, or overwrite it with --force")
    with progress(f"converting {source.name}") as bar:
        from kleinbild.model.adapters.convert import convert as convert_file

        done = convert_file(source, target, to=to, rank=svd, lenient=lenient, progress=bar.step)
    _tell_converted(done)
    result(str(target))


def _card(file: Path, name: str, trigger: tuple[str, ...], licence: str | None, *, lenient: bool) -> Card:
    from kleinbild.core.adapters import Card
    from kleinbild.model.adapters.convert import require_family
    from kleinbild.model.adapters.families import specs
    from kleinbild.model.adapters.read import read_adapter
    from kleinbild.model.adapters.registry import digest

    family = require_family(file)
    loaded = read_adapter(file, specs()[family], lenient=lenient)
    metadata = loaded.metadata
    says = metadata.get("modelspec.trigger_phrase", "")
    return Card(
        name=name,
        family=family,
        sha256=digest(file),
        size_bytes=file.stat().st_size,
        created_at=time.time(),
        base=metadata.get("kleinbild.base", ""),
        base_fingerprint=metadata.get("kleinbild.base_fingerprint", ""),
        trigger_words=trigger or ((says,) if says else ()),
        licence=metadata.get("modelspec.license", "") if licence is None else licence,
        report={"origin": loaded.origin, "num_layers": len(loaded.coverage.matched)},
    )


def _diagnosed(path: Path, model: str | None) -> Diagnosis:
    from kleinbild.model.adapters.convert import require_family
    from kleinbild.model.adapters.doctor import diagnose, weight_norms

    if model is None and require_family(path) == "nano":
        model = "nano-base"
    return diagnose(path, norms=None if model is None else weight_norms(model))


def _tell(found: Diagnosis) -> None:
    coverage = found.coverage
    facts = {
        "file": f"{found.path}, {gigabytes(found.size_bytes)}",
        "written by": found.origin,
        "for": found.family,
        "changes": ", ".join(f"{number} {kind}" for kind, number in found.kinds.items())
        + (f", {found.magnitudes} with a DoRA magnitude" if found.magnitudes else ""),
        "rank": _counted(found.ranks) or "-",
        "scale": _counted({f"{scale:.4g}": number for scale, number in found.scales.items()}),
        "layers": f"{len(coverage.matched)} of the model's {coverage.num_layers} are changed",
        "keys": f"{coverage.num_read} read, {len(coverage.unmatched)} match nothing, "
        f"{len(coverage.skipped)} of a text encoder skipped",
        "strength": _strength(found.norm, found.relative),
    }
    for label, value in facts.items():
        result(f"{label + ':':<12}{printable(value)}")
    columns = ("block", "layers", "‖ΔW‖", "‖ΔW‖/‖W‖")
    rows = [
        (
            block.name,
            str(block.num_layers),
            f"{block.norm:.3g}",
            "-" if block.relative is None else f"{block.relative:.2%}",
        )
        for block in found.blocks
    ]
    result_table(columns, rows, numbers=columns[1:])
    for key in coverage.unmatched:
        result(printable(f"matches nothing: {key} ({found.reasons.get(key, '')})"))
    for module in found.dead:
        result(f"changes nothing: {module}")
    for trap in found.traps:
        result(f"{trap.program} {trap.effect}")
    for line in found.advice:
        result(f"advice: {line}")


def _tell_converted(done: Converted) -> None:
    say(f"{done.num_layers} layers for {done.family}, written by {done.origin}, now in the spelling {done.spelling}")
    if done.kept:
        worst = min(done.kept, key=lambda name: done.kept[name])
        mean = sum(done.kept.values()) / len(done.kept)
        say(
            f"made smaller: {len(done.kept)} layers, of whose ‖ΔW‖² {mean:.2%} is left on average, "
            f"least in {worst}: {done.kept[worst]:.2%}"
        )
    verdict = "the same but for rounding" if done.relative <= EXACT else "not the same"
    say(f"largest difference in ΔW: {done.difference:.2g} of {done.largest:.2g}: {verdict}")
    for trap in done.traps:
        say(f"note: {trap.program} {trap.effect}")
    if done.skipped:
        say(f"left out: {len(done.skipped)} keys of a text encoder")


def _strength(norm: float, relative: float | None) -> str:
    return f"‖ΔW‖ {norm:.3g}" + ("" if relative is None else f", {relative:.2%} of the weights of these layers")


def _counted(numbers: Mapping[Any, int]) -> str:
    """`32 (110 times), 64 (2 times)`, or the one there is."""
    if len(numbers) == 1:
        return str(next(iter(numbers)))
    return ", ".join(f"{value} ({times} times)" for value, times in sorted(numbers.items(), key=lambda item: -item[1]))


def _words(card: Card) -> str:
    return ", ".join(card.trigger_words) or "-"


def _name_of(file: Path) -> str:
    """A name made of the file's."""
    letters = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in file.stem.lower())
    return letters.strip("._-")[:64] or "adapter"
