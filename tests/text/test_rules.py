"Rules are applied in their order, with and without the index."
import random
import re

from metavoice.text.rules import Rule, RuleSet, apply_rules


def test_rules_see_the_words_of_earlier_ones():
    rules = [Rule("a", "a", lambda m, language: "b", "a"), Rule("b", "b+", lambda m, language: m[0].upper(), "b")]
    assert apply_rules("xa", rules) == "xB" and apply_rules("xa", rules[::-1]) == "xb"
    assert apply_rules("a", [Rule("none", "a", lambda m, language: None)]) == "a"
    assert apply_rules("a", [Rule("language", "a", lambda m, language: language)], "en-GB") == "en-GB"


def test_index_skips_only_rules_that_cannot_match():
    rng = random.Random(0)
    for _ in range(300):
        rules = []
        for n, key in enumerate(rng.choices("abcde", k=40)):
            new, needs = rng.choice("abcde"), rng.choice([key, key + "z", ""])
            rules.append(Rule(str(n), re.compile(key), lambda m, language, new=new: new, needs))
        text = "".join(rng.choices("abcdefg ", k=rng.randint(0, 9)))
        expected = text
        for rule in rules:
            expected = rule.pattern.sub(lambda m, rule=rule: rule.say(m, "en"), expected)
        assert RuleSet(rules).apply(text) == expected
