"""Fetches a known model from the hub: the verified set of files, resumed where it stopped, checked by checksum.

`huggingface_hub` knows the hub's addresses, keys and errors. Files gather in a folder beside the final one, which is
moved into place when every file has the size and the checksum that the hub states: a model that can be located is whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from http import HTTPStatus
from pathlib import Path

from kleinbild.core.errors import MissingWeightsError, ModelError, NetworkError, OutputError, WeightsError
from kleinbild.model.catalog import Entry, locate, models_folder

# What a model needs, and no more: the repositories hold the transformer once more as a single file.
WANTED = ("model_index.json", "LICENSE*", "transformer/*", "vae/*", "text_encoder/*", "tokenizer/*", "scheduler/*")
SAFE_SUFFIXES = (".json", ".safetensors", ".txt", ".jinja", ".md", "LICENSE")
TIMEOUT_SECONDS = 10.0
ATTEMPTS, PAUSE_SECONDS = 3, 1.0  # as long as nothing arrives
CHUNK = 1 << 20

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the hub states it: `sha256` of large files, git's `blob_id` of the others."""

    name: str
    size: int
    sha256: str | None
    blob_id: str | None


def pull(entry: Entry, *, progress: Progress | None = None, destination: Path | None = None) -> Path:
    """Fetches the weights of `entry` and returns where they are; what is here already is not fetched again.

    `progress` is told (bytes here, bytes in all). Stopped at any point, the next call goes on from there. Raises
    NetworkError where the hub cannot be reached, MissingWeightsError where it asks to accept a licence first,
    WeightsError where a file arrives other than stated, OutputError where it cannot be written.
    """
    located = locate(entry) if destination is None else None
    if located is not None or entry.repo is None:
        return located or _packaged_missing(entry)
    folder = destination or models_folder() / entry.name
    partial = folder.with_name(f"{folder.name}.partial")
    with _in_words(entry, folder):
        commit, files = _listing(entry.repo)
        total = sum(file.size for file in files)
        _require_space(folder, total - _bytes_in(partial))
        done = 0
        for file in files:
            _fetch(entry.repo, commit, file, partial, _add(progress, done, total))
            done += file.size
        partial.replace(folder)
    return folder


def _add(progress: Progress | None, done: int, total: int) -> Callable[[int], None]:
    """Reports one file's bytes as bytes of all, after `done` of the files before it."""
    return lambda here: progress(done + here, total) if progress else None


def _packaged_missing(entry: Entry) -> Path:
    raise MissingWeightsError(
        f"{entry.name} comes with Kleinbild, but its file is not there", "install Kleinbild again"
    )


def _listing(repo: str) -> tuple[str, list[RemoteFile]]:
    """The newest commit and its files that belong to the verified set."""
    from huggingface_hub import HfApi

    info = HfApi(endpoint=_endpoint()).model_info(repo, files_metadata=True, timeout=TIMEOUT_SECONDS)
    files = [
        RemoteFile(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else None, s.blob_id)
        for s in info.siblings or []
        if any(fnmatch(s.rfilename, pattern) for pattern in WANTED) and s.rfilename.endswith(SAFE_SUFFIXES)
    ]
    if info.sha is None or not any(file.name == "model_index.json" for file in files):
        raise WeightsError(f"{repo} holds no model in the layout that is expected", "see its page on the hub")
    return info.sha, files


def _fetch(repo: str, commit: str, file: RemoteFile, folder: Path, report: Callable[[int], None]) -> None:
    """One file, verified; what an earlier call left of it is continued."""
    path = folder / file.name
    if not (path.is_file() and _is_as_stated(path, file)):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.incomplete")
        part.touch()
        _complete(repo, commit, file, part, report)
        if not _is_as_stated(part, file):
            part.unlink()
            raise WeightsError(f"{file.name} arrived damaged", "run the same command again; the rest is kept")
        part.replace(path)
    report(file.size)


def _complete(repo: str, commit: str, file: RemoteFile, part: Path, report: Callable[[int], None]) -> None:
    """Takes broken connections up again as long as something arrives."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    failures = 0
    while (before := part.stat().st_size) < file.size:
        failure: Exception = ConnectionError(f"nothing more of {file.name} arrives")
        try:
            _stream(repo, commit, file, part, report)
        except HfHubHTTPError:
            raise  # an answer, not a broken connection
        except HTTPError as error:
            failure = error
        failures = 0 if part.stat().st_size > before else failures + 1
        if failures >= ATTEMPTS:
            raise failure
        time.sleep(PAUSE_SECONDS * failures)


def _stream(repo: str, commit: str, file: RemoteFile, part: Path, report: Callable[[int], None]) -> None:
    """Appends to `part` what it lacks. The client's own download would begin large files anew."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    url = hf_hub_url(repo, file.name, revision=commit, endpoint=_endpoint())
    start = part.stat().st_size
    headers = {**build_hf_headers(), "Range": f"bytes={start}-", "Accept-Encoding": "identity"}
    session = get_session()
    with session.stream("GET", url, headers=headers, timeout=TIMEOUT_SECONDS, follow_redirects=True) as response:
        hf_raise_for_status(response)
        here = start if response.status_code == HTTPStatus.PARTIAL_CONTENT else 0
        with part.open("ab" if here else "wb") as stream:
            for chunk in response.iter_bytes(CHUNK):
                stream.write(chunk)
                here += len(chunk)
                report(here)


def _is_as_stated(path: Path, file: RemoteFile) -> bool:
    return path.stat().st_size == file.size and _digest(path, file) in (file.sha256 or file.blob_id, None)


def _digest(path: Path, file: RemoteFile) -> str | None:
    """The checksum of the kind that the hub states for `file`, None where it states none."""
    if file.sha256:
        digest = hashlib.sha256()
    elif file.blob_id:
        digest = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)  # as git names a file's content
    else:
        return None
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _require_space(folder: Path, needed: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise OutputError(
            f"{needed / 1e9:.1f} GB are needed in {folder.parent}, {free / 1e9:.1f} GB are free",
            "make room, or set KLEINBILD_HOME to a larger disk",
        )


def _endpoint() -> str | None:
    """Another hub, by the client's own variable; read now, not when the client was imported."""
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def _in_words(entry: Entry, folder: Path) -> Iterator[None]:
    """Turns what the client raises into ours."""
    try:
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError  # type: ignore[attr-defined]
    except ImportError as error:
        raise ModelError("fetching models needs the hub's client", "pip install 'kleinbild[hub]'") from error
    page = f"{_endpoint() or 'https://huggingface.co'}/{entry.repo}"
    again = "check the connection and run the same command again; it goes on where it stopped"
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if isinstance(error, GatedRepoError) or status in (401, 403):
            raise MissingWeightsError(
                f"the hub gives {entry.name} only to those who have accepted its licence ({entry.licence})",
                f"accept it at {page}, sign in with `hf auth login`, and run the same command again",
            ) from error
        raise NetworkError(f"the hub answered {status} for {page}", again) from error
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise NetworkError(f"the hub cannot be reached at {page}", again) from error
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written: {error.strerror or error}", "free space or rights, then again"
        ) from error
