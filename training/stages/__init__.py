"""The stages: what each builds, what it trains, and its objective."""
from __future__ import annotations

from ..config import TrainConfig
from .base import FROZEN, Batch, Stage, codeformer_config, vqgan_config
from .codes import CodeStage
from .fidelity import FidelityStage
from .parser import ParserStage, parser_config
from .recogniser import RecogniserStage
from .vqgan import VQGANStage

__all__ = [
    "FROZEN", "Batch", "CodeStage", "FidelityStage", "ParserStage", "RecogniserStage", "Stage", "VQGANStage",
    "build_stage", "codeformer_config", "parser_config", "vqgan_config",
]  # fmt: skip


def build_stage(config: TrainConfig, classes: int = 0) -> Stage:
    """The stage that ``config.stage`` names; ``classes`` is the number of identities in the data."""
    if config.stage == "recogniser":
        return RecogniserStage(config, classes if config.recogniser.method == "arcface" else 0)
    if config.stage == "parser":
        return ParserStage(config)
    kinds = {"stage1": VQGANStage, "stage2": CodeStage, "stage3": FidelityStage, "stage3_id": FidelityStage}
    return kinds[config.stage](config)
