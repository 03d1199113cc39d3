"""Pictures and faces in, aligned crops out."""
from __future__ import annotations

import pytest
import torch

from idcodeformer.errors import BadImage, BadOption
from idcodeformer.geometry.alignment import align
from idcodeformer.geometry.templates import ffhq_template, invert
from idcodeformer.geometry.warping import REFERENCE_FILL, read_at
from idcodeformer.types import Face


def face(scale: float, x: float, y: float, size: int = 64) -> Face:
    """The template face shrunk by ``scale`` and moved: its crop shows the square from (x, y) on."""
    points = torch.tensor(ffhq_template(size) * scale + [x, y]).float()
    return Face(torch.cat([points.min(0).values, points.max(0).values]), 0.9, points)


def picture(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.rand(1, 3, height // 4 + 1, width // 4 + 1, generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]


def test_a_crop_at_its_own_size_is_a_piece_of_the_picture() -> None:
    image = picture(150, 200)
    crops = align([image], [(face(1, 30, 20),)], size=64)
    assert torch.allclose(crops.pixels[0], image[:, 20:84, 30:94], atol=1e-4)
    assert torch.allclose(crops.matrices[0], torch.tensor([[1.0, 0, -30], [0, 1, -20]]), atol=1e-4)


def test_crops_keep_the_order_of_pictures_and_faces() -> None:
    images = [picture(150, 200), picture(90, 90), picture(300, 120)]
    faces = [(face(1, 30, 20), face(2, 10, 5)), (), (face(0.5, 40, 100), face(1, 40, 100), face(4, -60, 20))]
    crops = align(images, faces, size=64)
    assert len(crops) == 5 and crops.size == 64 and crops.pixels.dtype == torch.float32
    assert crops.image_index.tolist() == [0, 0, 2, 2, 2] and crops.image_index.dtype == torch.int64
    assert crops.image_sizes == ((150, 200), (90, 90), (300, 120))
    for number, (image, one) in enumerate([(0, faces[0][0]), (0, faces[0][1]), (2, faces[2][0])]):
        alone = align([images[image]], [(one,)], size=64)
        assert torch.allclose(alone.pixels[0], crops.pixels[number], atol=1e-5)


def test_the_landmarks_lie_on_the_template() -> None:
    faces = (face(1.3, 10, 12), face(0.7, 100, 30))
    crops = align([picture(200, 200)], [faces], size=64)
    for matrix, one in zip(crops.matrices, faces, strict=True):
        points = torch.cat([one.landmarks, torch.ones(5, 1)], 1) @ matrix.T
        assert torch.allclose(points, torch.tensor(ffhq_template(64)).float(), atol=1e-2)
    assert invert(crops.matrices).isfinite().all()


def test_borders() -> None:
    image = torch.full((3, 40, 40), 0.9)
    outside = face(1, -32, 0)  # half of the crop is left of the picture
    grey = align([image], [(outside,)], size=64).pixels[0]
    assert torch.allclose(grey[:, 10, 5], torch.tensor(REFERENCE_FILL), atol=1e-5) and grey[0, 10, 60] > 0.89
    assert torch.allclose(align([image], [(outside,)], 64, "reflect").pixels, torch.tensor(0.9), atol=1e-5)


def test_a_stacked_batch_and_half_precision_pictures() -> None:
    image = picture(100, 100)
    faces = [(face(1, 10, 10),)] * 2
    stacked = align(torch.stack([image, image]), faces, size=64)
    assert torch.equal(stacked.pixels[0], stacked.pixels[1])
    half = align([image.half(), image.half()], faces, size=64)
    assert half.pixels.dtype == torch.float32 and torch.allclose(half.pixels, stacked.pixels, atol=1e-3)


def test_no_face_anywhere() -> None:
    crops = align([picture(30, 40), picture(1, 1)], [(), ()], size=64)
    assert crops.pixels.shape == (0, 3, 64, 64) and crops.matrices.shape == (0, 2, 3)
    assert crops.image_sizes == ((30, 40), (1, 1))
    assert len(align([], [], size=64)) == 0


def test_a_face_in_a_tiny_picture_and_one_far_outside() -> None:
    crops = align([torch.full((3, 1, 1), 0.5)], [(face(0.02, 0, 0), face(1, 9000, -9000))], size=64, border="reflect")
    assert torch.allclose(crops.pixels, torch.tensor(0.5), atol=1e-5)


def test_bad_input_is_named() -> None:
    image = picture(30, 30)
    with pytest.raises(BadOption, match="2 lists of faces for 1 images"):
        align([image], [(), ()])
    with pytest.raises(BadOption, match="crop size is 0"):
        align([image], [(face(1, 0, 0),)], size=0)
    with pytest.raises(BadImage, match="NaN"):
        align([image * float("nan")], [(face(1, 0, 0),)])
    broken = Face(torch.zeros(4), 0.9, torch.full((5, 2), float("nan")))
    with pytest.raises(BadOption, match="NaN"):
        align([image], [(broken,)])


@pytest.mark.gpu
def test_the_device_gives_what_the_cpu_gives() -> None:
    images = [picture(150, 200), picture(300, 120)]
    faces = [(face(1.3, 30, 20), face(4, 10, 5)), (face(0.5, 40, 100),)]
    here, there = align(images, faces, 64), align([i.cuda() for i in images], faces, 64)
    assert there.pixels.is_cuda and torch.allclose(here.pixels, there.pixels.cpu(), atol=1e-4)


@pytest.mark.parametrize("rows", [1, 300, 301])
@pytest.mark.parametrize("padding", ["zeros", "reflection"])
def test_reading_in_bands_is_reading_at_once(rows: int, padding: str) -> None:
    source = picture(60, 80).requires_grad_()
    grid = torch.rand(rows, 257, 2, generator=torch.Generator().manual_seed(rows)) * 3 - 1.5
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        banded = read_at(source, grid, padding)
    finally:
        torch.set_num_threads(before)
    whole = torch.nn.functional.grid_sample(source[None], grid[None], "bilinear", padding, align_corners=False)[0]
    assert banded.shape == (3, rows, 257) and torch.equal(banded, whole)
    weights = torch.rand(whole.shape)
    gradients = [torch.autograd.grad((out * weights).sum(), source)[0] for out in (banded, whole)]
    assert torch.allclose(*gradients, atol=1e-4)
