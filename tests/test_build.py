"""build.py: order, refusals, baked defaults, determinism."""

import ast
import re
import subprocess
import sys

import pytest

import build
from conftest import ROOT, load_modules

CONFIG = (ROOT / "src" / "config.py").read_text()


def tree(tmp_path, **files):
    """A checkout with these modules, by their paths in src/; folders are introduced."""
    for name, text in files.items():
        path = tmp_path / "src" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if path.parent.name != "src" and not (path.parent / "__init__.py").exists():
            (path.parent / "__init__.py").write_text(f'"""What {path.parent.name} is for."""\n')
    return tmp_path


def bundled(tmp_path, overrides=None, **files):
    return build.bundle(tree(tmp_path, **files), overrides or {})


def run(text):
    namespace = {"__name__": "bundle"}
    exec(compile(text, "bundle", "exec"), namespace)
    return namespace


def test_committed_bundle_is_what_the_sources_give():
    assert build.main(["--check"]) == 0


def test_check_needs_nothing_but_the_standard_library():
    """The command itself, in an interpreter that sees no installed package."""
    done = subprocess.run([sys.executable, "-I", "-S", ROOT / "build.py", "--check"],
                          capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_modules_stand_below_what_they_import(tmp_path):
    text = bundled(
        tmp_path,
        main='"""Story."""\nfrom src.upper import top\nfrom src.lower import base\n'
             "result = top()\n",
        upper="from src.lower import base\n\ndef top():\n    return base() + 1\n",
        lower="def base():\n    return 1\n",
        unused="raise RuntimeError\n",
    )
    assert text.index("def base") < text.index("def top") < text.index("result")
    assert "unused" not in text and run(text)["result"] == 2


def test_imports_are_hoisted_once_and_the_rest_is_kept(tmp_path):
    text = bundled(
        tmp_path,
        main='"""Story."""\nimport os  # for the separator\nimport os.path\n'
             "from pathlib import Path, PurePath as P\nfrom .other import separator\n\n"
             "# a comment of main\nvalue = (separator, Path, P)\n",
        other='"""Other room."""\nimport os\nfrom pathlib import Path\n\n\n'
              'def separator():\n    """Docstring kept."""\n    return os.sep, Path()  # why\n',
    )
    assert text.count("import os\n") == 1
    assert text.count("from pathlib import Path, PurePath as P") == 1
    assert "src.other" not in text.split('"""')[2] and "from .other" not in text
    for kept in ("# for the separator", "# a comment of main", '"""Docstring kept."""',
                 "# why", '"""Other room."""', "src/other.py"):
        assert kept in text
    assert run(text)["separator"]()[0]


def test_each_folder_is_a_chapter_with_its_introduction(tmp_path):
    """b/second needs a/late, which nothing else does: it still stands in the chapter of a."""
    text = bundled(tmp_path, **{
        "main": '"""Story."""\nfrom src.config import x\nfrom src.a.early import f\n'
                "from src.b.first import g\nfrom src.b.second import h\nresult = (x, f, g, h)\n",
        "config": '"""Knobs."""\nx = 1\n',
        "a/early": '"""Early."""\nf = 2\n',
        "a/late": '"""Late."""\nfrom .early import f\nk = f\n',
        "b/first": '"""First."""\nfrom ..a.early import f\ng = f + 1\n',
        "b/second": '"""Second."""\nfrom src.a.late import k\nh = k + 2\n'})
    assert run(text)["result"] == (1, 2, 3, 4)
    assert re.findall(r"^# (\d.*)", text, re.M) == [
        "1. src/config.py", "2. src/a/", "2.1 src/a/early.py", "2.2 src/a/late.py", "3. src/b/",
        "3.1 src/b/first.py", "3.2 src/b/second.py", "4. src/main.py"]
    contents = [line.strip() for line in ast.get_docstring(ast.parse(text)).splitlines()]
    for line in ("1. config  Knobs.", "2. a/  What a is for.", "2.1 early   Early.",
                 "3.2 second  Second.", "4. main  Story."):
        assert line in contents
    assert "# What b is for." in text


@pytest.mark.parametrize("files, where, reason", [
    ({"main": "from src.a.x import f\n", "a/x": "from src.b.y import g\nf = g\n",
      "b/y": "from src.a.z import h\ng = h\n", "a/z": "h = 1\n"}, "src/b/y.py, line 1",
     "folders import in a circle: a -> b -> a"),
    ({"main": "from src.a import x\n", "a/x": "f = 1\n"}, "src/main.py, line 1",
     "write `from src.a.x import ...`"),
    ({"main": "from src.a.x import f\n", "a/x": "from ...b import f\n"}, "src/a/x.py, line 1",
     "a relative import leaves src/"),
    ({"main": "from src.a.x import f\n", "a/x": "f = 1\n", "a/__init__": "f = 1\n"},
     "src/a/__init__.py, line 1", "must hold a docstring"),
    ({"main": "from src.a.x import f\n", "a/x": "f = 1\n", "a/__init__": '"""A."""\nf = 1\n'},
     "src/a/__init__.py, line 1", "and nothing else"),
    ({"main": "from src.a.x import f\nfrom src.b import g\n", "a/x": "f = 1\ng = 1\n",
      "b": "g = 1\n"}, "src/b.py, line 1", "`g` is already defined in src/a/x.py, line 2"),
    ({"main": "from src.a import f\n", "a": "from src.b import g\nf = 1\n",
      "b": "\nfrom src.a import f\ng = 1\n"}, "src/b.py, line 2", "circle: a -> b -> a"),
    ({"main": "from src.a import f\n\ndef g(): pass\n", "a": "f = 1\n\ng = 2\n"},
     "src/main.py, line 3", "already defined in src/a.py, line 3"),
    ({"main": "import src.a\n", "a": ""}, "src/main.py, line 1", "`import src.a`"),
    ({"main": "from src import a\n", "a": ""}, "src/main.py, line 1", "imported whole"),
    ({"main": "from . import a\n", "a": ""}, "src/main.py, line 1", "imported whole"),
    ({"main": "from src.a import f as g\n", "a": "f = 1\n"}, "src/main.py, line 1", "`f as g`"),
    ({"main": "from src.a import *\n", "a": "f = 1\n"}, "src/main.py, line 1", "import *"),
    ({"main": "def f():\n    from src.a import g\n", "a": "g = 1\n"}, "src/main.py, line 2", "top"),
    ({"main": "from src.a import g\n", "a": "f = 1\n"}, "src/main.py, line 1", "has no `g`"),
    ({"main": "from src.nowhere import g\n"}, "src/main.py, line 1", "no src/nowhere.py"),
    ({"main": "from src.a import f\nimport io as np\n", "a": "import os as np\nf = np\n"},
     "src/main.py, line 2", "`np` means something else in src/a.py"),
    ({"main": "from src.a import f\nfrom io import g\n", "a": "f = 1\ng = 2\n"},
     "src/main.py, line 2", "`g` means something else in src/a.py"),
    ({"main": "from src.a import f\n", "a": "f = 1\ndef open(): pass\n"},
     "src/a.py, line 2", "builtin"),
    ({"main": "import os; x = 1\n"}, "src/main.py, line 1", "one statement a line"),
    ({"main": "x = = 1\n"}, "src/main.py, line 1", "invalid syntax"),
    ({"main": "x = 1\n" + "# filler line of a module that is far too long\n" * 30000},
     "src/main.py, line 1", "limit of 1,000,000"),
])
def test_refusals_name_module_and_line(tmp_path, capsys, files, where, reason):
    assert build.main([], root=tree(tmp_path, **files)) == 2
    message = capsys.readouterr().err
    assert where in message and reason in message and message.count("\n") == 1
    assert not (tmp_path / "kernel").exists()


@pytest.mark.parametrize("text", [
    "f = [g for g in 'ab']\n", "def f(): g = 1\n", "class f:\n    g = 1\n", "f = lambda g: g\n"])
def test_inner_names_do_not_collide(tmp_path, text):
    bundled(tmp_path, main="from src.a import f\ng = 1\n", a=text)


def test_same_sources_give_the_same_bytes_and_others_another_hash(tmp_path):
    first = bundled(tmp_path, main='"""Story."""\nx = 1\n')
    assert first == bundled(tmp_path, main='"""Story."""\nx = 1\n')
    other = bundled(tmp_path, main='"""Story."""\nx = 2\n')
    line = next(line for line in first.splitlines() if line.startswith("Sources: sha256"))
    assert line not in other


def test_stale_bundle_is_found(tmp_path, capsys):
    root = tree(tmp_path, main='"""Story."""\nx = 1\n')
    assert build.main(["--check"], root) == 1
    assert build.main([], root) == 0 and build.main(["--check"], root) == 0
    (root / "kernel" / "main.py").write_text("x = 1\n")
    assert build.main(["--check"], root) == 1
    assert "stale" in capsys.readouterr().err


def test_set_bakes_defaults_in(tmp_path):
    overrides = {"epochs": "30", "train_size": "768", "crop_scale": "0.5,0.9", "out": "my out",
                 "limit": "3"}
    text = bundled(tmp_path, overrides, main="from src.config import Settings\n", config=CONFIG)
    settings = run_as_module(text)["Settings"]()
    assert (settings.epochs, settings.train_size, settings.crop_scale) == (30, 768, (0.5, 0.9))
    assert (str(settings.out), settings.limit, settings.lr) == ("my out", 3, None)
    assert "epochs=30" in ast.get_docstring(ast.parse(text))


def run_as_module(text):
    """exec for a text with dataclasses, which look their module up by name."""
    sys.modules["baked"] = module = type(sys)("baked")
    exec(compile(text, "baked", "exec"), module.__dict__)
    return module.__dict__


@pytest.mark.parametrize("text, reason", [
    ("epoch=30", "no such setting"), ("epochs=many", "--epochs"), ("epochs=0", "at least 1"),
    ("mode=fast", "--mode"), ("crop_scale=2,3", "--crop-scale"), ("crop_scale=2", "--crop-scale"),
])
def test_set_refuses_unknown_names_and_bad_values(tmp_path, capsys, text, reason):
    root = tree(tmp_path, main="from src.config import Settings\n", config=CONFIG)
    assert build.main(["--set", text], root) == 2
    message = capsys.readouterr().err
    assert reason in message and message.count("\n") == 1


def test_every_name_of_the_modules_is_in_the_bundle():
    text = (ROOT / "kernel" / "main.py").read_text()
    bound = build.bound_names(build.Module("main", text, ast.parse(text)))
    own = {name for name, value in vars(load_modules()).items()
           if getattr(value, "__module__", "").startswith("src.")}
    assert own and own <= bound.keys()


def test_the_syntax_is_that_of_the_oldest_python_we_name():
    for path in [ROOT / "build.py", ROOT / "kernel" / "main.py", *(ROOT / "src").rglob("*.py")]:
        ast.parse(path.read_text(encoding="utf-8"), path.name, feature_version=(3, 10))
