"""Where things lie: landmark templates, similarity fits, the differentiable warp, and aligned crops."""
