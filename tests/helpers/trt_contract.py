"""Find the names of TensorRT that a source file uses, by walking its syntax tree.

The name `trt` is the module, also as an attribute (`self.trt`). Its results are followed through
calls, attributes, assignments and annotations (`config: trt.IBuilderConfig`), using the return
types that the bindings declare.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MODULE = "trt"
Offer = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Use:
    """A name of TensorRT in a source file."""

    name: str  # "BuilderFlag.FP16", "IBuilderConfig.set_flag"
    line: int
    keywords: tuple[str, ...] | None = None  # of a call; None: no call
    positional: int = 0
    overrides: tuple[str, ...] | None = None  # parameters of a method that replaces this one


@dataclass(frozen=True, slots=True)
class _Type:
    """What an expression is: the module, a class, an instance of one, or a method."""

    kind: str
    name: str = ""


class _Walker(ast.NodeVisitor):
    def __init__(self, offers: Sequence[Offer]) -> None:
        self.uses: list[Use] = []
        self.untyped: list[tuple[str, int]] = []
        self._offers = offers
        self._scopes: list[dict[str, _Type | None]] = [{MODULE: _Type("module")}]
        self._fields: dict[str, _Type | None] = {}
        self._returns: dict[str, _Type | None] = {}
        self._telling = {
            name
            for offer in offers
            for entry in offer["classes"].values()
            for name in entry["members"]
            if "_" in name
        }

    def visit_Module(self, node: ast.Module) -> None:
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef):
                self._returns[statement.name] = self._annotated(statement.returns)
        self.generic_visit(node)

    # Scopes

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        scope = {a.arg: self._annotated(a.annotation) for a in arguments}
        if MODULE in scope:
            scope[MODULE] = _Type("module")
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                self.visit(default)
        self._scopes.append(scope)
        for statement in node.body:
            self.visit(statement)
        self._scopes.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        bases = [self._type(base) for base in node.bases]
        outer, self._fields = self._fields, {}
        for statement in node.body:
            if not isinstance(statement, ast.FunctionDef):
                self.visit(statement)
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                    self._fields[statement.target.id] = self._annotated(statement.annotation)
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef):
                for base in bases:
                    if base is not None and base.kind == "class":
                        self._override(base.name, statement)
                self.visit_FunctionDef(statement)
        self._fields = outer

    def _override(self, base: str, method: ast.FunctionDef) -> None:
        if method.name.startswith("_"):
            return
        parameters = tuple(argument.arg for argument in method.args.args[1:])
        self.uses.append(Use(f"{base}.{method.name}", method.lineno, overrides=parameters))

    # Statements

    def visit_Assign(self, node: ast.Assign) -> None:
        found = self._type(node.value)
        for target in node.targets:
            self._bind(target, found)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._type(node.value)
        self._bind(node.target, self._annotated(node.annotation))

    def _bind(self, target: ast.expr, found: _Type | None) -> None:
        if isinstance(target, ast.Name):
            self._scopes[-1][target.id] = found
        elif isinstance(target, ast.Attribute) and _is_self(target.value):
            self._fields[target.attr] = found
        else:
            self.visit(target)

    # Expressions

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._type(node)

    def visit_Call(self, node: ast.Call) -> None:
        self._type(node)

    def _type(self, node: ast.expr) -> _Type | None:
        if isinstance(node, ast.Name):
            return next((s[node.id] for s in reversed(self._scopes) if node.id in s), None)
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        self.generic_visit(node)
        return None

    def _attribute(self, node: ast.Attribute) -> _Type | None:
        if node.attr == MODULE:
            self._type(node.value)
            return _Type("module")
        if _is_self(node.value):
            return self._fields.get(node.attr)
        owner = self._type(node.value)
        if owner is None:
            if node.attr in self._telling:
                self.untyped.append((node.attr, node.lineno))
            return None
        if node.attr.startswith("__"):
            return None
        name = node.attr if owner.kind == "module" else f"{owner.name}.{node.attr}"
        self.uses.append(Use(name, node.lineno))
        if owner.kind == "module":
            return _Type("class", name)
        for entry in self._entries(owner.name):
            if node.attr in entry["values"]:
                return _Type("instance", owner.name)
            member = entry["members"].get(node.attr)
            if member is not None:
                if "property" in member:
                    return self._instance(member["property"])
                return _Type("method", name)
        return None

    def _call(self, node: ast.Call) -> _Type | None:
        called = self._type(node.func)
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            self._type(argument)
        if called is None and isinstance(node.func, ast.Name):
            return self._returns.get(node.func.id)
        if called is None or called.kind not in ("class", "method"):
            return None
        keywords = tuple(keyword.arg for keyword in node.keywords if keyword.arg is not None)
        self.uses.append(Use(called.name, node.lineno, keywords, len(node.args)))
        if called.kind == "class":
            return _Type("instance", called.name)
        owner, _, method = called.name.rpartition(".")
        for entry in self._entries(owner):
            for signature in entry["members"].get(method, {}).get("signatures", ()):
                return self._instance(signature["returns"])
        return None

    # Types

    def _entries(self, name: str) -> list[Mapping[str, Any]]:
        return [o["classes"][name] for o in self._offers if name in o["classes"]]

    def _instance(self, name: str | None) -> _Type | None:
        """Bindings call some of their own types by the name that these have in C++."""
        for candidate in (name or "", (name or "").removeprefix("I")):
            if self._entries(candidate):
                return _Type("instance", candidate)
        return None

    def _annotated(self, node: ast.expr | None) -> _Type | None:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        if isinstance(node, ast.BinOp):  # trt.X | None
            return self._annotated(node.left) or self._annotated(node.right)
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == MODULE
        ):
            self.uses.append(Use(node.attr, node.lineno))
            return _Type("instance", node.attr)
        return None


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def uses_in(source: str, offers: Sequence[Offer]) -> tuple[list[Use], list[tuple[str, int]]]:
    """Uses of TensorRT in a source, and attributes that look like one of unknown type."""
    walker = _Walker(offers)
    walker.visit(ast.parse(source))
    return list(dict.fromkeys(walker.uses)), walker.untyped


def missing(use: Use, offer: Offer) -> str | None:
    """What a version lacks of what is used; None: it has it all."""
    owner, _, member = use.name.partition(".")
    entry = offer["classes"].get(owner)
    if entry is None:
        return None if not member and owner in offer["functions"] else f"no {owner}"
    if member and member not in entry["members"]:
        return f"{owner} has no {member}"
    signatures = entry["members"][member].get("signatures") if member else entry["init"]
    if use.overrides is not None:
        fits = any(tuple(s["parameters"]) == use.overrides for s in signatures or ())
        return None if fits else f"{use.name} does not take {', '.join(use.overrides)}"
    if use.keywords is None or not signatures:
        return None
    if any(_accepts(signature, use) for signature in signatures):
        return None
    return f"{use.name} takes no call with {use.positional} arguments and {list(use.keywords)}"


def _accepts(signature: Mapping[str, Any], use: Use) -> bool:
    names = signature["parameters"]
    given = (*names[: use.positional], *(use.keywords or ()))
    return (
        use.positional <= len(names)
        and set(given) <= set(names)
        and len(set(given)) == len(given)
        and set(names[: signature["needed"]]) <= set(given)
    )
