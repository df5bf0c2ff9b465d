"""What a living shop does: each kind of transaction, drawn from a seeded generator. When and how often is workload's.

A `Trader` speaks inside a transaction that somebody else begins and ends. What it needs to know of the shop it reads
from the database, so that it goes on after a crash from what has really happened. Until an order is committed its
customer cannot be re-coded; its lines keep the stock code that was booked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any

from streaming.shop_database.connect import Database

__all__ = ["DECK", "KINDS", "LONG", "CalledOff", "Trader", "open_shop"]

# How many of each kind a worker does before it shuffles anew. Long orders are left to a worker that does nothing else:
# all others would wait for theirs.
DECK = {
    "order": 20,
    "price_change": 6,
    "part_refund": 4,
    "full_refund": 3,
    "cancellation": 3,
    "move": 3,
    "amended_order": 2,
    "called_off_order": 3,
    "savepoint": 3,
    "recoded_customer": 1,
    "recoded_product": 1,
    "bulk_update": 1,
}
LONG = "long_order"
KINDS = (*DECK, LONG)

_COUNTRIES = ("United Kingdom", "Germany", "France", "EIRE", "Spain", "Österreich", "Côte d'Ivoire", "日本")
_WORDS = (
    "LANTERN",
    "MUG",
    'T-LIGHT "HOLDER"',
    "CAKE STAND",
    "BACKSLASH \\ FRAME",
    "CAFÉ SET",
    "CHILD'S BOWL",
    "BUNTING ☕",
)
_FIRST_CUSTOMERS, _FIRST_PRODUCTS = 200, 200
_KNOWN = 5_000  # customers and products that a worker picks from
_RECENT = 500  # of its orders, from which it takes back
_LINES = 8
_BULK_ROWS = 100
# Orders of a customer that may be re-coded: each of their rows changes with it.
_RECODED_ORDERS = 50
_NUMBERS = 10**9  # of new customers and orders that each worker has
_LONG_S = 1.5  # on average


class CalledOff(RuntimeError):
    """The customer has changed their mind: roll back."""


@dataclass(frozen=True)
class _Order:
    """An order as the database has it, locked for this transaction."""

    invoice_no: str
    customer_id: int | None
    country: str | None


def open_shop(database: Database) -> None:
    """Customers and products to begin with, where there are few."""
    now = _now()
    customers = [(900_001 + i, _COUNTRIES[i % len(_COUNTRIES)], now, now) for i in range(_FIRST_CUSTOMERS)]
    products = [
        (f"W{10_000 + i}", f"{_WORDS[i % len(_WORDS)]} NO. {i}", round(0.5 + i * 0.37, 2), now)
        for i in range(_FIRST_PRODUCTS)
    ]
    for table, rows in (("customers", customers), ("products", products)):
        if database.query(f"SELECT count(*) FROM {table}")[0][0] < len(rows):
            _insert(database, table, rows, ignore=True)


def _insert(database: Database, table: str, rows: Sequence[Sequence[Any]], *, ignore: bool = False) -> int:
    """One statement, whatever the number of rows."""
    values = ", ".join(f"({_marks(row)})" for row in rows)
    word = "INSERT IGNORE INTO" if ignore and database.dialect == "mariadb" else "INSERT INTO"
    suffix = " ON CONFLICT DO NOTHING" if ignore and database.dialect == "postgresql" else ""
    return database.execute(
        f"{word} {table} ({_COLUMNS[table]}) VALUES {values}{suffix}", [value for row in rows for value in row]
    )


_COLUMNS = {
    "customers": "customer_id, country, registered_at, updated_at",
    "products": "stock_code, description, list_price_gbp, updated_at",
    "orders": "invoice_no, customer_id, country, kind, refund_status, refunded_gbp, ordered_at, updated_at",
    "order_lines": "invoice_no, line_no, customer_id, stock_code, quantity, unit_price_gbp, invoiced_at",
}


def _marks(values: Sequence[Any]) -> str:
    return ", ".join(["%s"] * len(values))


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


class Trader:
    """One worker's dealings over one connection. `rows` counts what it has written since it was last set to 0."""

    def __init__(self, database: Database, random: Random, worker: int, pause: Callable[[float], None]) -> None:
        self.rows = 0
        self._database, self._random, self._worker, self._pause = database, random, worker, pause
        self._share = "FOR KEY SHARE" if database.dialect == "postgresql" else "LOCK IN SHARE MODE"
        self._customers = self._keys("customers", "customer_id")
        self._products = self._keys("products", "stock_code")
        self._recent: deque[str] = deque(maxlen=_RECENT)
        self._number = self._last_number()

    def deal(self, kind: str) -> None:
        """Do one transaction of that kind. Raises CalledOff, ShopDatabaseError."""
        getattr(self, f"_{kind}")()

    def _keys(self, table: str, key: str) -> list[Any]:
        return [row[0] for row in self._database.query(f"SELECT {key} FROM {table} ORDER BY {key} LIMIT {_KNOWN}")]

    def _last_number(self) -> int:
        """The highest number in use among those that are this worker's."""
        first = self._worker_base
        used = self._database.query(
            "SELECT max(customer_id) FROM customers WHERE customer_id > %s AND customer_id < %s",
            [first, first + _NUMBERS],
        )
        numbers = [used[0][0] - first if used[0][0] else 0]
        for table, key, prefix in (
            ("orders", "invoice_no", "R"),
            ("orders", "invoice_no", "CR"),
            ("products", "stock_code", "N"),
        ):
            low = f"{prefix}{self._worker:03d}-"
            found = self._database.query(
                f"SELECT max({key}) FROM {table} WHERE {key} > %s AND {key} < %s", [low, f"{low}~"]
            )
            numbers.append(int(found[0][0].rpartition("-")[2]) if found[0][0] else 0)
        return max(numbers)

    @property
    def _worker_base(self) -> int:
        return (self._worker + 1) * _NUMBERS

    def _next(self, prefix: str) -> str:
        self._number += 1
        return f"{prefix}{self._worker:03d}-{self._number:09d}"

    def _write(self, statement: str, values: Sequence[Any]) -> int:
        written = self._database.execute(statement, values)
        self.rows += written
        return written

    def _add(self, table: str, *rows: Sequence[Any]) -> None:
        self.rows += _insert(self._database, table, rows)

    def _remember(self, keys: list[Any], key: Any) -> None:
        if len(keys) < _KNOWN:
            keys.append(key)
        else:
            keys[self._random.randrange(len(keys))] = key

    # Orders

    def _order(self) -> None:
        self._recent.append(self._new_order().invoice_no)

    def _new_order(self, lines: int | None = None) -> _Order:
        """An order with its lines, now and then of a new or an unknown customer."""
        order = self._new_header()
        self._add_lines(order, 1, lines or self._random.randint(1, _LINES))
        return order

    def _new_header(self) -> _Order:
        customer_id, country = self._buyer()
        order, now = _Order(self._next("R"), customer_id, country), _now()
        self._add("orders", (order.invoice_no, customer_id, country, "sale", "none", 0.0, now, now))
        return order

    def _buyer(self) -> tuple[int | None, str | None]:
        luck = self._random.random()
        if luck < 0.1:
            return None, "United Kingdom"
        return self._new_customer() if luck < 0.2 else self._customer(self._share)

    def _new_customer(self) -> tuple[int, str]:
        self._number += 1
        customer_id, country, now = self._worker_base + self._number, self._random.choice(_COUNTRIES), _now()
        self._add("customers", (customer_id, country, now, now))
        self._remember(self._customers, customer_id)
        return customer_id, country

    def _customer(self, lock: str) -> tuple[int, str | None]:
        """One that exists, locked; a key that was re-coded meanwhile leads to its neighbour, or to somebody new."""
        found = self._database.query(
            f"SELECT customer_id, country FROM customers WHERE customer_id >= %s ORDER BY customer_id LIMIT 1 {lock}",
            [self._random.choice(self._customers)],
        )
        return (int(found[0][0]), found[0][1]) if found else self._new_customer()

    def _add_lines(self, order: _Order, first: int, count: int) -> None:
        codes = [self._random.choice(self._products) for _ in range(count)]
        quantities = [self._random.randint(1, 24) for _ in range(count)]
        prices = dict(
            self._database.query(
                f"SELECT stock_code, list_price_gbp FROM products WHERE stock_code IN ({_marks(codes)})", codes
            )
        )
        now = _now()
        self._add(
            "order_lines",
            *(
                (order.invoice_no, first + i, order.customer_id, code, quantity, prices.get(code) or 1.0, now)
                for i, (code, quantity) in enumerate(zip(codes, quantities, strict=True))
            ),
        )

    def _amended_order(self) -> None:
        """Rows that are inserted, changed and deleted within one transaction."""
        order = self._new_order(lines=4)
        where = "WHERE invoice_no = %s AND line_no = %s"
        self._write(f"UPDATE order_lines SET quantity = quantity + 1 {where}", [order.invoice_no, 1])
        self._write(f"UPDATE order_lines SET quantity = quantity * 2 {where}", [order.invoice_no, 1])
        self._write(f"DELETE FROM order_lines {where}", [order.invoice_no, 4])
        self._recent.append(order.invoice_no)

    def _called_off_order(self) -> None:
        self._new_order()
        raise CalledOff

    def _savepoint(self) -> None:
        """What came after the savepoint never happens; what comes after the way back to it does."""
        order = self._new_order(lines=2)
        before = self.rows
        self._database.script("SAVEPOINT considering")
        self._add_lines(order, 3, 3)
        self._price_change()
        self._database.script("ROLLBACK TO SAVEPOINT considering")
        self.rows = before
        self._add_lines(order, 3, 1)
        self._recent.append(order.invoice_no)

    def _long_order(self) -> None:
        """Stays open while others commit."""
        order = self._new_header()
        for line in range(1, 4):
            self._pause(self._random.uniform(0, 2 * _LONG_S / 3))
            self._add_lines(order, line, 1)
        self._recent.append(order.invoice_no)

    # Taking back

    def _taken_back(self) -> _Order:
        """An order of ours, not refunded in full yet, locked; a new one if none is found."""
        for _ in range(min(5, len(self._recent))):
            if order := self._locked(self._random.choice(self._recent)):
                return order
        return self._new_order()

    def _locked(self, invoice_no: str) -> _Order | None:
        """The customer first, as whoever re-codes one does; then the order, if it still is theirs."""
        seen = self._database.query("SELECT customer_id FROM orders WHERE invoice_no = %s", [invoice_no])
        theirs = "IS NULL" if seen == [(None,)] else f"= {int(seen[0][0])}" if seen else None
        if theirs is None:
            return None
        self._database.query(f"SELECT customer_id FROM customers WHERE customer_id {theirs} {self._share}")
        found = self._database.query(
            "SELECT invoice_no, customer_id, country FROM orders WHERE invoice_no = %s AND kind = 'sale' "
            f"AND refund_status <> 'full' AND customer_id {theirs} FOR UPDATE",
            [invoice_no],
        )
        return _Order(*found[0]) if found else None

    def _part_refund(self) -> None:
        self._refund("partial")

    def _full_refund(self) -> None:
        self._refund("full")

    def _refund(self, status: str) -> None:
        """A refund is an order of its own, and changes the one that it refunds."""
        order, now = self._taken_back(), _now()
        lines = self._database.query(
            "SELECT stock_code, quantity, unit_price_gbp FROM order_lines WHERE invoice_no = %s ORDER BY line_no",
            [order.invoice_no],
        )
        if status == "partial":
            code, quantity, price = self._random.choice(lines)
            lines = [(code, (quantity + 1) // 2, price)]
        refund = self._next("CR")
        self._add("orders", (refund, order.customer_id, order.country, "refund", "none", 0.0, now, now))
        self._add(
            "order_lines",
            *(
                (refund, i, order.customer_id, code, -quantity, price, now)
                for i, (code, quantity, price) in enumerate(lines, 1)
            ),
        )
        self._write(
            "UPDATE orders SET refund_status = %s, refunded_gbp = refunded_gbp + %s, updated_at = %s "
            "WHERE invoice_no = %s",
            [status, sum(quantity * price for _, quantity, price in lines), now, order.invoice_no],
        )

    def _cancellation(self) -> None:
        """An order that was not shipped yet disappears."""
        order = self._taken_back()
        self._write("DELETE FROM order_lines WHERE invoice_no = %s", [order.invoice_no])
        self._write("DELETE FROM orders WHERE invoice_no = %s", [order.invoice_no])

    # Customers and products

    def _move(self) -> None:
        customer_id, country = self._customer("FOR UPDATE")
        new = self._random.choice([c for c in _COUNTRIES if c != country])
        self._write(
            "UPDATE customers SET country = %s, updated_at = %s WHERE customer_id = %s", [new, _now(), customer_id]
        )

    def _price_change(self) -> None:
        self._write(
            "UPDATE products SET list_price_gbp = %s, updated_at = %s WHERE stock_code = %s",
            [round(self._random.uniform(0.2, 80), 2), _now(), self._random.choice(self._products)],
        )

    def _bulk_update(self) -> None:
        codes = sorted(self._random.sample(self._products, min(_BULK_ROWS, len(self._products))))
        self._write(
            "UPDATE products SET list_price_gbp = list_price_gbp * %s, updated_at = %s "
            f"WHERE stock_code IN ({_marks(codes)})",
            [self._random.choice([0.97, 1.03]), _now(), *codes],
        )

    def _recoded_customer(self) -> None:
        """The primary key changes, and with it every order of the customer and its lines."""
        old, invoices = self._one_to_recode()
        self._number += 1
        new = self._worker_base + self._number
        self._write("UPDATE customers SET customer_id = %s, updated_at = %s WHERE customer_id = %s", [new, _now(), old])
        for table in ("orders", "order_lines") if invoices else ():
            self._write(
                f"UPDATE {table} SET customer_id = %s WHERE invoice_no IN ({_marks(invoices)})", [new, *invoices]
            )
        self._remember(self._customers, new)

    def _one_to_recode(self) -> tuple[int, list[str]]:
        """A customer of few orders, locked, and those orders."""
        for _ in range(5):
            customer_id, _ = self._customer("FOR UPDATE")
            theirs = self._database.query(
                f"SELECT invoice_no FROM orders WHERE customer_id = %s LIMIT {_RECODED_ORDERS + 1}", [customer_id]
            )
            if len(theirs) <= _RECODED_ORDERS:
                return customer_id, [row[0] for row in theirs]
        return self._new_customer()[0], []

    def _recoded_product(self) -> None:
        old, new = self._random.choice(self._products), self._next("N")
        if self._write(
            "UPDATE products SET stock_code = %s, updated_at = %s WHERE stock_code = %s", [new, _now(), old]
        ):
            self._remember(self._products, new)
        else:
            self._add("products", (new, f"{self._random.choice(_WORDS)} AGAIN", 1.0, _now()))
