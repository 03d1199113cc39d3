"""The networks. Inside this package pixels are RGB in [-1, 1]; everywhere else they are in [0, 1]."""
