"""SD.Next's name for the module of scripts; it has no face restorers."""
