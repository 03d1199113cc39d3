"""The part of ComfyUI's comfy_api that the pack uses."""
