"""Marks an SD.Next for install.py."""
