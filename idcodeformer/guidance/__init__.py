"""Restoration guided by photos of the person: the gate that asks whether it is the person, and the guidance itself."""
