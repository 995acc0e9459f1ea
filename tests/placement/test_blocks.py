"""How slots are divided into blocks, and who holds them."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from yatt.placement.plan import EngineSite, Layout, arrange

ROLES = ("policy", "judge", "style")


def test_a_block_holds_whole_engines_of_every_role():
    layout = Layout(slots=tuple(range(8)), sizes={"policy": 1, "judge": 4})
    assert layout.blocks == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert layout.engines("judge", [1]) == [EngineSite(role="judge", slots=(4, 5, 6, 7))]
    assert layout.engines("policy", [1]) == [EngineSite(role="policy", slots=(slot,)) for slot in (4, 5, 6, 7)]
    awake = layout.awake(("policy", "judge"))
    assert awake == dict.fromkeys(range(4), frozenset({"policy"})) | dict.fromkeys(range(4, 8), frozenset({"judge"}))


def test_slots_without_engines_are_blocks_of_one():
    assert Layout(slots=(0, 1), sizes={}).blocks == ((0,), (1,))


def test_as_few_blocks_as_possible_change_hands():
    assert arrange({"policy": 2, "judge": 1}) == ("policy", "policy", "judge")
    assert arrange({"policy": 1, "judge": 2}, ("policy", "policy", "judge")) == ("policy", "judge", "judge")
    assert arrange({"policy": 3, "judge": 0}, ("policy", "judge", "judge")) == ("policy", "policy", "policy")

    # Of a role that loses blocks those with the least work; the last ones among equals.
    held = ("policy", "policy", "policy", "judge")
    assert arrange({"policy": 1, "judge": 3}, held, (5, 2, 3, 0)) == ("policy", "judge", "judge", "judge")
    assert arrange({"policy": 2, "judge": 2}, held, (5, 2, 2, 0)) == ("policy", "policy", "judge", "judge")


@given(before=st.lists(st.sampled_from(ROLES), min_size=1, max_size=12), data=st.data())
def test_any_split_is_reached_by_the_fewest_changes(before, data):
    after = data.draw(st.lists(st.sampled_from(ROLES), min_size=len(before), max_size=len(before)))
    split = {role: after.count(role) for role in ROLES}
    reached = arrange(split, before)
    assert Counter(reached) == Counter(after)
    changed = sum(a != b for a, b in zip(before, reached, strict=True))
    assert changed == sum((Counter(after) - Counter(before)).values())
