"""A calculator, as a tool."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

LONGEST = 200
LARGEST_POWER = 1000
DIGITS = 400

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type, Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


class Calculator:
    """A calculator of exact numbers. Rewards are the run's, or those of a class built on this one."""

    def calculate(self, expression: str) -> str:
        """Work out an expression.

        Args:
            expression: Numbers with + - * / // % ** and parentheses between them.
        """
        return evaluate(expression)


def evaluate(expression: str) -> str:
    """The value of an expression, exact where it is a whole number, else with ten digits. Raises ValueError or
    ZeroDivisionError saying what is wrong with it."""
    if len(expression) > LONGEST:
        raise ValueError(f"the expression has {len(expression)} characters; the most is {LONGEST}")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except SyntaxError as error:
        raise ValueError(f"this is no expression: {error.msg}") from None
    value = _value(tree.body)
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.10g}"


def _value(node: ast.AST) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            value = Fraction(str(number))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            value = _UNARY[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            value = _combined(op, _value(left), _value(right))
        case _:
            raise ValueError("an expression has numbers, + - * / // % **, and parentheses, and nothing else")
    if max(abs(value.numerator), value.denominator).bit_length() > 3 * DIGITS:
        raise ValueError(f"the result has more than {DIGITS} digits")
    return value


def _combined(op: ast.operator, left: Fraction, right: Fraction) -> Fraction:
    if isinstance(op, ast.Pow) and (right.denominator != 1 or abs(right) > LARGEST_POWER):
        raise ValueError(f"an exponent is a whole number of at most {LARGEST_POWER}")
    if isinstance(op, ast.Pow):
        size = max(abs(left.numerator), left.denominator).bit_length() * abs(right.numerator)
        if size > 3 * DIGITS + 64:
            raise ValueError(f"the result has more than {DIGITS} digits")
    return Fraction(_BINARY[type(op)](left, right))
