"""How CodeFormer runs fast: on CUDA in half precision, on a CPU in strips that stay in the cache."""
