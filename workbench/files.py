"""Where things lie on disk: safe paths, whole-or-nothing writes, and the cache of results."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import platformdirs

from workbench.exceptions import WorkbenchError


def cache_dir() -> Path:
    """The folder for unpacked models and measured results; `WORKBENCH_CACHE` overrides it."""
    folder = Path(os.environ.get("WORKBENCH_CACHE") or platformdirs.user_cache_dir("quantization-workbench"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def inside(folder: Path, name: str) -> Path:
    """The path of `name` in `folder`, refusing a name (from a model file, say) that leads out of it.

    A link inside the folder may lead out, as the hub's own cache does: what is refused is
    the *name* that climbs, is absolute, or names a device.
    """
    part = Path(name)
    climbs = part.is_absolute() or part.drive or ".." in part.parts or "\\" in name or "\0" in name or ":" in name
    if climbs or not part.parts:
        raise WorkbenchError(
            folder,
            f"it refers to the file {name!r}, which is not inside that folder",
            allowed="plain file names inside the folder",
            do="get the checkpoint again from its author; do not edit the path",
        )
    return folder / part


def place(typed: str) -> Path:
    """The path that a user typed, with ~ resolved.

    Raises:
        WorkbenchError: nothing on this machine can have such a path.
    """
    try:
        path = Path(typed).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as reason:  # too long, a zero byte, no such user
        raise WorkbenchError(typed[:200], f"no file can be there ({reason!s:.100})", do="give another path") from None
    return path


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written under `folder`, which need not exist yet."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Write to a temporary neighbour of `path`, which replaces it only if the block ends well.

    Raises:
        WorkbenchError: no file can be made there.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=path.name + ".tmp-", dir=path.parent)
    except OSError as reason:
        found = f"it cannot be written ({reason.strerror or reason})"
        raise WorkbenchError(path, found, do="choose another folder, or a shorter name") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary neighbour of `path`, which takes that name only if the block ends well.

    Raises:
        WorkbenchError: `path` is there and not an empty folder, or no folder can be made.
    """
    path = Path(path)
    check_new_folder(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=path.name + ".tmp-", dir=path.parent))
    except OSError as reason:
        found = f"it cannot be written ({reason.strerror or reason})"
        raise WorkbenchError(path, found, do="choose another folder, or a shorter name") from None
    try:
        yield temporary
        temporary.chmod(0o755)  # it was made for its owner alone
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new_folder(path: Path) -> None:
    """Raise WorkbenchError where `path` is there, unless as an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise WorkbenchError(path, "it is there already, and not an empty folder", do="name a new folder")


def size_of(folder: Path) -> int:
    """Bytes in all files under a folder, which another process may be writing to."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # it went away
                total += (Path(place) / name).stat().st_size
    return total


def digest(*parts: object) -> str:
    """A short hex name for a sequence of bytes, strings and JSON-like values (blake2b, 128 bit)."""
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode()
        total.update(len(raw).to_bytes(8, "little") + raw)
    return total.hexdigest()


@lru_cache
def code_version(*modules: ModuleType) -> str:
    """A hash of the modules' own source: results measured by other code are not reused."""
    return digest(*(inspect.getsource(module) for module in modules))


class Cache:
    """A persistent dictionary of JSON values, safe to interrupt and to share between threads and processes.

    Each `put` is on disk when it returns, so a session that is lost in the middle of a
    table finds every finished row again.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
        with contextlib.suppress(sqlite3.OperationalError):  # another process is setting it now, for all of us
            self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, value TEXT NOT NULL)")

    def get(self, keys: list[str]) -> dict[str, object]:
        """The stored values among `keys`."""
        found: dict[str, object] = {}
        with self._lock:
            for first in range(0, len(keys), 500):  # SQLite's limit on variables in one statement
                some = keys[first : first + 500]
                marks = ",".join("?" * len(some))
                for key, value in self._db.execute(f"SELECT key, value FROM results WHERE key IN ({marks})", some):
                    found[key] = json.loads(value)
        return found

    def put(self, values: dict[str, object]) -> None:
        """Store `values`, all or none; they are on disk when this returns."""
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT OR REPLACE INTO results VALUES (?, ?)", rows)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise


def cache(name: str) -> Cache:
    """The cache of this name in the cache folder."""
    with _opening:
        return _cache(cache_dir() / f"{name}.sqlite", os.getpid())


_opening = threading.Lock()  # two threads at once would each open one


@lru_cache(maxsize=16)
def _cache(path: Path, process: int) -> Cache:
    return Cache(path)  # one connection for a process: opening one takes longer than most questions
