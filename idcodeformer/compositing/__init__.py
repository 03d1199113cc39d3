"""Putting a restored face back: where (plan), under which mask (masks, parsing), and the blend."""
