"""Calls that the pack makes of the host, run on whichever host is importable; prints what came back as JSON."""
import inspect
import json
import os
import sys

import torch


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def answers(base: str) -> dict:
    import comfy.cli_args
    import comfy.model_management as mm
    import comfy.utils
    import folder_paths
    from comfy.model_patcher import ModelPatcher

    folder = os.path.join(base, "some_models")
    folder_paths.add_model_folder_path("contract_key", folder)
    folder_paths.add_model_folder_path("contract_key", folder)
    paths, extensions = folder_paths.folder_names_and_paths["contract_key"]
    network = torch.nn.Linear(2, 2)
    patcher = ModelPatcher(network, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())
    mm.load_models_gpu([patcher], memory_required=1, force_full_load=True)
    mm.interrupt_current_processing(True)
    try:
        mm.throw_exception_if_processing_interrupted()
        raised = "nothing"
    except mm.InterruptProcessingException as error:
        raised = type(error).__name__  # a BaseException since 0.29, an Exception before: our code takes it for neither
    mm.throw_exception_if_processing_interrupted()  # the button springs back
    bar = comfy.utils.ProgressBar(4)
    bar.update_absolute(9, 6, None)
    scaled = comfy.utils.tiled_scale(
        torch.ones(2, 3, 8, 8), lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3),
        tile_x=64, tile_y=64, overlap=32, upscale_amount=2,
    )  # fmt: skip
    mm.free_memory(1, torch.device("cpu"))
    mm.unload_all_models()
    return {
        "paths": [os.path.relpath(path, base) for path in paths],
        "extensions": sorted(extensions),
        "models_dir": os.path.basename(folder_paths.models_dir),
        "temp_is_str": isinstance(folder_paths.get_temp_directory(), str),
        "devices": [str(mm.get_torch_device()), str(mm.intermediate_device()), str(mm.unet_offload_device())],
        "fp16": bool(mm.should_use_fp16(torch.device("cpu"))),
        "force_fp32": mm.FORCE_FP32,
        "oom_is_exception": issubclass(mm.OOM_EXCEPTION, Exception),
        "raised": raised,
        "on_device": str(next(network.parameters()).device),
        "bar": [bar.current, bar.total],
        "scaled": [list(scaled.shape), float(scaled.mean()), str(scaled.dtype)],
        "extra_paths": comfy.cli_args.args.extra_model_paths_config,
        "preview_parameter": "preview" in parameters(comfy.utils.ProgressBar.update_absolute),
    }


if __name__ == "__main__":
    base = sys.argv[1]
    sys.argv = [sys.argv[0], "--cpu"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()  # as the real host's main.py does; the double has no options
    except ImportError:
        pass
    print(json.dumps(answers(base)))
