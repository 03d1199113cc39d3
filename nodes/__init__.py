"""The ComfyUI nodes: thin adapters over ``idcodeformer``. Ids, input names and their order are for ever."""
from .detect import DetectFaces
from .exchange import FacesFromBoxes, FacesToSegs
from .loader import LoadIDCodeFormer
from .paste import PasteFaces
from .person import LoadPerson
from .restore import RestoreFaces
from .score import IdentityScore
from .video import RestoreVideo

# A literal with string keys: ComfyUI-Manager reads it from the source to tell which pack has a missing node.
NODE_CLASS_MAPPINGS = {
    "IDCodeFormerLoader": LoadIDCodeFormer,
    "IDCodeFormerDetectFaces": DetectFaces,
    "IDCodeFormerRestoreFaces": RestoreFaces,
    "IDCodeFormerIdentityScore": IdentityScore,
    "IDCodeFormerPerson": LoadPerson,
    "IDCodeFormerPasteFaces": PasteFaces,
    "IDCodeFormerRestoreVideo": RestoreVideo,
    "IDCodeFormerFacesFromBoxes": FacesFromBoxes,
    "IDCodeFormerFacesToSegs": FacesToSegs,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "IDCodeFormerLoader": "Load ID-CodeFormer",
    "IDCodeFormerDetectFaces": "Detect Faces (ID-CodeFormer)",
    "IDCodeFormerRestoreFaces": "Restore Faces (ID-CodeFormer)",
    "IDCodeFormerIdentityScore": "Identity Score (ID-CodeFormer)",
    "IDCodeFormerPerson": "Load Person (ID-CodeFormer)",
    "IDCodeFormerPasteFaces": "Paste Faces (ID-CodeFormer)",
    "IDCodeFormerRestoreVideo": "Restore Video (ID-CodeFormer)",
    "IDCodeFormerFacesFromBoxes": "Faces from Boxes or SEGS (ID-CodeFormer)",
    "IDCodeFormerFacesToSegs": "Faces to SEGS and Boxes (ID-CodeFormer)",
}
