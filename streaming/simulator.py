"""A seeded shop for whoever has no retail file: about a year of invoice lines, and the truth about what was planted.

Customers differ in how often they buy, how much, how often they send things back, and how likely they are to leave; who
is about to leave buys less and returns more, so that churn shows in more than recency. Nothing here is read back by the
product but the lines; the truth is for tests and for the reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from streaming.retail import LINE_SCHEMA

__all__ = ["GroundTruth", "Simulation", "simulate"]

Array = np.ndarray[Any, np.dtype[Any]]

DAYS = 396
DRIFT_DAYS = 35
DRIFT_AMOUNT, DRIFT_EXTRA_ORDERS = 1.8, 0.8
# What moves when baskets grow by 1.8 and orders come 1.8 times as often.
_DRIFT_FEATURES = ("avg_txn_amount_30d", "txn_amount_sum_7d", "txn_count_30d", "txn_count_7d")
_DAY = 1440  # minutes
_FIRST_INVOICE = 536_365
_ALWAYS = 17_850  # a loyal customer that examples can name
_UNKNOWN_SHARE = 0.25  # of the lines: no customer
_SALE, _REFUND, _ADJUSTMENT = 0, 1, 2
_COLOURS = ("RED", "BLUE", "IVORY", "PINK", "GREEN", "VINTAGE", "RETRO", "SILVER", "WOODEN", "GLASS", "TIN", "PAPER")
_THINGS = (
    "LANTERN",
    "MUG",
    "T-LIGHT HOLDER",
    "LUNCH BAG",
    "CAKE STAND",
    "DOORMAT",
    "CLOCK",
    "FRAME",
    "BUNTING",
    "BOWL",
)
_SETS = ("", " SET OF 3", " SET OF 6", " LARGE", " SMALL", " WITH HEART")
_COUNTRIES = ("United Kingdom", "Germany", "France", "EIRE", "Spain", "Netherlands", "Belgium", "Norway")
_PACKS = np.array([1, 1, 1, 2, 2, 3, 4, 6, 6, 8, 10, 12, 12, 24])


@dataclass(frozen=True)
class GroundTruth:
    """What was planted. `exact_duplicates` counts the extra copies; a refund line is one of an invoice C...

    `drift_start` is the instant from which baskets are 1.8 times as large and orders 1.8 times as frequent, None
    without drift; `drift_features` are the features that show it.
    """

    seed: int
    lines: int
    customers: int
    purchase_lines: int
    exact_duplicates: int
    late_lines: int
    refund_lines: int
    adjustment_lines: int
    unknown_customer_lines: int
    negative_quantity_lines: int
    nonpositive_price_lines: int
    first_event_at: datetime
    last_event_at: datetime
    drift_start: datetime | None
    drift_features: tuple[str, ...]


@dataclass(frozen=True)
class Simulation:
    """`lines` as retail.LINE_SCHEMA in order of time, and the truth about them."""

    lines: pa.Table
    truth: GroundTruth


@dataclass(frozen=True)
class _People:
    """One element for each customer. Times are minutes since the start, rates are per day."""

    number: Array
    country: Array
    rate: Array
    comes: Array
    leaves: Array
    basket: Array
    returns: Array


@dataclass(frozen=True)
class _Products:
    """One element for each product; a price and, for some, a description that change once."""

    code: list[str]
    descriptions: list[str]
    popularity: Array
    price: Array
    new_price: Array
    price_changes: Array
    description_changes: Array


@dataclass(frozen=True)
class _Lines:
    """One element for each line; `person` -1 is unknown; `product` beyond the products is a service code."""

    invoice: Array
    kind: Array
    at: Array
    person: Array
    product: Array
    quantity: Array
    price: Array

    def take(self, index: Array) -> _Lines:
        return _Lines(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    @staticmethod
    def concat(parts: list[_Lines]) -> _Lines:
        return _Lines(*(np.concatenate([getattr(p, n) for p in parts]) for n in _Lines.__dataclass_fields__))


def simulate(seed: int, lines: int, drift: bool = True, start: datetime = datetime(2024, 1, 1)) -> Simulation:
    """About `lines` invoice lines over 13 months from `start`; the same arguments give the same lines."""
    random = np.random.default_rng(seed)
    people, products = _people(random, max(lines // 75, 40)), _products(random, min(max(lines // 60, 60), 4_000))
    at, person = _orders(random, people, drift)
    known = int(lines * (1 - _UNKNOWN_SHARE) / 1.055)  # refunds, duplicates and odd lines come on top
    sales = _sale_lines(random, people, products, at, person, known, drift)
    unknown = _unknown_lines(random, products, int(lines * _UNKNOWN_SHARE), 1 + int(sales.invoice.max()))
    sold = _give_away(random, _Lines.concat([sales, unknown]))
    refunds = _refund_lines(random, people, sold)
    odd = _odd_lines(random, products, lines, 1 + int(max(sold.invoice.max(), refunds.invoice.max(initial=0))))
    table = _Lines.concat([sold, refunds, odd])
    table = table.take(np.lexsort((table.product, table.invoice, table.at)))
    copies = random.choice(np.flatnonzero(table.kind == _SALE), max(int(lines * 0.01), 1), replace=False)
    table = table.take(np.sort(np.concatenate([np.arange(len(table.at)), copies]), kind="stable"))
    landed = _late_landings(random, table, refunds)
    return Simulation(
        _table(random, table, landed, people, products, start),
        _truth(seed, table, landed, len(copies), start, drift),
    )


def _people(random: np.random.Generator, count: int) -> _People:
    """Three kinds, within which everybody differs: loyal, slow but steady, soon gone.

    A silence of 50 days is long for the last and nothing for the second: recency alone cannot tell who has left.
    """
    kind = random.choice(3, count, p=[0.3, 0.35, 0.35])
    rate = np.array([1 / 20, 1 / 55, 1 / 14])[kind] * random.lognormal(0, 0.5, count)
    unrest = random.lognormal(0, 0.6, count)  # leaves sooner and returns more
    stays = random.exponential(np.array([1500.0, 1500.0, 90.0])[kind] / unrest)
    comes = np.where(random.random(count) < 0.45, 0.0, random.random(count) * DAYS * 0.9)
    comes += random.exponential(1 / rate) * (comes == 0)
    number = 12_346 + random.permutation(max(count * 2, 8_000))[:count]
    number[number == _ALWAYS] = 12_345
    number[0], rate[0], comes[0], stays[0] = _ALWAYS, 1 / 12, 1.0, 10.0 * DAYS
    return _People(
        number=number,
        country=np.where(random.random(count) < 0.88, 0, random.integers(1, len(_COUNTRIES), count)),
        rate=rate,
        comes=np.minimum(comes, DAYS - 2) * _DAY,
        leaves=(comes + stays) * _DAY,
        basket=random.lognormal(0, 0.6, count) * np.array([1.3, 1.0, 0.7])[kind],
        returns=np.clip(0.05 * unrest, 0.005, 0.4),
    )


def _products(random: np.random.Generator, count: int) -> _Products:
    code = [f"{20_000 + i}{'ABC'[i % 3] if i % 5 == 0 else ''}" for i in range(count)]
    names = [f"{_COLOURS[i % 12]} {_THINGS[(i // 12) % 10]}{_SETS[(i // 120) % 6]}" for i in range(count)]
    names = [name if i < 720 else f"{name} NO. {i // 720}" for i, name in enumerate(names)]
    price = np.round(np.clip(random.lognormal(0.9, 0.8, count), 0.19, 150), 2)
    never = 10 * DAYS * _DAY
    return _Products(
        code=[*code, "POST", "B"],
        descriptions=[*names, *(f"{name} (NEW)" for name in names), "POSTAGE", "Adjust bad debt", "damages"],
        popularity=random.permutation(1 / np.arange(3, count + 3) ** 0.9),
        price=price,
        new_price=np.round(np.maximum(price * random.uniform(0.8, 1.3, count), 0.1), 2),
        price_changes=np.where(random.random(count) < 0.6, random.integers(30, DAYS, count) * _DAY, never),
        description_changes=np.where(random.random(count) < 0.12, random.integers(30, DAYS, count) * _DAY, never),
    )


def _orders(random: np.random.Generator, people: _People, drift: bool) -> tuple[Array, Array]:
    """Minute and person of each order: a first one when a customer comes, then a Poisson process until they leave."""
    ends = np.minimum(people.leaves, DAYS * _DAY)
    first = np.arange(len(people.rate))
    at, person = _poisson(random, people.comes, ends, people.rate * 1.25)
    kept = random.random(len(at)) < _season(at) / 1.25
    every_at, every_person = [people.comes, at[kept]], [first, person[kept]]
    if drift:
        since = np.maximum(people.comes, float((DAYS - DRIFT_DAYS) * _DAY))
        more_at, more_person = _poisson(random, since, ends, people.rate * DRIFT_EXTRA_ORDERS)
        every_at, every_person = [*every_at, more_at], [*every_person, more_person]
    return _opening_hours(random, np.concatenate(every_at)), np.concatenate(every_person)


def _poisson(random: np.random.Generator, since: Array, until: Array, rate: Array) -> tuple[Array, Array]:
    length = np.maximum(until - since, 0)
    counts = random.poisson(rate * length / _DAY)
    person = np.repeat(np.arange(len(counts)), counts)
    return since[person] + random.random(len(person)) * length[person], person


def _season(at: Array) -> Array:
    """Between 0.75 and 1.25: a mild wave over the year, and quiet Sundays are left to the opening hours."""
    return 1 + 0.25 * np.sin(2 * np.pi * (at / _DAY / 365 - 0.55))


def _opening_hours(random: np.random.Generator, at: Array) -> Array:
    return (at // _DAY).astype(np.int64) * _DAY + random.integers(8 * 60, 18 * 60, len(at))


def _sale_lines(
    random: np.random.Generator,
    people: _People,
    products: _Products,
    at: Array,
    person: Array,
    target: int,
    drift: bool,
) -> _Lines:
    leaving = (people.leaves[person] - at < 45 * _DAY) & (people.leaves[person] < DAYS * _DAY)
    appetite = people.basket[person] * random.lognormal(0, 0.4, len(at)) * np.where(leaving, 0.5, 1.0)
    sizes = np.maximum(1, np.round(appetite * target / appetite.sum())).astype(np.int64)
    lines = _filled(random, products, at, person, sizes, 0)
    factor = np.where(drift & (lines.at >= (DAYS - DRIFT_DAYS) * _DAY), DRIFT_AMOUNT, 1.0)
    quantity = lines.quantity * factor * np.where(lines.person == 0, 2.0, 1.0)
    return _Lines(**{**vars(lines), "quantity": np.floor(quantity + random.random(len(quantity))).astype(np.int64)})


def _unknown_lines(random: np.random.Generator, products: _Products, target: int, first_invoice: int) -> _Lines:
    """Few, large invoices of the counter, as shops book them."""
    count = max(target // 40, 1)
    at = _opening_hours(random, np.sort(random.random(count)) * DAYS * _DAY)
    sizes = np.maximum(1, random.poisson(target / count * 1.12, count))
    return _filled(random, products, at, np.full(count, -1), sizes, first_invoice)


def _filled(
    random: np.random.Generator, products: _Products, at: Array, person: Array, sizes: Array, first_invoice: int
) -> _Lines:
    """Lines of `sizes` popular products for each order, no product twice: natural exact duplicates do not exist."""
    cumulative = np.cumsum(products.popularity / products.popularity.sum())
    order = np.repeat(np.arange(len(at)), np.minimum(sizes, len(products.price) // 2))
    product = np.minimum(np.searchsorted(cumulative, random.random(len(order))), len(products.price) - 1)
    order, product = np.divmod(np.unique(order * len(products.price) + product), len(products.price))
    changed = at[order] >= products.price_changes[product]
    return _Lines(
        invoice=order + first_invoice,
        kind=np.full(len(order), _SALE),
        at=at[order],
        person=person[order],
        product=product,
        quantity=_PACKS[random.integers(0, len(_PACKS), len(order))],
        price=np.where(changed, products.new_price[product], products.price[product]),
    )


def _give_away(random: np.random.Generator, lines: _Lines) -> _Lines:
    """One line in 250 costs nothing."""
    return _Lines(**{**vars(lines), "price": np.where(random.random(len(lines.at)) < 0.004, 0.0, lines.price)})


def _refund_lines(random: np.random.Generator, people: _People, sold: _Lines) -> _Lines:
    """Refund invoices 1 to 14 days later: the whole order, or some lines of it, each in whole or about half."""
    known = np.flatnonzero((sold.person >= 0) & (sold.price > 0))
    orders, first = np.unique(sold.invoice[known], return_index=True)
    at = sold.at[known][first]
    leaving = people.leaves[sold.person[known][first]] - at < 45 * _DAY
    chance = people.returns[sold.person[known][first]] * np.where(leaving, 2.5, 1.0)
    back_at = at + random.integers(1, 15, len(at)) * _DAY + random.integers(-60, 60, len(at))
    chosen = (random.random(len(at)) < chance) & (back_at < DAYS * _DAY)
    whole = random.random(len(at)) < 0.4
    place = np.searchsorted(orders, sold.invoice[known])
    lines = chosen[place] & (whole[place] | (random.random(len(known)) < 0.35))
    back, place = sold.take(known[lines]), place[lines]
    part = ~whole[place] & (random.random(len(place)) < 0.5)
    return _Lines(
        invoice=sold.invoice.max() + 1 + place,
        kind=np.full(len(place), _REFUND),
        at=back_at[place],
        person=back.person,
        product=back.product,
        quantity=-np.where(part, (back.quantity + 1) // 2, back.quantity),
        price=back.price,
    )


def _odd_lines(random: np.random.Generator, products: _Products, lines: int, first_invoice: int) -> _Lines:
    """Breakages (negative quantity, no price, no customer, no C) and bad-debt adjustments (A, negative price)."""
    broken, adjusted = max(int(lines * 0.0025), 2), max(lines // 60_000, 2)
    count = broken + adjusted
    is_adjusted = np.arange(count) >= broken
    return _Lines(
        invoice=first_invoice + np.arange(count),
        kind=np.where(is_adjusted, _ADJUSTMENT, _SALE),
        at=_opening_hours(random, random.random(count) * (DAYS - 1) * _DAY),
        person=np.full(count, -1),
        product=np.where(is_adjusted, len(products.price) + 1, random.integers(0, len(products.price), count)),
        quantity=np.where(is_adjusted, 1, -random.integers(1, 200, count)),
        price=np.where(is_adjusted, -np.round(random.uniform(1_000, 12_000, count), 2), 0.0),
    )


def _late_landings(random: np.random.Generator, table: _Lines, refunds: _Lines) -> Array:
    """Minute at which each line landed, -1 for at once: some whole invoices 1 to 6 days late, none after the end."""
    invoices, place = np.unique(table.invoice, return_inverse=True)
    late = random.random(len(invoices)) < 0.006
    delay = random.integers(_DAY, 6 * _DAY, len(invoices))
    fits = (table.kind == _SALE) & (table.at + 6 * _DAY < table.at.max())
    # What is sent back was booked before: an order that has a refund landed in time.
    refunded = np.isin(table.person * (1 << 32) + table.product, refunds.person * (1 << 32) + refunds.product)
    in_time = np.bincount(place, weights=~fits | refunded) > 0
    return np.where((late & ~in_time)[place], table.at + delay[place], -1)


def _table(
    random: np.random.Generator, table: _Lines, landed: Array, people: _People, products: _Products, start: datetime
) -> pa.Table:
    count, known = len(products.price), table.person >= 0
    service = table.product >= count
    renamed = ~service & (table.at >= products.description_changes[np.minimum(table.product, count - 1)])
    description = np.where(service, 2 * count + table.product - count, table.product + renamed * count)
    description[(table.kind == _SALE) & (table.quantity < 0)] = 2 * count + 2
    moved = random.random(len(people.number)) < 0.004
    moves_at = random.integers(90, 300, len(people.number)) * _DAY
    home = people.country[table.person]
    country = np.where(known, np.where(moved[table.person] & (table.at >= moves_at[table.person]), 1, home), 0)
    invoices, place = np.unique(table.invoice, return_inverse=True)
    rank = np.empty(len(invoices), np.int64)  # invoices are numbered in order of time
    rank[np.argsort(table.at[np.unique(place, return_index=True)[1]], kind="stable")] = np.arange(len(invoices))
    prefix = np.array(["", "C", "A"])[table.kind]
    numbers = np.char.add(prefix, (_FIRST_INVOICE + rank[place]).astype(str))
    return pa.table(
        [
            pa.array(numbers, pa.string()),
            pa.array(products.code).take(pa.array(table.product)),
            pa.array(products.descriptions).take(pa.array(description)),
            pa.array(table.quantity, pa.int64()),
            _instants(table.at, start),
            pa.array(table.price, pa.float64()),
            pa.array(people.number[table.person], pa.int64(), mask=~known),
            pa.array(_COUNTRIES).take(pa.array(country)),
            _instants(landed, start, mask=landed < 0),
            pa.nulls(len(landed), pa.string()),
        ],
        schema=LINE_SCHEMA,
    )


def _instants(minutes: Array, start: datetime, mask: Array | None = None) -> pa.Array:
    return pa.array(np.datetime64(start, "us") + minutes.astype("timedelta64[m]"), pa.timestamp("us"), mask=mask)


def _truth(seed: int, table: _Lines, landed: Array, copies: int, start: datetime, drift: bool) -> GroundTruth:
    known, sale = table.person >= 0, table.kind == _SALE
    return GroundTruth(
        seed=seed,
        lines=len(table.at),
        customers=len(np.unique(table.person[known])),
        purchase_lines=int(np.sum(known & sale & (table.quantity > 0) & (table.price > 0))),
        exact_duplicates=copies,
        late_lines=int(np.sum(landed >= 0)),
        refund_lines=int(np.sum(table.kind == _REFUND)),
        adjustment_lines=int(np.sum(table.kind == _ADJUSTMENT)),
        unknown_customer_lines=int(np.sum(~known)),
        negative_quantity_lines=int(np.sum(sale & (table.quantity < 0))),
        nonpositive_price_lines=int(np.sum(table.price <= 0)),
        first_event_at=start + timedelta(minutes=int(table.at.min())),
        last_event_at=start + timedelta(minutes=int(table.at.max())),
        drift_start=start + timedelta(days=DAYS - DRIFT_DAYS) if drift else None,
        drift_features=_DRIFT_FEATURES if drift else (),
    )
