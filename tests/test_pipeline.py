"""From pictures to restored pictures: what goes together, what is reported, what is refused."""
from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import idcodeformer
from idcodeformer.errors import BadImage, BadOption
from idcodeformer.geometry import alignment
from idcodeformer.geometry.templates import ffhq_template
from idcodeformer.identity.recogniser import IdentityRecogniser
from idcodeformer.networks.codeformer import CodeFormer, CodeFormerConfig
from idcodeformer.pipeline import FacePipeline
from idcodeformer.restoration.codeformer import CodeFormerRestorer
from idcodeformer.types import DetectOptions, Embeddings, Face, RestoreOptions


def face(x: float, y: float, side: float, score: float = 0.9) -> Face:
    points = (torch.tensor(ffhq_template(512)) - 255.5) * side / 512 + torch.tensor([x, y])
    box = torch.tensor([x - side / 4, y - side / 4, x + side / 4, y + side / 4])
    return Face(box, score, points.float())


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    noise = torch.rand(1, 3, height // 10 + 2, width // 10 + 2, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)[0]


class Invert:
    """A restorer whose work is easy to see."""

    size = 64

    def __init__(self):
        self.calls: list[int] = []

    def __call__(self, pixels, options=None, progress=None):
        self.calls.append(len(pixels))
        if progress:
            progress(len(pixels), len(pixels), "restoring")
        return 1 - pixels


class Given:
    """A detector that knows its pictures by their size."""

    def __init__(self, faces):
        self.faces = faces

    def __call__(self, images, options=None):
        return tuple(self.faces.get(tuple(image.shape[1:]), ()) for image in images)


class MeanColour(nn.Module):
    """A recogniser that knows people by the colour of their crop."""

    embedding_dim = 3

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) + 1e-3


@pytest.fixture
def recogniser() -> IdentityRecogniser:
    return IdentityRecogniser(MeanColour(), "colour", "cpu")


SMALL, LARGE, EMPTY = picture(80, 90), picture(150, 200, 1), picture(60, 50, 2)
FACES = {(80, 90): (face(45, 40, 60),), (150, 200): (face(50, 50, 40), face(140, 80, 90), face(60, 120, 30, 0.3))}


def test_public_names_are_there_and_lazy():
    for name in ("load_restorer", "load_detector", "load_recogniser", "FacePipeline"):
        assert callable(getattr(idcodeformer, name))
        assert getattr(idcodeformer, name).__doc__
    assert idcodeformer.__version__
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        idcodeformer.nonsense  # noqa: B018


def test_batch_of_different_pictures():
    restorer = Invert()
    result = FacePipeline(restorer, Given(FACES))([SMALL, EMPTY, LARGE], RestoreOptions(upscale=1.5, colour="off"))
    assert restorer.calls == [3]  # all faces of all pictures at once; the unsure one is skipped
    assert [tuple(i.shape) for i in result.images] == [(3, 120, 135), (3, 90, 75), (3, 225, 300)]
    assert [tuple(m.shape) for m in result.masks] == [(1, 120, 135), (1, 90, 75), (1, 225, 300)]
    assert [len(f) for f in result.faces] == [1, 0, 3]
    assert result.crops_in.image_index.tolist() == [0, 2, 2]
    assert result.crops_in.image_sizes == ((80, 90), (60, 50), (150, 200))
    torch.testing.assert_close(result.crops_out.pixels, 1 - result.crops_in.pixels)


def test_a_batch_tensor_gives_the_same_as_single_pictures():
    batch = torch.stack([picture(80, 90, seed) for seed in range(3)])
    run = FacePipeline(Invert(), Given(FACES))
    together = run(batch)
    for i, image in enumerate(batch):
        alone = run([image])
        torch.testing.assert_close(together.images[i], alone.images[0])
        torch.testing.assert_close(together.masks[i], alone.masks[0])


@pytest.mark.parametrize("levels", [False, True])
def test_a_detector_is_given_levels_only_where_it_takes_them(levels):
    seen = []

    class Looks(Given):
        takes_levels = levels

        def __call__(self, images, options=None):
            seen.extend(images)
            return super().__call__(images, options)

    given = (picture(90, 80) * 255).round().to(torch.uint8)
    FacePipeline(Invert(), Looks({(90, 80): (face(40, 45, 30),)}))([given])
    assert seen[0].dtype == (torch.uint8 if levels else torch.float32)
    torch.testing.assert_close(seen[0].float() / (255 if levels else 1), given.float() / 255)


def test_no_face_is_a_normal_result():
    result = FacePipeline(Invert(), Given({}))([EMPTY])
    assert torch.equal(result.images[0], EMPTY)
    assert result.masks[0].max() == 0
    assert result.report == ()
    assert len(result.crops_in) == 0
    assert result.faces == ((),)


def test_no_picture_is_a_normal_result():
    result = FacePipeline(Invert(), Given({}))([])
    assert result.images == result.masks == result.faces == result.report == ()


def test_inputs_are_kept():
    before = LARGE.clone()
    FacePipeline(Invert(), Given(FACES))([LARGE])
    assert torch.equal(LARGE, before)


def test_every_face_gets_a_line(recogniser):
    options = DetectOptions(max_faces=1, order="size")
    result = FacePipeline(Invert(), Given(FACES), recogniser)([SMALL, EMPTY, LARGE], None, options)
    lines = [(line.image, line.face, line.status) for line in result.report]
    assert lines == [(0, 0, "restored"), (2, 0, "skipped"), (2, 1, "restored"), (2, 2, "skipped")]
    small, beyond, large, unsure = result.report
    assert "maximum of 1" in beyond.reason and "confidence" in unsure.reason
    assert small.w == 0.8 and beyond.w is None
    assert beyond.id_sim_input is None
    assert -1 <= small.id_sim_input <= 1
    assert small.id_sim_before is None and small.id_sim_after is None
    assert large.box == pytest.approx((117.5, 57.5, 162.5, 102.5))
    assert large.to_dict()["score"] == pytest.approx(0.9)


def test_report_follows_the_faces_when_they_are_sorted(recogniser):
    """Scores belong to the face of the line, whatever the order faces are restored in."""
    run = FacePipeline(Invert(), Given(FACES), recogniser)
    plain = run([LARGE], None, DetectOptions(order="left_to_right"))
    by_size = run([LARGE], None, DetectOptions(order="size"))
    assert by_size.crops_in.matrices[0, 0, 0] < by_size.crops_in.matrices[1, 0, 0]
    for a, b in zip(plain.report, by_size.report):
        assert (a.face, a.status, a.id_sim_input) == (b.face, b.status, pytest.approx(b.id_sim_input, abs=1e-5))


def test_identity_scores_are_cosines(recogniser):
    result = FacePipeline(Invert(), Given(FACES), recogniser)([SMALL])
    a, b = recogniser(result.crops_in.pixels).vectors, recogniser(result.crops_out.pixels).vectors
    assert result.report[0].id_sim_input == pytest.approx(float(a @ b.T), abs=1e-5)


def painted(red: float, blue: float) -> Tensor:
    return torch.tensor([red, 0.5, blue])[:, None, None].expand(3, 80, 90).clone()


def test_reference_photos_before_and_after(recogniser):
    """The photo shows somebody red, the picture somebody red, restoring makes them blue."""
    run = FacePipeline(Invert(), Given(FACES), recogniser)
    options = RestoreOptions(gray="off", colour="off")  # a picture of one colour is a tinted one
    result = run([painted(1, 0)], options, references=[painted(0.95, 0.1), painted(1, 0)])
    line = result.report[0]
    assert line.id_sim_before > 0.95
    assert line.id_sim_after < -0.9
    assert line.id_sim_input < -0.9
    known = Embeddings(F.normalize(torch.tensor([[1.0, 0, -1]]), dim=1), "colour")
    assert run([painted(1, 0)], references=known).report[0].id_sim_before > 0.9


def test_order_by_reference(recogniser):
    """Of two faces the one most like the person, though smaller."""
    image = torch.cat([painted(1, 0), painted(0, 1)], 2)  # red on the left, blue on the right
    faces = {(80, 180): (face(45, 40, 70), face(135, 40, 40)), (80, 90): (face(45, 40, 60),)}
    run = FacePipeline(Invert(), Given(faces), recogniser)
    options = DetectOptions(order="reference", max_faces=1)
    report = run([image], None, options, references=[painted(0, 1)]).report
    assert [line.status for line in report] == ["skipped", "restored"]
    report = run([image], None, options, references=[painted(1, 0)]).report
    assert [line.status for line in report] == ["restored", "skipped"]


def test_faces_given_are_all_restored_unless_told_otherwise():
    unsure = (face(50, 50, 40, score=0.1),)
    run = FacePipeline(Invert())
    assert run([LARGE], faces=[unsure]).report[0].status == "restored"
    assert run([LARGE], None, DetectOptions(), faces=[unsure]).report[0].status == "skipped"


def test_masks_limit_and_choose():
    left = torch.zeros(150, 200)
    left[:, :100] = 1
    run = FacePipeline(Invert(), Given(FACES))
    result = run([LARGE], masks=[left])
    assert result.masks[0][..., 100:].max() == 0
    assert [line.status for line in result.report] == ["restored", "restored", "skipped"]
    chosen = run([LARGE], None, DetectOptions(keep="mask"), masks=[left])
    assert [line.status for line in chosen.report] == ["restored", "skipped", "skipped"]


def test_parser_sees_the_restored_faces():
    seen = []

    def parser(pixels: Tensor) -> Tensor:
        seen.append(pixels)
        return torch.zeros(len(pixels), 64, 64, dtype=torch.uint8)  # background everywhere: nothing is pasted

    result = FacePipeline(Invert(), Given(FACES), parser=parser)([SMALL])
    torch.testing.assert_close(seen[0], result.crops_out.pixels)
    assert result.masks[0].max() == 0
    assert torch.equal(result.images[0], SMALL)


def test_upscaler_makes_the_background():
    def upscaler(pixels: Tensor) -> Tensor:
        return torch.zeros(1, 3, pixels.shape[2] * 2, pixels.shape[3] * 2)

    result = FacePipeline(Invert(), Given(FACES))([EMPTY], RestoreOptions(upscale=3), upscaler=upscaler)
    assert tuple(result.images[0].shape) == (3, 180, 150)
    assert result.images[0].max() == 0


def test_gray_pictures_stay_gray():
    gray = picture(80, 90)[:1].expand(3, 80, 90)

    class Colourful(Invert):
        def __call__(self, pixels, options=None, progress=None):
            return (pixels * torch.tensor([1.0, 0.6, 0.3])[:, None, None]).clamp(0, 1)

    run = FacePipeline(Colourful(), Given(FACES))
    spread = [
        float((image := run([gray], RestoreOptions(gray=mode)).images[0]).max(0).values.sub(image.min(0).values).max())
        for mode in ("auto", "off")
    ]
    assert spread[0] < 0.01 < 0.2 < spread[1]


def test_progress_names_its_stages_and_cancels():
    seen = []
    FacePipeline(Invert(), Given(FACES))([SMALL, LARGE], progress=lambda *step: seen.append(step))
    assert seen == [(2, 2, "detecting"), (3, 3, "restoring"), (1, 2, "pasting"), (2, 2, "pasting")]

    class Stop(Exception):
        pass

    def cancel(done, total, what):
        if what == "restoring":
            raise Stop

    with pytest.raises(Stop):
        FacePipeline(Invert(), Given(FACES))([SMALL], progress=cancel)


def test_chunks_of_pictures_do_not_change_the_result(monkeypatch):
    images = [SMALL, EMPTY, LARGE, SMALL]
    run = FacePipeline(Invert(), Given(FACES))
    whole = run(images)
    monkeypatch.setattr(alignment, "_ALIGN_PIXELS", 8000)
    monkeypatch.setattr(alignment, "_FACES_HELD", 2)
    parts = run(images)
    for a, b in zip(whole.images + whole.masks, parts.images + parts.masks):
        assert torch.equal(a, b)
    assert torch.equal(whole.crops_in.image_index, parts.crops_in.image_index)
    assert [line.to_dict() for line in whole.report] == [line.to_dict() for line in parts.report]


def test_with_the_network():
    cfg = CodeFormerConfig(
        img_size=32, nf=16, ch_mult=(1, 2, 2), attn_resolutions=(8,), codebook_size=32, emb_dim=16,
        dim_embd=32, dim_mlp=64, n_head=2, n_layers=1, connect_list=(16, 32),
    )  # fmt: skip
    torch.manual_seed(0)
    run = FacePipeline(CodeFormerRestorer(CodeFormer(cfg), "cpu"), Given(FACES))
    result = run([SMALL, LARGE], RestoreOptions(upscale=2, w=0.3))
    assert result.crops_out.size == 32
    assert all(torch.isfinite(image).all() and image.min() >= 0 and image.max() <= 1 for image in result.images)
    assert (result.images[0] - F.interpolate(SMALL[None], scale_factor=2)[0]).abs().max() > 0.05


# ---------------------------------------------------------------- what is refused


def test_nothing_is_passed_off_as_restored():
    class Broken(Invert):
        def __call__(self, pixels, options=None, progress=None):
            return pixels * math.nan

    with pytest.raises(BadImage, match="precision fp32"):
        FacePipeline(Broken(), Given(FACES))([SMALL])


def test_a_face_that_overflows_half_precision_is_restored_in_fp32():
    asked = []

    class Half(Invert):
        def __call__(self, pixels, options=None, progress=None):
            out = super().__call__(pixels, options, progress)
            out[1, :, :2] = math.inf
            return out

        def exact(self):
            return Exact()

    class Exact(Invert):
        def __call__(self, pixels, options=None, progress=None):
            asked.append(len(pixels))
            return super().__call__(pixels, options, progress)

    crops = torch.rand(3, 3, Half.size, Half.size)
    options = RestoreOptions(colour="off", gray="off")
    restored, _ = FacePipeline(Half()).restore_aligned(crops, options)
    torch.testing.assert_close(restored, FacePipeline(Invert()).restore_aligned(crops, options)[0])
    assert asked == [1]

    with pytest.raises(BadImage, match="fp32 too"):
        crops = torch.rand(2, 3, Half.size, Half.size)
        FacePipeline(Always()).restore_aligned(crops, options)


class Always:
    """NaN in every precision."""

    size, device = 64, torch.device("cpu")

    def __call__(self, pixels, options=None, progress=None):
        return pixels * math.nan

    def exact(self):
        return self


def test_mistakes_get_a_sentence(recogniser):
    run = FacePipeline(Invert(), Given(FACES), recogniser)
    with pytest.raises(BadOption, match="pass faces="):
        FacePipeline(Invert())([SMALL])
    with pytest.raises(BadOption, match="2 lists of faces for 1"):
        run([SMALL], faces=[(), ()])
    with pytest.raises(BadOption, match="0 masks for 1"):
        run([SMALL], masks=[])
    with pytest.raises(BadImage, match="photo 0 shows no face"):
        run([SMALL], references=[EMPTY])
    with pytest.raises(BadOption, match="reference photos"):
        run([SMALL], None, DetectOptions(order="reference"))
    with pytest.raises(BadOption, match="recogniser"):
        FacePipeline(Invert(), Given(FACES))([SMALL], references=[SMALL])
    with pytest.raises(BadOption, match="needs a detector|need a detector"):
        FacePipeline(Invert(), None, recogniser)([SMALL], faces=[FACES[(80, 90)]], references=[SMALL])
    with pytest.raises(BadOption, match="by colour but by other"):
        run([SMALL], references=Embeddings(torch.ones(1, 3), "other"))
    with pytest.raises(BadImage, match="NaN"):
        run([SMALL * math.nan])
    with pytest.raises(BadImage, match="0..1"):
        run([SMALL * 255])
    with pytest.raises(BadImage):
        run([SMALL[:1]])


def test_nothing_outside_the_picture_shows_in_a_face_that_its_edge_cuts():
    """Compared with the same face uncut, through a restorer that mixes neighbours as networks do."""

    class Mixing(Invert):
        def __call__(self, pixels, options=None, progress=None):
            return F.avg_pool2d(F.pad(pixels, (8, 8, 8, 8), mode="replicate"), 17, 1)

    image = F.interpolate(picture(40, 60, 3)[None], (150, 200), mode="bicubic")[0].clamp(0, 1) * 0.4 + 0.6
    pipeline, cut, side = FacePipeline(Mixing()), 95, 120.0
    whole = pipeline([image], RestoreOptions(gray="off"), faces=[(face(100, 75, side),)]).images[0][..., cut:]
    strips = {}
    for border in ("reflect", "constant"):
        part = pipeline(
            [image[..., cut:]], RestoreOptions(border=border, gray="off"), faces=[(face(100 - cut, 75, side),)]
        ).images[0]
        strips[border] = float((part - whole)[:, 40:110, :10].abs().mean()) * 255
    default = pipeline([image[..., cut:]], RestoreOptions(gray="off"), faces=[(face(100 - cut, 75, side),)]).images[0]
    assert strips["constant"] > 2 * strips["reflect"], strips
    assert float((default - whole)[:, 40:110, :10].abs().mean()) * 255 == pytest.approx(strips["reflect"])
