import pytest

from lever_mlflow.answer_cache import AnswerCache, cached_answers
from lever_mlflow.exceptions import DataError
from lever_mlflow.types import Prompt


class Counter:
    """A generator of answers that counts, in batches of two, and can be made to die."""

    def __init__(self, die_after=None):
        self.prompts, self.die_after = [], die_after

    def __call__(self, prompts):
        for start in range(0, len(prompts), 2):
            if self.die_after is not None and len(self.prompts) >= self.die_after:
                raise KeyboardInterrupt
            batch = list(prompts[start : start + 2])
            self.prompts += batch
            yield [(start + i, f"answer to {prompt.query.question}") for i, prompt in enumerate(batch)]


def key(prompt):
    return prompt.query.question


@pytest.fixture
def prompts(samples):
    return [Prompt((), samples[i]) for i in (0, 1, 0, 2, 3, 1)]


def test_equal_prompts_are_generated_once_and_order_is_kept(tmp_path, prompts):
    generate = Counter()
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        answers = cached_answers(prompts, key, generate, cache)
    assert answers.generated == len(generate.prompts) == 4
    assert answers.texts == [f"answer to question {i}?" for i in (0, 1, 0, 2, 3, 1)]


def test_known_answers_are_not_generated_again(tmp_path, prompts):
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        first = cached_answers(prompts, key, Counter(), cache)
    generate = Counter()
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        assert cached_answers(prompts, key, generate, cache).texts == first.texts
    assert generate.prompts == []


def test_finished_batches_survive_an_interruption(tmp_path, prompts):
    with AnswerCache(tmp_path / "a.sqlite") as cache, pytest.raises(KeyboardInterrupt):
        cached_answers(prompts, key, Counter(die_after=2), cache)
    generate = Counter()
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        cached_answers(prompts, key, generate, cache)
    assert [prompt.query.question for prompt in generate.prompts] == ["question 2?", "question 3?"]


def test_another_file_is_not_taken_for_a_cache(tmp_path):
    (tmp_path / "a.sqlite").write_bytes(b"something else" * 100)
    with pytest.raises(DataError, match=r"a\.sqlite: not usable as the answer cache"):
        AnswerCache(tmp_path / "a.sqlite")


def test_many_keys_are_looked_up(tmp_path):
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        cache.put([(str(i), f"t{i}") for i in range(1234)])
        assert cache.get([str(i) for i in range(1300)]) == {str(i): f"t{i}" for i in range(1234)}
