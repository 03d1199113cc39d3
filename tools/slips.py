"""Which slips could be made in a file, and the file with one of them."""
from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

FLIPPED = {
    ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip

SIGNS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}


@dataclass(frozen=True)
class Slip:
    """One changed node: which it is among the nodes of its file, and what happens to it."""

    file: str
    place: int
    kind: str


def slips_of(file: str, folder: Path = ROOT) -> list[Slip]:
    """Every slip that could be made in the functions of a file."""
    found = []
    for place, node in enumerate(_inside_functions(ast.parse((folder / file).read_text(encoding="utf-8")))):
        if isinstance(node, ast.Compare) and type(node.ops[0]) in FLIPPED:
            found.append(Slip(file, place, "comparison"))
        elif isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
            found.append(Slip(file, place, "sign"))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
            found.append(Slip(file, place, "unary"))
        elif isinstance(node, ast.BoolOp):
            found.append(Slip(file, place, "boolean"))
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            found.append(Slip(file, place, "constant"))
        elif isinstance(node, (ast.Expr, ast.AugAssign)) and not isinstance(getattr(node, "value", None), ast.Constant):
            found.append(Slip(file, place, "dropped"))
    return found


def _inside_functions(tree: ast.Module) -> list[ast.AST]:
    """Nodes of function bodies; defaults and annotations are not behaviour that a call shows."""
    found: list[ast.AST] = []
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            found += [node for step in function.body for node in ast.walk(step) if not _nested(node)]
    return list(dict.fromkeys(found))


def _nested(node: ast.AST) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.arguments, ast.Raise))


def made(slip: Slip, folder: Path = ROOT) -> tuple[str, str, range]:
    """The file's source with the slip, a line that tells it, and the lines of its statement."""
    tree = ast.parse((folder / slip.file).read_text(encoding="utf-8"))
    node = _inside_functions(tree)[slip.place]
    before, lines = ast.unparse(node), _lines(tree, node)
    if isinstance(node, ast.Compare):
        node.ops[0] = FLIPPED[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp):
        node.op = SIGNS[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.Constant):
        node.value = (not node.value) if isinstance(node.value, bool) else node.value + 1
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
        if isinstance(node.op, ast.Not):
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
    else:
        where = next(b for b in ast.walk(tree) for _, b in ast.iter_fields(b) if isinstance(b, list) and node in b)
        where[where.index(node)] = ast.copy_location(ast.Pass(), node)
        told = f"{slip.file}:{node.lineno} dropped: {before[:90]}"
        return ast.unparse(ast.fix_missing_locations(tree)), told, lines
    after = ast.unparse(node)
    told = f"{slip.file}:{node.lineno} {slip.kind}: {before[:60]} -> {after[:60]}"
    return ast.unparse(ast.fix_missing_locations(tree)), told, lines


def _lines(tree: ast.Module, node: ast.AST) -> range:
    """The lines of the innermost statement around a node, of a compound one those before its body."""
    around = [s for s in ast.walk(tree) if isinstance(s, ast.stmt) and any(n is node for n in ast.walk(s))]
    inner = min(around, key=lambda s: s.end_lineno - s.lineno)
    body = getattr(inner, "body", None)
    return range(inner.lineno, max(inner.lineno, body[0].lineno - 1) + 1 if body else inner.end_lineno + 1)
