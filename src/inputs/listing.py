"""Which files are images, listed for each purpose by its own rule."""

import os
import re
import unicodedata
from collections import Counter, defaultdict, deque
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from src.config import PICTURES
from src.runtime.console import UserError, log, printable
from src.runtime.files import entry_kind
from src.runtime.tables import no_column, read_table
from src.inputs.formats import image_or_kind, image_suffixes, is_result

# What systems leave in folders, in lower case; what begins with a dot is hidden
LEFTOVERS = {"__macosx", "$recycle.bin", "@eadir", "desktop.ini", "ehthumbs.db", "icon\r",
             "system volume information", "thumbs.db"}


class TestImage(NamedTuple):
    """A row of the submission to be: its name, and its image (None: there is no such file)."""

    name: str
    path: Path | None


# ---------------------------------------------------------------- for each purpose


def list_tests(folder, sample_csv=None, limit=None):
    """The `TestImage`s of a submission, at most `limit`.

    A sample submission decides their names and order; what it lacks, and what the folder lacks, is
    reported. Without one they are all images of the folder in natural order, named without their
    last extension. See list_images for the folder.
    """
    if sample_csv is None:
        return [TestImage(printable(path.stem), path) for path in list_images(folder, limit)]
    table = read_table(sample_csv)
    if "filename" not in table.columns:
        raise UserError(f"{sample_csv}: {no_column('filename', table.columns)}")
    names, paths = table["filename"].tolist(), images_in(folder)
    if len(set(names)) < len(names):
        name = Counter(names).most_common(1)[0][0]
        raise UserError(f"{sample_csv}: names {name!r} twice; leave one of its rows")
    found = matches(names, paths)
    if not found:
        raise UserError(f"{sample_csv}: names no image of {folder}; name the right ones with "
                        "--sample-csv and --test-root")
    taken = set(found.values())
    report("in the sample submission but fit no single image of the folder; a blank mask stands in "
           "for each",
           [name for name in names if name not in found])
    report("in the folder but not in the sample submission, and are left out",
           [path.name for path in paths if path not in taken])
    report("called otherwise in the folder",
           [f"{name} ({path.name})" for name, path in found.items()
            if name not in (path.stem, path.name)])
    return [TestImage(name, found.get(name)) for name in names][:limit]


def list_images(folder, limit=None):
    """The paths of the images that lie in a folder, at most `limit`, in natural order.

    Where there is none, but one folder in it holds some, they are taken from there. Raises
    UserError when there is none, or when two would get the same name in the submission.
    """
    images = images_in(folder)
    by_stem = {}
    for path in images:
        refuse_two(path.stem, by_stem.setdefault(path.stem, path), path)
    return images[:limit]


def list_pictures(places, out, limit=None):
    """The `TestImage`s of photos and of folders with all that is in them, at most `limit`.

    A name is the path below the folder; below what all places have in common, where two would be
    the same; without its last extension, where it then is the only one. In folders, pictures that
    an earlier run has written are left out. A place that does not exist has no path. Raises
    UserError when there is no picture, or when a result below `out` would replace one.
    """
    missing = []
    found = {}  # {absolute path: (path, the folder that its name leaves out)}
    for place in places:
        if place.is_dir():
            paths = photos_in(place, out)
            if not paths:
                log(f"{place}: there is no picture")
            for path in paths:
                found.setdefault(absolute(path), (path, place))
        elif place.is_file():
            found.setdefault(absolute(place), (place, place.parent))
        else:
            missing.append(place)
    if not found and missing:
        raise UserError(f"{missing[0]}: there is no such picture or folder (working folder: "
                        f"{Path.cwd()})")
    if not found:
        raise UserError(f"{places[0]}: there is no picture")
    names = picture_names(found)
    written = {(out / kind / f"{name}.png").resolve() for name in names for kind in PICTURES}
    for path, _ in found.values():
        if path.resolve() in written:
            raise UserError(f"{path}: would be replaced by a result; name another --out")
    tests = [TestImage(name, path) for name, (path, _) in zip(names, found.values())]
    tests += [TestImage(str(place), None) for place in missing]
    return [TestImage(printable(name), path) for name, path in tests[:limit]]


def absolute(path):
    """An absolute path without `..`, the same for all ways to name a file but links"""
    return Path(os.path.abspath(path))


def photos_in(folder, out):
    """All pictures in a folder and the folders in it, but results, whether below `out` or not"""
    paths = image_files(folder, recursive=True)
    places = {(out / kind).resolve() for kind in PICTURES}
    results = {path for path in paths if is_result(path) or not places.isdisjoint(
        path.resolve().parents)}
    report_others(folder, [(path, "results of an earlier run") for path in sorted(results)])
    return [path for path in paths if path not in results]


def picture_names(found):
    """The names of {absolute path: (path, its base)}, all different; see list_pictures."""
    wholes = [path.relative_to(base) for path, base in found.values()]
    if len(set(wholes)) < len(wholes):
        common = os.path.commonpath([absolute(base) for _, base in found.values()])
        wholes = [path.relative_to(common) for path in found]
    stems = [path.with_suffix("") for path in wholes]
    counts = Counter([*stems, *wholes])
    return [(stem if counts[stem] == 1 + (stem == whole) else whole).as_posix()
            for stem, whole in zip(stems, wholes)]


def list_backdrops(folder):
    """The paths of all images in a folder and the folders in it. Raises UserError for none."""
    images = image_files(folder, recursive=True)
    if not images:
        raise UserError(f"{folder}: there is no image in this folder")
    return images


# ---------------------------------------------------------------- folders


def images_in(folder):
    """See list_images, but for two of one name."""
    images, others = find_images(folder)
    if images:
        report_others(folder, others)
        return images
    inner = [path for path in sorted(Path(folder).iterdir())
             if path.is_dir() and not is_leftover(path.name)
             and find_images(path, recursive=True)[0]]
    if len(inner) == 1:
        log(f"{folder}: its images are in {inner[0]}")
        return images_in(inner[0])
    several = f"; {', '.join(path.name for path in inner[:5])} in it hold some: name one" * (
        len(inner) > 1)
    raise UserError(f"{folder}: there is no image in this folder{several}")


def image_files(folder, recursive=False):
    """The images of `find_images`; the log names the other files."""
    images, others = find_images(folder, recursive)
    report_others(folder, others)
    return images


def report_others(folder, others):
    """Log the files that were left out of a folder, a line for each kind."""
    by_kind = defaultdict(list)
    for path, kind in others:
        by_kind[kind].append(path.relative_to(folder).as_posix())
    for kind, names in by_kind.items():
        log(f"{folder}: {len(names)} left out: {shortened_list(names)} ({kind})")


def find_images(folder, recursive=False):
    """([paths of the images], [(path, what it is instead)]) of a folder, in natural order.

    Known suffixes and else the content decide, so that a damaged image is still one. recursive:
    with the folders in it, each once, however many links lead there. Hidden files and system
    leftovers are in neither list.
    """
    suffixes, images, others, seen = image_suffixes(), [], [], set()
    folders, links = deque([Path(folder)]), deque()  # a folder's own place before links to it
    while folders or links:
        here = (folders or links).popleft()
        real = here.resolve()
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            others.append((here, error.strerror))
            continue
        for entry in entries:
            path = here / entry.name
            if is_leftover(entry.name):
                continue
            kind = entry_kind(entry)
            if kind == "folder":
                if recursive:
                    (links if entry.is_symlink() else folders).append(path)
                else:
                    others.append((path, "a folder, which is not looked into"))
            elif not kind:
                others.append((path, "a link to nowhere" if entry.is_symlink() else "not a file"))
            elif path.suffix.lower() in suffixes or not (kind := image_or_kind(path)):
                images.append(path)
            else:
                others.append((path, kind))
    return (sorted(images, key=lambda path: natural_key(path.relative_to(folder).as_posix())),
            sorted(others, key=lambda each: natural_key(each[0].relative_to(folder).as_posix())))


def is_leftover(name):
    """Whether a file's or folder's name says that it is hidden, or the system's."""
    return name.startswith(".") or name.lower() in LEFTOVERS


def natural_key(name):
    """Sort key that reads digits as numbers: 1, 2, 10 and not 1, 10, 2."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part)
            for part in re.split(r"(\d+)", name) if part], name


# ---------------------------------------------------------------- names


def matches(names, paths):
    """{name: path} of the names that fit a file's name, with or without its last extension.

    To the letter first; then by what looks the same; then without folders; then without regard to
    capitals, leading zeros, and the name's own extension; each only where one name fits one file
    that no other has. Raises UserError when two files fit a name to the letter.
    """
    asked, by_name, by_stem = set(names), {path.name: path for path in paths}, {}
    for path in paths:
        if path.stem in asked and path.stem not in by_name:
            refuse_two(path.stem, by_stem.setdefault(path.stem, path), path)
    found = {name: by_name.get(name) or by_stem[name] for name in names
             if name in by_name or name in by_stem}
    for simpler in (composed, last_part, folded, stem_number):
        taken, files = set(found.values()), defaultdict(set)
        for path in paths:
            for text in (path.name, path.stem) if path not in taken else ():
                files[folded(text) if simpler is stem_number else simpler(text)].add(path)
        wanted = defaultdict(list)
        for name in names:
            if name not in found:
                wanted[simpler(name)].append(name)
        found |= {same[0]: min(files[key]) for key, same in wanted.items()
                  if len(same) == len(files.get(key, ())) == 1}
    return found


def composed(name):
    """A name in the form in which letters that look the same have the same bytes"""
    return unicodedata.normalize("NFC", name)


def last_part(name):
    """A name without the folders before it"""
    return re.split(r"[\\/]", composed(name))[-1]


def folded(name):
    """A name without folders, capitals and leading zeros"""
    return tuple(natural_key(last_part(name).casefold())[0])


def stem_number(name):
    """`folded` of a name without its last extension"""
    return folded(PurePosixPath(last_part(name)).stem)


def refuse_two(stem, path, other):
    """Raise UserError unless both paths are the same."""
    if path != other:
        raise UserError(
            f"{path.parent}: {path.name} and {other.name} are two images of one name, which would "
            f"both be the row {printable(stem)!r}; remove or rename one")


def report(what, names):
    """A log line about test images, if there are any"""
    if names:
        log(f"{len(names)} test images are {what}: {shortened_list(names)}")


def shortened_list(names):
    """'a, b, c, …'"""
    return ", ".join(names[:3]) + ", …" * (len(names) > 3)
