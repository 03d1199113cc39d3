"""Seeded bad inputs, and the harness that holds every one to the same claims. `make fuzz` runs all of them."""
