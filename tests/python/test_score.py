"""score() against the whole distribution that top_logprobs_num gives."""
import math

import numpy as np
import pytest

QUERY = [1, 5, 9, 13]
ITEMS = [[20, 21], [30], [40, 41, 42]]
LABELS = [7, 300, 12]


def distribution(engine, input_ids):
    """Probability by token id, of the token after input_ids."""
    meta = engine.generate(input_ids=input_ids, sampling_params={"max_new_tokens": 1, "temperature": 0},
                           return_logprob=True, top_logprobs_num=512)["meta_info"]
    probabilities = {token_id: math.exp(logprob) for logprob, token_id, _ in meta["output_top_logprobs"][0]}
    assert len(probabilities) == 512 and sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
    return probabilities


@pytest.mark.parametrize("item_first", [False, True])
def test_probabilities(tiny, item_first):
    scores = tiny.score(QUERY, ITEMS, LABELS, item_first=item_first)
    softmax = tiny.score(np.array(QUERY), [np.array(item) for item in ITEMS], np.array(LABELS), True, item_first)
    for item, row, shares in zip(ITEMS, scores, softmax):
        whole = distribution(tiny, item + QUERY if item_first else QUERY + item)
        assert row == pytest.approx([whole[label] for label in LABELS], rel=1e-5)
        assert shares == pytest.approx([value / sum(row) for value in row], rel=1e-5)
        assert sum(shares) == pytest.approx(1)
    assert tiny.score(QUERY, [], LABELS) == []


def test_of_text(text_engine):
    encode = text_engine.get_tokenizer().encode
    assert text_engine.score("abc ", ["de", "f"], LABELS) == text_engine.score(
        [], [encode("abc de"), encode("abc f")], LABELS)
    assert text_engine.score("abc ", "de", LABELS, item_first=True) == text_engine.score(
        [], [encode("deabc ")], LABELS)


def test_what_items_share_is_computed_once(tiny):
    tiny.flush_cache()
    query = list(range(1, 200))
    before = tiny.stats()
    tiny.score(query, [[300 + i] for i in range(8)], LABELS)
    after = tiny.stats()
    assert after["cached_tokens"] - before["cached_tokens"] >= 7 * len(query)


@pytest.mark.parametrize("arguments, error, message", [
    (("a", [1], LABELS), TypeError, "items must be str or a list of str where query is str"),
    ((QUERY, ["a"], LABELS), TypeError, "items must be a list of lists of int where query is token ids"),
    ((QUERY, [1, 2], LABELS), TypeError, "items must be a list of lists of int"),
    ((3, ITEMS, LABELS), TypeError, "query must be str or a list of int, got int"),
    ((QUERY, ITEMS, []), ValueError, "label_token_ids must be a non-empty list of int"),
    ((QUERY, ITEMS, ["yes"]), TypeError, "label_token_ids must be a list of int, got"),
    ((QUERY, ITEMS, 7), TypeError, "label_token_ids must be a list of int, got 7"),
    ((QUERY, ITEMS, [512]), ValueError, r"out-of-vocabulary token id 512; valid range is \[0, 512\)"),
    ((QUERY, [[1], [2] * 600], LABELS), ValueError, r"items\[1\]: The input \(604 tokens\) is longer than"),
])
def test_errors(tiny, arguments, error, message):
    with pytest.raises(error, match=message):
        tiny.score(*arguments)
