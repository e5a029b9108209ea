"""A program of several files, with its tests."""

from __future__ import annotations

PRICES = '''\
"""What things cost."""
from __future__ import annotations

PRICES = {"tea": 3, "cup": 5}


def price(name: str) -> int:
    if name not in PRICES:
        raise KeyError(name)
    return PRICES[name]
'''
CART = '''\
"""What is bought."""
from __future__ import annotations

from dataclasses import dataclass

from .prices import PRICES, price


@dataclass
class Line:
    name: str
    count: int


class Cart:
    def __init__(self) -> None:
        self.entries: list[Line] = []

    @property
    def lines(self) -> int:
        return len(self.entries)

    def add(self, name: str, count: int = 1) -> None:
        if count < 1:
            raise ValueError("count")
        self.entries.append(Line(name, count))

    def total(self) -> int:
        return sum(price(line.name) * line.count for line in self.entries)


def total(names: list[str]) -> int:
    return sum(price(name) for name in names if name in PRICES)


def largest() -> Line:
    return Line(max(PRICES, key=price), 1)
'''
FILES = {"shop/__init__.py": "", "shop/cart.py": CART, "shop/prices.py": PRICES}
TESTS = """\
import pytest

from shop.cart import Cart, total
from shop.prices import price


def test_total():
    assert total(["tea", "cup"]) == 8
    assert total(["hat"]) == 0


def test_price():
    assert price("tea") == 3
    assert price("cup") == 5
    with pytest.raises(KeyError):
        price("hat")


def test_cart():
    cart = Cart()
    cart.add("tea", 2)
    cart.add("cup")
    assert cart.lines == 2
    assert cart.total() == 11
    with pytest.raises(ValueError):
        cart.add("tea", 0)
"""
