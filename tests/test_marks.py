"""Files of every format say that photos of a person guided a face, and keep what they said before."""
from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

from idcodeformer.batch.outcome import marked
from idcodeformer.files.metadata import Notes
from idcodeformer.files.reading import Picture, read
from idcodeformer.files.writing import write
from idcodeformer.types import FaceReport

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
OURS = "{urn:idcodeformer:1.0:}guidance"
XMP = (
    b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF '
    b'xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><r:Description r:about="uuid:7" '
    b'xmlns:dc="http://purl.org/dc/elements/1.1/" dc:creator="Ann"/></r:RDF></x:xmpmeta><?xpacket end="w"?>'
)


def guided(by: str = "mini <&> recogniser") -> FaceReport:
    return FaceReport(0, 0, (0, 0, 1, 1), 1.0, "restored", guided_by=by)


def packet(file: Path) -> ElementTree.Element:
    """The RDF of a file's XMP, as a reader of XML sees it."""
    with Image.open(file) as image:
        image.load()
        old = (data for name, data in getattr(image, "applist", ()) if name == "APP1" and b"<x:xmpmeta" in data)
        found = image.info.get("xmp") or next(old)  # older Pillows leave the packet of a JPEG in its segment
    start = found.index(b"<x:xmpmeta")
    return ElementTree.fromstring(found[start : found.index(b"</x:xmpmeta>") + 12])[0]


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
@pytest.mark.parametrize("xmp", [b"", XMP, b"no packet at all"])
def test_guided_files_say_so_in_xmp_once_and_keep_the_rest(tmp_path: Path, name: str, xmp: bytes) -> None:
    picture = Picture(torch.rand(1, 3, 16, 16), notes=Notes(xmp=xmp))
    for model in ("first", "second"):  # the second time from what was read of the first
        write(tmp_path / name, marked(picture, [guided()], model), overwrite=True)
        picture = read(tmp_path / name)
    told = packet(tmp_path / name)
    (text,) = [each.text for each in told.iter(OURS)]
    assert text.startswith("faces guided by photos of a person; model second, guide mini <&> recogniser, idcodeformer ")
    if xmp == XMP:
        assert [each.get(f"{RDF}about") for each in told] == ["uuid:7", "uuid:7"]
        assert told[0].get("{http://purl.org/dc/elements/1.1/}creator") == "Ann"


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png"])
def test_files_without_a_guided_face_say_nothing(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, marked(Picture(torch.rand(1, 3, 16, 16)), [guided("")], "model"))
    assert b"guid" not in (tmp_path / name).read_bytes()


def test_a_packet_too_large_for_jpeg_leaves_room_for_the_mark(tmp_path: Path) -> None:
    notes = Notes(xmp=XMP.replace(b"Ann", b"A" * 70000))
    write(tmp_path / "a.jpg", marked(Picture(torch.rand(1, 3, 16, 16), notes=notes), [guided()], "model"))
    assert len(list(packet(tmp_path / "a.jpg").iter(OURS))) == 1


def test_the_comment_of_a_gif_has_the_mark_as_its_last_line(tmp_path: Path) -> None:
    picture = Picture(torch.rand(2, 3, 16, 16), notes=Notes(comment=b"scanned by Ann"))
    for model in ("first", "second"):
        write(tmp_path / "a.gif", marked(picture, [guided()], model), overwrite=True)
        picture = read(tmp_path / "a.gif")
    first, second = Image.open(tmp_path / "a.gif").info["comment"].decode().split("\n")
    assert first == "scanned by Ann" and second.startswith("IDCodeFormer guidance: faces guided by photos of a person; "
                                                           "model second, guide mini")  # fmt: skip
