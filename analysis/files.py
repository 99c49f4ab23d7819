"""Files that are either whole or absent: written aside, flushed to the disk, then renamed."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object], durable: bool = True) -> None:
    """Replaces ``path`` by what ``write`` writes, or leaves it as it was; ``durable``: after a power cut too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            write(file)
            if durable:  # for some milliseconds
                file.flush()
                os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: object, indent: int | None = 2) -> None:
    text = standard_json(content, indent) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """Raises OSError where the file cannot be read, or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(errno.EINVAL, f"damaged, or no JSON: {error}", str(path)) from None


def standard_json(content: object, indent: int | None = 2) -> str:
    """Standard JSON, on one line without an indent; nan and infinity, which it lacks, become null."""
    return json.dumps(json.loads(json.dumps(content), parse_constant=lambda _: None), indent=indent)
