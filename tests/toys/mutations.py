"""Small wrong changes to a Python file: all that a few operators can make, each as the whole new text."""

import ast
from collections.abc import Callable, Iterator
from typing import NamedTuple

_COMPARED = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_COMPUTED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
_EXTREMES = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "argmin": "argmax"}
_COUNTED = 2  # These are places, steps and bounds; a larger number is chosen, and off by one it does the same.
_LOGGERS = {"log", "_log", "logger", "_logger", "logging", "warnings"}


class Mutation(NamedTuple):
    """One change: its line and column, what stood there and stands there now, and the text of the file with it."""

    line: int
    column: int
    before: str
    after: str
    text: str


def list_mutations(text: str) -> list[Mutation]:
    """All changes of a file, in its order; a few do not compile, see `compiles`.

    Docstrings, annotations, decorators, messages of errors, assertions, logging, `strict` of zip and the arguments of
    reshape and split stay as they are.
    """
    return [_put(text, node, changed) for node in _expressions(ast.parse(text)) for changed in _changes(node)]


def compiles(mutation: Mutation) -> bool:
    """Whether Python still takes the file."""
    try:
        compile(mutation.text, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def _expressions(node: ast.AST) -> Iterator[ast.expr]:
    """Every expression that decides what the code does."""
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
        return
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[0] in _LOGGERS:
        return
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.LShift | ast.Pow):
        return  # A size, such as 1 << 20.
    if isinstance(node, ast.expr):
        yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.keyword) and child.arg == "strict":
                continue
            if name == "args" and _says_how_often(node):
                continue
            if isinstance(child, ast.AST):
                yield from _expressions(child)


def _says_how_often(node: ast.AST) -> bool:
    """A call whose numbers change nothing: -1 of reshape is any negative number, and split takes what it needs."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("reshape", "split", "rsplit")
        and any(isinstance(argument, ast.Constant | ast.UnaryOp) for argument in node.args)
    )


def _changes(node: ast.expr) -> Iterator[ast.expr]:
    match node:
        case ast.Compare(ops=[operator]):
            for other in _COMPARED.get(type(operator), ()):
                yield ast.Compare(node.left, [other()], node.comparators)
        case ast.BinOp(op=operator) if type(operator) in _COMPUTED and not _is_text(node):
            yield ast.BinOp(node.left, _COMPUTED[type(operator)](), node.right)
            if isinstance(operator, ast.Add):
                yield node.left
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.BoolOp(op=operator, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
            yield from (_joined(node, [*values[:i], *values[i + 1 :]]) for i in range(len(values)))
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() as value) if value <= _COUNTED:
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1)
        case ast.Call(func=ast.Name(id=name)) if name in _EXTREMES:
            yield ast.Call(ast.Name(_EXTREMES[name]), node.args, node.keywords)
        case ast.Call(func=ast.Attribute(attr=name)) if name in _EXTREMES:
            yield ast.Call(ast.Attribute(node.func.value, _EXTREMES[name]), node.args, node.keywords)


def _joined(node: ast.BoolOp, values: list[ast.expr]) -> ast.expr:
    return values[0] if len(values) == 1 else ast.BoolOp(node.op, values)


def _is_text(node: ast.BinOp) -> bool:
    """Texts are joined by +, and no other operator means anything for them."""
    sides = (node.left, node.right)
    return any(isinstance(side, ast.JoinedStr) or isinstance(getattr(side, "value", 0), str) for side in sides)


def _put(text: str, node: ast.expr, changed: ast.expr) -> Mutation:
    """The text with one expression in place of another; columns of the syntax tree count bytes."""
    lines = text.encode().splitlines(keepends=True)
    place: Callable[[int, int], int] = lambda line, column: sum(map(len, lines[: line - 1])) + column  # noqa: E731
    start, stop = place(node.lineno, node.col_offset), place(node.end_lineno or 0, node.end_col_offset or 0)
    raw, after = text.encode(), ast.unparse(ast.fix_missing_locations(changed))
    wrapped = after if isinstance(changed, ast.Constant) else f"({after})"
    before = " ".join(raw[start:stop].decode().split())
    return Mutation(node.lineno, node.col_offset, before, after, (raw[:start] + wrapped.encode() + raw[stop:]).decode())
