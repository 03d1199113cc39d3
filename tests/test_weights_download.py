"""Downloads against a server on this machine: resume, truncation, alteration, no network."""
from __future__ import annotations

import argparse
import hashlib
import io
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from idcodeformer.cli import models as cli_models
from idcodeformer.errors import CorruptWeights, DownloadError, IDCodeFormerError, MissingWeights
from idcodeformer.weights import download as downloads
from idcodeformer.weights import registry, store

DATA = bytes(range(256)) * 4000  # 1,024,000 bytes
SHA = hashlib.sha256(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``files``; ``cut`` maps a path to byte counts after which a connection breaks off, one per request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: dict[str, list[int]] = {}
        self.ranges: list[str | None] = []
        self.resumes = True

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server: Server = self.server
        data = server.files.get(self.path)
        if data is None:
            return self.send_error(404)
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        start = int(asked.split("=")[1].rstrip("-")) if asked and server.resumes else 0
        if start >= len(data) and start:
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        stops = server.cut.get(self.path)
        end = start + stops.pop(0) if stops else len(data)
        self.wfile.write(data[start:end])
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(downloads, "PAUSE", 0)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def weight(server, monkeypatch, tmp_path):
    """A registry row served on this machine; returns a function that changes it."""
    server.files["/net.pth"] = DATA
    row = registry.Weight(
        "net", "codeformer", "net.pth", "Test licence", (server.url("/net.pth"),), len(DATA), SHA, non_commercial=True
    )

    def change(**more):
        monkeypatch.setattr(registry, "WEIGHTS", (replace(row, **more), *ROWS))

    monkeypatch.setenv("IDCODEFORMER_MODELS", str(tmp_path))
    change()
    return change


ROWS = registry.WEIGHTS


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_download_is_whole_verified_and_not_repeated(server, weight, tmp_path):
    seen = []
    path = store.download("net", progress=lambda *step: seen.append(step))
    assert path == tmp_path / "net.pth" and path.read_bytes() == DATA and names(tmp_path) == ["net.pth"]
    assert seen[-1] == (len(DATA), len(DATA), "net.pth") and len(seen) > 1
    assert [s[0] for s in seen] == sorted(s[0] for s in seen)
    assert store.download("net") == path and len(server.ranges) == 1
    assert store.find("net", "restorer") == path


def test_a_broken_connection_is_resumed(server, weight, tmp_path):
    server.cut["/net.pth"] = [300_000, 300_000]
    assert store.download("net").read_bytes() == DATA
    assert server.ranges == [None, "bytes=300000-", "bytes=600000-"]


def test_what_came_is_kept_and_the_next_call_resumes(server, weight, tmp_path):
    server.cut["/net.pth"] = [1000] * downloads.TRIES
    with pytest.raises(DownloadError, match="broke off after 3000 of 1024000 bytes"):
        store.download("net")
    assert names(tmp_path) == ["net.pth.partial"] and (tmp_path / "net.pth.partial").stat().st_size == 3000
    with pytest.raises(MissingWeights):
        store.find("net")
    assert store.download("net").read_bytes() == DATA
    assert server.ranges[-1] == "bytes=3000-" and names(tmp_path) == ["net.pth"]


def test_a_cancelled_download_resumes(server, weight, tmp_path):
    class Cancelled(Exception):
        pass

    def stop(done, total, what):
        if done > 400_000:
            raise Cancelled

    with pytest.raises(Cancelled):
        store.download("net", progress=stop)
    assert not (tmp_path / "net.pth").exists()
    assert store.download("net").read_bytes() == DATA
    assert server.ranges[-1] is not None


def test_a_server_that_cannot_resume_starts_over(server, weight, tmp_path):
    (tmp_path / "net.pth.partial").write_bytes(b"old" * 100)
    server.resumes = False
    assert store.download("net").read_bytes() == DATA


@pytest.mark.parametrize("served", [DATA[:-1] + b"!", DATA[:5000], DATA + b"more", b"<html>sign in</html>"])
def test_altered_and_truncated_files_are_rejected_and_kept_aside(server, weight, tmp_path, served):
    server.files["/net.pth"] = served
    with pytest.raises(CorruptWeights) as caught:
        store.download("net")
    assert SHA in str(caught.value) and hashlib.sha256(served).hexdigest() in str(caught.value)
    assert names(tmp_path) == ["net.pth.rejected"]
    assert (tmp_path / "net.pth.rejected").read_bytes() == served
    with pytest.raises(MissingWeights):
        store.find("net")
    server.files["/net.pth"] = DATA
    assert store.download("net").read_bytes() == DATA


def test_a_wrong_partial_file_is_rejected_then_fetched_anew(server, weight, tmp_path):
    (tmp_path / "net.pth.partial").write_bytes(b"x" * 1000)
    with pytest.raises(CorruptWeights):
        store.download("net")
    assert store.download("net").read_bytes() == DATA


def test_a_partial_file_longer_than_the_file_starts_over(server, weight, tmp_path):
    weight(bytes=None, sha256=SHA)
    (tmp_path / "net.pth.partial").write_bytes(b"x" * (len(DATA) + 10))
    assert store.download("net").read_bytes() == DATA


def test_no_network_gives_one_sentence_with_file_url_and_folder(server, weight, tmp_path):
    url = "http://127.0.0.1:9/net.pth"  # the discard port: nobody listens
    weight(urls=(url,))
    with pytest.raises(DownloadError) as caught:
        store.download("net")
    text = str(caught.value)
    assert "net.pth" in text and url in text and str(tmp_path) in text and "\n" not in text


def test_the_second_url_is_tried(server, weight, tmp_path):
    weight(urls=(server.url("/gone.pth"), server.url("/net.pth")))
    assert store.download("net").read_bytes() == DATA
    weight(urls=(server.url("/gone.pth"), "file:///etc/hostname"))
    (tmp_path / "net.pth").unlink()
    with pytest.raises(DownloadError, match="404|Not Found"):
        store.download("net")


def test_without_a_known_hash_a_web_page_is_still_refused(server, weight, tmp_path):
    weight(sha256=None, bytes=None)
    server.files["/net.pth"] = b"<!doctype html><html>sign in</html>"
    with pytest.raises(CorruptWeights, match="web page"):
        store.download("net")
    assert not (tmp_path / "net.pth").exists()


def archive_of(member: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        bundle.writestr("other.onnx", b"no")
        bundle.writestr(member, data)
    return buffer.getvalue()


def test_a_file_is_taken_out_of_its_archive(server, weight, tmp_path):
    bundle = archive_of("buffalo/net.pth", DATA)
    server.files["/pack.zip"] = bundle
    archive = registry.Archive(server.url("/pack.zip"), len(bundle), hashlib.sha256(bundle).hexdigest())
    weight(urls=(), archive=archive)
    assert store.download("net").read_bytes() == DATA
    assert names(tmp_path) == ["net.pth"]
    (tmp_path / "net.pth").unlink()
    weight(urls=(), archive=replace(archive, sha256="0" * 64))
    with pytest.raises(CorruptWeights, match="pack.zip"):
        store.download("net")
    weight(urls=(), archive=archive, sha256="0" * 64)
    with pytest.raises(CorruptWeights, match="net.pth is not the published file"):
        store.download("net")
    assert not (tmp_path / "net.pth").exists()


def test_what_has_no_link_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("IDCODEFORMER_MODELS", str(tmp_path))
    with pytest.raises(DownloadError, match="arcface_torch.*NON-COMMERCIAL"):
        store.download("arcface_ms1mv3_r50")


def test_the_embedded_set_needs_no_download():
    assert store.download("retinaface_mobile0.25").parent == store.EMBEDDED


# The command line.


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    cli_models.add_models_parser(parser.add_subparsers())
    args = parser.parse_args(["models", *map(str, arguments)])
    return args.handler(args)


def test_download_prints_the_licence_first_and_verifies(server, weight, tmp_path, capsys):
    assert run("download", "net", "--to", tmp_path / "to") == 0
    out, err = capsys.readouterr()
    assert out.index("Test licence - NON-COMMERCIAL") < out.index("verified: ")
    assert "100%" in err and (tmp_path / "to" / "net.pth").is_file()
    weight(sha256=None)
    assert run("download", "net", "--to", tmp_path / "to") == 0
    assert "not verified: " in capsys.readouterr().out


def test_verify_exits_with_1_where_a_file_is_altered(server, weight, tmp_path, capsys):
    assert run("verify") == 0
    assert "verified: " in capsys.readouterr().out  # the embedded set
    (tmp_path / "net.pth").write_bytes(b"altered")
    assert run("verify") == 1
    assert f"ALTERED: {tmp_path / 'net.pth'}" in capsys.readouterr().out
    assert run("verify", "retinaface_mobile0.25") == 0


def test_list_and_path(server, weight, tmp_path, capsys):
    assert run("list") == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("codeformer "))
    assert "376.6 MB" in row and "S-Lab" in row and row.endswith("-")
    assert "built in" in next(line for line in out.splitlines() if line.startswith("retinaface_mobile0.25 "))
    assert run("path") == 0
    assert capsys.readouterr().out.startswith(str(tmp_path))
    assert run("path", "retinaface_mobile0.25") == 0
    assert capsys.readouterr().out.strip().endswith("retinaface_mobile0.25.safetensors")
    with pytest.raises(MissingWeights):
        run("path", "codeformer")


def test_convert_writes_the_config_and_the_origin(tmp_path, capsys):
    import torch

    from idcodeformer.networks.codeformer import CodeFormer, CodeFormerConfig
    from idcodeformer.weights import loading

    config = CodeFormerConfig(32, 8, (1, 2), 1, (), 4, 4, 8, 8, 8, 1, (32,))
    net = CodeFormer(config)
    torch.save({"params_ema": net.state_dict()}, tmp_path / "codeformer.pth")
    assert run("convert", tmp_path / "codeformer.pth", tmp_path / "out.safetensors") == 0
    state, metadata = loading.read_state(tmp_path / "out.safetensors")
    assert loading.build(tmp_path / "out.safetensors").config == config
    assert metadata["source_sha256"] == store.sha256_of(tmp_path / "codeformer.pth")
    assert "S-Lab" in metadata["licence"] and state.keys() == net.state_dict().keys()
    for bad in ((tmp_path / "codeformer.pth", tmp_path / "out.pth"), (tmp_path / "no.pth", tmp_path / "x.safetensors")):
        with pytest.raises(IDCodeFormerError):
            run("convert", *bad)
    with pytest.raises(IDCodeFormerError, match="the input itself"):
        run("convert", tmp_path / "out.safetensors", tmp_path / "out.safetensors")


class ChunkedHandler(BaseHTTPRequestHandler):
    """Sends chunks without a length and breaks off before the last one, until the third request."""

    protocol_version = "HTTP/1.1"
    served = 0

    def do_GET(self):
        cls = type(self)
        cls.served += 1
        asked = self.headers.get("Range")
        start = int(asked.split("=")[1].rstrip("-")) if asked else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        end = start + 300_000 if cls.served < 3 else len(DATA)
        self.wfile.write(b"%x\r\n" % (end - start) + DATA[start:end] + b"\r\n")
        if cls.served >= 3:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def log_message(self, *_):
        pass


def test_a_chunked_transfer_that_breaks_off_is_not_taken_for_whole(server, weight, tmp_path, monkeypatch):
    """Neither size nor hash is known: only the missing last chunk tells."""
    monkeypatch.setattr(downloads, "PAUSE", 0)
    monkeypatch.setattr(ChunkedHandler, "served", 0)
    server.RequestHandlerClass = ChunkedHandler
    weight(bytes=None, sha256=None)
    assert store.download("net").read_bytes() == DATA
    assert ChunkedHandler.served == 3


def test_a_file_that_was_there_is_never_moved(server, weight, tmp_path):
    (tmp_path / "net.pth").write_bytes(b"mine")
    with pytest.raises(CorruptWeights, match="Move it away"):
        store.download("net")
    assert names(tmp_path) == ["net.pth"] and (tmp_path / "net.pth").read_bytes() == b"mine"
