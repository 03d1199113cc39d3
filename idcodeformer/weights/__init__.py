"""Weight files: what exists (registry), where it is (store), and how it becomes a network (loading)."""
