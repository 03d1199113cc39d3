"""Before guiding: is this face the person on the photos at all?

The gate compares the restored, unguided face with the reference. Measured on 145 people of LFW set 8, 128 px, restored
by ``mini_id_codeformer`` from x2 to x16: the level that one stranger in twenty reaches hardly depends on that: 0.29 to
0.31 for ``mini_recogniser``, 0.25 to 0.28 for MobileFaceNet192, 0.170 to 0.179 for ``mobileface_v2``.
What falls is the share of right people above it: table in docs/guidance.md.
"""
from __future__ import annotations

# Cosine of restored face and reference that at most one stranger in twenty reaches, by recogniser.
STRANGERS = {"mini_recogniser": 0.30, "mobileface_v2": 0.175, "mobilefacenet_112_192d": 0.26}
_STRANGERS = 0.28  # a recogniser that was not measured; published ArcFace networks keep strangers further apart


def least_likeness(recogniser: str) -> float:
    """The cosine in [-1,1] from which a face is taken to be the person, for a recogniser's name."""
    return STRANGERS.get(recogniser, _STRANGERS)


def refusal(likeness: float, recogniser: str) -> str:
    """Why a face is not guided, "" where it is; ``likeness`` is the cosine of the unguided face and the reference."""
    least = least_likeness(recogniser)
    if likeness >= least:
        return ""
    return f"not guided: likeness to the reference {likeness:.2f}, strangers reach {least:.2f}"
