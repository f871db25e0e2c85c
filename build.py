"""Concatenate the modules under src/ into kernel/main.py, the one script that Kaggle runs.

    python build.py                      write kernel/main.py
    python build.py --check              exit 1 when the committed kernel/main.py is stale
    python build.py --set epochs=30      for Kaggle, where a script gets no arguments
    python build.py --username NAME --competition SLUG
                                         fill in what Kaggle's metadata files leave open

The script has src/main.py and all that it imports. Each folder is a chapter, introduced by the
docstring of its __init__.py; within a chapter a module stands below those that it imports. Imports
between the modules are dropped, the others are merged at the top, and all the rest is kept to the
letter.
"""

import argparse
import ast
import builtins
import hashlib
import io
import json
import os
import re
import runpy
import symtable
import sys
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACKAGE = "src"
# Folders and modules of src/, in the order they are read: each imports only from those before it.
CHAPTERS = ("config", "runtime", "inputs", "data", "network", "training", "prediction", "results",
            "main")
BUNDLE = Path("kernel") / "main.py"
SOURCE_LIMIT = 1_000_000  # bytes; Kaggle refuses more
LINE_WIDTH = 100
# What `kaggle kernels push -p .` and `kaggle datasets create -p kernel/weights` read
METADATA = Path("kernel-metadata.json"), Path("kernel") / "weights" / "dataset-metadata.json"
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
        return module_file(self.name)

    @cached_property
    def imports(self) -> list[tuple[ast.Import | ast.ImportFrom, str | None]]:
        """The imports at its top level, each with the module of src/ it is from, None for others"""
        found = [(node, imported_module(self, node)) for node in ast.walk(self.tree)
                 if isinstance(node, (ast.Import, ast.ImportFrom))]
        return [(node, wanted) for node, wanted in found if node in self.tree.body]

    def refuse(self, line: int, reason: str) -> BuildError:
        return BuildError(f"{self.file}, line {line}: {reason}")


def module_file(name: str) -> str:
    """'data.pairs' -> 'src/data/pairs.py'"""
    return f"{PACKAGE}/{name.replace('.', '/')}.py"


# ---------------------------------------------------------------- reading


def read_module(root: Path, name: str) -> Module:
    text = (root / module_file(name)).read_text(encoding="utf-8")
    try:
        compile(text, name, "exec")
    except SyntaxError as error:
        raise BuildError(f"{module_file(name)}, line {error.lineno}: {error.msg}") from None
    return Module(name, text, ast.parse(text))


def imported_module(module: Module, node: ast.Import | ast.ImportFrom) -> str | None:
    """Name of the src module that an import statement refers to, None for any other import.

    Raises BuildError for the forms that concatenation would break.
    """
    if isinstance(node, ast.Import):
        is_ours, name = any(a.name.split(".")[0] == PACKAGE for a in node.names), ""
    else:
        parents = [PACKAGE, *module.name.split(".")][:-node.level] if node.level else []
        first, *rest = [*parents, *(node.module or "").split(".")]
        is_ours, name = node.level > 0 or first == PACKAGE, ".".join(filter(None, rest))
        if first != PACKAGE or any(a.name == "*" or a.asname for a in node.names):
            name = ""
    if is_ours and not (name and node in module.tree.body):
        raise module.refuse(node.lineno, f"`{ast.unparse(node)}` cannot work in one script; write "
                            f"`from {PACKAGE}.module import name` at the top of the file")
    return name if is_ours else None


def order_modules(root: Path) -> list[Module]:
    """All modules that src/main.py needs, chapter by chapter, each below the ones it imports.

    Depth first in the order of the import statements, so the order main.py tells its story in is
    kept as far as the imports allow, and is the same on every machine.
    """
    done: dict[str, Module] = {}

    def visit(name: str, trail: list[str]) -> None:
        module = read_module(root, name)
        before = CHAPTERS[:CHAPTERS.index(module.chapter) + 1]
        for node, wanted in module.imports:
            if wanted is None:
                continue
            reason, chapter = None, wanted.split(".")[0]
            if not (root / module_file(wanted)).is_file():
                reason = f"there is no {module_file(wanted)}"
            elif chapter not in before:
                reason = (f"{module.chapter} imports from {chapter}, which does not come before it "
                          "in build.py's CHAPTERS")
            elif wanted in trail:
                reason = "imports go in a circle: " + " -> ".join([*trail, wanted])
            if reason:
                raise module.refuse(node.lineno, reason)
            if wanted not in done:
                visit(wanted, [*trail, wanted])
        done[name] = module

    visit(CHAPTERS[-1], [CHAPTERS[-1]])
    return sorted(done.values(), key=lambda module: CHAPTERS.index(module.chapter))


def introduction(root: Path, folder: str) -> str:
    """The docstring of a folder's __init__.py, which holds nothing else."""
    module = read_module(root, f"{folder}.__init__")
    text = ast.get_docstring(module.tree)
    if not text or "\n" in text or len(module.tree.body) > 1:
        raise module.refuse(1, "must hold one line, a docstring that introduces the folder")
    return text


# ---------------------------------------------------------------- names


def bound_names(module: Module) -> dict[str, int]:
    """{name: line} of all that the module itself binds at its top level, imports aside"""
    names: dict[str, int] = {}
    for statement in ast.parse(module.text).body:
        for node in ast.walk(statement):
            if isinstance(node, ast.comprehension):
                node.target = ast.Name("_")  # from Python 3.12 on it is among the module's symbols
        table = symtable.symtable(ast.unparse(statement), module.file, "exec")
        for symbol in table.get_symbols():
            if symbol.is_assigned() or symbol.is_declared_global():
                names.setdefault(symbol.get_name(), statement.lineno)
    names.pop("_", None)
    return names


def check_names(modules: list[Module]) -> None:
    """Refuse any name that would mean two things once all modules share one namespace."""
    defined = {module.name: bound_names(module) for module in modules}
    claims = [(module, line, name, module.file) for module in modules
              for name, line in defined[module.name].items()]
    for module, line, name, _ in claims:
        if hasattr(builtins, name) and not name.startswith("__"):
            raise module.refuse(line, f"`{name}` would hide the builtin in every module")
    for module in modules:
        for node, wanted in module.imports:
            for alias in node.names:
                name = (alias.asname or alias.name).split(".")[0]
                if wanted is None:
                    meaning = getattr(node, "module", ""), alias.name if alias.asname else name
                    claims.append((module, node.lineno, name, meaning))
                elif name not in defined[wanted]:
                    raise module.refuse(node.lineno, f"{module_file(wanted)} defines no `{name}`")
    owners = {}
    for module, line, name, meaning in claims:
        other, other_line, first = owners.setdefault(name, (module, line, meaning))
        if first != meaning:
            raise module.refuse(line, f"`{name}` means something else in {other.file}, "
                                      f"line {other_line}")


# ---------------------------------------------------------------- writing


def merged_imports(modules: list[Module]) -> str:
    """The imports of all modules, each once: __future__, standard library, then the others."""
    found: dict[tuple[int, bool, str], set[str]] = {}
    for module in modules:
        for node, wanted in module.imports:
            for alias in node.names if wanted is None else ():
                spelled = ast.unparse(alias)
                source = getattr(node, "module", spelled)
                top = re.match(r"\w+", source)[0]
                rank = 0 if top == "__future__" else 1 if top in sys.stdlib_module_names else 2
                key = rank, isinstance(node, ast.ImportFrom), source
                found.setdefault(key, set()).add(spelled)
    blocks = ["", "", ""]
    for (rank, named, source), names in sorted(found.items()):
        listed = ", ".join(sorted(names))
        blocks[rank] += f"from {source} import {listed}\n" if named else f"import {source}\n"
    return "\n".join(filter(None, blocks))


def body_without_imports(module: Module) -> str:
    """The module's text with its import statements cut out; a comment beside one stays."""
    lines = module.text.split("\n")
    for before, node in zip(module.tree.body, module.tree.body[1:]):
        if node.lineno == before.end_lineno:
            raise module.refuse(node.lineno, "write one statement a line")
    for node, _ in reversed(module.imports):
        comment = lines[node.end_lineno - 1][node.end_col_offset:].strip()
        start = node.lineno - 1
        lines[start:node.end_lineno] = [comment] if comment else []
        while start and not "".join(lines[start - 1:start + 1]).strip():
            del lines[start - 1]
            start -= 1
    return "\n".join(lines).strip("\n")


def banner(line: str, title: str) -> str:
    return f"# {line * 4} {title} ".ljust(LINE_WIDTH, line).rstrip() + "\n"


def bundle(root: Path, arguments: list[str] | None = None) -> str:
    """Text of the one script made of root/src; the same sources give the same text.

    arguments: flags that it puts before those of its command line.
    Raises BuildError with one sentence, which names the module and the line or the setting.
    """
    modules = order_modules(root)
    check_names(modules)
    contents, blocks = "", []
    for number, chapter in enumerate(dict.fromkeys(module.chapter for module in modules), 1):
        members = [module for module in modules if module.chapter == chapter]
        if members[0].name == chapter:
            names, head = "", banner("=", f"{number}. {members[0].file}")
        else:
            names = ", ".join(module.name.partition(".")[2] for module in members)
            head = banner("=", f"{number}. {PACKAGE}/{chapter}/: {introduction(root, chapter)}")
        contents += f"  {number}. {chapter:<12}{names}".rstrip() + "\n"
        for minor, module in enumerate(members, 1):
            head += banner("-", f"{number}.{minor} {module.file}") if names else ""
            blocks.append(f"{head}\n{body_without_imports(module)}\n")
            head = ""
    digest = hashlib.sha256("\0".join(f"{m.name}\0{m.text}" for m in modules).encode())
    title = (ast.get_docstring(modules[-1].tree) or "").split("\n")[0]
    text = "\n\n".join([
        f'"""{title}\n\n'
        f"GENERATED by build.py from {PACKAGE}/; edit the modules there, never this file.\n"
        f'Sources: sha256 {digest.hexdigest()}\n\n{contents}"""\n\n{merged_imports(modules)}',
        *blocks])
    if arguments:
        text = with_arguments(root, text, arguments)
    compile(text, str(BUNDLE), "exec")
    if (size := len(text.encode())) > SOURCE_LIMIT:
        raise BuildError(f"{BUNDLE.as_posix()}: has {size:,} bytes; Kaggle takes {SOURCE_LIMIT:,}")
    return text


def with_arguments(root: Path, text: str, arguments: list[str]) -> str:
    """The script with the flags in its first lines, if config.py's own command line takes them."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            runpy.run_path(str(root / module_file("config")))["parse_settings"](arguments)
    except SystemExit:
        raise BuildError("--set: " + said.getvalue().strip().partition(": error: ")[2]) from None
    before, line, after = text.partition("\nARGUMENTS = []\n")
    if not line:
        raise BuildError(f"--set: {module_file('config')} has no line `ARGUMENTS = []` to fill in")
    return before + line.replace("[]", json.dumps(arguments, ensure_ascii=False)) + after


# ---------------------------------------------------------------- Kaggle's metadata


def fill_metadata(root: Path, username: str | None, competition: str | None) -> None:
    """Write the names into the metadata files, over those that are there; '' is no competition."""
    for path in METADATA:
        text = (root / path).read_text(encoding="utf-8")
        if username:
            text = re.sub(r'"[^"/]*/(magick-alpha(-weights)?)"', rf'"{username}/\1"', text)
        if competition is not None:
            listed = json.dumps([competition] if competition else [])
            text = re.sub(r'("competition_sources":\s*)\[[^]]*\]', rf"\1{listed}", text)
        write_whole(root / path, text)


def open_placeholders(root: Path) -> list[str]:
    """For each placeholder still in a metadata file a sentence on how to fill it in."""
    return [
        f"{path.as_posix()}: {name} is still to be filled in before a push: python build.py {flag}"
        for path in METADATA if (root / path).is_file()
        for name, flag in PLACEHOLDERS.items()
        if re.search(rf"\b{name}\b", (root / path).read_text(encoding="utf-8"))
    ]


def write_whole(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(text.encode())
    os.replace(part, path)


# ---------------------------------------------------------------- the command line


def parse_slug(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*|", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name in a Kaggle address")
    return text


def parse_setting(text: str) -> str:
    """'train_size=512' -> '--train-size=512'"""
    name, equals, value = text.partition("=")
    if not (name and equals and text.isprintable()):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value")
    return f"--{name.replace('_', '-')}={value}"


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true",
                        help="write nothing; exit 1 when kernel/main.py is not what src/ gives")
    parser.add_argument("--set", dest="arguments", metavar="NAME=VALUE", action="append",
                        type=parse_setting, default=[],
                        help="a flag of the script, for Kaggle, where it gets none")
    parser.add_argument("--username", metavar="NAME", type=parse_slug,
                        help="your name on Kaggle, for the metadata files")
    parser.add_argument("--competition", metavar="SLUG", type=parse_slug,
                        help="the competition as its address names it; '' for none")
    given = parser.parse_args(argv)
    target = root / BUNDLE
    try:
        text = bundle(root, given.arguments)
        if given.check:
            if target.is_file() and target.read_bytes() == text.encode():
                return 0
            print(f"build.py: {BUNDLE.as_posix()} is stale; run python build.py", file=sys.stderr)
            return 1
        if given.username or given.competition is not None:
            fill_metadata(root, given.username, given.competition)
        target.parent.mkdir(exist_ok=True)
        write_whole(target, text)
    except (BuildError, OSError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 2
    for sentence in open_placeholders(root):
        print(sentence)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
