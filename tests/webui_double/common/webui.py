"""The host's start; the extension must never hide it."""
HOST = True
