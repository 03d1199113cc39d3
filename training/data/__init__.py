"""From files to batches: faces, their degradation, and every random draw, by position."""
