"""Wrong copies of a function's source: each constant, exponent and term of a bound, one at a time.

A mutant is compiled and put into the running function; a check that calls it then sees the wrong
bound. Nothing is written, and `swapped` restores the function.
"""

import ast
import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType

FACTOR = 0.95  # of every number, and of every exponent

# Numbers that say where or how many, not how much: they are left out by rule.
AXES = {"sum", "mean", "norm", "amax", "amin", "max", "min", "diff", "cumsum", "cumprod", "softmax",
        "flatten", "unflatten", "reshape", "view", "unsqueeze", "range", "matrix_norm"}  # fmt: skip
KEYWORDS = {"dim", "ord", "keepdim", "n_axes"}


@dataclass(frozen=True)
class Mutant:
    """One wrong copy. change: expression before -> after. line: in the source file."""

    function: str
    change: str
    line: int
    code: CodeType


def functions_of(module: ModuleType) -> dict[str, ast.FunctionDef]:
    """Outermost functions of a file, and methods as Class.name."""
    tree, functions = ast.parse(inspect.getsource(module)), {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            functions[node.name] = node
        if isinstance(node, ast.ClassDef):
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            functions |= {f"{node.name}.{method.name}": method for method in methods}
    return functions


def running(module: ModuleType, name: str) -> FunctionType:
    """The function of this name, without its property, cache or type checks."""
    found = module
    for part in name.split("."):
        found = vars(found)[part]
    return inspect.unwrap(found.fget if isinstance(found, property) else found)


@contextmanager
def swapped(module: ModuleType, mutant: Mutant) -> Iterator[None]:
    """Let the function run the mutant's code. Caches are emptied before and after."""
    function = running(module, mutant.function)
    before, function.__code__ = function.__code__, mutant.code
    try:
        _forget(module)
        yield
    finally:
        function.__code__ = before
        _forget(module)


def _forget(module: ModuleType) -> None:
    """Empty the caches of a file's functions."""
    for value in vars(module).values():
        getattr(value, "cache_clear", lambda: None)()


def mutants_of(
    module: ModuleType, name: str, definition: ast.FunctionDef, left_out: set[str] = frozenset()
) -> list[Mutant]:
    """All mutants of a function, but those inside an expression whose text is in left_out."""
    plain = copy.deepcopy(definition)
    plain.decorator_list = []
    paths = [path for path in _paths(plain) if not _texts(plain, path) & left_out]
    made = []
    for path in paths:
        for new in _replacements(_at(plain, path)):
            wrong = copy.deepcopy(plain)
            _put(wrong, path, new)
            ast.fix_missing_locations(wrong)
            code = compiled(module, wrong)
            before, after = (ast.unparse(_at(tree, path[:-1])) for tree in (plain, wrong))
            made.append(Mutant(name, f"{before} -> {after}", _at(plain, path).lineno, code))
    return made


def compiled(module: ModuleType, definition: ast.FunctionDef) -> CodeType:
    tree = compile(ast.Module([definition], []), module.__file__, "exec")
    return next(
        c for c in tree.co_consts if isinstance(c, CodeType) and c.co_name == definition.name
    )


def _replacements(node: ast.AST) -> list[ast.expr]:
    """Wrong forms of one expression: a factor, an exponent, a missing term, factor or divisor."""
    number = lambda x: ast.Constant(x)  # noqa: E731
    match node:
        case ast.Constant(value=value) if type(value) in (int, float) and value:  # 0 has no factor
            return [number(FACTOR * value)]
        case ast.BinOp(left, ast.Add() | ast.Mult() | ast.MatMult(), right):
            return [left, right]
        case ast.BinOp(left, ast.Sub(), right):
            return [left, ast.UnaryOp(ast.USub(), right)]
        case ast.BinOp(ast.Constant(1) as left, ast.Div(), _):
            return [left]
        case ast.BinOp(left, ast.Div(), right):
            return [left, ast.BinOp(number(1.0), ast.Div(), right)]
        case ast.BinOp(left, ast.Pow(), right) if not isinstance(right, ast.Constant):
            return [ast.BinOp(left, ast.Pow(), ast.BinOp(number(FACTOR), ast.Mult(), right))]
        case ast.Call(ast.Name("sqrt") | ast.Attribute(ast.Name("math"), "sqrt"), [x]):
            return [ast.BinOp(x, ast.Pow(), number(FACTOR / 2))]
        case ast.Call(ast.Attribute(x, "sqrt" | "square" as name), []):
            power = {"sqrt": 0.5, "square": 2.0}[name]
            return [ast.BinOp(x, ast.Pow(), number(FACTOR * power))]
        case ast.Call(ast.Name("max" | "min") | ast.Attribute(_, "maximum" | "minimum"), [a, b]):
            return [a, b]
    return []


# Places in a tree: (field, index or None), outermost first.


def _paths(tree: ast.AST, path: tuple = ()) -> Iterator[tuple]:
    """Every place whose expression has a wrong form and is not left out by rule."""
    if path and _replacements(tree):
        yield path
    for field, value in ast.iter_fields(tree):
        for i, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and not _is_left_out(tree, field, child):
                yield from _paths(child, (*path, (field, i)))


def _is_left_out(tree: ast.AST, field: str, child: ast.AST) -> bool:
    """Positions, axes and counts; defaults of arguments; annotations; refusals of bad input."""
    if field in ("annotation", "returns", "defaults", "kw_defaults"):
        return True
    match tree, child:
        case ast.Subscript(), _:
            return field == "slice"
        case ast.keyword(arg=name), _:
            return name in KEYWORDS
        case ast.Call(ast.Name(name) | ast.Attribute(_, name)), _:
            return field == "args" and name in AXES and _is_literal(child)
        case _, ast.If(body=[ast.Raise()]) | ast.Expr(ast.Constant()):
            return True
    return False


def _is_literal(node: ast.AST) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def _at(tree: ast.AST, path: tuple) -> ast.AST:
    for field, i in path:
        tree = getattr(tree, field) if i is None else getattr(tree, field)[i]
    return tree


def _put(tree: ast.AST, path: tuple, new: ast.expr) -> None:
    *above, (field, i) = path
    parent, new = _at(tree, tuple(above)), copy.deepcopy(new)
    if i is None:
        setattr(parent, field, new)
    else:
        getattr(parent, field)[i] = new


def _texts(tree: ast.AST, path: tuple) -> set[str]:
    """Source texts of an expression and of all expressions around it."""
    around = [_at(tree, path[:n]) for n in range(1, len(path) + 1)]
    return {ast.unparse(node) for node in around if isinstance(node, ast.expr)}
