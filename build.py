"""Concatenate the modules under src/ into kernel/main.py, the one script that Kaggle runs.

    python build.py                      write kernel/main.py
    python build.py --check              exit 1 when the committed kernel/main.py is stale
    python build.py --set epochs=30      bake other defaults in (a Kaggle script gets no arguments)
    python build.py --username NAME --competition SLUG
                                         fill in what Kaggle's metadata files leave open

The import graph, read with `ast` from src/main.py, decides which modules are taken and in which
order: a module stands below everything it imports, and each folder is a chapter, introduced by the
docstring of its __init__.py. Imports between the modules are dropped, the others are merged at the
top, and all the rest is kept to the letter.
"""

import argparse
import ast
import builtins
import hashlib
import json
import os
import re
import runpy
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACKAGE = "src"
ENTRY = "main"
SETTINGS = ("config", "Settings")  # the module and the class whose defaults --set replaces
BUNDLE = Path("kernel") / "main.py"
SOURCE_LIMIT = 1_000_000  # bytes; Kaggle refuses a kernel source over 1 MB
LINE_WIDTH = 100
KERNEL_METADATA = Path("kernel-metadata.json")  # what `kaggle kernels push -p .` reads
DATASET_METADATA = Path("kernel") / "weights" / "dataset-metadata.json"
WEIGHTS_SLUG = "magick-alpha-weights"
PLACEHOLDERS = {"USERNAME": "--username NAME", "COMPETITION": "--competition SLUG"}


class BuildError(Exception):
    """A source tree that cannot become one script; the text names the module and the line."""


@dataclass(frozen=True)
class Module:
    """One file of src/: its dotted name there, its text, its syntax tree."""

    name: str
    text: str
    tree: ast.Module

    @property
    def chapter(self) -> str:
        """The folder that it lies in, or its own name when it lies in src/ itself."""
        return self.name.split(".")[0]

    @property
    def file(self) -> str:
        return file_of(self.name)

    def refuse(self, node: ast.AST, reason: str) -> BuildError:
        return BuildError(f"{self.file}, line {node.lineno}: {reason}")


def file_of(name: str) -> str:
    """'data.pairs' -> 'src/data/pairs.py'"""
    return f"{PACKAGE}/{name.replace('.', '/')}.py"


# ---------------------------------------------------------------- reading


def read_module(root: Path, name: str, overrides: dict[str, str]) -> Module:
    path = root / file_of(name)
    text = path.read_text(encoding="utf-8")
    module = Module(name, text, parse(path.relative_to(root), text))
    if name == SETTINGS[0] and overrides:
        text = replace_defaults(module, path, overrides)
        module = Module(name, text, parse(path.relative_to(root), text))
    return module


def parse(path: Path, text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise BuildError(f"{path.as_posix()}, line {error.lineno}: {error.msg}") from None


def imported_module(module: Module, node: ast.AST) -> str | None:
    """Name of the src module that an import statement refers to, None for any other import.

    Raises BuildError for the forms that concatenation would break.
    """
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.split(".")[0] == PACKAGE:
                raise module.refuse(
                    node, f"`import {alias.name}` leaves no name behind in one script; "
                    f"write `from {alias.name} import ...`"
                )
        return None
    package = [PACKAGE, *module.name.split(".")[:-1]]
    if node.level > len(package):
        raise module.refuse(node, f"a relative import leaves {PACKAGE}/")
    parents = package[:len(package) - node.level + 1] if node.level else []
    dotted = ".".join(filter(None, [*parents, node.module]))
    if dotted.split(".")[0] != PACKAGE:
        return None
    if dotted == PACKAGE:
        raise module.refuse(
            node, "a module cannot be imported whole; "
            f"write `from {PACKAGE}.{node.names[0].name} import ...`"
        )
    for alias in node.names:
        if alias.name == "*":
            raise module.refuse(node, f"`from {dotted} import *` hides what is used; name it")
        if alias.asname not in (None, alias.name):
            raise module.refuse(
                node, f"`{alias.name} as {alias.asname}` would be unknown in one script; "
                "import it under its own name"
            )
    return dotted.removeprefix(PACKAGE + ".")


def top_level_imports(module: Module) -> list[ast.Import | ast.ImportFrom]:
    """The import statements of the module's own level; nested ones between modules are refused."""
    imports = [node for node in module.tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and node not in imports:
            if imported_module(module, node):
                raise module.refuse(node, "imports between modules belong at the top of the file")
    return imports


def order_modules(root: Path, overrides: dict[str, str]) -> list[Module]:
    """All modules that src/main.py needs, each below the ones it imports, folder by folder.

    Depth first in the order of the import statements, so the order main.py tells its story in is
    kept as far as the graph allows, and is the same on every machine.
    """
    done: dict[str, Module] = {}

    def visit(name: str, trail: list[str]) -> None:
        module = read_module(root, name, overrides)
        for node in top_level_imports(module):
            wanted = imported_module(module, node)
            if wanted is None or wanted in done:
                continue
            if wanted in trail + [name]:
                ring = (trail + [name])[(trail + [name]).index(wanted):] + [wanted]
                raise module.refuse(node, "imports go in a circle: " + " -> ".join(ring))
            if (root / file_of(wanted)).with_suffix("").is_dir():
                raise module.refuse(
                    node, "a module cannot be imported whole; "
                    f"write `from {PACKAGE}.{wanted}.{node.names[0].name} import ...`"
                )
            if not (root / file_of(wanted)).is_file():
                raise module.refuse(node, f"there is no {file_of(wanted)}")
            visit(wanted, trail + [name])
        done[name] = module

    if not (root / file_of(ENTRY)).is_file():
        raise BuildError(f"there is no {file_of(ENTRY)} to start from")
    visit(ENTRY, [])
    chapters = order_chapters(list(done.values()))
    return sorted(done.values(), key=lambda module: chapters.index(module.chapter))


def order_chapters(modules: list[Module]) -> list[str]:
    """The folders of the modules, each below the ones it imports from."""
    done: list[str] = []

    def visit(chapter: str, trail: list[str]) -> None:
        for module in (each for each in modules if each.chapter == chapter):
            for node in top_level_imports(module):
                wanted = (imported_module(module, node) or chapter).split(".")[0]
                if wanted == chapter or wanted in done:
                    continue
                if wanted in trail:
                    ring = trail[trail.index(wanted):] + [chapter, wanted]
                    raise module.refuse(node, "folders import in a circle: " + " -> ".join(ring))
                visit(wanted, trail + [chapter])
        done.append(chapter)

    for module in modules:
        if module.chapter not in done:
            visit(module.chapter, [])
    return done


def introduction(root: Path, chapter: str) -> str:
    """The docstring of a folder's __init__.py, which holds nothing else; '' for a module of src/"""
    folder = root / PACKAGE / chapter
    if not folder.is_dir():
        return ""
    path = folder / "__init__.py"
    name = path.relative_to(root)
    tree = parse(name, path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
    text = ast.get_docstring(tree)
    if not text or len(tree.body) > 1:
        raise BuildError(f"{name.as_posix()}, line 1: must hold a docstring that introduces the "
                         "folder, and nothing else")
    return text


# ---------------------------------------------------------------- names


def bound_names(module: Module) -> dict[str, ast.AST]:
    """Every name that the module itself defines at its top level (imports aside)."""
    names: dict[str, ast.AST] = {}

    def visit(node: ast.AST) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.setdefault(node.name, node)
            for inner in ast.walk(node):
                if isinstance(inner, ast.Global):
                    names.update({name: inner for name in inner.names if name not in names})
            return
        if isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp,
                             ast.GeneratorExp)):
            return
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.setdefault(node.id, node)
        if isinstance(node, ast.ExceptHandler) and node.name:
            names.setdefault(node.name, node)
        if isinstance(node, (ast.MatchAs, ast.MatchStar)) and node.name:
            names.setdefault(node.name, node)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(module.tree)
    return names


def imported_names(node: ast.Import | ast.ImportFrom) -> list[tuple[str, str]]:
    """(name bound by an import, what it stands for) for each name of the statement."""
    if isinstance(node, ast.ImportFrom):
        return [(a.asname or a.name, f"{node.module}:{a.name}") for a in node.names]
    return [(a.asname, a.name) if a.asname else (a.name.split(".")[0],) * 2 for a in node.names]


def check_names(modules: list[Module]) -> None:
    """Refuse any name that would mean two things once all modules share one namespace."""
    owners: dict[str, tuple[Module, str]] = {}
    defined = {module.name: bound_names(module) for module in modules}
    for module in modules:
        for name, node in defined[module.name].items():
            if hasattr(builtins, name) and not name.startswith("__"):
                raise module.refuse(node, f"`{name}` would hide the builtin in every module")
            if name in owners:
                other = owners[name][0]
                line = defined[other.name][name].lineno
                raise module.refuse(
                    node, f"`{name}` is already defined in {other.file}, line {line}"
                )
            owners[name] = (module, "")
    for module in modules:
        for node in top_level_imports(module):
            wanted = imported_module(module, node)
            for name, meaning in imported_names(node):
                if wanted is not None:
                    source = next(m for m in modules if m.name == wanted)
                    known = defined[wanted].keys() | {
                        n for i in top_level_imports(source) for n, _ in imported_names(i)
                    }
                    if name not in known:
                        raise module.refuse(node, f"{file_of(wanted)} has no `{name}`")
                    continue
                other, other_meaning = owners.setdefault(name, (module, meaning))
                if other_meaning != meaning:
                    raise module.refuse(
                        node, f"`{name}` means something else in {other.file}"
                    )


# ---------------------------------------------------------------- writing


def merged_imports(modules: list[Module]) -> str:
    """The imports of all modules, each once: __future__, standard library, then the others."""
    plain: set[tuple[str, str | None]] = set()
    named: dict[str, set[tuple[str, str | None]]] = {}
    for module in modules:
        for node in top_level_imports(module):
            if imported_module(module, node) is not None:
                continue
            names = {(alias.name, alias.asname) for alias in node.names}
            if isinstance(node, ast.Import):
                plain |= names
            else:
                named.setdefault(node.module, set()).update(names)

    def spell(name: str, alias: str | None) -> str:
        return f"{name} as {alias}" if alias else name

    def rank(source: str) -> int:
        top = source.split(".")[0]
        return 0 if top == "__future__" else 1 if top in sys.stdlib_module_names else 2

    lines = [(rank(n), 0, n, f"import {spell(n, a)}") for n, a in plain]
    for source, names in named.items():
        items = [spell(n, a) for n, a in sorted(names, key=lambda item: (item[0], item[1] or ""))]
        line = f"from {source} import {', '.join(items)}"
        if len(line) > LINE_WIDTH:
            body = textwrap.fill(", ".join(items), LINE_WIDTH - 4)
            line = f"from {source} import (\n{textwrap.indent(body, ' ' * 4)},\n)"
        lines.append((rank(source), 1, source, line))
    lines.sort()
    blocks = ["\n".join(l[3] for l in lines if l[0] == level) for level in (0, 1, 2)]
    return "\n\n".join(block for block in blocks if block)


def body_without_imports(module: Module) -> str:
    """The module's text with its import statements cut out; a comment beside one stays."""
    lines = module.text.splitlines()
    for before, node in zip(module.tree.body, module.tree.body[1:]):
        if node.lineno == before.end_lineno:
            raise module.refuse(node, "write one statement a line")
    for node in reversed(top_level_imports(module)):
        comment = lines[node.end_lineno - 1].encode()[node.end_col_offset:].decode().strip()
        start = node.lineno - 1
        lines[start:node.end_lineno] = [comment] if comment else []
        while start and not "".join(lines[start - 1:start + 1]).strip():
            del lines[start - 1]
            start -= 1
    return "\n".join(lines).strip("\n")


def summary(module: Module) -> str:
    return (ast.get_docstring(module.tree) or "").split("\n")[0]


def replace_defaults(module: Module, path: Path, overrides: dict[str, str]) -> str:
    """The config module's text with other defaults, checked by its own command line."""
    namespace = runpy.run_path(str(path))
    fields = {
        node.target.id: node.value.args[0]
        for statement in module.tree.body
        if isinstance(statement, ast.ClassDef) and statement.name == SETTINGS[1]
        for node in statement.body
        if isinstance(node, ast.AnnAssign)
    }
    for name in overrides:
        if name not in fields:
            raise BuildError(f"--set {name}: there is no such setting; there are "
                             + ", ".join(fields))
    try:
        settings = namespace["settings_from"](overrides)
    except ValueError as error:
        raise BuildError(f"--set {error}") from None
    data = module.text.encode().split(b"\n")
    for name in sorted(overrides, key=lambda n: (fields[n].lineno, fields[n].col_offset),
                       reverse=True):
        node, value = fields[name], getattr(settings, name)
        literal = re.sub(r"\b(Posix|Windows)Path\(", "Path(", repr(value))
        if node.lineno != node.end_lineno:
            raise module.refuse(node, f"the default of `{name}` must stand on one line")
        line = data[node.lineno - 1]
        data[node.lineno - 1] = (
            line[:node.col_offset] + literal.encode() + line[node.end_col_offset:]
        )
    return b"\n".join(data).decode()


def banner(line: str, *text: str) -> str:
    """A comment between two rules of the given character, with blank lines above."""
    rule = "# " + line * (LINE_WIDTH - 2)
    return "\n\n" + "\n".join([rule, *(f"# {each}" for each in text), rule]) + "\n"


def contents(chapters: dict[str, list[Module]], introductions: dict[str, str]) -> str:
    """The table of contents: a line for each folder or module of src/, and one for each module of
    a folder."""
    width = max(len(module.name.split(".")[-1]) for each in chapters.values() for module in each)
    lines = []
    for number, (chapter, members) in enumerate(chapters.items(), 1):
        if introductions[chapter]:
            lines.append(textwrap.fill(f"{number}. {chapter}/  {introductions[chapter]}",
                                       LINE_WIDTH, initial_indent="  ", subsequent_indent="     "))
            lines += [f"    {number}.{minor} {module.name.split('.')[-1]:<{width}}  "
                      f"{summary(module)}" for minor, module in enumerate(members, 1)]
        else:
            lines.append(f"  {number}. {chapter}  {summary(members[0])}")
    return "\n".join(lines)


def bundle(root: Path, overrides: dict[str, str]) -> str:
    """Text of the one script made of root/src; the same sources give the same text.

    Raises BuildError with one sentence that names the module and the line.
    """
    modules = order_modules(root, overrides)
    check_names(modules)
    chapters = {module.chapter: [] for module in modules}
    for module in modules:
        chapters[module.chapter].append(module)
    introductions = {chapter: introduction(root, chapter) for chapter in chapters}
    sources = [*introductions.values(), *(f"{m.name}\0{m.text}" for m in modules)]
    digest = hashlib.sha256("\0".join(sources).encode())
    changed = ", ".join(f"{name}={value}" for name, value in sorted(overrides.items()))
    parts = [
        f'"""{summary(modules[-1])}\n\n'
        f"GENERATED by build.py from {PACKAGE}/; edit the modules there, never this file.\n"
        f"Sources: sha256 {digest.hexdigest()}\n"
        + (f"Defaults changed with --set: {changed}\n" if changed else "")
        + f'\nContents\n{contents(chapters, introductions)}\n"""\n\n{merged_imports(modules)}\n'
    ]
    for number, (chapter, members) in enumerate(chapters.items(), 1):
        if introductions[chapter]:
            text = textwrap.fill(introductions[chapter], LINE_WIDTH - 2)
            parts.append(banner("=", f"{number}. {PACKAGE}/{chapter}/", *text.split("\n")))
            for minor, module in enumerate(members, 1):
                parts.append(banner("-", f"{number}.{minor} {module.file}"))
                parts.append(f"\n{body_without_imports(module)}\n")
        else:
            (module,) = members
            parts.append(banner("=", f"{number}. {module.file}"))
            parts.append(f"\n{body_without_imports(module)}\n")
    text = "".join(parts)
    compile(text, str(BUNDLE), "exec")
    size = len(text.encode())
    if size > SOURCE_LIMIT:
        largest = max(modules, key=lambda m: len(m.text))
        raise BuildError(
            f"{largest.file}, line 1: the bundle has {size:,} bytes, over Kaggle's "
            f"limit of {SOURCE_LIMIT:,}; this is its largest module"
        )
    return text


# ---------------------------------------------------------------- Kaggle's metadata


def fill_metadata(root: Path, username: str | None, competition: str | None) -> None:
    """Write the names into kernel-metadata.json and the weights' dataset-metadata.json.

    Filled files can be filled again. An empty competition takes the kernel's off.
    """
    kernel, dataset = (read_metadata(root / path) for path in (KERNEL_METADATA, DATASET_METADATA))
    if username is not None:
        dataset["id"] = f"{username}/{WEIGHTS_SLUG}"
        kernel["id"] = f"{username}/{kernel['id'].split('/')[-1]}"
        kernel["dataset_sources"] = [
            dataset["id"] if source.endswith(f"/{WEIGHTS_SLUG}") else source
            for source in kernel["dataset_sources"]
        ]
    if competition is not None:
        kernel["competition_sources"] = [competition] if competition else []
    for path, metadata in ((KERNEL_METADATA, kernel), (DATASET_METADATA, dataset)):
        write_whole(root / path, json.dumps(metadata, indent=2, ensure_ascii=False) + "\n")


def read_metadata(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BuildError(f"{path}: cannot be read as JSON ({error})") from None


def open_placeholders(root: Path) -> list[str]:
    """For each placeholder still in a metadata file a sentence on how to fill it in."""
    return [
        f"{path.as_posix()}: {name} is still to be filled in before a push: "
        f"python build.py {flag}"
        for path in (KERNEL_METADATA, DATASET_METADATA) if (root / path).is_file()
        for name, flag in PLACEHOLDERS.items()
        if re.search(rf"\b{name}\b", (root / path).read_text(encoding="utf-8"))
    ]


def write_whole(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(text.encode())
    os.replace(part, path)


def parse_slug(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*|", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name in a Kaggle address")
    return text


def parse_override(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value")
    return name.replace("-", "_"), value


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true",
                        help="write nothing; exit 1 when kernel/main.py is not what src/ gives")
    parser.add_argument("--set", dest="overrides", metavar="NAME=VALUE", action="append",
                        type=parse_override, default=[], help="bake another default in")
    parser.add_argument("--username", metavar="NAME", type=parse_slug,
                        help="your name on Kaggle, for the metadata files")
    parser.add_argument("--competition", metavar="SLUG", type=parse_slug,
                        help="the competition as its address names it; '' for none")
    arguments = parser.parse_args(argv)
    target = root / BUNDLE
    named = arguments.username is not None or arguments.competition is not None
    try:
        text = bundle(root, dict(arguments.overrides))
        if named and not arguments.check:
            fill_metadata(root, arguments.username or None, arguments.competition)
    except BuildError as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 2
    if arguments.check:
        if target.is_file() and target.read_bytes() == text.encode():
            return 0
        print(f"build.py: {BUNDLE.as_posix()} is stale; run python build.py", file=sys.stderr)
        return 1
    target.parent.mkdir(exist_ok=True)
    write_whole(target, text)
    for sentence in open_placeholders(root):
        print(sentence)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
