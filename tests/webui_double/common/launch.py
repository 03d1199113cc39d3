"""Marks the folder as a WebUI's for install.py."""
HOST = True
