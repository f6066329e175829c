from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.learning import csls, looks
from alignment.learning.looks import ByteLook, FloatLook

SIDE = 64
exact = pytest.mark.skipif(
    not looks.bytes_are_exact(200, SIDE), reason="this processor's products in 8 bits saturate"
)
in_bytes = pytest.param(ByteLook, marks=exact)


def unit_rows(count: int, width: int, seed: int) -> torch.Tensor:
    """Random directions, among them coordinate axes and a row of zeros."""
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    rows[1:4] = torch.eye(width)[:3]
    rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows[4] = 0
    return rows


@pytest.mark.parametrize(
    ("kind", "scale", "width"),
    [
        (FloatLook, 1, 200),
        pytest.param(ByteLook, 1, 32, marks=exact),
        pytest.param(ByteLook, 1, 200, marks=exact),
        pytest.param(ByteLook, 1e-3, 32, marks=exact),
    ],
)
def test_no_product_is_further_off_than_a_look_says(kind, scale, width):
    source, target = unit_rows(150, width, 0), scale * unit_rows(130, width, 1)
    look = kind(source, target, SIDE)
    seen = torch.zeros(len(target), len(source), dtype=torch.int64)
    furthest = 0.0
    for start in range(0, len(target), SIDE):
        block = target[start : start + SIDE]
        for square in look.squares(start):
            seen[start : start + SIDE, square.rows] += 1
            exact = block.double() @ source[square.rows].double().T
            off = (square.values.double() * square.unit[:, None] - exact).abs()
            assert (off <= square.error[:, None]).all()
            furthest = max(furthest, float(square.error.max()))
    assert (seen == 1).all()
    assert furthest < (0.08 * scale if kind is ByteLook else 0) + 1e-3  # a bound that says nothing would hold


@pytest.mark.parametrize("kind", [in_bytes])
@pytest.mark.parametrize("swapped", [False, True])
def test_what_rounding_takes_can_be_all_of_a_product(kind, swapped):
    """A row with one large number loses all the others, which another row points along."""
    width = 64
    large = torch.full((1, width), 0.0039)
    large[0, 0] = 1
    even = torch.full((1, width), 1 / width**0.5)
    even[0, 0] = 0
    source, target = (even, large) if swapped else (large, even)
    square = next(kind(source, target, SIDE).squares(0))
    exact = float((source * target).sum())
    assert exact == pytest.approx(0.0039 * (width - 1) / width**0.5, rel=1e-3)
    assert float(square.values[0, 0] * square.unit[0]) == 0
    assert exact < float(square.error[0]) < 1.05 * exact + 2e-3


def test_rounding_adds_up_over_numbers_of_one_size():
    width = 18_432
    rows = torch.full((4, width), width**-0.5)
    square = next(FloatLook(rows, rows, SIDE).squares(0))
    off = (square.values.double() - rows[:1].double().square().sum()).abs()
    assert (off < square.error[:, None]).all()


@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=9))
def test_values_of_a_product_are_not_below_its_least(products):
    look = ByteLook(unit_rows(9, 16, 0), unit_rows(9, 16, 1)[: len(products)], SIDE)
    square = next(look.squares(0))
    wanted = torch.tensor(products)
    least = square.least(wanted)
    assert least.dtype == torch.int32
    reach = torch.ceil(wanted.double() / square.unit).clamp(
        -(2.0**30), 2.0**30
    )  # that of a row of zeros is far off
    assert (least <= reach).all()
    assert (least >= reach - 1 - 1e-6 * reach.abs()).all()


def test_inner_products_of_pairs():
    source, target = unit_rows(50, 24, 0), unit_rows(40, 24, 1)
    rows = torch.randint(50, (300,), generator=torch.Generator().manual_seed(2))
    columns = torch.randint(40, (300,), generator=torch.Generator().manual_seed(3)).sort()[0]
    exact = (source[rows].double() * target[columns].double()).sum(dim=1)
    torch.testing.assert_close(
        looks.inner_products(source, target, rows, columns).double(), exact, atol=1e-6, rtol=0
    )
    assert looks.inner_products(source, target, rows[:0], columns[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("exact", "faster", "chosen"), [(True, True, ByteLook), (False, True, FloatLook), (True, False, FloatLook)]
)
def test_8_bits_are_taken_where_they_are_exact_and_faster(exact, faster, chosen, monkeypatch):
    monkeypatch.setattr(looks, "bytes_are_exact", lambda width, side: exact)
    monkeypatch.setattr(looks, "bytes_are_faster", lambda width, side: faster)
    table = unit_rows(900, 16, 0)
    assert isinstance(looks.choose(table, table, SIDE), chosen)
    assert isinstance(looks.choose(table[:200], table, SIDE), FloatLook)  # too few to try both


def test_both_are_timed():
    assert looks.bytes_are_faster(16, SIDE) in (True, False)


def test_a_processor_that_saturates_is_found_out(monkeypatch):
    honest = looks._whole_products
    monkeypatch.setattr(looks, "_whole_products", lambda *given: honest(*given).clamp_(max=32767))
    assert not looks.bytes_are_exact.__wrapped__(16, SIDE)


@pytest.mark.parametrize("kind", [FloatLook, in_bytes])
@pytest.mark.parametrize("hinted", [False, True])
def test_few_pairs_are_computed_again(kind, hinted):
    """Rows of zeros, which no threshold is as low as, must not let everything through."""
    source, target = unit_rows(600, 64, 0), unit_rows(128, 64, 1)
    target[40:120] = source[300:380]
    source[:SIDE] = target[:8] = 0
    highest = torch.full((SIDE,), -torch.inf)
    if hinted:
        highest[40:] = 1 - 1e-5
    counts = torch.ones(SIDE, dtype=torch.bool)
    look = kind(source, target, SIDE)
    row, column = csls._candidates(look.squares(0), counts, highest, 0.3, torch.full((600,), 0.3))
    pairs = set(zip(row.tolist(), column.tolist(), strict=True))
    assert pairs >= {(300 + place, 40 + place) for place in range(24)}
    similar = source.double() @ target[:SIDE].double().T
    matter = 2 * similar - similar.amax(dim=0) >= 0.3 - 0.15
    matter &= similar.amax(dim=0) > 0.25
    assert len(pairs) <= int(matter.sum())


@pytest.mark.parametrize("look", [in_bytes])
def test_a_look_changes_no_bit_of_what_is_found(look, monkeypatch):
    source, target = unit_rows(400, 48, 0), unit_rows(500, 48, 1)
    target[100:300] = source[50:250] + 0.05 * target[100:300]
    target /= torch.linalg.vector_norm(target, dim=1, keepdim=True).clamp_(min=1e-9)
    monkeypatch.setattr(csls, "_CELLS", 96 * 96)
    none = torch.empty(0, 2, dtype=torch.int64)
    right = torch.stack([torch.arange(50, 250), torch.arange(100, 300)], dim=1)
    wrong = right.flip(0)
    found = []
    for one, near in ((FloatLook, none), (FloatLook, right), (look, none), (look, right), (look, wrong)):
        monkeypatch.setattr(csls, "choose", one)
        found.append(csls.nearest(source, target, top=5, threshold=0.1, uncorrected=none[:, 0], near=near))
    assert all(torch.equal(ids, found[0][0]) and torch.equal(scores, found[0][1]) for ids, scores in found)
    assert (found[0][0][50:250, 0] == torch.arange(100, 300)).sum() > 190
