"""From a path to a model's parts: its three networks' files, its tokenizer and its settings.

A path is a folder that holds everything, or one transformer file. What a lone file lacks is looked for beside it, then
in a located model of the same family; what a folder lacks, there too, if it has settings of ours: a model that was trained
here shares text encoder and autoencoder with its family. Files are told apart by content; where two would do, nothing is
guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kleinbild.core.errors import MissingWeightsError, WeightsError
from kleinbild.model import catalog
from kleinbild.model.spec import ModelSpec, TransformerSpec
from kleinbild.model.weights.components import Component, Kind, recognize
from kleinbild.model.weights.headers import INDEX_SUFFIX, PICKLE_SUFFIXES, read_stored
from kleinbild.model.weights.settings import SETTINGS_FILE, Settings, Variant, official
from kleinbild.model.weights.specs import autoencoder_spec, family, text_encoder_spec, transformer_spec
from kleinbild.model.weights.variants import MODEL_INDEX, file_settings, folder_settings, read_json, variant_by_name

PIPELINE_FOLDERS = ("transformer", "vae", "text_encoder")
KINDS: tuple[Kind, ...] = ("transformer", "text_encoder", "autoencoder")


@dataclass(frozen=True, slots=True)
class Parts:
    """What was found for one model; a part may be absent. `looked_in` are the places searched, for messages."""

    path: Path
    settings: Settings
    components: dict[Kind, Component]
    tokenizer: Path | None
    looked_in: tuple[Path, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        absent = [kind.replace("_", " ") for kind in KINDS if kind not in self.components]
        return (*absent, *(() if self.tokenizer else ("tokenizer",)))


def locate_parts(name_or_path: str | Path) -> tuple[str, Parts]:
    """The name and all parts of a known model, or of the one in a weight file or folder.

    Raises UnknownModelError, and MissingWeightsError where parts are not on this machine.
    """
    entry, path = resolve(name_or_path)
    parts = find_parts(path, entry.variant if entry else None)
    require_all(parts, entry)
    return (entry.name if entry else path.stem), parts


def resolve(name_or_path: str | Path) -> tuple[catalog.Entry | None, Path]:
    """The catalog's entry, if it is a known name, and where its weights are. Known names come before paths."""
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    is_known = name.lower() in [entry.name for entry in catalog.entries()]
    if not is_known and (path.exists() or len(path.parts) > 1 or path.suffix):
        return None, path
    entry = catalog.find(name)
    located = catalog.locate(entry)
    if located is None:
        looked = ", ".join(map(str, catalog.places(entry)))
        raise MissingWeightsError(
            f"the weights of {entry.name} are not on this machine; looked in {looked}",
            f"`kleinbild pull {entry.name}` fetches them" if entry.repo else "install Kleinbild again",
        )
    return entry, located


def find_parts(path: Path, variant: Variant | None = None) -> Parts:
    """Everything that belongs to the model at `path`. `variant` is what its catalog entry says, if it has one."""
    if not path.exists():
        raise MissingWeightsError(f"there is no {path}", "name a weight file, a model folder or a known model")
    try:
        if not path.is_dir():
            return _complete(_from_file(path, variant), file_settings(path), variant)
        parts = _from_folder(path, variant)
        is_ours = (path / SETTINGS_FILE).is_file() and "transformer" in parts.components
        return _complete(parts, parts.settings, variant) if is_ours else parts
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}", "see who may read it") from error


def model_spec(parts: Parts) -> ModelSpec:
    """The spec of a model of which nothing is missing. Raises WeightsError where its networks do not fit together."""
    settings = parts.settings
    try:
        return ModelSpec(
            transformer=transformer_spec(parts.components["transformer"]),
            text_encoder=text_encoder_spec(parts.components["text_encoder"], settings),
            autoencoder=autoencoder_spec(parts.components["autoencoder"], settings),
            default_steps=settings.default_steps,
            default_guidance=settings.default_guidance,
            default_size=settings.default_size,
            distilled=settings.distilled,
        )
    except ValueError as error:
        files = ", ".join(component.place for component in parts.components.values())
        what = f"these do not make one model: {error} ({files})"
        raise WeightsError(what, "take all parts from one model") from error


def require_all(parts: Parts, entry: catalog.Entry | None) -> None:
    """Raises MissingWeightsError naming the absent parts and where they were looked for."""
    if not parts.missing:
        return
    places = ", ".join(map(str, parts.looked_in))
    hint = f"`kleinbild pull {entry.name}` fetches the rest" if entry else "put the missing parts beside it"
    raise MissingWeightsError(f"{parts.path} lacks its {_and(parts.missing)}; looked in {places}", hint)


def _from_folder(folder: Path, variant: Variant | None) -> Parts:
    index = read_json(folder / MODEL_INDEX)
    if index:  # a pipeline names its folders; single files beside them are the same weights once more
        places = [folder / name for name in PIPELINE_FOLDERS if (folder / name).is_dir()]
    else:
        places = [folder, *_subfolders(folder)]
    found = [component for place in places for component in _components(place, strict=True)]
    if not found:
        raise MissingWeightsError(
            f"there are no weights in {folder}{_pickles(places)}", "name a folder that holds a model"
        )
    settings = folder_settings(folder, index, variant)
    return Parts(folder, settings, _choose(found, settings), _tokenizer(folder), (folder,))


def _from_file(path: Path, variant: Variant | None) -> Parts:
    transformer = recognize(read_stored(path))
    if transformer is None or transformer.kind != "transformer":
        what = transformer.kind.replace("_", " ") if transformer else "something else"
        raise WeightsError(f"{path} is no transformer but {what}", "name the transformer's file, or the model's folder")
    folder = path.parent
    settings = file_settings(path) or official(variant or variant_by_name(path) or "distilled")
    found = [c for place in (folder, *_subfolders(folder)) for c in _components(place, strict=False)]
    beside = [component for component in found if component.kind != "transformer"]
    components = _choose([transformer, *beside], settings)
    return Parts(path, settings, components, _tokenizer(folder), (folder,))


def _complete(parts: Parts, own: Settings | None, variant: Variant | None) -> Parts:
    """Adds what a lone transformer lacks from a located model of its family, the same variant first. `own`: its settings."""
    if not parts.missing:
        return parts
    spec = transformer_spec(parts.components["transformer"])
    wanted = variant or variant_by_name(parts.path) or "distilled"
    relatives = [entry for entry in catalog.entries() if entry.family == family(spec)]
    for entry in sorted(relatives, key=lambda entry: entry.variant != wanted):
        located = catalog.locate(entry)
        parts = replace(parts, looked_in=(*parts.looked_in, located or catalog.places(entry)[0]))
        if located is None or located == parts.path:
            continue
        theirs = _from_folder(located, entry.variant) if located.is_dir() else _from_file(located, entry.variant)
        if theirs.missing or not _fits_together(spec, theirs):
            continue
        settings = own or _adopted(theirs.settings, wanted)
        components = {**theirs.components, **parts.components}
        return replace(parts, settings=settings, components=components, tokenizer=parts.tokenizer or theirs.tokenizer)
    return parts


def _adopted(theirs: Settings, wanted: Variant) -> Settings:
    """A neighbour's settings for another variant of the family: what it runs on is shared, how it is run is not."""
    if theirs.variant == wanted:
        return theirs
    ours = official(wanted)
    return replace(
        theirs,
        default_steps=ours.default_steps,
        default_guidance=ours.default_guidance,
        distilled=ours.distilled,
        reference_caching=ours.reference_caching,
    )


def _fits_together(spec: TransformerSpec, theirs: Parts) -> bool:
    other = transformer_spec(theirs.components["transformer"])
    return (spec.context_size, spec.in_channels) == (other.context_size, other.in_channels)


def _components(folder: Path, *, strict: bool) -> Iterator[Component]:
    """The networks whose files lie in `folder`, shards with an index as one; not strict: damaged files do not count."""
    shards: set[Path] = set()
    for path in sorted([*folder.glob(f"*{INDEX_SUFFIX}"), *folder.glob("*.safetensors"), *folder.glob("*.gguf")]):
        if path in shards:
            continue
        try:
            stored = read_stored(path)
        except WeightsError:
            if strict:
                raise
            continue
        shards.update(stored.paths)
        if component := recognize(stored):
            yield component


def _choose(found: list[Component], settings: Settings) -> dict[Kind, Component]:
    """One component of each kind. Where several would do, those that fit the transformer; raises if still several."""
    chosen: dict[Kind, Component] = {}
    for kind in KINDS:
        candidates = [component for component in found if component.kind == kind]
        if len(candidates) > 1 and "transformer" in chosen:
            spec = transformer_spec(chosen["transformer"])
            candidates = [c for c in candidates if _serves(c, spec, settings)] or candidates
        if len(candidates) > 1:
            names = ", ".join(component.place for component in candidates)
            raise WeightsError(
                f"there is more than one {kind.replace('_', ' ')}: {names}",
                "name one file, or keep each model in a folder of its own",
            )
        if candidates:
            chosen[kind] = candidates[0]
    return chosen


def _serves(component: Component, spec: TransformerSpec, settings: Settings) -> bool:
    if component.kind == "text_encoder":
        return text_encoder_spec(component, settings).context_size == spec.context_size
    return autoencoder_spec(component, settings).packed_channels == spec.in_channels


def _tokenizer(folder: Path) -> Path | None:
    for place in (folder / "tokenizer", folder, *_subfolders(folder)):
        if (place / "tokenizer.json").is_file() and (place / "tokenizer_config.json").is_file():
            return place
    return None


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pickles(folders: list[Path]) -> str:
    names = [path.name for folder in folders for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES]
    return f" (pickles, such as {names[0]}, can run code and are never opened)" if names else ""


def _and(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
