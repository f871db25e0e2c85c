"""Backdrops, drawn or photographs, and cut-outs composited onto them with soft shadows.

What chance decides is drawn with a numpy Generator; pixels are made in torch, on any device.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from src.runtime.console import UserError
from src.runtime.threads import mapped_ahead
from src.data.images import open_image

P_PHOTOGRAPH = 0.75  # when there are any; else every backdrop is drawn
P_SHADOW = 0.3
PHOTOGRAPH_TRIES = 20  # photographs in a row that may be unreadable before one is drawn
TILE = 128  # pixels, side of a drawn backdrop before it is stretched over the frame
MOTIF_FRAME = 320  # pixels of a frame in which a pattern's motif has the size that is drawn
SHADOW_SIDE = 64  # pixels, side at which shadows are blurred
SHADOW_REACH = 9  # pixels of a blur's kernel to either side; three times the largest sigma
POOL_BYTES = 256 * 2**20  # of photographs on the device, at most


# ---------------------------------------------------------------- chance


def draw_surroundings(rng, with_photographs):
    """What chance decides about a cut-out's backdrop and shadow: a dict of arrays.

    "tile", "tile_map": see draw_tile; "view" float32 [5]: which photograph, from 0 to 1, or -1 for
    the tile, the part of it that is seen (share of the largest, place across and down) and whether
    that is mirrored; "shadow" float32 [4]: strength, blur (sigma) and shift across and down, as
    shares of the frame.
    """
    drawn = no_surroundings()
    if with_photographs and rng.random() < P_PHOTOGRAPH:
        drawn["view"] = np.float32(
            [rng.random(), rng.uniform(0.4, 1.0), *rng.random(2), rng.random() < 0.5])
    else:
        drawn["tile"], drawn["tile_map"] = draw_tile(rng)
    strength = rng.uniform(0.2, 0.7) if rng.random() < P_SHADOW else 0.0
    drawn["shadow"] = np.float32([strength, rng.uniform(0.01, 0.05), *rng.uniform(-0.05, 0.05, 2)])
    return drawn


def no_surroundings():
    """What stands for them in a batch beside images that bring their own backdrop."""
    return {"tile": np.zeros((TILE, TILE, 3), np.uint8), "tile_map": np.eye(2, 3, dtype=np.float32),
            "view": np.float32([-1, 1, 0, 0, 0]), "shadow": np.float32([0, 1, 0, 0])}


def draw_tile(rng):
    """(uint8 [TILE,TILE,3], float32 [2,3]): a plain, gradient, textured or patterned tile, and the
    affine map from the frame's coordinates to the tile's, both in -1..1.

    Patterns repeat the tile beyond its edges; of the others a little less than all is seen.
    """
    kind = rng.choice(["plain", "gradient", "textured", "patterned"])
    if kind == "patterned":
        return draw_motif(rng)
    if kind == "textured":
        tile = np.array(smooth_colours(rng, (TILE, TILE), cells=int(rng.integers(8, 60))))
    else:
        tile = draw_gradient(rng, is_plain=kind == "plain")
    return tile, np.float32(np.eye(2, 3) * (TILE - 1) / TILE)


def draw_gradient(rng, is_plain):
    """uint8 [TILE,TILE,3]: one colour, or two and what lies between them, with a little grain."""
    first, last = rng.integers(0, 256, (2, 3))
    if is_plain:
        last = first
    across, down = rng.uniform(-1, 1, 2)
    y, x = np.mgrid[:TILE, :TILE] / TILE
    ramp = across * x + down * y
    ramp = (ramp - ramp.min()) / max(np.ptp(ramp), 1e-6)
    grain = rng.normal(0, rng.uniform(0, 4), (TILE, TILE, 1))
    pixels = first + ramp[..., None] * (last - first) + grain
    return pixels.clip(0, 255).round().astype(np.uint8)


def smooth_colours(rng, size, cells):
    """An RGB image of random colours on a cells x cells grid, interpolated to (width, height)."""
    grid = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)


def draw_motif(rng):
    """draw_tile's tile and map of a few random shapes, turned and repeated."""
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
    """float32 [B,3,H,W] in 0..1 of size (H, W): the backdrops of a batch of `draw_surroundings`.

    photographs: uint8 tensors [3,h,w] on the device.
    """
    backdrops = torch.empty(len(batch["view"]), 3, *size, device=device)
    drawn = (batch["view"][:, 0] < 0).nonzero()[:, 0]
    if len(drawn):
        # A copy that blocks would wait for all work that the device still has to do.
        rows, tiles, maps = (each.to(device, non_blocking=True) for each in (
            drawn, batch["tile"][drawn], batch["tile_map"][drawn]))
        backdrops.index_copy_(0, rows, tiled(tiles, maps, size))
    for index, view in enumerate(batch["view"].tolist()):
        if view[0] >= 0:
            chosen = photographs[seen_photograph(view, len(photographs))]
            backdrops[index] = part_of(chosen, view, size)
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


def draw_backdrop(rng, size):
    """A drawn backdrop as an RGB image of size (width, height)."""
    tile, tile_map = (torch.from_numpy(each)[None] for each in draw_tile(rng))
    return image_of(tiled(tile, tile_map, size[::-1])[0])


def image_of(pixels):
    """float32 [3,H,W] in 0..1 -> RGB image"""
    levels = (pixels.permute(1, 2, 0) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.numpy())


def part_of(photograph, view, size):
    """What a view shows of a photograph, uint8 [3,h,w] -> float32 [3,H,W] in 0..1"""
    _, share, across, down, is_mirrored = view
    height, width = photograph.shape[1:]
    scale = share * min(height / size[0], width / size[1])
    part_height, part_width = (max(1, round(scale * side)) for side in size)
    top, left = int(down * (height - part_height)), int(across * (width - part_width))
    part = photograph[:, top:top + part_height, left:left + part_width].float()[None] / 255
    part = F.interpolate(part, size, mode="bilinear", antialias=True)[0].clamp_(0, 1)
    return part.flip(-1) if is_mirrored else part


def composited(premultiplied, alpha, backdrop, shadows):
    """I = alpha F + (1 - alpha) B, on B darkened by a shadow: [B,3,H,W] in 0..1.

    premultiplied: alpha F.
    """
    return premultiplied + (1 - alpha) * lit(alpha, shadows) * backdrop


def lit(alpha, shadows):
    """Light on the backdrop, [B,1,H,W] in 0..1, around what stands before it: less where the
    blurred, shifted alpha is. shadows: float32 [B,4]; see draw_surroundings."""
    strength, sigma, across, down = shadows.unbind(1)
    low = F.adaptive_avg_pool2d(alpha, SHADOW_SIDE).transpose(0, 1)
    offsets = torch.arange(-SHADOW_REACH, SHADOW_REACH + 1, device=alpha.device)
    kernels = torch.exp(-0.5 * (offsets / (SHADOW_SIDE * sigma[:, None])) ** 2)
    kernels = (kernels / kernels.sum(dim=1, keepdim=True))[:, None, None]
    low = F.conv2d(low, kernels, padding=(0, SHADOW_REACH), groups=len(alpha))
    low = F.conv2d(low, kernels.mT, padding=(SHADOW_REACH, 0), groups=len(alpha)).transpose(0, 1)
    maps = torch.eye(2, 3, device=alpha.device).repeat(len(alpha), 1, 1)
    maps[:, :, 2] = -2 * torch.stack([across, down], dim=1)
    grid = F.affine_grid(maps, alpha.shape, align_corners=False)
    return 1 - strength[:, None, None, None] * F.grid_sample(low, grid, align_corners=False)


def recomposed(cutout, paths, rng):
    """An RGBA image on a backdrop of its own size: (RGB image, L alpha, [(path, reason)] of the
    photographs that could not be read).

    paths: of photographs, may be empty. The next one stands in for one that cannot be read.
    """
    size, unreadable, photographs = cutout.size[::-1], [], []
    surroundings = draw_surroundings(rng, bool(paths))
    view = surroundings["view"]
    if view[0] >= 0:
        first = seen_photograph(view, len(paths))
        for number in range(first, first + min(PHOTOGRAPH_TRIES, len(paths))):
            path = paths[number % len(paths)]
            try:
                photographs = [pixels_of_photograph(path, 2 * min(size))]
                break
            except UserError as error:
                unreadable.append((str(path), str(error)))
        else:
            surroundings = draw_surroundings(rng, False)
    batch = {name: torch.from_numpy(value)[None] for name, value in surroundings.items()}
    layers = torch.from_numpy(np.array(cutout)).permute(2, 0, 1)[None].float() / 255
    colours, alpha = layers.split([3, 1], dim=1)
    image = composited(colours * alpha, alpha, stretched(batch, photographs, size, "cpu"),
                       batch["shadow"])
    return image_of(image[0]), cutout.getchannel("A"), unreadable


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

    def of_epoch(self, epoch):
        """uint8 tensors [3,h,w]. Raises UserError when not one photograph can be read."""
        if not self.is_complete and epoch != self.epoch:
            waiting = self.waiting.pop(epoch, None)
            found = waiting.result() if waiting else self.read(epoch)
            self.is_complete = len(found) + len(self.unreadable) >= len(self.paths)
            if not found:
                raise UserError(f"none of the backdrops can be read; the first: "
                                f"{next(iter(self.unreadable.values()))}")
            self.photographs, self.epoch = [each.to(self.device) for each in found], epoch
        return self.photographs

    def prepare(self, epoch):
        """Begin to read the photographs of an epoch."""
        if not self.is_complete and epoch not in self.waiting:
            self.waiting[epoch] = self.thread.submit(self.read, epoch)

    def read(self, epoch):
        """The epoch's photographs, in the host's memory"""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.paths))
        photographs, room = [], POOL_BYTES
        for pixels in mapped_ahead(self.readable, (self.paths[index] for index in order)):
            if pixels is not None:
                photographs.append(pixels)
                room -= pixels.nbytes
            if room < 0:
                break
        return photographs

    def readable(self, path):
        """A photograph's pixels, None where it cannot be read"""
        try:
            return pixels_of_photograph(path, self.side)
        except UserError as error:
            self.unreadable[str(path)] = str(error)


def pixels_of_photograph(path, side):
    """uint8 [3,h,w] of an image file; its shorter side is reduced to `side` where it has more."""
    image = open_image(path, "RGB", at_least=(side, side))
    scale = side / min(image.size)
    if scale < 1:
        image = image.resize([round(scale * length) for length in image.size],
                             Image.Resampling.BILINEAR, reducing_gap=2.0)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
