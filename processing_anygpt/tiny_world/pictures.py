"""Pictures of the tiny world: a renderer, and a judge that reads a picture back by comparing pixels.

The judge is no trained model: it cuts the picture into connected patches of ink and lays the renderer's own stencils
over each. It knows what every shape looks like, so it can mark a codec or a language model, and it refuses mush.

Pictures are 64x64 px RGB on white. Things sit on fixed places with a jitter of whole pixels, so that they never touch.
"""

import math
import random
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from .language import RULES, Scene, Thing

IMAGE_SIZE = 64  # px
JITTER = 2  # px each way
COLOUR_JITTER = 8  # of 255, each channel
RADII = {"big": 12, "small": 7}  # px
PALETTE = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 200, 30),
    "purple": (130, 50, 170),
    "pink": (245, 130, 190),
}
# Places (x, y) in px of the things of a scene, in the order of its caption.
PLACES = {
    None: [(32, 32)],
    "above": [(32, 16), (32, 48)],
    "below": [(32, 48), (32, 16)],
    "left of": [(16, 32), (48, 32)],
    "right of": [(48, 32), (16, 32)],
    "row": [(11, 32), (32, 32), (53, 32)],
}

_SUPERSAMPLING = 8
_HALF = 16  # px; a stencil is 33x33 px around the centre of the thing

# What the judge accepts. Originals score an overlap above 0.97 and the codec's blur costs some 0.1.
_INK = 62  # of 255: half covered with the weakest ink, pink, which lacks 125 in its weakest channel
_STRAY_INK = 24  # px in all that may lie outside the things (specks of a codec)
_SPECK = 12  # px; smaller patches are specks, the smallest thing covers some 50
_MIN_OVERLAP = 0.78
_MIN_LEAD = 0.02  # over the next shape; the likest two, circle and square, are 0.13 apart
_MAX_COLOUR_DISTANCE = 60.0  # of 255 per channel, Euclidean; palette colours are at least 98 apart


class UnreadablePicture(ValueError):
    """The judge sees no scene of the tiny world in a picture; the message says why."""


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners (x right, y down) of a shape of radius 1 around (0, 0)."""
    if shape == "square":
        return [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]
    if shape == "triangle":
        return [(0.0, -0.95), (1.0, 0.85), (-1.0, 0.85)]
    if shape == "cross":
        a, b = 0.3, 0.95
        return [
            (-a, -b),
            (a, -b),
            (a, -a),
            (b, -a),
            (b, a),
            (a, a),
            (a, b),
            (-a, b),
            (-a, a),
            (-b, a),
            (-b, -a),
            (-a, -a),
        ]
    turns = [2 * math.pi * i / 60 for i in range(60)]
    if shape == "circle":
        return [(0.95 * math.sin(t), -0.95 * math.cos(t)) for t in turns]
    if shape == "oval":  # not of the world itself: lesson.py teaches it
        return [(1.1 * math.cos(t), 0.6 * math.sin(t)) for t in turns]
    if shape == "star":
        radii = [1.08, 0.44]
        return [
            (radii[i % 2] * math.sin(math.pi * i / 5), 0.05 - radii[i % 2] * math.cos(math.pi * i / 5))
            for i in range(10)
        ]
    if shape == "heart":  # the textbook parametric heart, 32 units wide
        return [
            (
                math.sin(t) ** 3,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 - 0.1,
            )
            for t in turns
        ]
    raise ValueError(f"Unknown shape {shape!r}. Known: {', '.join(RULES['shape'])}.")


@cache
def stencil(size: str, shape: str) -> Image.Image:
    """How much of each pixel the thing covers: 33x33 px, mode L, 0-255, anti-aliased. Cached: do not write into it."""
    if size not in RADII:
        raise ValueError(f"Unknown size {size!r}. Known: {', '.join(RADII)}.")
    side = (2 * _HALF + 1) * _SUPERSAMPLING
    canvas = Image.new("L", (side, side))
    corners = [tuple(side / 2 + _SUPERSAMPLING * RADII[size] * c for c in corner) for corner in _outline(shape)]
    ImageDraw.Draw(canvas).polygon(corners, fill=255)
    return canvas.resize((2 * _HALF + 1,) * 2, Image.Resampling.BOX)


def draw(scene: Scene, rng: random.Random | None) -> Image.Image:
    """The scene as a 64x64 px RGB picture; place and colour jitter come from `rng`, None draws neatly, without any."""
    if scene.relation not in PLACES or len(scene.things) != len(PLACES[scene.relation]):
        raise ValueError(
            f"Got {len(scene.things)} things with relation {scene.relation!r}. Allowed: one thing with None, "
            f"two with {', '.join(RULES['relation'])}, three with 'row'."
        )
    picture = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "white")
    for thing, place in zip(scene.things, PLACES[scene.relation]):
        if rng:
            place = [c + rng.randint(-JITTER, JITTER) for c in place]
        paste(picture, thing, *place, rng)
    return picture


def paste(picture: Image.Image, thing: Thing, x: int, y: int, rng: random.Random | None) -> None:
    """Paint one thing centred on pixel (x, y), its colour jittered by `rng` if given, into `picture` in place."""
    colour = PALETTE[thing.colour]
    if rng:
        colour = tuple(min(255, max(0, c + rng.randint(-COLOUR_JITTER, COLOUR_JITTER))) for c in colour)
    picture.paste(colour, (x - _HALF, y - _HALF), stencil(thing.size, thing.shape))


def canonical(scene: Scene) -> Scene:
    """The one way to say a scene: "x below y" is the same picture as "y above x", "right of" as "left of"."""
    opposite = {"below": "above", "right of": "left of"}.get(scene.relation)
    return Scene(scene.things[::-1], opposite) if opposite else scene


def matches(picture: Image.Image, scene: Scene) -> bool:
    """Whether the judge reads `scene`, in either way of saying it, in the picture."""
    try:
        return recognise(picture) == canonical(scene)
    except UnreadablePicture:
        return False


def recognise(picture: Image.Image) -> Scene:
    """The canonical scene in a picture (other sizes than 64x64 px are resized); UnreadablePicture if there is none."""
    picture = picture.convert("RGB")
    if picture.size != (IMAGE_SIZE, IMAGE_SIZE):
        picture = picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
    darkness = 255.0 - np.asarray(picture, dtype=np.float32)  # [H, W, 3]: white is 0
    patches, strays = [], 0
    for mask in _patches(darkness.max(axis=2) > _INK):
        if mask.sum() < _SPECK:
            strays += int(mask.sum())
        else:
            patches.append(mask)
    if strays > _STRAY_INK:
        raise UnreadablePicture(f"{strays} px of ink lie outside things; {_STRAY_INK} are allowed.")
    if not 1 <= len(patches) <= 3:
        raise UnreadablePicture(f"Got {len(patches)} patches of ink; a scene has one to three.")
    found = [_read_thing(darkness, mask) for mask in patches]
    return _arrange(found)


def _patches(ink: np.ndarray) -> list[np.ndarray]:
    """The 8-connected patches of a boolean picture [H, W], each as a mask [H, W]."""
    todo, patches = {(int(y), int(x)) for y, x in np.argwhere(ink)}, []
    while todo:
        mask, front = np.zeros_like(ink), [todo.pop()]
        while front:
            y, x = front.pop()
            mask[y, x] = True
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & todo
            todo -= near
            front += near
        patches.append(mask)
    return patches


@cache
def _references() -> list[tuple[str, str, np.ndarray, float, float]]:
    """Every (size, shape, coverage [33, 33] in 0..1, centroid x, centroid y in px from the centre)."""
    references = []
    grid = np.arange(-_HALF, _HALF + 1)
    for size in RADII:
        for shape in RULES["shape"]:
            coverage = np.asarray(stencil(size, shape), dtype=np.float32) / 255
            total = coverage.sum()
            references.append(
                (size, shape, coverage, (coverage.sum(0) * grid).sum() / total, (coverage.sum(1) * grid).sum() / total)
            )
    return references


def _read_thing(darkness: np.ndarray, mask: np.ndarray) -> tuple[Thing, float, float]:
    """The thing under a patch of ink and its centre (x, y) in px."""
    inks = darkness[mask]  # [N, 3]
    strength = np.linalg.norm(inks, axis=1)
    ink = np.median(inks[strength >= np.median(strength)], axis=0)  # [3]; the stronger half leaves out the thin rim
    colour, distance = min(
        ((name, float(np.linalg.norm(255.0 - ink - value))) for name, value in PALETTE.items()),
        key=lambda pair: pair[1],
    )
    if distance > _MAX_COLOUR_DISTANCE:
        raise UnreadablePicture(f"Ink of colour {(255 - ink).round().tolist()} is {distance:.0f} from {colour}.")
    # Project every pixel on the line from white to that ink: 0 is bare, 1 is covered; far off that line is no ink.
    coverage = (darkness @ ink) / (ink @ ink)
    off = np.linalg.norm(darkness - coverage[..., None] * ink, axis=2)
    near = np.pad(mask, 2)
    near = np.logical_or.reduce(
        [near[dy : dy + mask.shape[0], dx : dx + mask.shape[1]] for dy in range(5) for dx in range(5)]
    )
    coverage = np.where(near, np.clip(coverage, 0, 1) * (off < _MAX_COLOUR_DISTANCE), 0)
    rows, columns = np.nonzero(mask)
    weights = coverage[mask]
    x, y = (columns * weights).sum() / weights.sum(), (rows * weights).sum() / weights.sum()

    # windows[y, x] is the 33x33 px around pixel (y, x)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(coverage, _HALF), (2 * _HALF + 1,) * 2)
    overlaps: dict[tuple[str, str], tuple[float, int, int]] = {}  # the best place of each size and shape
    for size, shape, reference, dx, dy in _references():
        top, left = (min(max(round(c) - 1, 0), IMAGE_SIZE - 3) for c in (y - dy, x - dx))
        both = np.minimum(windows[top : top + 3, left : left + 3], reference).sum(axis=(2, 3))  # [<=3, <=3] places
        # Ink outside the window counts against the match too: the union is taken over the whole patch.
        overlap = both / (coverage.sum() + reference.sum() - both)
        row, column = np.unravel_index(overlap.argmax(), overlap.shape)
        overlaps[size, shape] = (float(overlap.max()), left + int(column), top + int(row))
    (size, shape), (overlap, cx, cy) = max(overlaps.items(), key=lambda item: item[1])
    if overlap < _MIN_OVERLAP:
        raise UnreadablePicture(
            f"The {colour} patch overlaps a {size} {shape} by {overlap:.2f}; {_MIN_OVERLAP} is needed."
        )
    second = max(value for (_, other), (value, *_) in overlaps.items() if other != shape)
    if overlap - second < _MIN_LEAD:
        raise UnreadablePicture(
            f"The {colour} patch may be a {shape} or another shape: {overlap:.2f} and {second:.2f}."
        )
    return Thing(size, colour, shape), cx, cy


def _arrange(found: list[tuple[Thing, float, float]]) -> Scene:
    """The canonical scene of one to three things with their centres."""
    if len(found) == 1:
        return Scene((found[0][0],))
    if len(found) == 3:
        found = sorted(found, key=lambda f: f[1])
        heights = [y for _, _, y in found]
        if any(thing.size != "small" for thing, _, _ in found) or max(heights) - min(heights) > 4 * JITTER:
            raise UnreadablePicture("Three things that are not a row of small ones.")
        return Scene(tuple(thing for thing, _, _ in found), "row")
    (first, x1, y1), (second, x2, y2) = found
    across, down = abs(x2 - x1), abs(y2 - y1)
    if max(across, down) < 2 * min(across, down):
        raise UnreadablePicture(
            f"Two things {across} px across and {down} px down from each other: neither beside nor above."
        )
    axis, relation = (1, "left of") if across > down else (2, "above")
    return Scene(tuple(thing for thing, *_ in sorted(found, key=lambda f: f[axis])), relation)
