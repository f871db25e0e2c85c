"""Backdrops, painted or photographs, and cut-outs composited onto them with their shadows.

Chance is sampled with a numpy Generator; pixels are made in torch, on any device.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from src.runtime.console import UserError
from src.runtime.threads import mapped_ahead
from src.data.images import open_image
from src.data.pixels import to_picture

P_PHOTOGRAPH = 0.5  # when there are any; else every backdrop is painted
# Shop pictures stand before white and light grey, which random colours hardly ever hit.
PAINTED = {"studio": 0.5, "plain": 0.1, "gradient": 0.1, "textured": 0.15, "patterned": 0.15}
P_SHADOW, P_STUDIO_SHADOW = 0.3, 0.6
P_RECOLOURED, RECOLOURED = 0.1, (0.2, 0.6)  # before a studio; how far towards its colour
PHOTOGRAPH_TRIES = 20  # photographs in a row that may be unreadable before one is painted
TILE = 128  # pixels, side of a painted backdrop before it is stretched over the frame
MOTIF_FRAME = 320  # pixels of a frame in which a pattern's motif has the size that is painted
SHADOW_SIDE = 64  # pixels, side at which shadows are blurred
SHADOW_REACH = 9  # pixels of a blur's kernel to either side; three times the largest sigma
POOL_BYTES = 256 * 2**20  # of photographs on the device, at most


# ---------------------------------------------------------------- chance


def sample_surroundings(rng, with_photographs):
    """A cut-out's backdrop, shadows and colour, as chance has them: a dict of arrays.

    "tile", "tile_map": see `paint_tile`; "view" float32 [5]: which photograph, from 0 to 1, or -1
    for the tile, the part of it that is seen (share of the largest, place across and down) and
    whether that is mirrored; "shadow" float32 [4]: strength, blur (sigma) and shift across and
    down, as shares of the frame; "floor" float32 [5]: strength of the shadow that lies on the
    floor, its length as a share of the subject's height, its slant, its blur, and the strength of
    the reflection;
    "tint" float32 [4]: the RGB colour in 0..1 that the subject's colours are moved to, and how far.
    """
    sampled = no_surroundings()
    kind = "photograph"
    if with_photographs and rng.random() < P_PHOTOGRAPH:
        sampled["view"] = np.float32(
            [rng.random(), rng.uniform(0.4, 1.0), *rng.random(2), rng.random() < 0.5])
    else:
        kind = rng.choice(list(PAINTED), p=list(PAINTED.values()))
        sampled["tile"], sampled["tile_map"] = paint_tile(kind, rng)
    in_studio = kind == "studio"
    strength = rng.uniform(0.2, 0.7) if rng.random() < P_SHADOW else 0.0
    sampled["shadow"] = np.float32(
        [strength, rng.uniform(0.01, 0.05), *rng.uniform(-0.05, 0.05, 2)])
    if in_studio and rng.random() < P_STUDIO_SHADOW:
        reflection = rng.uniform(0.05, 0.3) if rng.random() < 0.3 else 0.0
        sampled["floor"] = np.float32(
            [rng.uniform(0.1, 0.6), rng.uniform(0.04, 0.35), rng.uniform(-1, 1),
             rng.uniform(0.008, 0.03), reflection])
    if in_studio and rng.random() < P_RECOLOURED:
        colour = sampled["tile"].mean(axis=(0, 1)) / 255
        sampled["tint"] = np.float32([*colour, rng.uniform(*RECOLOURED)])
    return sampled


def no_surroundings():
    """Placeholders in a batch beside images that bring their own backdrop"""
    return {"tile": np.zeros((TILE, TILE, 3), np.uint8), "tile_map": np.eye(2, 3, dtype=np.float32),
            "view": np.float32([-1, 1, 0, 0, 0]), "shadow": np.float32([0, 1, 0, 0]),
            "floor": np.float32([0, 1, 0, 1, 0]), "tint": np.zeros(4, np.float32)}


def paint_tile(kind, rng):
    """(uint8 [TILE,TILE,3], float32 [2,3]): a tile of a kind in PAINTED, and the affine map from
    the frame's coordinates to the tile's, both in -1..1.

    Patterns repeat the tile beyond its edges; of the others a little less than all is seen.
    """
    if kind == "patterned":
        return paint_motif(rng)
    if kind == "textured":
        tile = np.array(smooth_colours(rng, (TILE, TILE), cells=int(rng.integers(8, 60))))
    elif kind == "studio":
        tile = paint_studio(rng)
    else:
        tile = paint_gradient(rng, *rng.integers(0, 256, (2, 3)), is_plain=kind == "plain")
    return tile, np.float32(np.eye(2, 3) * (TILE - 1) / TILE)


def paint_gradient(rng, first, last, is_plain=False):
    """uint8 [TILE,TILE,3]: one colour, or two and the colours between them, with a little grain."""
    y, x = np.mgrid[:TILE, :TILE] / TILE
    across, down = rng.uniform(-1, 1, 2)
    ramp = across * x + down * y
    ramp = (ramp - ramp.min()) / max(np.ptp(ramp), 1e-6)
    return with_grain(rng, first + (0 if is_plain else ramp[..., None]) * (last - first))


def with_grain(rng, levels):
    """Levels [TILE,TILE,3] in 0..255 with noise that photographs have, as uint8"""
    grain = rng.normal(0, rng.uniform(0, 4), (TILE, TILE, 1))
    return (levels + grain).clip(0, 255).round().astype(np.uint8)


def paint_studio(rng):
    """uint8 [TILE,TILE,3]: a studio's backdrop: pure white, a light or, at times, a dark grey, a
    little tinted; even, with a gradient, brighter in the middle, or paper with a soft horizon."""
    level = rng.choice([255, rng.uniform(240, 255), rng.uniform(205, 245), rng.uniform(0, 60)],
                       p=[0.35, 0.25, 0.33, 0.07])
    colour = level + (rng.uniform(-8, 4, 3) if level < 255 and rng.random() < 0.5 else np.zeros(3))
    shape = rng.choice(["even", "gradient", "vignette", "horizon"], p=[0.4, 0.25, 0.15, 0.2])
    if shape == "even":
        return np.broadcast_to(colour.clip(0, 255).round(), (TILE, TILE, 3)).astype(np.uint8)
    change = rng.uniform(-35, 15)
    if shape == "gradient":
        return paint_gradient(rng, colour, colour + change)
    y, x = np.mgrid[:TILE, :TILE] / TILE
    if shape == "vignette":
        share = np.hypot(x - rng.uniform(0.3, 0.7), y - rng.uniform(0.3, 0.7)) ** 2
    else:
        share = 1 / (1 + np.exp((rng.uniform(0.4, 0.85) - y) / rng.uniform(0.005, 0.08)))
    return with_grain(rng, colour + share[..., None] * change)


def smooth_colours(rng, size, cells):
    """An RGB image of random colours on a cells x cells grid, interpolated to (width, height)."""
    grid = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)


def paint_motif(rng):
    """`paint_tile`'s tile and map of a few random shapes, turned and repeated."""
    motif = Image.new("RGB", tuple(int(side) for side in rng.integers(16, TILE + 1, 2)))
    draw = ImageDraw.Draw(motif)
    draw.rectangle((0, 0, *motif.size), fill=tuple(map(int, rng.integers(0, 256, 3))))
    for _ in range(int(rng.integers(1, 7))):
        corners = [tuple(corner) for corner in rng.uniform(-0.1, 1.1, (3, 2)) * motif.size]
        colour = tuple(map(int, rng.integers(0, 256, 3)))
        shape = rng.choice(["polygon", "line", "ellipse"])
        if shape == "polygon":
            draw.polygon(corners, fill=colour)
        elif shape == "line":
            draw.line(corners, fill=colour, width=int(rng.integers(1, 12)))
        else:
            (x, y), radius = corners[0], rng.uniform(2, 40)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    angle = rng.uniform(0, 2 * np.pi)
    turn = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    repeats = MOTIF_FRAME / np.array(motif.size)
    tile_map = np.hstack([turn * repeats[:, None], rng.uniform(-1, 1, (2, 1))])
    tile = np.array(motif.resize((TILE, TILE), Image.Resampling.BILINEAR))
    return tile, tile_map.astype(np.float32)


# ---------------------------------------------------------------- pixels


def stretched(batch, photographs, size, device):
    """float32 [B,3,H,W] in 0..1 of size (H, W): the backdrops of a batch of `sample_surroundings`.

    photographs: uint8 tensors [3,h,w] on the device.
    """
    backdrops = torch.empty(len(batch["view"]), 3, *size, device=device)
    painted = (batch["view"][:, 0] < 0).nonzero()[:, 0]
    if len(painted):
        # A copy that blocks would wait for all work that the device still has to do.
        rows, tiles, maps = (each.to(device, non_blocking=True) for each in (
            painted, batch["tile"][painted], batch["tile_map"][painted]))
        backdrops.index_copy_(0, rows, tiled(tiles, maps, size))
    for index, view in enumerate(batch["view"].tolist()):
        if view[0] >= 0:
            chosen = photographs[seen_photograph(view, len(photographs))]
            backdrops[index] = cropped(chosen, view, size)
    return backdrops


def seen_photograph(view, count):
    """Which of so many photographs a view shows"""
    return min(int(view[0] * count), count - 1)  # 0.99999999 is 1 in float32


def tiled(tiles, maps, size):
    """Tiles uint8 [B,TILE,TILE,3] through their maps [B,2,3] -> float32 [B,3,H,W] in 0..1"""
    tiles = F.pad(tiles.permute(0, 3, 1, 2).float() / 255, (1, 1, 1, 1), mode="circular")
    grid = F.affine_grid(maps, (*tiles.shape[:2], *size), align_corners=False)
    grid = (torch.remainder(grid + 1, 2) - 1) * TILE / (TILE + 2)
    return F.grid_sample(tiles, grid, align_corners=False)


def paint_backdrop(rng, size):
    """A painted backdrop as an RGB image of size (width, height)."""
    kind = rng.choice(list(PAINTED), p=list(PAINTED.values()))
    tile, tile_map = (torch.from_numpy(each)[None] for each in paint_tile(kind, rng))
    return to_picture(tiled(tile, tile_map, size[::-1])[0])


def cropped(photograph, view, size):
    """The part of a photograph in a view, uint8 [3,h,w] -> float32 [3,H,W] in 0..1"""
    _, share, across, down, is_mirrored = view
    height, width = photograph.shape[1:]
    scale = share * min(height / size[0], width / size[1])
    part_height, part_width = (max(1, round(scale * side)) for side in size)
    top, left = int(down * (height - part_height)), int(across * (width - part_width))
    part = photograph[:, top:top + part_height, left:left + part_width].float()[None] / 255
    part = F.interpolate(part, size, mode="bilinear", antialias=True)[0].clamp_(0, 1)
    return part.flip(-1) if is_mirrored else part


def composited(premultiplied, alpha, backdrop, batch):
    """I = alpha F + (1 - alpha) B: [B,3,H,W] in 0..1. B is darkened by the subject's shadows and
    mirrors it; F may be tinted. Shadows and reflections are backdrop: they are not in alpha.

    premultiplied: alpha F; batch: the float32 arrays of `sample_surroundings`, on the device.
    """
    tint = batch["tint"][:, :, None, None]
    premultiplied = torch.lerp(premultiplied, alpha * tint[:, :3], tint[:, 3:])
    backdrop = backdrop * lit(alpha, batch["shadow"])
    return premultiplied + (1 - alpha) * on_the_floor(
        premultiplied, alpha, backdrop, batch["floor"])


def lit(alpha, shadows):
    """Light on the backdrop, [B,1,H,W] in 0..1, around what stands before it: less where the
    blurred, shifted alpha is. shadows: float32 [B,4]; see `sample_surroundings`."""
    strength, sigma, across, down = shadows.unbind(1)
    maps = torch.eye(2, 3, device=alpha.device).repeat(len(alpha), 1, 1)
    maps[:, :, 2] = -2 * torch.stack([across, down], dim=1)
    low = blurred(F.adaptive_avg_pool2d(alpha, SHADOW_SIDE), sigma)
    return 1 - strength[:, None, None, None] * seen_through(maps, low, alpha.shape)


def on_the_floor(premultiplied, alpha, backdrop, floors):
    """The backdrop [B,3,H,W] with a flat shadow and a reflection that begin at the subject's lowest
    row. floors: float32 [B,5]; see `sample_surroundings`."""
    strength, length, slant, sigma, reflection = floors.unbind(1)
    height = alpha.shape[2]
    rows = (alpha.amax(dim=3)[:, 0] > 0.5).float() * torch.arange(height, device=alpha.device)
    foot = (2 * rows.amax(dim=1) + 2) / height - 1  # as a coordinate in -1..1
    zero, one = torch.zeros_like(foot), torch.ones_like(foot)
    flat = torch.stack([one, -slant, slant * foot, zero, 1 / length, foot - foot / length], dim=1)
    low = F.adaptive_avg_pool2d(alpha, SHADOW_SIDE)
    low = blurred(seen_through(flat.view(-1, 2, 3), low, low.shape), sigma)
    shade = F.interpolate(low, alpha.shape[2:], mode="bilinear", align_corners=False)
    backdrop = backdrop * (1 - strength[:, None, None, None] * shade)
    mirror = torch.stack([one, zero, zero, zero, -one, 2 * foot], dim=1).view(-1, 2, 3)
    layers = seen_through(mirror, torch.cat([premultiplied, alpha], dim=1), alpha.shape)
    depth = torch.linspace(-1, 1, height, device=alpha.device)[None] - foot[:, None]
    share = (reflection[:, None] * (1 - 2 * depth).clamp(0, 1) * (depth > 0))[:, None, :, None]
    return backdrop + share * (layers[:, :3] - layers[:, 3:] * backdrop)


def blurred(planes, sigma):
    """[B,1,SHADOW_SIDE,SHADOW_SIDE] after Gaussian blurs of sigma [B], shares of the frame"""
    offsets = torch.arange(-SHADOW_REACH, SHADOW_REACH + 1, device=planes.device)
    kernels = torch.exp(-0.5 * (offsets / (SHADOW_SIDE * sigma[:, None])) ** 2)
    kernels = (kernels / kernels.sum(dim=1, keepdim=True))[:, None, None]
    planes = F.conv2d(planes.transpose(0, 1), kernels, padding=(0, SHADOW_REACH),
                      groups=len(planes))
    return F.conv2d(planes, kernels.mT, padding=(SHADOW_REACH, 0),
                    groups=len(kernels)).transpose(0, 1)


def seen_through(maps, layers, shape):
    """Layers [B,C,h,w] sampled through affine maps [B,2,3] -> [B,C,H,W] of a shape's H and W; 0
    beyond them"""
    grid = F.affine_grid(maps, (*layers.shape[:2], *shape[2:]), align_corners=False)
    return F.grid_sample(layers, grid, align_corners=False)


def recomposed(cutout, paths, rng):
    """An RGBA image on a backdrop of its own size: (RGB image, L alpha, [(path, reason)] of the
    photographs that could not be read).

    paths: of photographs, may be empty. The next one stands in for one that cannot be read.
    """
    size, unreadable, photographs = cutout.size[::-1], [], []
    surroundings = sample_surroundings(rng, bool(paths))
    view = surroundings["view"]
    if view[0] >= 0:
        first = seen_photograph(view, len(paths))
        for number in range(first, first + min(PHOTOGRAPH_TRIES, len(paths))):
            path = paths[number % len(paths)]
            try:
                photographs = [photograph_pixels(path, 2 * min(size))]
                break
            except UserError as error:
                unreadable.append((str(path), str(error)))
        else:
            surroundings = sample_surroundings(rng, False)
    batch = {name: torch.from_numpy(value)[None] for name, value in surroundings.items()}
    layers = torch.from_numpy(np.array(cutout)).permute(2, 0, 1)[None].float() / 255
    colours, alpha = layers.split([3, 1], dim=1)
    image = composited(colours * alpha, alpha, stretched(batch, photographs, size, "cpu"), batch)
    return to_picture(image[0]), cutout.getchannel("A"), unreadable


# ---------------------------------------------------------------- photographs


class PhotographPool:
    """Photographs on the device, as many as POOL_BYTES hold; where there are more, other ones in
    each epoch, read in the background during the one before.

    Seed and epoch alone decide which. `unreadable`: {path: reason} of what could not be read.
    """

    def __init__(self, paths, seed, side, device):
        self.paths, self.seed, self.side, self.device = paths, seed, side, device
        self.unreadable, self.is_complete = {}, not paths
        self.thread, self.waiting = ThreadPoolExecutor(1), {}
        self.photographs, self.epoch = [], None

    def for_epoch(self, epoch):
        """uint8 tensors [3,h,w]. Raises UserError when not one photograph can be read."""
        if not self.is_complete and epoch != self.epoch:
            waiting = self.waiting.pop(epoch, None)
            found = waiting.result() if waiting else self.read(epoch)
            self.is_complete = len(found) + len(self.unreadable) >= len(self.paths)
            if self.is_complete:  # the same list in whichever epoch a resumed run begins
                found = dict(sorted(found.items()))
            if not found:
                raise UserError(f"none of the backdrops can be read; the first: "
                                f"{next(iter(self.unreadable.values()))}")
            self.photographs = [each.to(self.device) for each in found.values()]
            self.epoch = epoch
        return self.photographs

    def prepare(self, epoch):
        """Begin to read the photographs of an epoch."""
        if not self.is_complete and epoch not in self.waiting:
            self.waiting[epoch] = self.thread.submit(self.read, epoch)

    def read(self, epoch):
        """{index of the path: pixels} of the epoch's photographs, in the host's memory"""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.paths)).tolist()
        photographs, room = {}, POOL_BYTES
        for index, pixels in zip(order, mapped_ahead(
                self.readable, (self.paths[index] for index in order))):
            if pixels is not None:
                photographs[index] = pixels
                room -= pixels.nbytes
            if room < 0:
                break
        return photographs

    def readable(self, path):
        """A photograph's pixels, None where it cannot be read"""
        try:
            return photograph_pixels(path, self.side)
        except UserError as error:
            self.unreadable[str(path)] = str(error)


def photograph_pixels(path, side):
    """uint8 [3,h,w] of an image file; its shorter side is reduced to `side` where it has more."""
    image = open_image(path, "RGB", at_least=(side, side))
    scale = side / min(image.size)
    if scale < 1:
        image = image.resize([round(scale * length) for length in image.size],
                             Image.Resampling.BILINEAR, reducing_gap=2.0)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
