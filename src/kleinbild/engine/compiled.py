"""torch.compile where it pays: layouts of the transformer and sizes of the decoder, each only after it proved itself.

Stands between `denoise` and `decode` and the networks, which know nothing of it. What is asked for the first time is
computed plainly, then compiled, then compared: it is used from then on if it came out the same within `TOLERANCE` and was
not slower, on this machine and with these very inputs. Else the plain network stays in use, and `notes` say why.

The decoder's pictures of more than a megapixel (strips), passes that store or read references (they keep things in
Python) and those with adapters (which come and go) are never compiled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from kleinbild.core.precision import Precision
from kleinbild.model.adapters.applied import Use
from kleinbild.model.attention import ReferenceCache
from kleinbild.model.packing import Packing, Run
from kleinbild.model.transformer import Modulations
from kleinbild.model.weights import Model
from kleinbild.model.weights.load import default_precision

MAX_COMPILED = 4  # of each network: everybody waits while one is compiled, half a minute on two CPU cores
TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 2e-2, "int8": 2e-2, "fp8": 2e-2}  # relative norm
RACES = 5  # of compiled against plain, taking turns; the fastest of each counts

Backend = str | Callable[..., Any]
"""What torch.compile takes: "inductor", or in tests something cheaper."""


class Compiled:
    """A model's transformer and decoder, compiled for up to `MAX_COMPILED` layouts and sizes, first come, first served.

    The first pass of each of them waits until it is compiled, and so does everybody who is served beside it; all further
    ones run plainly. Numbers may differ in their last bits from the plain network's, and from company to company. Not
    for several threads at once. `seconds` is what compiling and proving took so far; `notes`, which grow, say what is not
    compiled and why. `clock` gives seconds.
    """

    def __init__(
        self, model: Model, *, backend: Backend = "inductor", clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.seconds = 0.0
        self.notes: tuple[str, ...] = ()
        self._model, self._clock, self._backend = model, clock, backend
        self._forward = Proven(model.transformer.forward, "layouts of steps", self)
        self._decode = Proven(model.autoencoder.decode, "sizes of pictures", self)
        self.possible = True
        if reason := unfit(model):
            self.possible = False
            self.note(f"nothing is compiled: {reason}")

    def transformer(
        self,
        img_NC: Tensor,
        txt_MX: Tensor,
        mods: Modulations,
        packing: Packing,
        caches: Sequence[ReferenceCache | None],
        adapters: Sequence[tuple[Use, ...]] = (),
    ) -> Tensor:
        """As `Flux2Transformer.forward`."""
        adapted = any(adapters)
        if self.possible and adapted:
            self.note("steps with adapters are not compiled")
        if not self.possible or adapted or any(run.mode != "joint" for run in packing.runs):
            out: Tensor = self._model.transformer(img_NC, txt_MX, mods, packing, caches, adapters)
            return out
        return self._forward(packing.runs, _in_words(packing.runs), img_NC, txt_MX, mods, packing)

    def decode(self, latent_BDrc: Tensor) -> Tensor:
        """As `Autoencoder.decode`."""
        if not self.possible:
            return self._model.autoencoder.decode(latent_BDrc)
        rows, columns = latent_BDrc.shape[-2:]
        return self._decode(latent_BDrc.shape, f"decoding {columns}x{rows} tokens", latent_BDrc)

    def note(self, words: str) -> None:
        if words not in self.notes:
            self.notes = (*self.notes, words)

    def problem(self, plain: Callable[..., Tensor], inputs: Sequence[Any], expected: Tensor) -> str | None:
        """Compiles `plain` for `inputs`. Gives what keeps it from being used, or None."""
        begun = self._clock()
        try:
            return self._compile(plain, inputs, expected)
        except Exception as error:  # noqa: BLE001 - no C++ compiler, no memory, a bug of the compiler: plain works
            return _of(error)
        finally:
            self.seconds += self._clock() - begun

    def _compile(self, plain: Callable[..., Tensor], inputs: Sequence[Any], expected: Tensor) -> str | None:
        with _freezing(self._model.device):
            made = torch.compile(plain, dynamic=False, fullgraph=True, backend=self._backend)(*inputs)
        off = float((made.double() - expected.double()).norm() / expected.double().norm())
        allowed = TOLERANCE[self._model.precision]
        if not off <= allowed:
            return f"the result is off by {off:.1e} instead of {allowed:.0e} at most"
        races = [(self._seconds(plain, inputs), self._seconds(ready(plain), inputs)) for _ in range(RACES)]
        plain_s, compiled_s = (min(times) for times in zip(*races, strict=True))
        if compiled_s > plain_s:
            return f"it takes {1000 * compiled_s:.1f} ms instead of {1000 * plain_s:.1f} ms"
        return None

    def _seconds(self, function: Callable[..., Tensor], inputs: Sequence[Any]) -> float:
        begun = self._clock()
        function(*inputs)
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        return self._clock() - begun


class Proven:
    """A function that is compiled for the kinds of inputs that proved right and fast, and plain for all others."""

    def __init__(self, plain: Callable[..., Tensor], kinds: str, owner: Compiled) -> None:
        self._plain, self._ready, self._kinds, self._owner = plain, ready(plain), kinds, owner
        self._pays: dict[Hashable, bool] = {}

    def __call__(self, kind: Hashable, words: str, *inputs: Any) -> Tensor:
        """The function's value. `kind` tells inputs apart for which code of their own is compiled; `words` name it."""
        if self._pays.get(kind):
            return self._ready(*inputs)
        out = self._plain(*inputs)
        if kind in self._pays:
            return out
        if len(self._pays) >= MAX_COMPILED:
            self._owner.note(f"no more than {MAX_COMPILED} {self._kinds} are compiled, others run plainly")
            return out
        problem = self._owner.problem(self._plain, inputs, out)
        self._pays[kind] = problem is None
        if problem is not None:
            self._owner.note(f"{words} is not compiled: {problem}")
        return out


def ready(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` with the code that was compiled for it so far: nothing more is compiled, what is new runs plainly."""
    run: Callable[..., Tensor] = torch._dynamo.run(function)  # noqa: SLF001 - torch.compiler has this for all threads only
    return run


def unfit(model: Model) -> str | None:
    """Why compiling is no use for this model where it is, or None."""
    if model.offloaded is not None:
        return "offloaded weights come and go while the model computes"
    if model.device.type == "cpu" and default_precision(model.spec) != "float32":
        return "on a CPU that makes models of this size slower"
    return None


def _freezing(device: torch.device) -> AbstractContextManager[object]:
    """Weights as constants, laid out for the processor's products."""
    if device.type != "cpu":
        return nullcontext()
    import torch._inductor.config as inductor

    return inductor.patch(freezing=True)  # type: ignore[no-any-return]


def _in_words(runs: Sequence[Run]) -> str:
    each = ", ".join(f"{run.count} x {run.num_all} tokens" for run in runs)
    return f"a step of {each}"


def _of(error: Exception) -> str:
    """What went wrong, without torch's advice to its developers."""
    inner = getattr(error, "inner_exception", None) or error
    return (str(inner).strip() or type(inner).__name__).splitlines()[0]
