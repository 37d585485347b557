"""Downloads of the published data files: resumed after an interruption, checked, put in place at once."""

import fcntl
import http.client
import logging
import os
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from tqdm import tqdm

from common.errors import UserError
from data.files import checksum, read_json, sha256, write_json

PUBLISHED_URL = "https://memit.baulab.info/data/dsets/"
# SHA-256 of the published files; None where it is not known: then the first download is trusted and its sum recorded.
SHA256 = {
    "counterfact.json": "d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f",
    "multi_counterfact.json": None,
    "zsre_mend_eval.json": None,
    "known_1000.json": None,
    "attribute_snippets.json": "10b5c1cd105e54d5983c72de1b45bfc88bc7af786f7b99def2557886ff23385b",
    "idf.npy": "c073d642589d4ac6432f467230329b36364a01e72de63a77a3624b745b923dda",
    "tfidf_vocab.json": "8a78c4f20d8d85dadfd14e283d71af255482ff18aa0eb8a81716024c05ff888b",
}
TIMEOUT_S = 30  # to connect, and between two pieces of data
ATTEMPTS = 5  # transfers begun before an unsteady connection is given up
PAUSE_S = 1.0  # before the second attempt; each further one waits one such pause longer

log = logging.getLogger(__name__)


class Unavailable(UserError):
    """The file is not here and can't be downloaded."""


def data_folder(data_dir: str | Path | None = None) -> Path:
    """Where data files are kept: ``data_dir``, else the environment's ``KE_DATA_DIR``, else ~/.cache/knowledge-editing/data."""
    return Path(data_dir or os.environ.get("KE_DATA_DIR") or "~/.cache/knowledge-editing/data").expanduser()


def cache_folder(data_dir: str | Path | None = None) -> Path:
    """Where files computed from the data are kept: ``cache`` in the data folder, or in the default one if that is read-only."""
    folder = data_folder(data_dir)
    if folder.is_dir() and not os.access(folder, os.W_OK):
        folder = Path("~/.cache/knowledge-editing/data").expanduser()
    return folder / "cache"


def fetch(name: str, data_dir: str | Path | None = None) -> Path:
    """The path of a published file (a key of ``SHA256``), downloaded into the data folder if it is not there yet.

    A file that was put there by other means is used as it is, with a warning if it is not the published one. The address
    can be changed to a mirror's by the environment's ``KE_DATA_URL``. Raises ``UserError``.
    """
    path = data_folder(data_dir) / name
    if not path.exists():
        url = os.environ.get("KE_DATA_URL", PUBLISHED_URL).rstrip("/") + "/" + name
        download(url, path, SHA256[name])
    elif SHA256[name] and checksum(path, cache_folder(data_dir)) != SHA256[name]:
        log.warning("%s is not the published file (its SHA-256 differs); it is used as it is", path)
    return path


def download(url: str, path: Path, expected: str | None = None) -> None:
    """Download ``url`` to ``path``, going on from ``<path>.part`` where an earlier attempt stopped.

    ``expected``: SHA-256 of the file. Without it the sum of the first download is recorded in ``downloads.json`` beside
    the file, and later downloads to the same place must agree. Two processes that want the same file wait for each other.
    Raises :class:`Unavailable` when the server can't be reached or does not have the file, ``UserError`` when the transfer
    keeps breaking off, the content has another sum, or the folder can't be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _open_alone(part)
    except OSError as error:
        raise UserError(f"data folder {path.parent}: can't be written ({error.strerror}); "
                        "name another with --data_dir or KE_DATA_DIR") from error
    with file:
        try:
            if not path.exists():  # else another process has finished it while this one waited
                _transfer(url, file, path)
                _check(url, file, path, expected)
                os.replace(part, path)
        finally:
            if _size(file) == 0 or path.exists():
                part.unlink(missing_ok=True)
                _version_file(path).unlink(missing_ok=True)


def _open_alone(part: Path) -> IO[bytes]:
    """``part`` opened for appending, when no other process has it open any more; the lock ends with the file object."""
    while True:
        file = open(part, "a+b")
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            same = part.stat().st_ino == os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            same = False
        if same:
            return file
        file.close()  # the process before this one has moved or removed the file that was waited for


def _check(url: str, file: IO[bytes], path: Path, expected: str | None) -> None:
    """Compare a complete download with what it should be; without ``expected``, with the first download's entry."""
    file.seek(0)
    digest = sha256(file)
    store = path.with_name("downloads.json")
    downloads = read_json(store) if store.exists() else {}
    origin = "the published file has"
    if expected is None and path.name in downloads:
        expected = downloads[path.name]["sha256"]
        origin = f"the first download had (see {store}; remove its entry to accept another)"
    if expected is not None and digest != expected:
        size = file.tell()
        file.truncate(0)
        raise UserError(f"{url}: the {size:,} bytes received have SHA-256 {digest}, {origin} {expected}; they were thrown "
                        f"away: run it again, or put the right file at {path} by hand")
    if expected is None:
        log.warning("%s: no checksum is published; trusting this first download (SHA-256 %s, recorded in %s)",
                    path.name, digest, store)
    downloads[path.name] = {"url": url, "bytes": file.tell(), "sha256": digest}
    write_json(store, downloads)


def _transfer(url: str, file: IO[bytes], path: Path) -> None:
    """Append to ``file`` what it lacks of ``url``, in :data:`ATTEMPTS` connections at most. Raises UserError."""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S * attempt)
        try:
            response = _open(url, file, path)
        except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException, ValueError) as error:
            if attempt == 0:
                raise _unavailable(url, path, error) from error
            reason = error
            continue
        if response is None:
            return
        try:
            with response:
                if _copy(response, file, path.name):
                    return
            reason = "the connection was closed early"
        except (ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException) as error:
            reason = error
    raise UserError(f"{url}: the transfer broke off {ATTEMPTS} times ({reason}); {_size(file):,} bytes are kept in "
                    f"{path}.part: run it again to go on from there")


def _open(url: str, file: IO[bytes], path: Path) -> http.client.HTTPResponse | None:
    """The response that goes on where ``file`` ends, which is emptied if the server starts anew; None if it is complete."""
    version = _version_file(path)
    start = _size(file)
    headers = {"User-Agent": "knowledge-editing"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if version.exists():  # else a file that changed on the server would be glued to the old one's beginning
            headers["If-Range"] = version.read_text()
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return None
        file.truncate(0)
        return _open(url, file, path)
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        content_range = response.headers.get("Content-Range", "")
        if not content_range.startswith(f"bytes {start}-"):
            raise http.client.HTTPException(f"asked for the bytes from {start}, sent {content_range!r}")
        return response
    if response.headers.get_content_type() == "text/html":
        raise http.client.HTTPException("it sent a web page instead of the file")
    file.truncate(0)
    etag = response.headers.get("ETag", "")
    tag = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
    if tag:
        version.write_text(tag)
    else:
        version.unlink(missing_ok=True)
    return response


def _copy(response: http.client.HTTPResponse, file: IO[bytes], name: str) -> bool:
    """Append the response's body; whether it came whole."""
    start, length = _size(file), response.headers.get("Content-Length")
    total = start + int(length) if length else None
    with tqdm(desc=name, initial=start, total=total, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        while chunk := response.read(1 << 16):
            file.write(chunk)
            bar.update(len(chunk))
    file.flush()
    return total is None or _size(file) == total


def _unavailable(url: str, path: Path, error: Exception) -> Unavailable:
    if isinstance(error, urllib.error.HTTPError):
        reason = f"the server of {url} answers {error.code} {error.reason}"
    else:
        reason = f"{url} can't be reached ({getattr(error, 'reason', error)})"
    return Unavailable(f"{path.name} is not in {path.parent}, and {reason}; download it elsewhere and put it at {path}, "
                       "or name a folder that has it with --data_dir or KE_DATA_DIR")


def _size(file: IO[bytes]) -> int:
    return file.seek(0, os.SEEK_END)


def _version_file(path: Path) -> Path:
    """Holds the server's name (ETag or date) for the version of the file that ``<path>.part`` is the beginning of."""
    return path.with_name(path.name + ".version.part")
