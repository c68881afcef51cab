"""What an adapter file will become, from its header alone: which tensors make which change of which layer. No torch here.

A group is what a file says of one layer, or of some of its rows. Nothing is left out in silence: each key is in a group,
of the text encoder, or among those that do not match.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from kleinbild.core.errors import WeightsError
from kleinbild.model.adapters.grammar import Key, is_text_encoder, parse, refusal
from kleinbild.model.adapters.names import Named, find
from kleinbild.model.spec import TransformerSpec
from kleinbild.model.weights.layouts import Shape

Kind = Literal["lora", "lokr", "loha", "diff"]

_EXTRAS = {"alpha", "magnitude"}
_LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}


@dataclass(frozen=True, slots=True)
class Group:
    """The tensors of one change: `keys` by what they are, with the shapes of those that are matrices."""

    named: Named
    kind: Kind
    keys: Mapping[str, str]
    shapes: Mapping[str, Shape]
    style: str

    @property
    def shape(self) -> Shape:
        """Of ΔW."""
        shape = self.shapes
        if self.kind == "lora":
            return shape["up"][0], shape["down"][1]
        if self.kind == "loha":
            return shape["hada_w1_a"][0], shape["hada_w1_b"][1]
        if self.kind == "diff":
            return shape["diff"]
        (p, q), (s, t) = (self._factor(name) for name in ("lokr_w1", "lokr_w2"))
        return p * s, q * t

    @property
    def rank(self) -> int | None:
        """What alpha is divided by; None for whole matrices, which alpha says nothing of."""
        ranked = {"lora": ("down",), "loha": ("hada_w1_b",), "lokr": ("lokr_w2_b", "lokr_w1_b"), "diff": ()}
        return next((self.shapes[role][0] for role in ranked[self.kind] if role in self.shapes), None)

    def inner(self) -> list[tuple[int, int]]:
        """Pairs of numbers that have to be the same: the rank, as the two matrices of a product have it."""
        pairs = {"lora": [("up", "down")], "loha": [("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")]}
        both = pairs.get(self.kind, [(f"{w}_a", f"{w}_b") for w in ("lokr_w1", "lokr_w2") if f"{w}_a" in self.shapes])
        return [(self.shapes[a][1], self.shapes[b][0]) for a, b in both] if self.kind != "diff" else []

    def _factor(self, name: str) -> tuple[int, int]:
        if name in self.shapes:
            return self.shapes[name][0], self.shapes[name][1]
        return self.shapes[f"{name}_a"][0], self.shapes[f"{name}_b"][1]


@dataclass(frozen=True, slots=True)
class Plan:
    """`unmatched` has a reason for each key, `misfits` a sentence for each group whose shapes are not the model's."""

    groups: tuple[Group, ...]
    unmatched: Mapping[str, str]
    skipped: tuple[str, ...]
    misfits: tuple[str, ...]


def plan(shapes: Mapping[str, Shape], spec: TransformerSpec) -> Plan:
    """Raises WeightsError for what can never be applied, and where two tensors say the same."""
    by_stem: dict[str, list[Key]] = defaultdict(list)
    unmatched: dict[str, str] = {}
    skipped: list[str] = []
    for text in sorted(shapes):
        if is_text_encoder(text):
            skipped.append(text)
        elif reason := refusal(text):
            raise WeightsError(
                f"{text} holds {reason}, which cannot be applied", "use an adapter of LoRA, LoKr or LoHa"
            )
        elif key := parse(text):
            by_stem[key.stem].append(key)
        else:
            unmatched[text] = "no part of an adapter that is known"
    _require_one_adapter(by_stem)
    groups, misfits = [], []
    for stem, keys in by_stem.items():
        named = find(spec, stem)
        made = _group(named, keys, shapes) if named else "no such layer in this model"
        if isinstance(made, str):
            unmatched.update({key.text: made for key in keys})
        elif misfit := _misfit(made, shapes):
            misfits.append(misfit)
        else:
            groups.append(made)
    _require_once(groups)
    return Plan(tuple(groups), unmatched, tuple(skipped), tuple(misfits))


def _group(named: Named, keys: list[Key], shapes: Mapping[str, Shape]) -> Group | str:
    """The group of a layer's keys, or why they make none."""
    by_role: dict[str, str] = {}
    for key in keys:
        if key.role in by_role:
            raise WeightsError(f"{by_role[key.role]} and {key.text} say the same of one layer", "leave one of them out")
        by_role[key.role] = key.text
    kind = _kind(by_role.keys() - _EXTRAS)
    if kind is None:
        has = ", ".join(sorted(by_role))
        return (
            f"{named.body} has only {has}: half of a pair"
            if len(by_role) < 3
            else f"{named.body}: {has} make no change"
        )
    matrices = {role: _matrix(shapes[text]) for role, text in by_role.items() if role not in _EXTRAS}
    style = next((key.style for key in keys if key.style), "")
    if any(len(shape) != 2 for shape in matrices.values()):
        return f"{named.body} is changed by a tensor that is no matrix"
    return Group(named, kind, by_role, matrices, style)


def _kind(roles: set[str]) -> Kind | None:
    if roles == {"down", "up"}:
        return "lora"
    if roles == {"diff"}:
        return "diff"
    if roles == _LOHA:
        return "loha"
    first, second = ({w} if w in roles else {f"{w}_a", f"{w}_b"} for w in ("lokr_w1", "lokr_w2"))
    return "lokr" if roles == first | second else None


def _matrix(shape: Shape) -> Shape:
    """Linear layers are written as 1x1 convolutions at times."""
    return shape[:2] if len(shape) > 2 and prod(shape[2:]) == 1 else shape


def _misfit(group: Group, shapes: Mapping[str, Shape]) -> str | None:
    place, name = group.named.place, next(iter(group.keys.values()))
    if any(a != b or a < 1 for a, b in group.inner()):
        return f"{name}: the two matrices have ranks {' and '.join(map(str, group.inner()[0]))}"
    if group.shape != place.shape:
        return f"{name}: changes a matrix of {_by(group.shape)}; this model's is {_by(place.shape)}"
    if (alpha := group.keys.get("alpha")) and prod(shapes[alpha]) != 1:
        return f"{alpha} is not a number but {_by(shapes[alpha])}"
    if magnitude := group.keys.get("magnitude"):
        rows, columns = place.shape
        if shapes[magnitude] not in ((rows,), (rows, 1), (1, columns)) or group.kind == "diff":
            return f"{magnitude}: {_by(shapes[magnitude])} is no magnitude of a matrix of {_by(place.shape)}"
    return None


def _by(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _require_one_adapter(by_stem: Mapping[str, list[Key]]) -> None:
    names = {key.adapter for keys in by_stem.values() for key in keys if key.adapter}
    if len(names) > 1:
        raise WeightsError(f"the file holds several adapters: {', '.join(sorted(names))}", "save each in its own file")


def _require_once(groups: list[Group]) -> None:
    places = Counter(group.named.place for group in groups)
    for group in groups:
        if places[group.named.place] > 1:
            same = [next(iter(each.keys.values())) for each in groups if each.named.place == group.named.place]
            raise WeightsError(f"{' and '.join(same)} change the same layer", "leave one of them out")
