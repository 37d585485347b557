"""Downloads, against a server on this machine that can be told to misbehave."""

import contextlib
import hashlib
import json
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from common.errors import UserError
from data import download
import data
from data.download import Unavailable, data_folder, fetch
from data.files import checksum

BODY = bytes(range(256)) * 1200  # 307,200 bytes: several reads of the client
SUM = hashlib.sha256(BODY).hexdigest()


class Site:
    """What the server serves, how it fails, and what it was asked for."""

    def __init__(self):
        self.body, self.etag = BODY, '"1"'
        self.break_off_after = []  # bytes sent of each of the next bodies
        self.ranges = []  # the Range header of each request
        self.conditions = []  # the If-Range header
        self.status, self.ignore_ranges, self.content_type = None, False, "application/json"


@pytest.fixture
def site(monkeypatch):
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            range_header, condition = self.headers.get("Range"), self.headers.get("If-Range")
            site.ranges.append(range_header)
            site.conditions.append(condition)
            if site.status:
                return self.send_error(site.status)
            start = 0
            if range_header and not site.ignore_ranges and condition in (None, site.etag):
                start = int(range_header.removeprefix("bytes=").removesuffix("-"))
                if start >= len(site.body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(site.body)}")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(site.body) - 1}/{len(site.body)}")
            else:
                self.send_response(200)
            self.send_header("Content-Type", site.content_type)
            self.send_header("Content-Length", str(len(site.body) - start))
            if site.etag:
                self.send_header("ETag", site.etag)
            self.end_headers()
            body = site.body[start:]
            if site.break_off_after:
                body = body[:site.break_off_after.pop(0)]
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    site.url = f"http://127.0.0.1:{server.server_port}/file.json"
    site.base = site.url.removesuffix("file.json")
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "data" / "file.json"


def left(target):
    """Names in the data folder, but for the record of downloads."""
    return sorted(p.name for p in target.parent.iterdir() if p.name != "downloads.json")


def test_a_download_is_whole_and_leaves_nothing_beside_it(site, target):
    download.download(site.url, target, SUM)
    assert target.read_bytes() == BODY and left(target) == ["file.json"] and site.ranges == [None]
    recorded = json.loads((target.parent / "downloads.json").read_text())["file.json"]
    assert recorded == {"url": site.url, "bytes": len(BODY), "sha256": SUM}


def test_a_broken_transfer_goes_on_where_it_stopped(site, target):
    site.break_off_after = [100_000, 50_000]
    download.download(site.url, target, SUM)
    assert target.read_bytes() == BODY
    assert site.ranges == [None, "bytes=100000-", "bytes=150000-"] and site.conditions == [None, '"1"', '"1"']


def test_a_given_up_transfer_goes_on_in_the_next_run(site, target):
    site.break_off_after = [100_000, 10, 10, 10, 10]
    with pytest.raises(UserError, match=r"broke off 5 times .*; 100,040 bytes are kept in .*file.json.part: run it again"):
        download.download(site.url, target, SUM)
    assert not target.exists()
    download.download(site.url, target, SUM)
    assert site.ranges[-1] == "bytes=100040-" and target.read_bytes() == BODY and left(target) == ["file.json"]


def test_a_file_that_changed_on_the_server_is_not_glued_together(site, target):
    site.break_off_after = [1000] + [0] * 4
    with pytest.raises(UserError):
        download.download(site.url, target)
    site.body, site.etag = BODY[::-1], '"2"'
    download.download(site.url, target)
    assert target.read_bytes() == BODY[::-1]


def test_a_server_without_ranges_starts_anew(site, target):
    site.ignore_ranges, site.etag, site.break_off_after = True, None, [1000]
    download.download(site.url, target, SUM)
    assert target.read_bytes() == BODY and site.ranges == [None, "bytes=1000-"]


def test_a_process_killed_after_the_last_byte(site, target):
    target.parent.mkdir()
    target.with_name("file.json.part").write_bytes(BODY)
    download.download(site.url, target, SUM)
    assert target.read_bytes() == BODY and site.ranges == [f"bytes={len(BODY)}-"]


def test_a_beginning_longer_than_the_file_is_thrown_away(site, target):
    target.parent.mkdir()
    target.with_name("file.json.part").write_bytes(BODY + b"more")
    download.download(site.url, target, SUM)
    assert target.read_bytes() == BODY


def test_another_content_is_refused_and_thrown_away(site, target):
    site.body = BODY[:-1] + b"!"
    with pytest.raises(UserError, match=f"the 307,200 bytes received have SHA-256 .*the published file has {SUM}.*thrown away"):
        download.download(site.url, target, SUM)
    assert left(target) == []
    site.body = BODY
    download.download(site.url, target, SUM)
    assert target.read_bytes() == BODY


def test_without_a_published_sum_the_first_download_is_trusted_and_later_ones_compared(site, target, caplog):
    download.download(site.url, target)
    assert "no checksum is published; trusting this first download" in caplog.text and SUM in caplog.text
    target.unlink()
    caplog.clear()
    download.download(site.url, target)
    assert target.read_bytes() == BODY and not caplog.records
    target.unlink()
    site.body = b"{}"
    with pytest.raises(UserError, match=f"the first download had .*downloads.json; remove its entry.* {SUM}"):
        download.download(site.url, target)
    assert not target.exists()


@pytest.mark.parametrize("status, words", [(404, "answers 404 Not Found"), (503, "answers 503 Service Unavailable")])
def test_a_server_without_the_file(site, target, status, words):
    site.status = status
    with pytest.raises(Unavailable) as error:
        download.download(site.url, target)
    message = str(error.value)
    assert words in message and site.url in message and "\n" not in message and left(target) == []


def test_a_web_page_is_not_a_data_file(site, target):
    site.content_type = "text/html; charset=utf-8"
    with pytest.raises(Unavailable, match="sent a web page instead of the file"):
        download.download(site.url, target)
    assert left(target) == []


def test_no_server_at_all(target):
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/file.json"  # bound, but nobody listens
        with pytest.raises(Unavailable) as error:
            download.download(url, target)
    message = str(error.value)
    assert f"file.json is not in {target.parent}" in message and url in message and "refused" in message
    assert f"put it at {target}" in message and "--data_dir or KE_DATA_DIR" in message and "\n" not in message
    assert left(target) == []


def test_a_server_that_says_nothing(target, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        with pytest.raises(Unavailable, match="can't be reached .*timed out"):
            download.download(f"http://127.0.0.1:{silent.getsockname()[1]}/file.json", target)


def test_an_address_of_no_known_kind(target):
    with pytest.raises(Unavailable, match="unknown url type"):
        download.download("memit.baulab.info/file.json", target)


def test_a_folder_that_cannot_be_made(site, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="data folder .*file/data: can't be written .*--data_dir or KE_DATA_DIR"):
        download.download(site.url, tmp_path / "file" / "data" / "file.json")


def test_several_that_want_one_file_do_not_mix_it_up(site, target):
    with ThreadPoolExecutor(4) as pool:  # the lock is that of an open file: it keeps threads apart as it does processes
        for future in [pool.submit(download.download, site.url, target, SUM) for _ in range(4)]:
            future.result(timeout=30)
    assert target.read_bytes() == BODY and len(site.ranges) == 1 and left(target) == ["file.json"]


def test_fetch_takes_what_is_there_and_downloads_what_is_not(site, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("KE_DATA_URL", site.base)
    monkeypatch.setitem(download.SHA256, "counterfact.json", SUM)
    path = fetch("counterfact.json", tmp_path)
    assert path == tmp_path / "counterfact.json" and path.read_bytes() == BODY
    assert fetch("counterfact.json", tmp_path) == path and len(site.ranges) == 1 and not caplog.records
    path.write_bytes(BODY[:10])  # put there by hand
    assert fetch("counterfact.json", tmp_path) == path and len(site.ranges) == 1
    assert "is not the published file" in caplog.text and path.read_bytes() == BODY[:10]


def test_a_data_set_that_is_downloaded_loads(site, tmp_path, monkeypatch, golden):
    monkeypatch.setenv("KE_DATA_URL", site.base)
    site.body = (golden / "multi_counterfact.json").read_bytes()
    assert len(data.load("mcf", tmp_path)) == 12
    site.status = 404
    assert len(data.load("mcf", tmp_path)) == 12  # no second request
    with pytest.raises(UserError, match="zsre_mend_eval.json is not in .*404"):
        data.load("zsre", tmp_path)


def test_the_published_address_and_sums():
    assert download.PUBLISHED_URL == "https://memit.baulab.info/data/dsets/"
    assert {name for name, digest in download.SHA256.items() if digest} == {
        "counterfact.json", "attribute_snippets.json", "idf.npy", "tfidf_vocab.json"}
    assert all(len(bytes.fromhex(digest)) == 32 for digest in download.SHA256.values() if digest)


def test_where_the_data_folder_is(monkeypatch, tmp_path):
    monkeypatch.setenv("KE_DATA_DIR", str(tmp_path / "env"))
    assert data_folder() == tmp_path / "env" and data_folder("here") == data_folder("here").__class__("here")
    assert data_folder("~/x") == data_folder("~").parent / data_folder("~").name / "x"
    monkeypatch.delenv("KE_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder() == tmp_path / ".cache" / "knowledge-editing" / "data"


def test_a_checksum_is_remembered_until_the_file_changes(tmp_path):
    path, cache = tmp_path / "a", tmp_path / "cache"
    path.write_bytes(BODY)
    assert checksum(path, cache) == SUM
    stat = path.stat()
    path.write_bytes(BODY[::-1])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert checksum(path, cache) == SUM  # same size and time: not read again
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert checksum(path, cache) == hashlib.sha256(BODY[::-1]).hexdigest()
