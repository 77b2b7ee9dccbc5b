"""Models from the Hugging Face hub: safetensors or GGUF, config and tokenizer; never pickle, never code."""

from __future__ import annotations

import glob
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from workbench import figures, files
from workbench.checkpoint import child, gguf, licence, opening
from workbench.checkpoint.checkpoint import Checkpoint
from workbench.exceptions import WorkbenchError
from workbench.progress import Progress, Steps

# org/name, one file of it (org/name/file.gguf), and a branch, tag or commit after @
ID = re.compile(
    r"(?P<repo>[\w][\w.-]{0,95}/[\w][\w.-]{0,95})(?:/(?P<file>[\w][\w./-]*\.gguf))?(?:@(?P<revision>[\w][\w./-]*))?",
    re.ASCII,
)
BESIDE = re.compile(r"[^/]+\.(?:json|jinja|txt|model)|README\.md|LICEN[SC]E[^/]*", re.IGNORECASE)
PATIENCE = 20.0  # seconds for the list of a model's files

# What the child process does. It prints one JSON object: the result, or the name and text of the error.
_CHILD = """
import json, sys
asked = json.loads(sys.argv[1])
def list_files(repo, revision):
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name
    found = HfApi().model_info(repo, revision=revision, files_metadata=True)
    blobs = f"{constants.HF_HUB_CACHE}/{repo_folder_name(repo_id=repo, repo_type='model')}/blobs"
    return {"commit": found.sha, "blobs": blobs, "files": {each.rfilename: each.size or 0 for each in found.siblings}}
def download(repo, revision, patterns):
    from huggingface_hub import snapshot_download
    return snapshot_download(repo, revision=revision, allow_patterns=patterns)
def cached(repo, revision, names):
    from huggingface_hub import try_to_load_from_cache
    for name in names:
        path = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(path, str):
            return path[: -len(name)]
try:
    print(json.dumps({"found": globals()[asked.pop("do")](**asked)}))
except Exception as error:
    print(json.dumps({"error": type(error).__name__, "text": str(error)[:1000]}))
"""


class Unreachable(WorkbenchError):
    """The hub does not answer, or the user asked not to ask it (HF_HUB_OFFLINE)."""


@dataclass(frozen=True)
class Listing:
    """The files of a model on the hub at one commit, with their sizes in bytes."""

    commit: str
    files: dict[str, int]
    blobs: Path  # where the hub's library keeps what it downloads of this model


def load_steps(
    repo: str, revision: str | None = None, *, file: str | None = None, patience: float = PATIENCE
) -> Steps[Checkpoint]:
    """Download what is missing of a model (or one GGUF `file` of it) and open it; without the hub, what its cache has.

    Raises:
        WorkbenchError: no such model or revision, no access, only pickle weights, several GGUF files to
            choose from, or no answer within `patience` seconds and nothing in the cache.
    """
    try:
        listing = yield from list_steps(repo, revision, patience)
    except Unreachable:
        folder = yield from _cached_steps(repo, revision, file)
        if folder is None:
            raise
    else:
        folder = yield from _download_steps(repo, revision, listing, choose(repo, listing.files, file))
    opened = opening.open_file(files.inside(folder, file)) if file else opening.open_folder(folder)
    named = opened.licence or licence.of_card(folder)
    return replace(opened, name=f"{repo}/{file}" if file else repo, revision=folder.name, licence=named)


def list_steps(repo: str, revision: str | None, patience: float) -> Steps[Listing]:
    """The files of a model; raises `Unreachable` when the hub gives no answer in `patience` seconds."""

    def progress() -> Progress:
        return Progress(0, 0, "", f"asking the hub for {repo}")

    found = yield from _ask_steps(repo, progress, patience, do="list_files", revision=revision)
    sizes = {str(name): size if type(size) is int and size > 0 else 0 for name, size in found["files"].items()}
    return Listing(str(found["commit"]), sizes, Path(found["blobs"]))


def choose(repo: str, found: dict[str, int], file: str | None = None) -> list[str]:
    """The names of the files to download: weights in one format, and what belongs to them."""
    beside = [name for name in found if BESIDE.fullmatch(name)]
    if file:
        if file not in found:
            ggufs = [name for name in found if name.endswith(".gguf")]
            raise WorkbenchError(f"{repo}/{file}", "the hub has no such file", allowed=_some(ggufs))
        return [*_parts(file, found), *beside]
    top = [name for name in found if "/" not in name]
    tensors = [name for name in top if name.endswith(".safetensors")]
    # Mistral publishes the same weights twice, the second time under names that transformers does not read.
    tensors = [name for name in tensors if not name.startswith("consolidated")] or tensors
    if tensors:
        return [*tensors, *beside]
    ggufs = [name for name in found if name.endswith(".gguf") and gguf.is_first(Path(name))]
    if len(ggufs) == 1:
        return [*_parts(ggufs[0], found), *beside]
    if ggufs:
        allowed = _some([f"{repo}/{name}" for name in ggufs])
        raise WorkbenchError(
            repo, f"it has {len(ggufs)} GGUF files", allowed=allowed, do="load one of them by its name"
        )
    if any(PurePosixPath(name).suffix in opening.PICKLE for name in top):
        raise opening.pickle_error(repo)
    raise WorkbenchError(repo, "it has no weights", allowed="safetensors or GGUF files")


def _parts(file: str, found: dict[str, int]) -> list[str]:
    """A GGUF file, with the other parts if it is split."""
    return [name for part in gguf.parts_of(Path(file)) if (name := part.as_posix()) in found]


def _some(names: list[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def _download_steps(repo: str, revision: str | None, listing: Listing, names: list[str]) -> Steps[Path]:
    total = sum(listing.files[name] for name in names)

    def there() -> int:
        try:
            return min(total, sum(each.stat().st_size for each in listing.blobs.iterdir()))
        except OSError:  # nothing there yet, or a file was renamed under us
            return 0

    def progress() -> Progress:
        return Progress(there(), total, "B", f"downloading {repo}")

    missing, free = total - there(), files.free_bytes(listing.blobs)
    if missing > free:
        raise WorkbenchError(
            repo,
            f"{figures.size(missing)} are to be downloaded, and the disk has {figures.size(free)} free for the hub's "
            f"cache ({listing.blobs.parent})",
            do="free some space, or set HF_HOME to a folder on another disk; wb.memory(...) looks at a model without "
            "a download",
        )

    # By the branch, not by its commit: only then does the cache know the branch when the hub is away.
    asked = {"revision": revision, "patterns": [glob.escape(name) for name in names]}
    return Path((yield from _ask_steps(repo, progress, None, do="download", **asked)))


def _cached_steps(repo: str, revision: str | None, file: str | None) -> Steps[Path | None]:
    """The folder of the hub's cache that has the model, known by a file that any model has."""

    def progress() -> Progress:
        return Progress(0, 0, "", f"looking for {repo} in the hub's cache")

    names = [file or "config.json", "README.md"]
    found = yield from _ask_steps(repo, progress, PATIENCE, do="cached", revision=revision, names=names)
    return Path(found) if found else None


def _ask_steps(repo: str, progress: Callable[[], Progress], seconds: float | None, **asked: Any) -> Steps[Any]:
    """What the child process finds; its errors become WorkbenchErrors."""
    command = [sys.executable, "-P", "-c", _CHILD, json.dumps({"repo": repo, **asked})]
    environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    try:
        printed = yield from child.run_steps(command, progress, environment=environment, seconds=seconds)
        answer = json.loads(printed.splitlines()[-1])  # a library may have printed something before
    except (child.Failed, ValueError, IndexError) as reason:
        raise _unreachable(repo, str(reason)) from reason
    if "found" in answer:
        return answer["found"]
    if answer["error"] in _REFUSED:
        found, do = _REFUSED[answer["error"]]
        raise WorkbenchError(repo, found, do=do)
    raise _unreachable(repo, f"{answer['error']}: {answer['text'][:300]}")


def _unreachable(repo: str, reason: str) -> Unreachable:
    return Unreachable(
        repo,
        f"there is no file or folder of that name, and the hub gave no answer ({reason})",
        do="check the connection and load it again: a download goes on where it broke off; or load something else: "
        + opening.KINDS,
    )


_REFUSED = {
    # error of the hub's library -> what it means, what to do
    "RepositoryNotFoundError": (
        "there is no file or folder of that name, and the hub has no such model, or keeps it from you",
        "check the spelling; for a private model, log in with `hf auth login`",
    ),
    "GatedRepoError": (
        "its author gives it only to those who accept the terms",
        "accept them on the model's page, then log in with `hf auth login`",
    ),
    "RevisionNotFoundError": ("the hub has no such revision of it", "check the branch, tag or commit after the @"),
    "HFValidationError": ("it is not a hub id", 'write it as "org/name"'),
}
