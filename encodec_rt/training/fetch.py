"""Fetches the pinned Debian packages: they are checked and unpacked, but never installed."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from encodec_rt.errors import InputError
from encodec_rt.model.identity import file_sha256
from encodec_rt.training.sources import Source

_log = logging.getLogger(__name__)


def apt_download(source: Source, folder: Path) -> Path:
    """Download the package into ``folder`` with ``apt-get download`` -> its path."""
    _run(["apt-get", "download", f"{source.archive}={source.version}"], folder)
    return _archive(source, folder)


def fetch_package(
    source: Source,
    root: Path,
    download: Callable[[Source, Path], Path] = apt_download,
) -> Path:
    """Download and unpack a package, unless that was done before -> ``root/raw/<package>``.

    Needs Debian's ``apt-get`` and ``dpkg-deb``. Raises InputError if a tool is missing, a download
    fails, or the package's SHA-256 is not the pinned one.
    """
    unpacked = root / "raw" / source.archive
    if unpacked.is_dir():
        return unpacked
    debs = root / "deb"
    debs.mkdir(parents=True, exist_ok=True)
    archive = _archive(source, debs)
    if not archive.is_file():
        archive = download(source, debs)
    found = file_sha256(archive)
    if found != source.sha256:
        archive.unlink()
        raise InputError(
            f"{archive.name} has SHA-256 {found}, but {source.archive} {source.version} is pinned "
            f"to {source.sha256}; the file was removed, so fetch it again from a mirror you trust"
        )
    partial = unpacked.with_name(unpacked.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _run(["dpkg-deb", "-x", str(archive.resolve()), str(partial.resolve())], root)
    partial.rename(unpacked)
    _log.info("fetched %s %s", source.archive, source.version)
    return unpacked


def _archive(source: Source, folder: Path) -> Path:
    return folder / f"{source.archive}_{source.version.replace(':', '%3a')}_all.deb"


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise InputError(
            f"{command[0]} is needed to fetch the training packages and was not found; "
            "run this on Debian or a system with its tools, or index folders of your own"
        ) from error
    except subprocess.CalledProcessError as error:
        raise InputError(f"{' '.join(command)} failed: {error.stderr.strip()}") from error
