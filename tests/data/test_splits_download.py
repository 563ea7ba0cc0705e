"""`download` from a local HTTP server that truncates or changes files, ignores ranges, or does not exist."""

import functools
import http.server
import threading
import urllib.request
from pathlib import Path

import pytest

from imagenet_inat.lists import known
from imagenet_inat.lists.known import fingerprint
from imagenet_inat.splits import __main__ as splits
from imagenet_inat.splits import download
from tests.refusals import at_line, exit_message, line_with, refusal

TEXT = "".join(f"data/{c}/{i}.jpg {c}\n" for c in range(365) for i in range(3)).encode()
NAMES = [f"Places_LT_{split}.txt" for split in ("train", "val", "test")]


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serve a folder, with range requests. Each request takes the next fault from the server's list."""

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        fault = self.server.faults.pop(0) if self.server.faults else ""
        file = Path(self.translate_path(self.path))
        if not file.is_file():
            self.send_error(404)
            return
        data, start = file.read_bytes(), 0
        if self.headers.get("Range") and fault != "no ranges":
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if start >= len(data) > 0:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        body = data[start:]
        if fault == "tampered":
            body = body.replace(b"0.jpg 7\n", b"0.jpg 8\n")
        self.wfile.write(body[: len(body) // 2] if fault == "truncated" else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(TEXT)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        server.faults, server.requests, server.folder = [], [], folder
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def published(monkeypatch):
    """Register TEXT as the known training list of Places-LT. As in reality, the other lists have no known hash."""
    monkeypatch.setitem(known.PUBLISHED, NAMES[0], fingerprint(TEXT))


def fetch(source: str, output: Path) -> None:
    splits.main(["download", "places", "--from", source, "--output", str(output)])


def test_lists_are_downloaded_verified_and_then_renamed(server, tmp_path, capsys):
    fetch(server.url, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(NAMES)
    assert all((tmp_path / "out" / name).read_bytes() == TEXT for name in NAMES)
    out = capsys.readouterr().out
    for name in NAMES:  # the hash is printed if the list has no known hash
        assert (fingerprint(TEXT).sha256 in line_with(out, name, "1,095", "SHA-256")) == (name != NAMES[0])
    assert f"verify places --splits {tmp_path}/out --data-root DIR" in out


def test_existing_lists_are_verified_and_not_downloaded_again(server, tmp_path, capsys):
    fetch(server.url, tmp_path)
    count = len(server.requests)
    capsys.readouterr()
    fetch(server.url, tmp_path)
    assert len(server.requests) == count == 3
    out = capsys.readouterr().out
    assert all(line_with(out, tmp_path / name) for name in NAMES)


def test_other_file_of_same_name_is_not_overwritten(server, tmp_path):
    (tmp_path / NAMES[0]).write_text("mine.jpg 0\n")
    refusal(lambda: fetch(server.url, tmp_path), NAMES[0], 11, fingerprint(TEXT).sha256)
    assert (tmp_path / NAMES[0]).read_text() == "mine.jpg 0\n"


@pytest.mark.parametrize("server_says", ["ranges", "no ranges"])
def test_truncated_download_is_continued(server_says, server, tmp_path):
    server.faults = ["truncated", server_says]
    refusal(lambda: fetch(server.url, tmp_path), NAMES[0], f"{len(TEXT) // 2:,}", f"{len(TEXT):,}")
    assert not (tmp_path / NAMES[0]).exists()
    assert (tmp_path / f"{NAMES[0]}.part").read_bytes() == TEXT[: len(TEXT) // 2]
    fetch(server.url, tmp_path)
    assert (tmp_path / NAMES[0]).read_bytes() == TEXT
    assert server.requests[1][1] == f"bytes={len(TEXT) // 2}-"
    assert not list(tmp_path.glob("*.part"))


def test_complete_part_file_needs_no_download(server, tmp_path):
    (tmp_path / f"{NAMES[0]}.part").write_bytes(TEXT)
    fetch(server.url, tmp_path)
    assert (tmp_path / NAMES[0]).read_bytes() == TEXT


@pytest.mark.parametrize("faults", [["tampered"], ["truncated", "tampered"]])
def test_tampered_download_is_deleted_and_never_renamed(faults, server, tmp_path):
    server.faults = list(faults)
    if faults[0] == "truncated":
        (tmp_path / f"{NAMES[0]}.part").write_bytes(TEXT[:200].replace(b"0.jpg 7\n", b"0.jpg 8\n").replace(b"1", b"2"))
        server.faults = []
    refusal(lambda: fetch(server.url, tmp_path), NAMES[0], fingerprint(TEXT).sha256)
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".txt", ".part")] == []
    server.faults = []
    fetch(server.url, tmp_path)  # the next try starts again
    assert (tmp_path / NAMES[0]).read_bytes() == TEXT


def test_html_page_instead_of_list_is_refused(server, tmp_path):
    (server.folder / NAMES[1]).write_text("<html>sign in</html>\n")
    refusal(lambda: fetch(server.url, tmp_path), at_line("Places_LT_val.txt.part", 1), "<html>sign in</html>")
    assert (tmp_path / NAMES[0]).exists() and not (tmp_path / NAMES[1]).exists()


def test_interrupted_download_is_continued(server, tmp_path, monkeypatch):
    """The user presses Ctrl-C after the first bytes."""
    monkeypatch.setattr(download, "CHUNK", 1000)
    monkeypatch.setattr(download, "tqdm", InterruptedBar)
    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, tmp_path)
    assert 0 < (tmp_path / f"{NAMES[0]}.part").stat().st_size < len(TEXT)
    monkeypatch.undo()
    monkeypatch.setitem(known.PUBLISHED, NAMES[0], fingerprint(TEXT))
    fetch(server.url, tmp_path)
    assert (tmp_path / NAMES[0]).read_bytes() == TEXT and server.requests[1][1].startswith("bytes=")


class InterruptedBar:
    """A progress bar at whose second update the user presses Ctrl-C."""

    def __init__(self, **kwargs):
        self.updates = 0

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass

    def update(self, count: int) -> None:
        self.updates += 1
        if self.updates == 2:
            raise KeyboardInterrupt


def test_folder_is_accepted_as_source(server, tmp_path):
    fetch(str(server.folder), tmp_path)
    assert (tmp_path / NAMES[2]).read_bytes() == TEXT and not server.requests


@pytest.mark.parametrize(
    ("source", "fact"),
    [
        ("{url}/elsewhere", "404"),
        ("http://127.0.0.1:9", "Connection refused"),
        ("http://[broken", "http://[broken"),
        ("nowhere", "nowhere"),
    ],
)
def test_missing_source_is_reported_in_one_line(source, fact, server, tmp_path):
    refusal(lambda: fetch(source.format(url=server.url), tmp_path / "out"), fact, "--from")
    assert list((tmp_path / "out").iterdir()) == []


def test_url_of_public_source_has_commit_dataset_and_file(tmp_path, monkeypatch):
    requested = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: requested.append(request.full_url) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        splits.main(["download", "imagenet", "--output", str(tmp_path)])
    commit = "f162adef63fdf592d0b8a0f6e52bc481fc08785f"
    base = f"https://raw.githubusercontent.com/facebookresearch/classifier-balancing/{commit}/data"
    assert requested == [f"{base}/ImageNet_LT/ImageNet_LT_train.txt"]


def test_generated_split_cannot_be_downloaded(capsys):
    exit_message(lambda: splits.main(["download", "cifar10"]), capsys, "cifar10", "imagenet", "inat", "places")
