"""Text is cut into single policies, each as its author wrote it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from licet_policies import PolicySourceError
from licet_policies.source import parse_policies

SCOPE = "(principal, action, resource)"


def test_text_with_semicolons_in_strings_and_comments_is_cut_where_a_policy_ends() -> None:
    first = f'@id("a.one")\n@title("one; \\" two; // three")\npermit {SCOPE} // four; five "\nwhen {{ true }};'
    second = f'@id("a.two") forbid {SCOPE};'
    found = parse_policies(f'// A remark; with "a quote.\n{first}\n\n  {second}  // The end;', "tenant")
    assert [policy.text for policy in found] == [first, second]
    assert [(policy.id, policy.effect, policy.source) for policy in found] == [
        ("a.one", "permit", "tenant"),
        ("a.two", "forbid", "tenant"),
    ]
    assert found[0].annotations["title"] == 'one; " two; // three'


def test_annotations_cannot_be_changed() -> None:
    (policy,) = parse_policies(f'@id("a.one") permit {SCOPE};', "tenant")
    with pytest.raises(TypeError):
        policy.annotations["id"] = "a.other"  # type: ignore[index]


@settings(deadline=None)
@given(st.lists(st.text(max_size=20), max_size=5))
def test_whatever_stands_in_strings_and_comments_the_policies_are_found(words: list[str]) -> None:
    texts = []
    for number, word in enumerate(words):
        quoted = "".join(f"\\u{{{ord(char):x}}}" if ord(char) < 32 or char in '"\\' else char for char in word)
        comment = "".join(char for char in word if char.isprintable())
        texts.append(
            f'@id("a.n{number}")\n@title("{quoted}")\npermit {SCOPE} // {comment}\nwhen {{ "{quoted}" == "" }};'
        )
    found = parse_policies("\n".join(texts), "tenant")
    assert [policy.text for policy in found] == texts
    assert [policy.annotations["title"] for policy in found] == words


@settings(deadline=None)
@given(st.text(alphabet='@id("a.b") permitforbid;/\\\n{}', max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_policies(text, "tenant")
    except PolicySourceError:
        return
    assert all(policy.id and policy.text.endswith(";") for policy in found)
