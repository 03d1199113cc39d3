"""Aligned crops in, restored crops out; what fits a result to its input; foreign upscalers."""
