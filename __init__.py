"""The ComfyUI door: exports the nodes, nothing else."""

if __package__:  # pytest and linters also meet this file as a plain module, where there is nothing to export
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
    from .nodes.folders import register

    register()
    WEB_DIRECTORY = "./web"
    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
