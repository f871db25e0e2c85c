"""build.py: order, refusals, the arguments in the script, determinism."""

import ast
import re
import subprocess
import sys

import pytest

import build
from conftest import ROOT, load_modules

CONFIG = (ROOT / "src" / "config.py").read_text()


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Makes a checkout with these modules, by their paths in src/; folders are introduced."""
    monkeypatch.setattr(build, "CHAPTERS", ("config", "a", "b", "main"))

    def make(**files):
        for name, text in files.items():
            path = tmp_path / "src" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            if path.parent.name != "src" and not (path.parent / "__init__.py").exists():
                (path.parent / "__init__.py").write_text(f'"""What {path.parent.name} is for."""\n')
        return tmp_path

    return make


@pytest.fixture
def bundled(tree):
    """Makes a checkout and gives its script, with these arguments in it."""
    return lambda arguments=(), **files: build.bundle(tree(**files), arguments)


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


def test_modules_stand_below_what_they_import(bundled):
    text = bundled(
        **{"main": '"""Story."""\nfrom src.a.upper import top\nfrom src.a.lower import base\n'
                   "result = top()\n",
           "a/upper": "from src.a.lower import base\n\ndef top():\n    return base() + 1\n",
           "a/lower": "def base():\n    return 1\n",
           "a/unused": "raise RuntimeError\n"})
    assert text.index("def base") < text.index("def top") < text.index("result")
    assert "unused" not in text and run(text)["result"] == 2


def test_imports_are_hoisted_once_and_the_rest_is_kept(bundled):
    text = bundled(
        main='"""Story."""\nimport os  # for the separator\nimport os.path\n'
             "from pathlib import Path, PurePath as P\nfrom .a import separator\n\n"
             "# a comment of main\nvalue = (separator, Path, P, 'a\u2028b')\n",
        a='"""Other room."""\nimport os\nfrom pathlib import Path\n\n\n'
              'def separator():\n    """Docstring kept."""\n    return os.sep, Path()  # why\n',
    )
    assert text.count("import os\n") == 1
    assert text.count("from pathlib import Path, PurePath as P") == 1
    assert "src.a" not in text.split('"""')[2] and "from .a" not in text
    for kept in ("# for the separator", "# a comment of main", '"""Docstring kept."""',
                 "# why", '"""Other room."""', "src/a.py", "'a\u2028b'"):
        assert kept in text
    assert run(text)["separator"]()[0]


def test_each_folder_is_a_chapter_with_its_introduction(bundled):
    """b/second needs a/late, which nothing else does: it still stands in the chapter of a."""
    text = bundled(**{
        "main": '"""Story."""\nfrom src.a.early import f\nfrom src.b.first import g\n'
                "from src.b.second import h\nfrom src.config import x\nresult = (x, f, g, h)\n",
        "config": '"""Knobs."""\nx = 1\n',
        "a/early": '"""Early."""\nf = 2\n',
        "a/late": '"""Late."""\nfrom .early import f\nk = f\n',
        "b/first": '"""First."""\nfrom ..a.early import f\ng = f + 1\n',
        "b/second": '"""Second."""\nfrom src.a.late import k\nh = k + 2\n'})
    assert run(text)["result"] == (1, 2, 3, 4)
    assert re.findall(r"^# (==== .*) =+$|^# (---- .*) -+$", text, re.M) == [
        ("==== 1. src/config.py", ""), ("==== 2. src/a/: What a is for.", ""),
        ("", "---- 2.1 src/a/early.py"), ("", "---- 2.2 src/a/late.py"),
        ("==== 3. src/b/: What b is for.", ""), ("", "---- 3.1 src/b/first.py"),
        ("", "---- 3.2 src/b/second.py"), ("==== 4. src/main.py", "")]
    contents = [line.split() for line in ast.get_docstring(ast.parse(text)).splitlines()[-4:]]
    assert contents == [["1.", "config"], ["2.", "a", "early,", "late"],
                        ["3.", "b", "first,", "second"], ["4.", "main"]]


FORM = "cannot work in one script; write `from src.module import name` at the top of the file"


@pytest.mark.parametrize("files, where, reason", [
    ({"main": "from src.b.y import g\nfrom src.a.x import f\n",
      "a/x": "from src.b.y import g\nf = g\n", "b/y": "g = 1\n"}, "src/a/x.py, line 1",
     "a imports from b, which does not come before it in build.py's CHAPTERS"),
    ({"main": "from src.tools import f\n", "tools": "f = 1\n"}, "src/main.py, line 1",
     "main imports from tools, which does not come before it"),
    ({"main": "from src.a import x\n", "a/x": "f = 1\n"}, "src/main.py, line 1",
     "there is no src/a.py"),
    ({"main": "from src.a.x import f\n", "a/x": "from ...b import f\n"}, "src/a/x.py, line 1",
     FORM),
    ({"main": "from src.a.x import f\n", "a/x": "f = 1\n", "a/__init__": "f = 1\n"},
     "src/a/__init__.py, line 1", "must hold one line, a docstring"),
    ({"main": "from src.a.x import f\n", "a/x": "f = 1\n", "a/__init__": '"""A."""\nf = 1\n'},
     "src/a/__init__.py, line 1", "must hold one line, a docstring"),
    ({"main": "from src.a.x import f\nfrom src.b import g\n", "a/x": "f = 1\ng = 1\n",
      "b": "g = 1\n"}, "src/b.py, line 1", "`g` means something else in src/a/x.py, line 2"),
    ({"main": "from src.a.x import f\n", "a/x": "from src.a.y import g\nf = 1\n",
      "a/y": "\nfrom src.a.x import f\ng = 1\n"}, "src/a/y.py, line 2",
     "circle: main -> a.x -> a.y -> a.x"),
    ({"main": "from src.a import f\n\ndef g(): pass\n", "a": "f = 1\n\ng = 2\n"},
     "src/main.py, line 3", "`g` means something else in src/a.py, line 3"),
    ({"main": "import src.a\n", "a": ""}, "src/main.py, line 1", FORM),
    ({"main": "from src import a\n", "a": ""}, "src/main.py, line 1", FORM),
    ({"main": "from . import a\n", "a": ""}, "src/main.py, line 1", FORM),
    ({"main": "from src.a import f as g\n", "a": "f = 1\n"}, "src/main.py, line 1",
     "`from src.a import f as g` " + FORM),
    ({"main": "from src.a import *\n", "a": "f = 1\n"}, "src/main.py, line 1", FORM),
    ({"main": "def f():\n    from src.a import g\n", "a": "g = 1\n"}, "src/main.py, line 2", FORM),
    ({"main": "from src.a import g\n", "a": "f = 1\n"}, "src/main.py, line 1", "defines no `g`"),
    ({"main": "from src.a import np\n", "a": "import io as np\n"}, "src/main.py, line 1",
     "src/a.py defines no `np`"),
    ({"main": "from src.nowhere import g\n"}, "src/main.py, line 1", "no src/nowhere.py"),
    ({"main": "from src.a import f\nimport io as np\n", "a": "import os as np\nf = np\n"},
     "src/main.py, line 2", "`np` means something else in src/a.py"),
    ({"main": "from src.a import f\nfrom io import g\n", "a": "f = 1\ng = 2\n"},
     "src/main.py, line 2", "`g` means something else in src/a.py"),
    ({"main": "from src.a import f\n", "a": "f = 1\ndef open(): pass\n"},
     "src/a.py, line 2", "builtin"),
    ({"main": "from src.a import f\ng = 1\n", "a": "def f():\n    global g\n    g = 1\n"},
     "src/main.py, line 2", "`g` means something else in src/a.py, line 1"),
    ({"main": "import os; x = 1\n"}, "src/main.py, line 1", "one statement a line"),
    ({"main": "x = = 1\n"}, "src/main.py, line 1", "invalid syntax"),
    ({"main": "\ndef f(x, x): pass\n"}, "src/main.py, line 2", "duplicate argument"),
    ({}, "src/main.py", "No such file"),
    ({"main": "x = 1\n" + "# filler line of a module that is far too long\n" * 30000},
     "kernel/main.py", "Kaggle takes 1,000,000"),
])
def test_refusals_name_module_and_line(tree, tmp_path, capsys, files, where, reason):
    assert build.main([], root=tree(**files)) == 2
    message = capsys.readouterr().err
    assert where in message and reason in message and message.count("\n") == 1
    assert not (tmp_path / "kernel").exists()


@pytest.mark.parametrize("text", [
    "f = [g for g in 'ab']\n", "f = {g: h for g, h in 'ab'}\n", "def f(): g = 1\n",
    "class f:\n    g = 1\n", "f = lambda g: g\n"])
def test_inner_names_do_not_collide(bundled, text):
    bundled(main="from src.a import f\ng = 1\n", a=text)


def test_same_sources_give_the_same_bytes_and_others_another_hash(bundled):
    first = bundled(main='"""Story."""\nx = 1\n')
    assert first == bundled(main='"""Story."""\nx = 1\n')
    other = bundled(main='"""Story."""\nx = 2\n')
    line = next(line for line in first.splitlines() if line.startswith("Sources: sha256"))
    assert line not in other


def test_stale_bundle_is_found(tree, capsys):
    root = tree(main='"""Story."""\nx = 1\n')
    assert build.main(["--check"], root) == 1
    assert build.main([], root) == 0 and build.main(["--check"], root) == 0
    (root / "kernel" / "main.py").write_text("x = 1\n")
    assert build.main(["--check"], root) == 1
    assert "stale" in capsys.readouterr().err


WITH_CONFIG = {"main": "from src.config import parse_settings\n", "config": CONFIG}


def test_set_changes_one_line_of_the_script(tree, tmp_path):
    tree(**WITH_CONFIG)
    scripts = []
    for settings in ([], ["mode=train", "crop_scale=0.5,0.9", 'out=é "x']):
        assert build.main([f"--set={setting}" for setting in settings], tmp_path) == 0
        scripts.append((tmp_path / "kernel" / "main.py").read_text("utf-8").splitlines())
    plain, changed = scripts
    assert [pair for pair in zip(plain, changed, strict=True) if len(set(pair)) > 1] == [
        ("ARGUMENTS = []",
         'ARGUMENTS = ["--mode=train", "--crop-scale=0.5,0.9", "--out=é \\"x"]')]
    settings = run_as_module("\n".join(changed))["parse_settings"]([])
    assert (settings.mode, settings.crop_scale, str(settings.out)) == (
        "train", (0.5, 0.9), 'é "x')


def test_a_config_without_the_line_is_refused(tree, capsys):
    root = tree(main="from src.config import parse_settings\n",
                config=CONFIG.replace("\nARGUMENTS = []\n", "\nARGUMENTS = list()\n"))
    assert build.main(["--set", "epochs=3"], root) == 2
    assert "src/config.py has no line `ARGUMENTS = []`" in capsys.readouterr().err


def run_as_module(text):
    """exec for a text with dataclasses, which look their module up by name."""
    sys.modules["built"] = module = type(sys)("built")
    exec(compile(text, "built", "exec"), module.__dict__)
    return module.__dict__


@pytest.mark.parametrize("text, reason", [
    ("epoch=30", "unknown argument --epoch=30; did you mean --epochs?"),
    ("epochs=many", "--epochs"), ("epochs=0", "at least 1"),
    ("mode=fast", "--mode"), ("crop_scale=2,3", "--crop-scale"), ("crop_scale=2", "--crop-scale"),
])
def test_set_refuses_unknown_names_and_bad_values(tree, tmp_path, capsys, text, reason):
    assert build.main(["--set", text], tree(**WITH_CONFIG)) == 2
    message = capsys.readouterr().err
    assert message.startswith("build.py: --set: ") and reason in message
    assert message.count("\n") == 1 and not (tmp_path / "kernel").exists()


@pytest.mark.parametrize("text", ["epochs", "=3", "out=a\nb", "out=\udcff"])
def test_set_takes_a_name_and_a_value(tmp_path, capsys, text):
    with pytest.raises(SystemExit) as stop:
        build.main(["--set", text], tmp_path)
    assert stop.value.code == 2 and "is not of the form name=value" in capsys.readouterr().err


def test_importing_the_script_runs_nothing(tmp_path):
    """Nothing is printed, no file is made, and arguments that it would refuse are not looked at."""
    text = (ROOT / "kernel" / "main.py").read_text("utf-8")
    (tmp_path / "script.py").write_text(
        text.replace("\nARGUMENTS = []\n", '\nARGUMENTS = ["--nonsense"]\n'), "utf-8")
    done = subprocess.run([sys.executable, "-B", "-c", "import script", "--nonsense"], cwd=tmp_path,
                          capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_every_name_of_the_modules_is_in_the_bundle():
    text = (ROOT / "kernel" / "main.py").read_text()
    bound = build.bound_names(build.Module("main", text, ast.parse(text)))
    own = {name for name, value in vars(load_modules()).items()
           if getattr(value, "__module__", "").startswith("src.")}
    assert own and own <= bound.keys()


def test_the_syntax_is_that_of_the_oldest_python_we_name():
    for path in [ROOT / "build.py", ROOT / "kernel" / "main.py", *(ROOT / "src").rglob("*.py")]:
        ast.parse(path.read_text(encoding="utf-8"), path.name, feature_version=(3, 10))
