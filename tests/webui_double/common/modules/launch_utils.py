"""Marks an A1111, a Forge or a reForge for install.py."""
