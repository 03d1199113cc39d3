"""Clips: read and written as streams, faces followed through them, restored without shaking or flickering."""
