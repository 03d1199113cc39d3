"""Pictures on disk and what is drawn on them: reading, writing, sheets and marks."""
