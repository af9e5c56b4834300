"""The tiny world's renderer and its pixel judge."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from processing_anygpt.tiny_world import language, pictures
from processing_anygpt.tiny_world.language import Scene, Thing
from processing_anygpt.tiny_world.pictures import UnreadablePicture, canonical, draw, matches, recognise


def drawn(caption: str, seed: int = 0) -> Image.Image:
    return draw(language.parse_scene(caption), random.Random(seed))


def test_a_picture_is_64_px_of_rgb_on_white():
    picture = drawn("a big red circle")
    assert (picture.size, picture.mode) == ((64, 64), "RGB")
    pixels = np.asarray(picture)
    assert (pixels[:4] == 255).all() and (pixels[:, -4:] == 255).all()
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 5, "edges are not anti-aliased"


def test_the_generator_decides_the_jitter():
    assert drawn("a big red circle", 3).tobytes() == drawn("a big red circle", 3).tobytes()
    assert len({drawn("a big red circle", seed).tobytes() for seed in range(20)}) == 20


def test_every_single_thing_is_read_back():
    rng = random.Random(0)
    for size in language.RULES["size"]:
        for colour in language.RULES["colour"]:
            for shape in language.RULES["shape"]:
                scene = Scene((Thing(size, colour, shape),))
                assert recognise(draw(scene, rng)) == scene


@pytest.mark.parametrize("rule", ["pair", "row"])
def test_random_scenes_are_read_back(rule):
    rng = random.Random(1)
    for _ in range(20):
        scene = language.parse_scene(language.expand(rule, rng))
        assert recognise(draw(scene, rng)) == canonical(scene)


def test_both_ways_of_saying_a_scene_match_and_other_scenes_do_not():
    picture = drawn("a big red circle above a small blue square")
    parse = language.parse_scene
    assert matches(picture, parse("a big red circle above a small blue square"))
    assert matches(picture, parse("a small blue square below a big red circle"))
    for wrong in (
        "a big red circle below a small blue square",
        "a big red circle left of a small blue square",
        "a small red circle above a small blue square",
        "a big red heart above a small blue square",
        "a big pink circle above a small blue square",
        "a big red circle",
    ):
        assert not matches(picture, parse(wrong)), wrong


def test_the_judge_stands_a_little_blur_and_noise_and_another_size():
    rng, noise = random.Random(2), np.random.default_rng(2)
    for _ in range(10):
        scene = language.parse_scene(language.expand("picture", rng))
        picture = draw(scene, rng)
        assert matches(picture.filter(ImageFilter.GaussianBlur(0.5)), scene)
        assert matches(picture.resize((256, 256), Image.Resampling.BICUBIC), scene)
        pixels = np.asarray(picture) + noise.normal(0, 10, (64, 64, 3))
        assert matches(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), scene)


def noise_picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def erased(caption: str, box: tuple[int, int, int, int]) -> Image.Image:
    picture = drawn(caption)
    picture.paste("white", box)
    return picture


def scribble() -> Image.Image:
    picture = drawn("a big red circle")
    ImageDraw.Draw(picture).line((0, 5, 63, 5), fill="blue", width=2)
    return picture


def two_colours() -> Image.Image:
    left, right = drawn("a big red circle", 5), drawn("a big green circle", 5)
    left.paste(right.crop((32, 0, 64, 64)), (32, 0))
    return left


def oblique() -> Image.Image:
    picture = Image.new("RGB", (64, 64), "white")
    pictures.paste(picture, Thing("small", "red", "star"), 16, 16, random.Random(0))
    pictures.paste(picture, Thing("small", "blue", "star"), 48, 48, random.Random(0))
    return picture


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("RGB", (64, 64), "white"),
        Image.new("RGB", (64, 64), "red"),
        noise_picture(),
        erased("a big red square", (0, 0, 32, 64)),
        erased("a big green circle", (0, 0, 64, 32)),
        erased("a big blue star", (0, 32, 64, 64)),
        erased("a big yellow heart", (28, 0, 36, 64)),
        drawn("a big red circle").filter(ImageFilter.GaussianBlur(6)),
        drawn("a big red circle").convert("L"),
        Image.blend(drawn("a big red square"), Image.new("RGB", (64, 64), "white"), 0.7),
        scribble(),
        two_colours(),
        oblique(),
    ],
    ids="blank full noise half-square half-circle half-star slit blur grey faint scribble two-colours oblique".split(),
)
def test_the_judge_refuses_mush(picture):
    with pytest.raises(UnreadablePicture):
        recognise(picture)


def test_half_a_thing_is_never_read_as_the_thing():
    rng = random.Random(4)
    for size in language.RULES["size"]:
        for shape in language.RULES["shape"]:
            scene = Scene((Thing(size, "purple", shape),))
            pixels = np.asarray(draw(scene, rng)).copy()
            rows = np.nonzero(pixels.min(axis=2) < 200)[0]
            pixels[int(rows.mean()) :] = 255
            assert not matches(Image.fromarray(pixels), scene), scene


@pytest.mark.parametrize(
    "scene",
    [
        Scene((), None),
        Scene((Thing("big", "red", "circle"),), "above"),
        Scene((Thing("big", "red", "star"),) * 2, "row"),
    ],
)
def test_impossible_scenes_are_refused(scene):
    with pytest.raises(ValueError, match="Allowed: one thing with None"):
        draw(scene, random.Random(0))


def test_unknown_words_are_named():
    with pytest.raises(ValueError, match="Unknown size 'huge'. Known: big, small"):
        draw(Scene((Thing("huge", "red", "circle"),)), random.Random(0))
    with pytest.raises(ValueError, match="Unknown shape 'moon'. Known: circle"):
        draw(Scene((Thing("big", "red", "moon"),)), random.Random(0))


def test_the_example_pictures_show_held_out_scenes():
    folder = Path(__file__).parents[1] / "examples"
    for name in ("single", "pair", "row"):
        with Image.open(folder / f"picture_{name}.png") as picture:
            assert picture.size == (256, 256)
            assert language.is_held_out(language.scene_caption(recognise(picture)))
    with Image.open(folder / "photo.jpg") as photo, pytest.raises(UnreadablePicture):
        recognise(photo)
