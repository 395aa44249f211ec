"""The sample's sentences are true of everybody to whom they are told."""

from collections import Counter

from mlops_assets.credit_risk.sample_spec import default_spec

SPEC = default_spec()


def test_every_sentence_says_what_was_compared_and_states_no_fact_that_may_be_false() -> None:
    for theme in SPEC.themes.values():
        assert "compared with" in theme.sentence
        assert " or " not in theme.sentence


def test_only_the_record_of_payments_is_made_of_two_features() -> None:
    shared = Counter(feature.theme for feature in SPEC.declared)
    assert set(shared) == set(SPEC.themes)
    assert [theme for theme, count in shared.items() if count > 1] == ["payment_history"]
