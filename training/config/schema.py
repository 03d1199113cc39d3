"""All that a run can be told: the keys of a configuration, their types, their defaults."""
from __future__ import annotations

from dataclasses import dataclass, field, fields, make_dataclass
from typing import get_type_hints

from idcodeformer.networks.codeformer import CodeFormerConfig

STAGES = ("recogniser", "parser", "stage1", "stage2", "stage3", "stage3_id")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # of Lightning Fabric; weights stay fp32 in all of them


@dataclass
class DegradationConfig:
    """Ranges of blind degradation, in the order of application (CodeFormer section 4.1). Each is [low, high]."""

    kernel_size: int = 41  # px, odd; Gaussian blur
    sigma: list[float] = field(default_factory=lambda: [1.0, 15.0])  # px of the full-size image
    anisotropic: float = 0.5  # probability that both axes of the blur get their own sigma and an angle
    downscale: list[float] = field(default_factory=lambda: [4.0, 30.0])  # factor
    noise: list[float] = field(default_factory=lambda: [0.0, 20.0])  # standard deviation in grey levels of 255
    jpeg: list[float] = field(default_factory=lambda: [30.0, 80.0])  # quality
    gray: float = 0.0  # probability of a gray input
    clean: float = 0.0  # probability of an untouched input
    # Range of the severity s in [0, 1]: every value goes from its mild end (s = 0) to the one drawn (s = 1) together,
    # so that mild blur comes with mild downscale. s = low + (high - low) * u ** severity_power, u uniform.
    severity: list[float] = field(default_factory=lambda: [1.0, 1.0])
    severity_power: float = 1.0  # above 1: more mild samples


@dataclass
class DataConfig:
    """Where faces come from. Folders are read at any depth."""

    roots: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)  # WebDataset tar files (globs, {000..069}), instead of roots
    list_csv: str | None = None  # table with columns path,identity,split relative to the first root
    split: str | None = None  # rows of list_csv to keep
    extra: list[str] = field(default_factory=list)  # folders beside those, all images; each image is its own identity
    size: int = 512  # px, side of the network's input
    hflip: bool = True
    cache: bool = False  # keep decoded images in memory
    workers: int = 4  # loader processes a rank
    limit: int = 0  # use only the first N images; 0 = all
    labels: bool = False  # read identities from the .cls members of shards (margin training)


def _settable(config: type) -> list[tuple]:
    """The fields of a frozen network config as YAML sets them: lists in the place of tuples."""
    kinds, made = get_type_hints(config), []
    for each in fields(config):
        if isinstance(each.default, tuple):
            values = list(each.default)
            made.append((each.name, list[int], field(default_factory=values.copy)))
        else:
            made.append((each.name, kinds[each.name], field(default=each.default)))
    return made


# Numbers of the restoring network: those of CodeFormerConfig, by the same names and with the same defaults.
NetConfig = make_dataclass("NetConfig", _settable(CodeFormerConfig), namespace={"__module__": __name__})


@dataclass
class RecogniserConfig:
    """The recogniser that stage ``recogniser`` trains."""

    layers: list[int] = field(default_factory=lambda: [2, 2, 2, 2])
    widths: list[int] = field(default_factory=lambda: [64, 128, 256, 512])
    dropout: float = 0.0  # before the last layer
    embedding_dim: int = 512
    method: str = "distil"  # distil: follow the teacher's embedding; arcface: margin softmax on identities
    teacher: str | None = None  # weight file of the teacher
    mix: float = 0.5  # probability that two faces are blended before both networks see them (distil)
    shift: float = 0.06  # random shift and scale of the crop, as a share of its side
    degrade: float = 0.2  # probability of a degraded input
    margin: float = 0.5  # radians (arcface)
    scale: float = 64.0  # (arcface)
    relation: float = 1.0  # weight of matching the teacher's similarities within the batch (distil)


@dataclass
class ParserConfig:
    """The face parser that stage ``parser`` trains, and how its pictures vary."""

    widths: list[int] = field(default_factory=lambda: [24, 48, 96, 128])
    blocks: list[int] = field(default_factory=lambda: [1, 1, 2, 2])
    dice: float = 1.0  # weight of the soft Dice term beside cross-entropy
    rare: int = 3  # times that a picture with glasses, hat, earring or necklace comes in an epoch
    turn: float = 20.0  # degrees to either side
    zoom: float = 1.3  # largest factor, and its inverse the smallest
    shift: float = 0.08  # share of the side, to every side
    colour: float = 0.3  # random change of exposure, contrast, gamma and white balance; 0 = none
    gray: float = 0.1  # probability of a gray picture
    cover: float = 0.2  # probability of something in front of the face
    degrade: float = 0.6  # probability of a degraded picture


@dataclass
class LossConfig:
    """Weights; 0 leaves a term out and its networks unloaded."""

    l1: float = 1.0
    pooled: float = 0.0  # L1 of the means over squares of pooled_side px: holds the colours, which L1 hardly sees
    pooled_side: int = 16
    mse: float = 0.0  # mean square, which weighs large errors most: what PSNR measures
    ssim: float = 0.0  # 1 - SSIM (Zhao et al. 2017, "Loss Functions for Image Restoration")
    anchor: float = 0.0  # mean square of the difference to what a frozen network makes of the input, beyond the face
    anchor_weights: str | None = None  # that network's file: the control, or where both arms start
    anchor_shift: bool = True  # false: each colour's mean over the rim is free, for an anchor whose colours are off
    perceptual: float = 1.0
    perceptual_every: int = 1  # steps; on the others it is left out, on these its weight is that many times larger
    perceptual_weights: str | None = None  # file of LPIPS (VGG or AlexNet) or st-LPIPS
    perceptual_heads: str | None = None  # linear heads of LPIPS v0.1, where perceptual_weights is a bare backbone
    codebook: float = 1.0
    commitment: float = 0.25  # equation 2 of the paper; the published code puts 0.25 on the other term
    feature: float = 1.0
    code: float = 0.5  # cross-entropy
    gan: float = 0.0  # scale of the adaptive weight
    gan_start: int = 0  # step
    gan_norm: str = "batch"  # batch as published; group for tiny batches
    gan_ndf: int = 64
    identity: float = 0.0
    identity_weights: list[str] = field(default_factory=list)  # files or embedded names; several are averaged
    identity_start: int = 0
    identity_jitter: float = 0.0  # random shift of the 112 crop in px, so that the loss cannot be met by one pixel grid
    identity_blur: float = 0.0  # largest sigma in px by which crops are blurred, so that it cannot be met by fine noise
    identity_noise: float = 0.0  # largest sigma, in [-1,1], of noise on both crops: only what survives it counts
    identity_seen: float = 0.0  # power of cos(input, truth) that each face weighs; 0 = all alike
    identity_other: float = 0.0  # share of another photo of the person in the target embedding; 1 = only that photo
    identity_maps: float = 0.0  # weight, beside 1 for the embedding, of the recogniser's maps at every resolution


@dataclass
class OptimConfig:
    lr: float = 1e-4
    lr_min: float = 1e-6
    warmup: int = 0  # steps
    schedule: str = "cosine"  # cosine | steps | constant
    milestones: list[int] = field(default_factory=list)  # for schedule: steps; each halves the rate
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    weight_decay: float = 0.0
    clip: float = 0.0  # gradient norm; 0 = off
    ema: float = 0.995  # decay of the moving average of weights, which is what is validated and exported
    ema_share: float = 1 / 9  # of the steps done: the average spans at most that; more quietens short, noisy runs


@dataclass
class FidelityConfig:
    """How w is drawn in stage III: each sample takes w = 1 with probability ``full``, else uniform in [low, high]."""

    full: float = 1.0
    low: float = 0.0
    high: float = 1.0
    code_selection: str = "straight_through"
    detach_features: bool = False  # True = published: no gradient from the fusion to the encoder
    adain: bool = False
    generator_from_vqgan: bool = False  # codebook and generator from vqgan, the rest from init: where stage I went on
    freeze: list[str] = field(default_factory=list)  # what stays as init has it, e.g. encoder, fuse_convs_dict.16
    train_generator: bool = False  # published: frozen. True lets a short run go on with a generator that still improves
    code_only_every: int = 0  # published joint schedule: only each N-th step has image losses; 0 = every step
    code_only_from: int = 0


@dataclass
class CodebookConfig:
    kmeans_steps: int = 0  # steps without quantising; then k-means of encoder outputs starts the codebook
    reset_every: int = 0  # steps between resets of codes that were not used since the last; 0 = never
    reset_until: int = 0


@dataclass
class TrainConfig:
    stage: str = "stage1"
    out: str = "runs/run"  # run folder
    init: str | None = None  # weight file or checkpoint to start from (stage 2: the VQGAN; stage 3: stage 2)
    vqgan: str | None = None  # stage 1 result that gives the target codes; by default init
    seed: int = 0
    steps: int = 100_000
    batch: int = 8  # images of one update, over all processes
    accumulate: int = 1  # parts that a process's images of one update are taken in, one after another, to save memory
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    precision: str = "32-true"  # Lightning Fabric's names; bf16-mixed or 16-mixed on CUDA, bf16-mixed on new CPUs
    threads: int = 0  # CPU threads a process; 0 = torch's choice
    log_every: int = 20
    sample_every: int = 500
    save_every: int = 500
    val_every: int = 1000
    val_images: int = 64
    val_degradation: str = "x4"
    net: NetConfig = field(default_factory=NetConfig)
    recogniser: RecogniserConfig = field(default_factory=RecogniserConfig)
    parser: ParserConfig = field(default_factory=ParserConfig)
    data: DataConfig = field(default_factory=DataConfig)
    val: DataConfig = field(default_factory=DataConfig)
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    optim_d: OptimConfig = field(default_factory=OptimConfig)
    fidelity: FidelityConfig = field(default_factory=FidelityConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    degradations: dict[str, DegradationConfig] = field(default_factory=dict)  # named ones, for evaluation
