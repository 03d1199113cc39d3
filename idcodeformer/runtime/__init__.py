"""The machine under the pictures: devices, memory, and the check that every input passes."""
