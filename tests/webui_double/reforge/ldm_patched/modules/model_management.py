"""The host's own memory management."""
freed = []


def free_memory(memory_required, device):
    freed.append((memory_required, device))
