"""The mark of guided pictures where a format keeps no named texts: an XMP property, in GIF a line of the comment."""
from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from xml.sax.saxutils import escape

from .metadata import Notes

GUIDED_KEY = "IDCodeFormer guidance"  # the text's keyword in PNG
_NAMESPACE = b"urn:idcodeformer:1.0:"
_OURS = re.compile(rb"<([\w.-]+:|)Description\b[^>]*urn:idcodeformer:1\.0:.*?</\1Description\s*>", re.DOTALL)
_RDF_END = re.compile(rb"</((?:[\w.-]+:)?)RDF\s*>")
_ABOUT = re.compile(rb"\babout\s*=\s*([\"'])(.*?)\1", re.DOTALL)
# An empty packet (XMP specification, part 1, section 7).
_PACKET = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)


def guided_text(guides: Iterable[str], model: str) -> str:
    """What a file says of itself in which photos of a person guided a face: by which recognisers, with which model."""
    from .. import __version__

    by = ", ".join(sorted(set(guides)))
    return f"faces guided by photos of a person; model {model or 'CodeFormer'}, guide {by}, idcodeformer {__version__}"


def with_xmp_mark(notes: Notes) -> Notes:
    """The notes with their mark, where they have one, as a property of the XMP packet; the rest of it stays."""
    text = dict(notes.texts).get(GUIDED_KEY)
    return notes if text is None else replace(notes, xmp=_marked(notes.xmp, text))


def mark_alone(notes: Notes) -> bytes:
    """A packet with nothing but the mark, for a file that has no room for the whole; empty where there is no mark."""
    return with_xmp_mark(Notes(texts=notes.texts)).xmp


def with_comment_mark(notes: Notes) -> Notes:
    """The notes with their mark, where they have one, as the last line of the comment."""
    text = dict(notes.texts).get(GUIDED_KEY)
    if text is None:
        return notes
    lines = [line for line in notes.comment.split(b"\n") if line and not line.startswith(GUIDED_KEY.encode())]
    return replace(notes, comment=b"\n".join([*lines, f"{GUIDED_KEY}: {text}".encode()]))


def _marked(packet: bytes, text: str) -> bytes:
    packet = _OURS.sub(b"", packet)
    ends = list(_RDF_END.finditer(packet))
    if not ends:  # no packet, or nothing that a reader of XMP understands
        packet, ends = _PACKET, list(_RDF_END.finditer(_PACKET))
    at, rdf = ends[-1].start(), ends[-1][1]
    about = _ABOUT.search(packet)  # one packet describes one thing (XMP specification, part 1, section 7.4)
    own = (
        b'<%(rdf)sDescription %(rdf)sabout="%(about)s" xmlns:idcodeformer="%(space)s">'
        b"<idcodeformer:guidance>%(text)s</idcodeformer:guidance></%(rdf)sDescription>"
    ) % {
        b"rdf": rdf,
        b"about": about[2].replace(b'"', b"&quot;") if about else b"",
        b"space": _NAMESPACE,
        b"text": escape(text).encode(),
    }
    return packet[:at] + own + packet[at:]
