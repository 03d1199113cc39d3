"""A small stand-in for ComfyUI: what the pack asks of the host, and no more.

``tests/host_contract.py`` makes the same calls of this double and, in the ``comfy`` tests, of the real thing.
"""
